// Cuts a product into blocks and tiles and shares them out; the arithmetic is in gemm_fma.cpp and gemm_amx.cpp.
#include "gemm.h"

#include <unistd.h>

#include <algorithm>

#include "pool.h"

namespace codellama {
namespace {

constexpr int64_t kMostLines = 4096;  // of a packed block: bounds the scratch, and packing again costs a thousandth
constexpr int64_t kTasks = 12;        // a member, at least, where the tiles allow: keeps the last one's wait short

int64_t divide_up(int64_t value, int64_t step) { return (value + step - 1) / step; }
int64_t round_up(int64_t value, int64_t step) { return divide_up(value, step) * step; }

// Bytes of the cache that each core has to itself.
int64_t private_cache() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const int64_t size = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (size > 0) return size;
#endif
  return 512 << 10;
}

// Equal parts of at most `most`, in whole `multiple`s.
int64_t part(int64_t whole, int64_t most, int64_t multiple) {
  return round_up(divide_up(whole, divide_up(whole, most)), multiple);
}

struct Blocks {
  Blocks(const GemmKernels& k, int64_t rows, int64_t columns, int64_t depth)
      : rows(part(rows, kMostLines, k.rows)),
        columns(part(columns, kMostLines, k.columns)),
        depth(part(depth, k.block_depth, k.depth_multiple)) {}

  int64_t rows, columns, depth;
};

struct Block {
  int64_t row, rows, column, columns, k, depth;
};

void pack(Pool& pool, const GemmKernels& kernels, const Gemm& g, const Block& b, char* a_packed, char* b_packed) {
  const int64_t padded = round_up(b.depth, kernels.depth_multiple);
  const int64_t a_slivers = divide_up(b.rows, kernels.rows), b_slivers = divide_up(b.columns, kernels.columns);
  const int64_t a_bytes = kernels.rows * padded * kernels.element_bytes;
  const int64_t b_bytes = kernels.columns * padded * kernels.element_bytes;
  pool.run([&](Member& member) {
    member.share(0, a_slivers + b_slivers, 2, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (i < a_slivers) {
          const int64_t line = i * kernels.rows;
          kernels.pack_a(g.a, b.row + line, std::min(kernels.rows, b.rows - line), b.k, b.depth, a_packed + i * a_bytes);
        } else {
          const int64_t line = (i - a_slivers) * kernels.columns;
          kernels.pack_b(g.b, b.column + line, std::min(kernels.columns, b.columns - line), b.k, b.depth,
                         b_packed + (i - a_slivers) * b_bytes);
        }
      }
    });
  });
}

void multiply(Pool& pool, const GemmKernels& kernels, const Gemm& g, const Block& b, const char* a_packed,
              const char* b_packed) {
  const int64_t padded = round_up(b.depth, kernels.depth_multiple);
  const int64_t a_slivers = divide_up(b.rows, kernels.rows), b_slivers = divide_up(b.columns, kernels.columns);
  const int64_t a_bytes = kernels.rows * padded * kernels.element_bytes;
  const int64_t b_bytes = kernels.columns * padded * kernels.element_bytes;
  const bool add = g.add || b.k > 0;
  // A task runs one sliver of B past a group of A's, which stays in the core's own cache while B's pass by.
  const int64_t fitting = std::max<int64_t>(1, private_cache() / 2 / a_bytes);
  const int64_t wanted = divide_up(a_slivers * b_slivers, kTasks * pool.size());
  const int64_t group = part(a_slivers, std::min(fitting, std::max<int64_t>(1, wanted)), 1);
  const int64_t groups = divide_up(a_slivers, group);
  pool.run([&](Member& member) {
    kernels.enter();
    member.share(0, groups * b_slivers, 1, [&](int64_t task, int64_t) {
      const int64_t first = task / b_slivers * group, j = task % b_slivers;
      const int64_t column = j * kernels.columns, columns = std::min(kernels.columns, b.columns - column);
      for (int64_t i = first; i < std::min(first + group, a_slivers); ++i) {
        const int64_t row = i * kernels.rows, rows = std::min(kernels.rows, b.rows - row);
        float* c = g.c + (b.row + row) * g.stride + b.column + column;
        kernels.tile(padded, a_packed + i * a_bytes, b_packed + j * b_bytes, c, g.stride, rows, columns, add);
      }
    });
    kernels.leave();
  });
}

}  // namespace

int64_t gemm_scratch(int64_t rows, int64_t columns, int64_t depth) {
  const GemmKernels& kernels = gemm_kernels();
  const Blocks blocks(kernels, rows, columns, depth);
  return (blocks.rows + blocks.columns) * blocks.depth * kernels.element_bytes / 4 + 16;
}

void gemm(Pool& pool, const Gemm& g, float* scratch, const GemmKernels& kernels) {
  const Blocks blocks(kernels, g.rows, g.columns, g.depth);
  char* a_packed = reinterpret_cast<char*>(scratch);
  char* b_packed = a_packed + round_up(blocks.rows * blocks.depth * kernels.element_bytes, 64);
  for (int64_t row = 0; row < g.rows; row += blocks.rows) {
    for (int64_t column = 0; column < g.columns; column += blocks.columns) {
      for (int64_t k = 0; k < g.depth; k += blocks.depth) {
        const Block block{row,    std::min(blocks.rows, g.rows - row),
                          column, std::min(blocks.columns, g.columns - column),
                          k,      std::min(blocks.depth, g.depth - k)};
        pack(pool, kernels, g, block, a_packed, b_packed);
        multiply(pool, kernels, g, block, a_packed, b_packed);
      }
    }
  }
}

}  // namespace codellama
