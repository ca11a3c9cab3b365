// Cuts a product into blocks and tiles and shares them out; the arithmetic is in gemm_fma.cpp and gemm_amx.cpp.
#include "gemm.h"

#include <unistd.h>

#include <algorithm>

#include "pool.h"

namespace codellama {
namespace {

constexpr int64_t kMostLines = 4096;  // of a packed block: bounds the scratch, and packing again costs a thousandth
constexpr int64_t kTasks = 12;        // a member, at least, where the tiles allow: keeps the last one's wait short
constexpr int64_t kOwnDepth = 96;     // of a member's own blocks: a sliver of each side and a tile stay in the first cache
constexpr int64_t kSliversEach = 4;   // of one side for each member, at least, to share the work by them
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

// One operand's lines of a block.
struct Side {
  void (*packing)(const Operand& from, int64_t line, int64_t count, int64_t k, int64_t depth, void* to);
  const Operand& operand;
  int64_t first, lines;
  int64_t width, bytes;  // of a sliver
  int64_t k, depth;

  int64_t slivers() const { return divide_up(lines, width); }
  int64_t packed_bytes() const { return slivers() * bytes; }
  int64_t width_of(int64_t sliver) const { return std::min(width, lines - sliver * width); }
  void pack(int64_t sliver, char* to) const {
    packing(operand, first + sliver * width, width_of(sliver), k, depth, to);
  }
};

// Both sides of a block.
struct Sides {
  Sides(const GemmKernels& kernels, const Gemm& g, const Block& block)
      : a(side(kernels.pack_a, g.a, block.row, block.rows, kernels.rows, kernels, block)),
        b(side(kernels.pack_b, g.b, block.column, block.columns, kernels.columns, kernels, block)) {}

  Side a, b;

 private:
  template <class Packing>
  static Side side(Packing packing, const Operand& operand, int64_t first, int64_t lines, int64_t width,
                   const GemmKernels& kernels, const Block& block) {
    const int64_t bytes = width * round_up(block.depth, kernels.depth_multiple) * kernels.element_bytes;
    return {packing, operand, first, lines, width, bytes, block.k, block.depth};
  }
};

// Tiles of the result from slivers i of A and j of B.
struct Tiles {
  const GemmKernels& kernels;
  const Gemm& g;
  const Side &a, &b;
  bool add;

  void operator()(int64_t i, const char* a_sliver, int64_t j, const char* b_sliver) const {
    float* c = g.c + (a.first + i * a.width) * g.stride + b.first + j * b.width;
    kernels.tile(round_up(a.depth, kernels.depth_multiple), a_sliver, b_sliver, c, g.stride, a.width_of(i),
                 b.width_of(j), add);
  }
};

// Where one side stays in a core's own cache as a whole: it is packed first. Of the other side, whoever takes a sliver
// packs it and uses it up at once, so that it never leaves the core.
template <class Multiply>
void run_past(Pool& pool, const GemmKernels& kernels, const Side& small, const Side& large, char* small_packed,
              char* large_packed, Multiply&& multiply) {
  pool.run([&](Member& member) {
    char* own = large_packed + member.rank() * large.bytes;
    member.share(0, small.slivers(), 1, [&](int64_t i, int64_t) { small.pack(i, small_packed + i * small.bytes); });
    member.barrier();
    kernels.enter();
    member.share(1, large.slivers(), 1, [&](int64_t j, int64_t) {
      large.pack(j, own);
      for (int64_t i = 0; i < small.slivers(); ++i) multiply(i, small_packed + i * small.bytes, j, own);
    });
    kernels.leave();
  });
}

// Where neither side does: both are packed.
//
// A's slivers are cut into groups that fit into a core's own cache. Members begin at groups of their own, pack them and
// run every sliver of B past them, so that A's never leave the core; whoever has finished helps with the other groups.
void run_groups(Pool& pool, const GemmKernels& kernels, const Side& a, const Side& b, char* a_packed, char* b_packed,
                const Tiles& tiles) {
  const int64_t fitting = std::max<int64_t>(1, private_cache() / 4 / a.bytes);
  // As many groups for each member, where there are slivers enough; and no group so large that its tasks are too few.
  const int64_t wanted = divide_up(a.slivers() * b.slivers(), kTasks * pool.size());
  const int64_t most = std::max(divide_up(a.slivers(), kMostGroups), std::min(fitting, std::max<int64_t>(1, wanted)));
  int64_t groups = divide_up(a.slivers(), most);
  if (groups > 1) groups = std::min({round_up(groups, pool.size()), a.slivers(), kMostGroups});
  const auto first = [&](int64_t group) { return a.slivers() * group / groups; };
  pool.run([&](Member& member) {
    const int64_t start = groups * member.rank() / member.size();
    const auto every_group = [&](auto&& body) {
      for (int64_t i = 0; i < groups; ++i) body((start + i) % groups);
    };
    every_group([&](int64_t group) {
      const int64_t begin = first(group);
      member.share(static_cast<int>(group), first(group + 1) - begin, 2, [&](int64_t from, int64_t to) {
        for (int64_t i = begin + from; i < begin + to; ++i) a.pack(i, a_packed + i * a.bytes);
      });
    });
    member.share(kPackB, b.slivers(), 2, [&](int64_t from, int64_t to) {
      for (int64_t j = from; j < to; ++j) b.pack(j, b_packed + j * b.bytes);
    });
    member.barrier();
    kernels.enter();
    every_group([&](int64_t group) {
      member.share(kMultiply + static_cast<int>(group), b.slivers(), 1, [&](int64_t j, int64_t) {
        for (int64_t i = first(group); i < first(group + 1); ++i) {
          tiles(i, a_packed + i * a.bytes, j, b_packed + j * b.bytes);
        }
      });
    });
    kernels.leave();
  });
}

// Packs both sides of a block and multiplies them, as one job.
void multiply(Pool& pool, const GemmKernels& kernels, const Gemm& g, const Block& block, char* a_packed,
              char* b_packed) {
  const auto [a, b] = Sides(kernels, g, block);
  const Tiles tiles{kernels, g, a, b, g.add || block.k > 0};
  const int64_t stays = private_cache() / 8 * 5, least = kSliversEach * pool.size();
  if (a.packed_bytes() <= b.packed_bytes() && a.packed_bytes() <= stays && b.slivers() >= least) {
    run_past(pool, kernels, a, b, a_packed, b_packed, tiles);
  } else if (b.packed_bytes() <= stays && a.slivers() >= least) {
    run_past(pool, kernels, b, a, b_packed, a_packed,
             [&](int64_t j, const char* b_sliver, int64_t i, const char* a_sliver) { tiles(i, a_sliver, j, b_sliver); });
  } else {
    run_groups(pool, kernels, a, b, a_packed, b_packed, tiles);
  }
}

// How the depth of a product is shared out where every member sums a part of it: what each needs of the scratch.
struct Depths {
  Depths(const GemmKernels& k, int64_t rows, int64_t columns, int64_t depth, int64_t members)
      : part(round_up(divide_up(depth, members), k.depth_multiple)),
        a_bytes(round_up(rows, k.rows) * kOwnDepth * k.element_bytes),
        b_bytes(round_up(columns, k.columns) * kOwnDepth * k.element_bytes),
        sums(round_up(rows * columns, 16)) {}

