// Causal attention with grouped queries, forward and backward, in tiles: no [S, S] scores in memory.
//
// Forward: the online softmax of arXiv:2112.05682. Backward: arXiv:2205.14135, section 3: the weights are computed again
// from the saved logarithm of their sum.
//
// Shapes: B batch, S sequence, N query heads, K key/value heads, G = N / K, D head width. The G heads that share a key
// are stacked: a block of queries has rows (token, head of the group).
#include <algorithm>
#include <cmath>
#include <cstring>

#include "gemm_local.h"
#include "operator.h"
#include "pool.h"
#include "train.h"

namespace codellama {
namespace {

constexpr int64_t kRows = 256;  // of a block of queries, at most (or one token's): its scores stay in a core's own cache
constexpr int64_t kKeys = 128;  // of a block of keys

struct Sizes {
  Sizes(const Arguments& a, int query, int key)
      : batch(a.side(query, 0)),
        length(a.side(query, 1)),
        heads(a.side(query, 2)),
        kv_heads(a.side(key, 2)),
        width(a.side(query, 3)),
        group(kv_heads > 0 ? heads / kv_heads : 0) {}

  int64_t query_elements() const { return batch * length * heads * width; }
  int64_t key_elements() const { return batch * length * kv_heads * width; }
  int64_t block_tokens() const { return std::max<int64_t>(1, kRows / group); }
  int64_t block_rows() const { return block_tokens() * group; }
  int64_t blocks() const { return (length + block_tokens() - 1) / block_tokens(); }

  int64_t batch, length, heads, kv_heads, width, group;
};

// The queries of one block: tokens first..first + tokens of a batch row, the heads of one group.
struct Block {
  Block(const Sizes& s, const int32_t* first_keys, int64_t row, int64_t kv_head, int64_t number)
      : s(s), row(row), kv_head(kv_head), first(number * s.block_tokens()),
        tokens(std::min(s.block_tokens(), s.length - first)), rows(tokens * s.group), first_key(first_keys + first) {}

  // Where a row's vector lies in an array [B, S, N, D], and its number in one [B, N, S].
  int64_t vector(int64_t i) const {
    return ((row * s.length + first + i / s.group) * s.heads + kv_head * s.group + i % s.group) * s.width;
  }
  int64_t scalar(int64_t i) const {
    return (row * s.heads + kv_head * s.group + i % s.group) * s.length + first + i / s.group;
  }
  // Where the key vectors begin in an array [B, S, K, D]; the next key is K * D further.
  int64_t key(int64_t position) const { return ((row * s.length + position) * s.kv_heads + kv_head) * s.width; }

  int64_t first_block_key() const {
    return *std::min_element(first_key, first_key + tokens) / kKeys * kKeys;
  }
  int64_t keys_end() const { return first + tokens; }
  // The keys that row i sees, counted from the block of keys at `key`.
  int64_t begin(int64_t i, int64_t key) const { return std::max<int64_t>(0, first_key[i / s.group] - key); }
  int64_t end(int64_t i, int64_t key, int64_t count) const {
    return std::max<int64_t>(0, std::min(count, first + i / s.group + 1 - key));
  }

  void gather(const float* from, float* to) const {
    for (int64_t i = 0; i < rows; ++i) {
      std::memcpy(to + i * s.width, from + vector(i), static_cast<size_t>(s.width) * sizeof(float));
    }
  }
  void scatter(const float* from, float* to) const {
    for (int64_t i = 0; i < rows; ++i) {
      std::memcpy(to + vector(i), from + i * s.width, static_cast<size_t>(s.width) * sizeof(float));
    }
  }

  const Sizes& s;
  int64_t row, kv_head, first, tokens, rows;
  const int32_t* first_key;  // of each token
};

// Hands out parts of one allocation; with no memory it only counts.
class Carver {
 public:
  explicit Carver(float* memory) : memory_(memory) {}
  float* take(int64_t floats) {
    float* part = memory_ ? memory_ + used_ : nullptr;
    used_ += (floats + 15) / 16 * 16;
    return part;
  }
  int64_t used() const { return used_; }

