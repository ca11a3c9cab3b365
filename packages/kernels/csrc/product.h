// Products of many tokens with weights of any type, on the whole team of threads.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "kernels.h"

namespace codellama {

class Pool;

// From so many tokens on, widening weights and packing both sides pays; below, weights are streamed past the tokens.
constexpr int64_t kManyTokens = 24;

// out[t, r] = dot(x[t], w[r]), added to what `out` holds where `add` is set, for the rows r of all weights one after the
// other: they have the same columns, and their results lie side by side.
struct ManyProduct {
  const float* x;
  int64_t ldx;
  int64_t tokens;
  std::initializer_list<Matrix> weights;
  float* out;
  int64_t ldo;
  bool add;
};

// Floats of scratch that products with weights of up to `rows` x `columns` need.
int64_t multiply_scratch(int64_t tokens, int64_t rows, int64_t columns);

// The caller holds the pool's mutex.
void multiply(Pool& pool, const ManyProduct& product, float* scratch);

}  // namespace codellama
