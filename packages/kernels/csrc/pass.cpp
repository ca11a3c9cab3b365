// One layer as the team computes it: streamed weights for a few tokens, matrix products for many.
#include "pass.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "pool.h"
#include "prompt.h"

namespace codellama {
namespace {

constexpr int64_t kStreamBytes = 64 << 10;  // of a streamed weight that a member takes at a time: some microseconds
constexpr int64_t kSpan = 256;              // positions that a member attends to at a time when the cache is cut
constexpr int64_t kCutTokens = 16;  // up to so many tokens the cache is cut; more give every member blocks of their own
constexpr int64_t kPromptTasks = 3;  // of attention for each member, at least, where there are tokens enough

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Distance of rows in scratch: rows a power of two apart would fall into the same few sets of a cache.
int64_t row_stride(int64_t columns) { return round_up(columns, 16) + 16; }

// Rows of a streamed weight to take at a time: few, for balance, but many bytes.
int64_t rows_at_a_time(const Matrix& w) { return round_up(kStreamBytes / w.row_bytes() + 1, 4); }

bool is_narrow(Type type) { return type != Type::kFloat32; }

}  // namespace

Pass::Pass(Pool& pool, const PassSizes& sizes, Compute compute, const float* x, const int32_t* positions,
           const float* cosine, const float* sine, float* out)
    : pool_(pool),
      k_(kernels()),
      s_(sizes),
      compute_(compute),
      x_(x),
      cosine_(cosine),
      sine_(sine),
      out_(out),
      all_(sizes.batch * sizes.length),
      group_(sizes.heads / sizes.kv_heads),
      qkv_columns_((sizes.heads + 2 * sizes.kv_heads) * sizes.width),
      hidden_stride_(row_stride(sizes.hidden)),
      ffn_stride_(row_stride(2 * sizes.ffn)) {
  find_tokens(positions);
  if (tokens_ == 0) return;
  many_ = tokens_ >= kManyTokens;
  cut_attention();
  lay_out();
}

// Padding is left out from here on: the tokens that remain are numbered 0..tokens_-1.
void Pass::find_tokens(const int32_t* positions) {
  for (int64_t token = 0; token < all_; ++token) {
    if (positions[token] < 0 || positions[token] >= s_.cached - 1) continue;
    token_.push_back(token);
    position_.push_back(positions[token]);
  }
  tokens_ = static_cast<int64_t>(token_.size());
}

void Pass::cut_attention() {
  const bool cut = pool_.size() > 1 && tokens_ <= kCutTokens;
  int64_t most = std::max<int64_t>(1, kQueryRows / group_);
  if (many_) {
    const int64_t blocks = (kPromptTasks * pool_.size() + s_.kv_heads - 1) / s_.kv_heads;
    most = std::clamp<int64_t>((tokens_ + blocks - 1) / blocks, 1, std::max<int64_t>(1, kPromptRows / group_));
  }
  for (int64_t token = 0; token < tokens_;) {
    Block block{token, 0, 1, tasks_, slots_};
    int32_t last = 0;
    for (; token < tokens_ && row(token) == row(block.first_token) && block.tokens < most; ++token, ++block.tokens) {
      last = std::max(last, position(token));
      block_.push_back(static_cast<int64_t>(blocks_.size()));
    }
    if (cut) block.spans = last / kSpan + 1;
    tasks_ += block.spans * s_.kv_heads;
    slots_ += block.spans * block.tokens * s_.heads;
    blocks_.push_back(block);
  }
  cut_ = slots_ > tokens_ * s_.heads;
}

void Pass::lay_out() {
  const bool padded = tokens_ < all_;
  const int64_t mixed = s_.heads * s_.width;
  int64_t packed = 0;
  thread_floats_ = k_.attend_scratch(s_.width);
  if (many_) {
    // The layers may hold weights of any types: room for the widest packing.
    const int64_t widest = std::max({s_.hidden, mixed, s_.ffn});
    int64_t most = 0;
    for (const Block& block : blocks_) most = std::max(most, block.tokens);
    for (const GemmKernels* kernels : {&gemm_kernels(), &narrow_gemm_kernels()}) {
      packed = std::max(packed, PackedTokens::floats(*kernels, tokens_, widest));
      thread_floats_ = std::max({thread_floats_, attend_prompt_scratch(*kernels, most * group_, s_.width),
                                 PackedTokens::weight_floats(*kernels, widest), kernels->rows * hidden_stride_});
    }
  }
  thread_floats_ = round_up(thread_floats_, 16);
  const struct {
    float** part;
    int64_t size;
  } parts[] = {
      {&residual_, padded ? tokens_ * s_.hidden : 0},
      {&normed_, many_ ? 0 : tokens_ * hidden_stride_},
      {&qkv_, tokens_ * qkv_columns_},
      {&mixed_, tokens_ * mixed},
      {&middle_, many_ ? 0 : tokens_ * s_.hidden},
      {&gate_, tokens_ * ffn_stride_},
      {&slot_mixed_, cut_ ? slots_ * s_.width : 0},
      {&slot_largest_, cut_ ? slots_ : 0},
      {&slot_total_, cut_ ? slots_ : 0},
      {&thread_scratch_, thread_floats_ * pool_.size()},
      {&packed_, packed},
  };
  int64_t total = 0;
  for (const auto& part : parts) total += round_up(part.size, 16);
  float* scratch = pool_.scratch(total);
  for (const auto& part : parts) {
    *part.part = scratch;
    scratch += round_up(part.size, 16);
  }
  up_ = gate_ + s_.ffn;
  if (!padded) residual_ = out_;
  const size_t bytes = static_cast<size_t>(s_.hidden) * sizeof(float);
  for (int64_t token = 0; token < tokens_; ++token) {
    std::memcpy(residual_ + token * s_.hidden, x_ + token_[static_cast<size_t>(token)] * s_.hidden, bytes);
  }
}

void Pass::run(const LayerWeights& layer) {
  if (tokens_ == 0) return;
  if (many_) {
    pool_.run([&](Member& member) { many(layer, member); });
  } else {
    pool_.run_watched([&](Member& member) { few(layer, member); });
  }
}

void Pass::finish() {
  if (tokens_ == all_) return;
  const size_t bytes = static_cast<size_t>(s_.hidden) * sizeof(float);
  std::memcpy(out_, x_, bytes * static_cast<size_t>(all_));
  for (int64_t token = 0; token < tokens_; ++token) {
    std::memcpy(out_ + token_[static_cast<size_t>(token)] * s_.hidden, residual_ + token * s_.hidden, bytes);
  }
}

// What every member does. A phase needs nothing of its own; a barrier stands wherever the next phase reads what other
// members have written.
void Pass::few(const LayerWeights& w, Member& member) {
  float* scratch = thread_scratch_ + member.rank() * thread_floats_;
  norm(member, 0, residual_, w.attention_norm);
  member.barrier();
  float* column = qkv_;
  product(member, 1, {normed_, hidden_stride_, tokens_, w.wq, column, qkv_columns_, nullptr, 0});
  column += w.wq.rows;
  product(member, 2, {normed_, hidden_stride_, tokens_, w.wk, column, qkv_columns_, nullptr, 0});
  column += w.wk.rows;
  product(member, 3, {normed_, hidden_stride_, tokens_, w.wv, column, qkv_columns_, nullptr, 0});
  member.barrier();
  member.share(4, tokens_, 1, [&](int64_t token, int64_t) { place(w, token); });
  member.barrier();
  member.share(5, tasks_, 1, [&](int64_t task, int64_t) { k_.attend(attention(w, task), scratch); });
  member.barrier();
  if (cut_) {
    member.share(6, tokens_ * s_.heads, 4, [&](int64_t begin, int64_t end) { merge(begin, end); });
    member.barrier();
  }
  product(member, 7, {mixed_, w.wo.columns, tokens_, w.wo, middle_, s_.hidden, residual_, s_.hidden});
  member.barrier();
  norm(member, 8, middle_, w.ffn_norm);
  member.barrier();
  const Product gate{normed_, hidden_stride_, tokens_, w.w1, gate_, ffn_stride_, nullptr, 0};
  const Product up{normed_, hidden_stride_, tokens_, w.w3, up_, ffn_stride_, nullptr, 0};
  member.share(9, s_.ffn, rows_at_a_time(w.w1), [&](int64_t begin, int64_t end) {
    k_.product(gate, begin, end);
    k_.product(up, begin, end);
    for (int64_t token = 0; token < tokens_; ++token) {
      k_.swiglu(gate_ + token * ffn_stride_ + begin, up_ + token * ffn_stride_ + begin, end - begin);
    }
  });
  member.barrier();
  product(member, 10, {gate_, ffn_stride_, tokens_, w.w2, residual_, s_.hidden, middle_, s_.hidden});
}

// The same for many tokens. What a product reads is packed in the phase before it; norms and activations are computed
// where their results are packed or made.
void Pass::many(const LayerWeights& w, Member& member) {
  float* scratch = thread_scratch_ + member.rank() * thread_floats_;
  const auto norm_rows = [&](const float* weight) {
    return [this, weight, scratch](int64_t token, int64_t count) {
      for (int64_t i = 0; i < count; ++i) {
        k_.rms_norm(residual_ + (token + i) * s_.hidden, weight, s_.eps, s_.hidden, scratch + i * hidden_stride_);
      }
      return std::pair<const float*, int64_t>(scratch, hidden_stride_);
    };
  };
  const PackedTokens attended = packed(gemm_for({w.wq, w.wk, w.wv}), s_.hidden);
  pack(member, 0, attended, norm_rows(w.attention_norm));
  member.barrier();
  float* column = qkv_;
  int phase = 1;
  for (const Matrix& matrix : {w.wq, w.wk, w.wv}) {
    multiply(member, phase++, attended, matrix, column, qkv_columns_, false);
    column += matrix.rows;
  }
  member.barrier();
  member.share(4, tokens_, 4, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) place(w, token);
  });
  member.barrier();
  // The longest tasks first: the last ones, which the others wait for, are then short.
  const GemmKernels& attention_gemm = compute_ == Compute::kBfloat16 ? *bfloat16_gemm_kernels()
                                      : is_narrow(s_.cache)          ? narrow_gemm_kernels()
                                                                     : gemm_kernels();
  member.share(5, tasks_, 1, [&](int64_t task, int64_t) {
    attend_prompt(attention_gemm, attention(w, tasks_ - 1 - task), scratch);
  });
  member.barrier();
  const PackedTokens mixed = packed(gemm_for({w.wo}), w.wo.columns);
  pack(member, 6, mixed, [&](int64_t token, int64_t) {
    return std::pair<const float*, int64_t>(mixed_ + token * w.wo.columns, w.wo.columns);
  });
  member.barrier();
  multiply(member, 7, mixed, w.wo, residual_, s_.hidden, true);
  member.barrier();
  const PackedTokens normed = packed(gemm_for({w.w1, w.w3}), s_.hidden);
  pack(member, 8, normed, norm_rows(w.ffn_norm));
  member.barrier();
  member.share(9, s_.ffn, normed.rows_at_a_time(w.w1, member.size()), [&](int64_t begin, int64_t end) {
    normed.multiply(w.w1, begin, end, gate_, ffn_stride_, false, scratch);
    normed.multiply(w.w3, begin, end, up_, ffn_stride_, false, scratch);
    for (int64_t token = 0; token < tokens_; ++token) {
      k_.swiglu(gate_ + token * ffn_stride_ + begin, up_ + token * ffn_stride_ + begin, end - begin);
    }
  });
  member.barrier();
  const PackedTokens gated = packed(gemm_for({w.w2}), s_.ffn);
  pack(member, 10, gated, [&](int64_t token, int64_t) {
    return std::pair<const float*, int64_t>(gate_ + token * ffn_stride_, ffn_stride_);
  });
  member.barrier();
  multiply(member, 11, gated, w.w2, residual_, s_.hidden, true);
}

