// A few or many new tokens on their way through decoder layers over a key/value cache.
//
// Shapes: B batch, S new tokens a row, T = B * S, N query heads, K key/value heads, G = N / K, D head width, H hidden,
// F feed-forward, L cache positions, P rows of the rotary table.
//
// A token whose position is not in 0..L-2 is padding: it costs nothing, its keys and values are not written, and its
// row of the output is its row of the input.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "kernels.h"
#include "product.h"

namespace codellama {

class Member;
class Pool;

struct LayerWeights {
  const float* attention_norm;  // [H]
  Matrix wq, wk, wv, wo;        // [N * D, H], [K * D, H] twice, [H, N * D]
  const float* ffn_norm;        // [H]
  Matrix w1, w2, w3;            // [F, H], [H, F], [F, H]
  void *keys, *values;          // [B * K * L, D], written
};

struct PassSizes {
  int64_t batch, length, hidden, width, heads, kv_heads, ffn;
  int64_t cached;  // L
  Type cache;
  float eps;
};

// What the products of many tokens compute in. Few tokens are always computed in float32.
enum class Compute { kFloat32, kBfloat16 };

class Pass {
 public:
  // x and out [T, H], positions [B, S], cosine and sine [P, D]. The caller holds the pool's mutex until the end.
  Pass(Pool& pool, const PassSizes& sizes, Compute compute, const float* x, const int32_t* positions,
       const float* cosine, const float* sine, float* out);

  void run(const LayerWeights& layer);
  // Once, after the last layer.
  void finish();

 private:
  // Consecutive tokens of one batch row that attend together, one task for each key/value head and span of the cache.
  struct Block {
    int64_t first_token, tokens;
    int64_t spans;
    int64_t first_task;
    int64_t first_slot;  // of the results: [tokens, N, spans]
  };

  void find_tokens(const int32_t* positions);
  void cut_attention();
  void lay_out();

  void few(const LayerWeights& w, Member& member);
  void many(const LayerWeights& w, Member& member);

  int64_t row(int64_t token) const { return token_[static_cast<size_t>(token)] / s_.length; }
  int32_t position(int64_t token) const { return position_[static_cast<size_t>(token)]; }
  char* cache(void* which, int64_t batch_row, int64_t head) const;
  void append(const float* from, void* to, int64_t token, int64_t head) const;
  void norm(Member& member, int phase, const float* x, const float* weight);
  void product(Member& member, int phase, const Product& product);
  const GemmKernels& gemm_for(std::initializer_list<Matrix> weights) const;
  PackedTokens packed(const GemmKernels& kernels, int64_t columns) const;
  template <class Rows>
  void pack(Member& member, int phase, const PackedTokens& tokens, Rows&& rows);
  void multiply(Member& member, int phase, const PackedTokens& tokens, const Matrix& w, float* out, int64_t ldo, bool add);
  void place(const LayerWeights& w, int64_t token);
  Attend attention(const LayerWeights& w, int64_t task) const;
  void merge(int64_t begin, int64_t end);

  Pool& pool_;
  const Kernels& k_;
  const PassSizes s_;
  const Compute compute_;
  const float *x_, *cosine_, *sine_;
  float* out_;
  const int64_t all_, group_, qkv_columns_, hidden_stride_, ffn_stride_;
  int64_t tokens_ = 0, tasks_ = 0, slots_ = 0, thread_floats_ = 0;
  bool many_ = false;
  bool cut_ = false;               // some task attends to a part of the cache only
  std::vector<int64_t> token_;     // number among all tokens, padding included
  std::vector<int32_t> position_;  // of each token
  std::vector<int64_t> block_;     // of each token
  std::vector<Block> blocks_;
  float* residual_;  // [tokens, H]: what the layers hand on, in `out` where there is no padding
  float *normed_, *qkv_, *mixed_, *middle_, *gate_, *up_;
  float *slot_mixed_, *slot_largest_, *slot_total_, *thread_scratch_, *packed_;
};

}  // namespace codellama