 private:
  float* memory_;
  int64_t used_ = 0;
};

struct ForwardScratch {
  ForwardScratch(Carver& carver, const LocalGemm& g, const Sizes& s)
      : query(carver.take(s.block_rows() * s.width)),
        mixed(carver.take(s.block_rows() * s.width)),
        scores(carver.take(s.block_rows() * kKeys)),
        largest(carver.take(s.block_rows())),
        total(carver.take(s.block_rows())),
        query_a(carver.take(g.packed_floats(s.block_rows(), s.width))),
        weights_a(carver.take(g.packed_floats(s.block_rows(), kKeys))),
        key_b(carver.take(g.packed_floats(kKeys, s.width))),
        value_b(carver.take(g.packed_floats(s.width, kKeys))) {}

  float *query, *mixed, *scores, *largest, *total, *query_a, *weights_a, *key_b, *value_b;
};

struct Forward {
  Sizes s;
  const float *query, *key, *value;
  float scale;
  float *out, *lse;

  void attend(const LocalGemm& g, const TrainKernels& k, const Block& block, const ForwardScratch& own) const {
    const int64_t stride = s.kv_heads * s.width;
    block.gather(query, own.query);
    g.pack_a({own.query, s.width, true}, block.rows, s.width, own.query_a);
    std::fill(own.mixed, own.mixed + block.rows * s.width, 0.0f);
    std::fill(own.largest, own.largest + block.rows, -INFINITY);
    std::fill(own.total, own.total + block.rows, 0.0f);
    for (int64_t at = block.first_block_key(); at < block.keys_end(); at += kKeys) {
      const int64_t count = std::min(kKeys, block.keys_end() - at);
      g.pack_b({key + block.key(at), stride, true}, count, s.width, own.key_b);
      g.multiply(block.rows, count, s.width, own.query_a, own.key_b, own.scores, kKeys, false);
      for (int64_t i = 0; i < block.rows; ++i) {
        const float shrink = k.softmax_row(own.scores + i * kKeys, count, block.begin(i, at), block.end(i, at, count),
                                           scale, own.largest + i, own.total + i);
        if (shrink != 1.0f) k.multiply(own.mixed + i * s.width, s.width, shrink);
      }
      g.pack_a({own.scores, kKeys, true}, block.rows, count, own.weights_a);
      g.pack_b({value + block.key(at), stride, false}, s.width, count, own.value_b);
      g.multiply(block.rows, s.width, count, own.weights_a, own.value_b, own.mixed, s.width, true);
    }
    for (int64_t i = 0; i < block.rows; ++i) {
      k.multiply(own.mixed + i * s.width, s.width, 1.0f / own.total[i]);
      lse[block.scalar(i)] = own.largest[i] + std::log(own.total[i]);
    }
    block.scatter(own.mixed, out);
  }
};

struct BackwardScratch {
  BackwardScratch(Carver& carver, const LocalGemm& g, const Sizes& s)
      : query(carver.take(s.block_rows() * s.width)),
        d_out(carver.take(s.block_rows() * s.width)),
        d_query(carver.take(s.block_rows() * s.width)),
        dots(carver.take(s.block_rows())),
        weights(carver.take(s.block_rows() * kKeys)),
        d_scores(carver.take(s.block_rows() * kKeys)),
        query_a(carver.take(g.packed_floats(s.block_rows(), s.width))),
        d_out_a(carver.take(g.packed_floats(s.block_rows(), s.width))),
        query_b(carver.take(g.packed_floats(s.width, s.block_rows()))),
        d_out_b(carver.take(g.packed_floats(s.width, s.block_rows()))),
        scores_a(carver.take(std::max(g.packed_floats(kKeys, s.block_rows()), g.packed_floats(s.block_rows(), kKeys)))),
        key_b(carver.take(std::max(g.packed_floats(kKeys, s.width), g.packed_floats(s.width, kKeys)))) {}