// The kernels for products with these weights.
const GemmKernels& Pass::gemm_for(std::initializer_list<Matrix> weights) const {
  if (compute_ == Compute::kBfloat16) return *bfloat16_gemm_kernels();
  const bool narrow = std::all_of(weights.begin(), weights.end(), [](const Matrix& w) { return is_narrow(w.type); });
  return narrow ? narrow_gemm_kernels() : gemm_kernels();
}

PackedTokens Pass::packed(const GemmKernels& kernels, int64_t columns) const {
  return PackedTokens(kernels, tokens_, columns, packed_);
}

// rows(token, count) -> (first of so many rows, distance of rows)
template <class Rows>
void Pass::pack(Member& member, int phase, const PackedTokens& tokens, Rows&& rows) {
  member.share(phase, tokens.slivers(), 1, [&](int64_t sliver, int64_t) {
    const auto [x, ldx] = rows(sliver * tokens.rows(), tokens.tokens_of(sliver));
    tokens.pack(sliver, x, ldx);
  });
}

void Pass::multiply(Member& member, int phase, const PackedTokens& tokens, const Matrix& w, float* out, int64_t ldo,
                    bool add) {
  float* scratch = thread_scratch_ + member.rank() * thread_floats_;
  member.share(phase, w.rows, tokens.rows_at_a_time(w, member.size()), [&](int64_t begin, int64_t end) {
    tokens.multiply(w, begin, end, out, ldo, add, scratch);
  });
}

