// Matrix products of float32 matrices in every layout that training needs, on the whole team of threads.
//
// As in "Anatomy of High-Performance Matrix Multiplication" (Goto and van de Geijn, 2008): blocks of both operands are
// packed into slivers that a register tile can read straight through. An element of the result is always summed in the
// same order, whichever thread computes it, so that results repeat bit by bit.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace codellama {

class Pool;

// One operand as the product sees it: `lines` (rows of A, columns of B) by depth. Element (line, k) lies at
// data[line * stride + k] where the depth is contiguous, at data[k * stride + line] where it is not.
//
// Elements that are no float32 are widened while they are packed. An int8 operand is a matrix without gaps, with the scales
// of its groups.
struct Operand {
  const void* data;
  int64_t stride;
  bool depth_contiguous;
  Type type = Type::kFloat32;
  const Half* scales = nullptr;

  template <class T>
  const T* at(int64_t line, int64_t k) const {
    return static_cast<const T*>(data) + (depth_contiguous ? line * stride + k : k * stride + line);
  }
  Half scale(int64_t line, int64_t k) const { return scales[line * ((stride + kGroup - 1) / kGroup) + k / kGroup]; }
};

// c[m, n] = sum over k of a(m, k) b(n, k), added to what c holds where `add` is set.
struct Gemm {
  int64_t rows, columns, depth;
  Operand a, b;
  float* c;
  int64_t stride;
  bool add;
};

struct GemmKernels;

// The kernels for this processor, or the ones that CODELLAMA_KERNELS_ISA names.
const GemmKernels& gemm_kernels();
// The same, or ones that keep 16 significant bits of both operands where these are faster: for weights of float16 and int8,
// which have no more.
const GemmKernels& narrow_gemm_kernels();
// Ones that round both operands to bfloat16 and sum in float32; null where the processor has no such products.
const GemmKernels* bfloat16_gemm_kernels();

// Floats of scratch that products up to these sizes need.
int64_t gemm_scratch(int64_t rows, int64_t columns, int64_t depth);

// The caller holds the pool's mutex. `scratch` is 64-byte aligned.
void gemm(Pool& pool, const Gemm& product, float* scratch, const GemmKernels& kernels = gemm_kernels());

// The same for small results of long depths, whose depth the members share out: the order of sums then follows from the
// number of threads, too. For products of training only, whose rows need not come out the same in any company.
int64_t gemm_of_gradients_scratch(int64_t rows, int64_t columns, int64_t depth);
void gemm_of_gradients(Pool& pool, const Gemm& product, float* scratch);

// ---- what an instruction set provides ------------------------------------------------------------------------------

struct GemmKernels {
  const char* name;
  int64_t rows, columns;   // of a tile of the result
  int64_t depth_multiple;  // packed depths are multiples of it, filled up with zeros
  int64_t block_depth;     // the most that is multiplied at a time, a multiple of kGroup and of depth_multiple
  int64_t element_bytes;   // of a packed element
  // Packs a sliver of `count` lines, at most a tile's rows (of A) or columns (of B); missing lines become zeros. The depth
  // runs along a sliver: element k begins k * (rows or columns) * element_bytes behind the first, k a multiple of
  // depth_multiple. Of int8 operands k is a multiple of kGroup.
  void (*pack_a)(const Operand& from, int64_t line, int64_t count, int64_t k, int64_t depth, void* to);
  void (*pack_b)(const Operand& from, int64_t line, int64_t count, int64_t k, int64_t depth, void* to);
  // One tile from a sliver of A and one of B; of the result only rows x columns are touched.
  void (*tile)(int64_t depth, const void* a, const void* b, float* c, int64_t stride, int64_t rows, int64_t columns,
               bool add);
  // Around a thread's tiles.
  void (*enter)();
  void (*leave)();
};

}  // namespace codellama