  float *query, *d_out, *d_query, *dots, *weights, *d_scores, *query_a, *d_out_a, *query_b, *d_out_b, *scores_a, *key_b;
};

struct Backward {
  Sizes s;
  const float *query, *key, *value;
  float scale;
  const float *out, *lse, *d_out;
  float *d_query, *d_key, *d_value;

  // The gradients of one block's queries, and what it adds to those of the keys and values it sees.
  void differentiate(const LocalGemm& g, const TrainKernels& k, const Block& block, const BackwardScratch& own) const {
    const int64_t stride = s.kv_heads * s.width;
    block.gather(query, own.query);
    block.gather(d_out, own.d_out);
    for (int64_t i = 0; i < block.rows; ++i) own.dots[i] = k.dot(own.d_out + i * s.width, out + block.vector(i), s.width);
    g.pack_a({own.query, s.width, true}, block.rows, s.width, own.query_a);
    g.pack_a({own.d_out, s.width, true}, block.rows, s.width, own.d_out_a);
    g.pack_b({own.query, s.width, false}, s.width, block.rows, own.query_b);
    g.pack_b({own.d_out, s.width, false}, s.width, block.rows, own.d_out_b);
    std::fill(own.d_query, own.d_query + block.rows * s.width, 0.0f);
    for (int64_t at = block.first_block_key(); at < block.keys_end(); at += kKeys) {
      const int64_t count = std::min(kKeys, block.keys_end() - at), keys = block.key(at);
      g.pack_b({key + keys, stride, true}, count, s.width, own.key_b);
      g.multiply(block.rows, count, s.width, own.query_a, own.key_b, own.weights, kKeys, false);
      g.pack_b({value + keys, stride, true}, count, s.width, own.key_b);
      g.multiply(block.rows, count, s.width, own.d_out_a, own.key_b, own.d_scores, kKeys, false);
      for (int64_t i = 0; i < block.rows; ++i) {
        k.softmax_row_backward(own.weights + i * kKeys, own.d_scores + i * kKeys, count, block.begin(i, at),
                               block.end(i, at, count), scale, lse[block.scalar(i)], own.dots[i]);
      }
      g.pack_a({own.weights, kKeys, false}, count, block.rows, own.scores_a);
      g.multiply(count, s.width, block.rows, own.scores_a, own.d_out_b, d_value + keys, stride, true);
      g.pack_a({own.d_scores, kKeys, false}, count, block.rows, own.scores_a);
      g.multiply(count, s.width, block.rows, own.scores_a, own.query_b, d_key + keys, stride, true);
      g.pack_a({own.d_scores, kKeys, true}, block.rows, count, own.scores_a);
      g.pack_b({key + keys, stride, false}, s.width, count, own.key_b);
      g.multiply(block.rows, s.width, count, own.scores_a, own.key_b, own.d_query, s.width, true);
    }
    block.scatter(own.d_query, d_query);
  }
};

// Scratch of every member, carved as `Scratch` does.
template <class Scratch>
int64_t scratch_floats(const LocalGemm& g, const Sizes& s) {
  Carver counting(nullptr);
  Scratch(counting, g, s);
  return counting.used();
}

enum Argument { kQuery, kKey, kValue, kFirstKey, kScale, kOut, kLse, kDout, kDquery, kDkey, kDvalue, kBackwardArguments };
constexpr int kForwardArguments = kLse + 1;

bool plausible(const Arguments& a, int count) {
  if (a.count() != count || !a.is(kFirstKey, "int32") || a.elements(kScale) != 1) return false;
  for (int index = 0; index < count; ++index) {
    if (index != kFirstKey && !a.is(index, "float32")) return false;
  }
  const Sizes s(a, kQuery, kKey);
  if (s.batch < 1 || s.length < 1 || s.kv_heads < 1 || s.heads % s.kv_heads || s.width < 1) return false;
  for (const int index : {kQuery, kOut, kDout, kDquery}) {
    if (index < count && a.elements(index) != s.query_elements()) return false;
  }
  for (const int index : {kKey, kValue, kDkey, kDvalue}) {
    if (index < count && a.elements(index) != s.key_elements()) return false;
  }
  const int64_t rows = a.side(kFirstKey, 0);
  if ((rows != 1 && rows != s.batch) || a.elements(kFirstKey) != rows * s.length) return false;
  for (int64_t i = 0; i < rows * s.length; ++i) {  // every token sees itself
    const int32_t first = a.data<int32_t>(kFirstKey)[i];
    if (first < 0 || first > i % s.length) return false;
  }
  return a.elements(kLse) == s.batch * s.heads * s.length;
}

const int32_t* first_keys(const Arguments& a, const Sizes& s, int64_t row) {
  return a.data<int32_t>(kFirstKey) + (a.side(kFirstKey, 0) == 1 ? 0 : row * s.length);
}

}  // namespace
}  // namespace codellama

