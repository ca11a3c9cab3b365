// The online softmax of arXiv:2112.05682 over tiles of keys; its products are those of gemm.h.
//
// Query rows are taken a block at a time past the packed tile of keys, so that a block's scores stay near the processor
// and keys that none of its tokens sees cost nothing.
#include "prompt.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "gemm_local.h"

namespace codellama {
namespace {

constexpr int64_t kRows = 32;   // of a block of queries, in whole tiles
constexpr int64_t kKeys = 256;  // of a tile of keys

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }
int64_t block_rows(const GemmKernels& kernels) { return round_up(kRows, kernels.rows); }

struct Scratch {
  Scratch(const GemmKernels& kernels, int64_t rows, int64_t width, float* memory) {
    const LocalGemm g(kernels);
    const int64_t block = block_rows(kernels);
    const struct {
      float** part;
      int64_t floats;
    } parts[] = {
        {&query, block * width},
        {&query_a, g.packed_floats(rows, width)},
        {&keys_b, g.packed_floats(kKeys, width)},
        {&values_b, g.packed_floats(width, kKeys)},
        {&scores, block * kKeys},
        {&scores_a, g.packed_floats(block, kKeys)},
        {&mixed, rows * width},
        {&largest, rows},
        {&total, rows},
    };
    for (const auto& part : parts) {
      *part.part = memory ? memory + floats : nullptr;
      floats += round_up(part.floats, 16);
    }
  }

  float *query, *query_a, *keys_b, *values_b, *scores, *scores_a, *mixed, *largest, *total;
  int64_t floats = 0;
};

// Keys that the furthest of the tokens of rows begin..end sees.
int64_t seen_by(const Attend& a, int64_t begin, int64_t end) {
  const auto most = std::max_element(a.positions + begin / a.group, a.positions + (end - 1) / a.group + 1);
  return *most + 1;
}

}  // namespace

int64_t attend_prompt_scratch(const GemmKernels& kernels, int64_t rows, int64_t width) {
  return Scratch(kernels, rows, width, nullptr).floats;
}

void attend_prompt(const GemmKernels& kernels, const Attend& a, float* scratch) {
  const Kernels& k = codellama::kernels();
  const LocalGemm g(kernels);
  const int64_t rows = a.tokens * a.group, width = a.width, block = block_rows(kernels);
  const Scratch own(kernels, rows, width, scratch);
  const int64_t query_floats = g.sliver_floats(kernels.rows, width) * (block / kernels.rows);
  const float scale = a.scale * 1.44269504f;  // the weights are powers of two
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t here = std::min(block, rows - first);
    for (int64_t i = 0; i < here; ++i) {
      const float* from = a.query + (first + i) / a.group * a.token_stride + (first + i) % a.group * width;
      for (int64_t d = 0; d < width; ++d) own.query[i * width + d] = from[d] * scale;
    }
    g.pack_a({own.query, width, true}, here, width, own.query_a + first / block * query_floats);
  }
  std::fill(own.mixed, own.mixed + rows * width, 0.0f);
  std::fill(own.largest, own.largest + rows, -INFINITY);
  std::fill(own.total, own.total + rows, 0.0f);
  const int64_t end = std::min(a.end, seen_by(a, 0, rows)), step = width * bytes_of(a.type);
  kernels.enter();
  for (int64_t key = a.begin; key < end; key += kKeys) {
    const int64_t count = std::min(kKeys, end - key);
    g.pack_b({static_cast<const char*>(a.keys) + key * step, width, true, a.type}, count, width, own.keys_b);
    g.pack_b({static_cast<const char*>(a.values) + key * step, width, false, a.type}, width, count, own.values_b);
    for (int64_t first = 0; first < rows; first += block) {
      const int64_t here = std::min(block, rows - first), seen = std::min(count, seen_by(a, first, first + here) - key);
      if (seen <= 0) continue;
      g.multiply(here, seen, width, own.query_a + first / block * query_floats, own.keys_b, own.scores, kKeys, false);
      for (int64_t i = 0; i < here; ++i) {
        const int64_t row = first + i, visible = a.positions[row / a.group] + 1 - key;
        k.weigh(own.scores + i * kKeys, std::clamp<int64_t>(visible, 0, seen), seen, own.mixed + row * width, width,
                own.largest + row, own.total + row);
      }
      g.pack_a({own.scores, kKeys, true}, here, seen, own.scores_a);
      g.multiply(here, width, seen, own.scores_a, own.values_b, own.mixed + first * width, width, true, count);
    }
  }
  kernels.leave();
  for (int64_t row = 0; row < rows; ++row) {
    float* to = a.mixed + (row / a.group * a.token_slots + row % a.group * a.head_slots) * width;
    const float factor = 1.0f / own.total[row];
    for (int64_t d = 0; d < width; ++d) to[d] = own.mixed[row * width + d] * factor;
  }
}

}  // namespace codellama
