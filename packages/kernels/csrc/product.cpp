#include "product.h"

#include <algorithm>

namespace codellama {
namespace {

constexpr int64_t kWeightBytes = 512 << 10;  // packed at a time: stays in a core's own cache beside the tokens
constexpr int64_t kTasks = 4;                // a member, at least, where there are rows enough: keeps the last wait short

int64_t divide_up(int64_t value, int64_t step) { return (value + step - 1) / step; }
int64_t round_up(int64_t value, int64_t step) { return divide_up(value, step) * step; }

// Depth of a packed block of weights, and how many slivers of them are packed at a time.
int64_t block_depth(const GemmKernels& k, int64_t columns) {
  return round_up(std::min(columns, k.block_depth), k.depth_multiple);
}
int64_t block_slivers(const GemmKernels& k, int64_t columns) {
  return std::max<int64_t>(1, kWeightBytes / (k.columns * block_depth(k, columns) * k.element_bytes));
}

}  // namespace

PackedTokens::PackedTokens(const GemmKernels& kernels, int64_t tokens, int64_t columns, float* memory)
    : kernels_(kernels),
      tokens_(tokens),
      columns_(columns),
      sliver_bytes_(kernels.rows * round_up(columns, kernels.depth_multiple) * kernels.element_bytes),
      packed_(reinterpret_cast<char*>(memory)) {}

int64_t PackedTokens::floats(const GemmKernels& kernels, int64_t tokens, int64_t columns) {
  return round_up(tokens, kernels.rows) * round_up(columns, kernels.depth_multiple) * kernels.element_bytes / 4;
}

int64_t PackedTokens::weight_floats(const GemmKernels& kernels, int64_t columns) {
  return block_slivers(kernels, columns) * kernels.columns * block_depth(kernels, columns) * kernels.element_bytes / 4;
}

int64_t PackedTokens::slivers() const { return divide_up(tokens_, kernels_.rows); }

int64_t PackedTokens::tokens_of(int64_t sliver) const {
  return std::min(kernels_.rows, tokens_ - sliver * kernels_.rows);
}

void PackedTokens::pack(int64_t sliver, const float* x, int64_t ldx) const {
  kernels_.pack_a({x, ldx, true}, 0, tokens_of(sliver), 0, columns_, packed_ + sliver * sliver_bytes_);
}

int64_t PackedTokens::rows_at_a_time(const Matrix& w, int64_t members) const {
  const int64_t slivers = divide_up(w.rows, kernels_.columns);
  return kernels_.columns * std::clamp<int64_t>(slivers / (kTasks * members), 1, block_slivers(kernels_, columns_));
}

void PackedTokens::multiply(const Matrix& w, int64_t begin, int64_t end, float* out, int64_t ldo, bool add,
                            float* scratch) const {
  const Operand weight{w.data, w.columns, true, w.type, w.scales};
  const int64_t width = kernels_.columns, at_a_time = width * block_slivers(kernels_, columns_);
  char* packed_weight = reinterpret_cast<char*>(scratch);
  kernels_.enter();
  for (int64_t row = begin; row < end; row += at_a_time) {
    const int64_t rows = std::min(at_a_time, end - row);
    for (int64_t k = 0; k < columns_; k += kernels_.block_depth) {
      const int64_t depth = std::min(kernels_.block_depth, columns_ - k);
      const int64_t padded = round_up(depth, kernels_.depth_multiple);
      const int64_t weight_bytes = width * padded * kernels_.element_bytes;
      for (int64_t j = 0; j < rows; j += width) {
        kernels_.pack_b(weight, row + j, std::min(width, rows - j), k, depth, packed_weight + j / width * weight_bytes);
      }
      for (int64_t sliver = 0; sliver < slivers(); ++sliver) {
        const char* tokens = packed_ + sliver * sliver_bytes_ + k * kernels_.rows * kernels_.element_bytes;
        float* to = out + sliver * kernels_.rows * ldo + row;
        for (int64_t j = 0; j < rows; j += width) {
          kernels_.tile(padded, tokens, packed_weight + j / width * weight_bytes, to + j, ldo, tokens_of(sliver),
                        std::min(width, rows - j), add || k > 0);
        }
      }
    }
  }
  kernels_.leave();
}

}  // namespace codellama