using namespace codellama;

// query [B, S, N, D], key and value [B, S, K, D], first_key int32 [B or 1, S], scale [1]
// -> out [B * S, N * D], lse [B, N, S]
CODELLAMA_OPERATOR(codellama_attention) {
  return serve(plausible(a, kForwardArguments), [&] {
    const Sizes s(a, kQuery, kKey);
    const LocalGemm g(gemm_kernels());
    const TrainKernels& k = train_kernels();
    const Forward forward{s, a.data<float>(kQuery), a.data<float>(kKey), a.data<float>(kValue), *a.data<float>(kScale),
                          a.data<float>(kOut), a.data<float>(kLse)};
    Pool& pool = Pool::instance();
    const std::lock_guard<std::mutex> lock(pool.mutex());
    const int64_t floats = scratch_floats<ForwardScratch>(g, s);
    float* scratch = pool.scratch(floats * pool.size());
    const int64_t heads = s.batch * s.kv_heads;
    pool.run([&](Member& member) {
      Carver carver(scratch + member.rank() * floats);
      const ForwardScratch own(carver, g, s);
      gemm_kernels().enter();
      member.share(0, heads * s.blocks(), 1, [&](int64_t task, int64_t) {
        const int64_t head = task % heads, row = head / s.kv_heads;
        const int64_t number = s.blocks() - 1 - task / heads;  // the last blocks see most: they come first
        forward.attend(g, k, Block(s, first_keys(a, s, row), row, head % s.kv_heads, number), own);
      });
      gemm_kernels().leave();
    });
  });
}

// ... and out, lse, d_out [B * S, N * D] -> d_query [B, S, N, D], d_key, d_value [B, S, K, D]
CODELLAMA_OPERATOR(codellama_attention_backward) {
  return serve(plausible(a, kBackwardArguments), [&] {
    const Sizes s(a, kQuery, kKey);
    const LocalGemm g(gemm_kernels());
    const TrainKernels& k = train_kernels();
    const Backward backward{s, a.data<float>(kQuery), a.data<float>(kKey), a.data<float>(kValue), *a.data<float>(kScale),
                            a.data<float>(kOut), a.data<float>(kLse), a.data<float>(kDout), a.data<float>(kDquery),
                            a.data<float>(kDkey), a.data<float>(kDvalue)};
    Pool& pool = Pool::instance();
    const std::lock_guard<std::mutex> lock(pool.mutex());
    const int64_t floats = scratch_floats<BackwardScratch>(g, s);
    float* scratch = pool.scratch(floats * pool.size());
    std::fill(backward.d_key, backward.d_key + s.key_elements(), 0.0f);
    std::fill(backward.d_value, backward.d_value + s.key_elements(), 0.0f);
    pool.run([&](Member& member) {
      Carver carver(scratch + member.rank() * floats);
      const BackwardScratch own(carver, g, s);
      gemm_kernels().enter();
      // A key's gradient is summed over the blocks that see it, in their order: one member has all of them.
      member.share(0, s.batch * s.kv_heads, 1, [&](int64_t task, int64_t) {
        const int64_t row = task / s.kv_heads;
        for (int64_t number = 0; number < s.blocks(); ++number) {
          backward.differentiate(g, k, Block(s, first_keys(a, s, row), row, task % s.kv_heads, number), own);
        }
      });
      gemm_kernels().leave();
    });
  });
}
