// Cuts a product into blocks and tiles and shares them out; the arithmetic is in gemm_fma.cpp and gemm_amx.cpp.
#include "gemm.h"

#include <unistd.h>

#include <algorithm>

#include "pool.h"

namespace codellama {
namespace {

constexpr int64_t kMostLines = 4096;  // of a packed block: bounds the scratch, and packing again costs a thousandth
constexpr int64_t kTasks = 12;        // a member, at least, where the tiles allow: keeps the last one's wait short
constexpr int64_t kMostGroups = 31;    // of A's slivers, each with a phase for packing and one for multiplying
constexpr int kPackB = kMostGroups, kMultiply = kPackB + 1;
static_assert(kMultiply + kMostGroups <= Pool::kPhases);

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

// Packs both sides of a block and multiplies them, as one job.
//
// A's slivers are cut into groups that fit into a core's own cache. Members begin at groups of their own, pack them and
// run every sliver of B past them, so that A's never leave the core; whoever has finished helps with the other groups.
void multiply(Pool& pool, const GemmKernels& kernels, const Gemm& g, const Block& b, char* a_packed, char* b_packed) {
  const int64_t padded = round_up(b.depth, kernels.depth_multiple);
  const int64_t a_slivers = divide_up(b.rows, kernels.rows), b_slivers = divide_up(b.columns, kernels.columns);
  const int64_t a_bytes = kernels.rows * padded * kernels.element_bytes;
  const int64_t b_bytes = kernels.columns * padded * kernels.element_bytes;
  const bool add = g.add || b.k > 0;
  const int64_t fitting = std::max<int64_t>(1, private_cache() / 4 / a_bytes);
  // As many groups for each member, where there are slivers enough; and no group so large that its tasks are too few.
  const int64_t wanted = divide_up(a_slivers * b_slivers, kTasks * pool.size());
  const int64_t most = std::max(divide_up(a_slivers, kMostGroups), std::min(fitting, std::max<int64_t>(1, wanted)));
  int64_t groups = divide_up(a_slivers, most);
  if (groups > 1) groups = std::min({round_up(groups, pool.size()), a_slivers, kMostGroups});
  const auto first = [&](int64_t group) { return a_slivers * group / groups; };
  pool.run([&](Member& member) {
    const int64_t start = groups * member.rank() / member.size();
    const auto every_group = [&](auto&& body) {
      for (int64_t i = 0; i < groups; ++i) body((start + i) % groups);
    };
    every_group([&](int64_t group) {
      const int64_t begin = first(group);
      member.share(static_cast<int>(group), first(group + 1) - begin, 2, [&](int64_t from, int64_t to) {
        for (int64_t i = begin + from; i < begin + to; ++i) {
          const int64_t line = i * kernels.rows;
          kernels.pack_a(g.a, b.row + line, std::min(kernels.rows, b.rows - line), b.k, b.depth, a_packed + i * a_bytes);
        }
      });
    });
    member.share(kPackB, b_slivers, 2, [&](int64_t from, int64_t to) {
      for (int64_t j = from; j < to; ++j) {
        const int64_t line = j * kernels.columns;
        kernels.pack_b(g.b, b.column + line, std::min(kernels.columns, b.columns - line), b.k, b.depth,
                       b_packed + j * b_bytes);
      }
    });
    member.barrier();
    kernels.enter();
    every_group([&](int64_t group) {
      member.share(kMultiply + static_cast<int>(group), b_slivers, 1, [&](int64_t j, int64_t) {
        const int64_t column = j * kernels.columns, columns = std::min(kernels.columns, b.columns - column);
        for (int64_t i = first(group); i < first(group + 1); ++i) {
          const int64_t row = i * kernels.rows, rows = std::min(kernels.rows, b.rows - row);
          float* c = g.c + (b.row + row) * g.stride + b.column + column;
          kernels.tile(padded, a_packed + i * a_bytes, b_packed + j * b_bytes, c, g.stride, rows, columns, add);
        }
      });
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
        multiply(pool, kernels, g, block, a_packed, b_packed);
      }
    }
  }
}

}  // namespace codellama