void Pass::product(Member& member, int phase, const Product& p) {
  member.share(phase, p.w.rows, rows_at_a_time(p.w), [&](int64_t begin, int64_t end) { k_.product(p, begin, end); });
}

void Pass::norm(Member& member, int phase, const float* x, const float* weight) {
  member.share(phase, tokens_, 4, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      k_.rms_norm(x + token * s_.hidden, weight, s_.eps, s_.hidden, normed_ + token * hidden_stride_);
    }
  });
}

// Position 0 of a batch row's key/value head in a cache.
char* Pass::cache(void* which, int64_t batch_row, int64_t head) const {
  const int64_t elements = (batch_row * s_.kv_heads + head) * s_.cached * s_.width;
  return static_cast<char*>(which) + elements * bytes_of(s_.cache);
}

void Pass::append(const float* from, void* to, int64_t token, int64_t head) const {
  const int64_t offset = position(token) * s_.width * bytes_of(s_.cache);
  k_.append(from, cache(to, row(token), head) + offset, s_.cache, s_.width);
}

// Rotates one token's queries and keys and writes its keys and values into the cache.
void Pass::place(const LayerWeights& w, int64_t token) {
  const float* cosine = cosine_ + position(token) * s_.width;
  const float* sine = sine_ + position(token) * s_.width;
  float* head = qkv_ + token * qkv_columns_;
  for (int64_t i = 0; i < s_.heads + s_.kv_heads; ++i) k_.rotate(head + i * s_.width, cosine, sine, s_.width);
  head += s_.heads * s_.width;
  for (int64_t i = 0; i < s_.kv_heads; ++i) append(head + i * s_.width, w.keys, token, i);
  head += s_.kv_heads * s_.width;
  for (int64_t i = 0; i < s_.kv_heads; ++i) append(head + i * s_.width, w.values, token, i);
}

