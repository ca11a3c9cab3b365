// Products of many tokens with weights of any type.
//
// The tokens are packed once and kept; weights are packed a few rows at a time by the thread that multiplies them, into
// its own cache, where they are used for all tokens and forgotten. Nothing of a weight is ever held in another form.
#pragma once

#include <cstdint>

#include "gemm.h"
#include "kernels.h"

namespace codellama {

// From so many tokens on, packing both sides pays; below, weights are streamed past the tokens.
constexpr int64_t kManyTokens = 24;

// x [tokens, columns] as the register tiles read it. Slivers of `rows()` tokens are packed independently, by any thread;
// products may begin when all have been.
class PackedTokens {
 public:
  // `memory` holds `floats(..)`, 64-byte aligned.
  PackedTokens(const GemmKernels& kernels, int64_t tokens, int64_t columns, float* memory);
  static int64_t floats(const GemmKernels& kernels, int64_t tokens, int64_t columns);

  int64_t rows() const { return kernels_.rows; }
  int64_t slivers() const;
  int64_t tokens_of(int64_t sliver) const;
  // x begins at the sliver's first token.
  void pack(int64_t sliver, const float* x, int64_t ldx) const;

  // out[t, r] = dot(x[t], w[r]), added to what `out` holds where `add` is set, for all tokens and the rows begin..end,
  // on the calling thread; `scratch` holds `weight_floats(..)`, 64-byte aligned.
  void multiply(const Matrix& w, int64_t begin, int64_t end, float* out, int64_t ldo, bool add, float* scratch) const;
  static int64_t weight_floats(const GemmKernels& kernels, int64_t columns);

  // Rows of a weight to multiply at a time, where `members` share them.
  int64_t rows_at_a_time(const Matrix& w, int64_t members) const;

 private:
  const GemmKernels& kernels_;
  int64_t tokens_, columns_, sliver_bytes_;
  char* packed_;
};

}  // namespace codellama