  // Whether a member's copies stay in its own cache, and are used often enough.
  static bool suit(const GemmKernels& k, int64_t rows, int64_t columns, int64_t depth, int64_t members) {
    return members > 1 && rows * columns * int64_t{sizeof(float)} <= private_cache() / 2 &&
           depth >= 2 * members * kOwnDepth && rows >= kSliversEach * k.rows && columns >= kSliversEach * k.columns;
  }
  int64_t floats() const { return round_up((a_bytes + b_bytes) / 4, 16) + sums; }

  int64_t part, a_bytes, b_bytes, sums;
};

// Sums a part of the depth, from copies of both sides that no other member touches.
void sum_part(const GemmKernels& kernels, const Gemm& g, int64_t begin, int64_t end, char* a_packed, char* b_packed) {
  for (int64_t k = begin; k < end; k += kOwnDepth) {
    const auto [a, b] = Sides(kernels, g, {0, g.rows, 0, g.columns, k, std::min(kOwnDepth, end - k)});
    const Tiles tiles{kernels, g, a, b, g.add || k > begin};
    for (int64_t i = 0; i < a.slivers(); ++i) a.pack(i, a_packed + i * a.bytes);
    for (int64_t j = 0; j < b.slivers(); ++j) b.pack(j, b_packed + j * b.bytes);
    kernels.enter();
    for (int64_t j = 0; j < b.slivers(); ++j) {
      for (int64_t i = 0; i < a.slivers(); ++i) tiles(i, a_packed + i * a.bytes, j, b_packed + j * b.bytes);
    }
    kernels.leave();
  }
}

// One part of the depth for each member, the first into the result, the others beside it; then their sum.
void run_depths(Pool& pool, const GemmKernels& kernels, const Gemm& g, float* scratch) {
  const Depths depths(kernels, g.rows, g.columns, g.depth, pool.size());
  const int64_t parts = divide_up(g.depth, depths.part);
  pool.run([&](Member& member) {
    member.share(0, parts, 1, [&](int64_t part, int64_t) {
      float* sums = scratch + part * depths.floats();
      char* a_packed = reinterpret_cast<char*>(sums + depths.sums);
      Gemm own = g;
      if (part > 0) {
        own.c = sums;
        own.stride = g.columns;
        own.add = false;
      }
      const int64_t begin = part * depths.part;
      sum_part(kernels, own, begin, std::min(g.depth, begin + depths.part), a_packed, a_packed + depths.a_bytes);
    });
    member.barrier();
    member.share(1, g.rows, kSliversEach, [&](int64_t from, int64_t to) {
      for (int64_t part = 1; part < parts; ++part) {
        const float* sums = scratch + part * depths.floats();
        for (int64_t row = from; row < to; ++row) {
          for (int64_t i = 0; i < g.columns; ++i) g.c[row * g.stride + i] += sums[row * g.columns + i];
        }
      }
    });
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

int64_t gemm_of_gradients_scratch(int64_t rows, int64_t columns, int64_t depth) {
  const GemmKernels& kernels = gemm_kernels();
  const int64_t members = Pool::instance().size();
  if (!Depths::suit(kernels, rows, columns, depth, members)) return gemm_scratch(rows, columns, depth);
  return members * Depths(kernels, rows, columns, depth, members).floats() + 16;
}

void gemm_of_gradients(Pool& pool, const Gemm& g, float* scratch) {
  const GemmKernels& kernels = gemm_kernels();
  if (!Depths::suit(kernels, g.rows, g.columns, g.depth, pool.size())) return gemm(pool, g, scratch);
  run_depths(pool, kernels, g, scratch);
}

}  // namespace codellama