Attend Pass::attention(const LayerWeights& w, int64_t task) const {
  const auto behind = std::upper_bound(blocks_.begin(), blocks_.end(), task,
                                       [](int64_t value, const Block& block) { return value < block.first_task; });
  const Block& block = *(behind - 1);
  const int64_t head = (task - block.first_task) / block.spans, span = (task - block.first_task) % block.spans;
  const int64_t token = block.first_token, first_head = head * group_;
  Attend attend{};
  attend.query = qkv_ + token * qkv_columns_ + first_head * s_.width;
  attend.token_stride = qkv_columns_;
  attend.positions = position_.data() + token;
  attend.tokens = block.tokens;
  attend.group = group_;
  attend.width = s_.width;
  attend.scale = 1.0f / std::sqrt(static_cast<float>(s_.width));
  attend.keys = cache(w.keys, row(token), head);
  attend.values = cache(w.values, row(token), head);
  attend.type = s_.cache;
  attend.begin = span * kSpan;
  attend.end = span + 1 == block.spans ? s_.cached : (span + 1) * kSpan;
  attend.finish = !cut_;
  if (cut_) {
    const int64_t slot = block.first_slot + first_head * block.spans + span;
    attend.mixed = slot_mixed_ + slot * s_.width;
    attend.largest = slot_largest_ + slot;
    attend.total = slot_total_ + slot;
    attend.token_slots = s_.heads * block.spans;
    attend.head_slots = block.spans;
  } else {
    attend.mixed = mixed_ + (token * s_.heads + first_head) * s_.width;
    attend.token_slots = s_.heads;
    attend.head_slots = 1;
  }
  return attend;
}

void Pass::merge(int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const Block& block = blocks_[static_cast<size_t>(block_[static_cast<size_t>(i / s_.heads)])];
    const int64_t slot = block.first_slot + (i - block.first_token * s_.heads) * block.spans;
    k_.merge(slot_mixed_ + slot * s_.width, slot_largest_ + slot, slot_total_ + slot, block.spans, s_.width,
             mixed_ + i * s_.width);
  }
}

}  // namespace codellama
