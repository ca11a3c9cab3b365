// One layer as the team computes it: streamed weights for a few tokens, matrix products for many.
#include "pass.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "pool.h"
#include "product.h"

namespace codellama {
namespace {

constexpr int64_t kStreamBytes = 64 << 10;  // of a streamed weight that a member takes at a time: some microseconds
constexpr int64_t kSpan = 256;              // positions that a member attends to at a time when the cache is cut
constexpr int64_t kCutTokens = 16;  // up to so many tokens the cache is cut; more give every member blocks of their own

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Distance of rows in scratch: rows a power of two apart would fall into the same few sets of a cache.
int64_t row_stride(int64_t columns) { return round_up(columns, 16) + 16; }

// Rows of a streamed weight to take at a time: few, for balance, but many bytes.
int64_t rows_at_a_time(const Matrix& w) { return round_up(kStreamBytes / w.row_bytes() + 1, 4); }

}  // namespace

Pass::Pass(Pool& pool, const PassSizes& sizes, const float* x, const int32_t* positions, const float* cosine,
           const float* sine, float* out)
    : pool_(pool),
      k_(kernels()),
      s_(sizes),
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
  const int64_t most = std::max<int64_t>(1, kQueryRows / group_);
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
  thread_floats_ = round_up(k_.attend_scratch(s_.width), 16);
  const bool padded = tokens_ < all_;
  const int64_t mixed = s_.heads * s_.width;
  int64_t products = 0;
  if (many_) {
    for (const auto& [rows, columns] : {std::pair{qkv_columns_, s_.hidden}, std::pair{s_.hidden, mixed},
                                        std::pair{2 * s_.ffn, s_.hidden}, std::pair{s_.hidden, s_.ffn}}) {
      products = std::max(products, multiply_scratch(tokens_, rows, columns));
    }
  }
  const struct {
    float** part;
    int64_t size;
  } parts[] = {
      {&residual_, padded ? tokens_ * s_.hidden : 0},
      {&normed_, tokens_ * hidden_stride_},
      {&qkv_, tokens_ * qkv_columns_},
      {&mixed_, tokens_ * mixed},
      {&middle_, many_ ? 0 : tokens_ * s_.hidden},
      {&gate_, tokens_ * ffn_stride_},
      {&slot_mixed_, cut_ ? slots_ * s_.width : 0},
      {&slot_largest_, cut_ ? slots_ : 0},
      {&slot_total_, cut_ ? slots_ : 0},
      {&thread_scratch_, thread_floats_ * pool_.size()},
      {&product_scratch_, products},
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
    many(layer);
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
  member.share(5, tasks_, 1, [&](int64_t task, int64_t) { attend(w, task, scratch); });
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

void Pass::many(const LayerWeights& w) {
  pool_.run([&](Member& member) { norm(member, 0, residual_, w.attention_norm); });
  multiply(pool_, {normed_, hidden_stride_, tokens_, {w.wq, w.wk, w.wv}, qkv_, qkv_columns_, false}, product_scratch_);
  pool_.run([&](Member& member) {
    float* scratch = thread_scratch_ + member.rank() * thread_floats_;
    member.share(0, tokens_, 4, [&](int64_t begin, int64_t end) {
      for (int64_t token = begin; token < end; ++token) place(w, token);
    });
    member.barrier();
    // The longest tasks first: the last ones, which the others wait for, are then short.
    member.share(1, tasks_, 1, [&](int64_t task, int64_t) { attend(w, tasks_ - 1 - task, scratch); });
  });
  multiply(pool_, {mixed_, w.wo.columns, tokens_, {w.wo}, residual_, s_.hidden, true}, product_scratch_);
  pool_.run([&](Member& member) { norm(member, 0, residual_, w.ffn_norm); });
  multiply(pool_, {normed_, hidden_stride_, tokens_, {w.w1, w.w3}, gate_, ffn_stride_, false}, product_scratch_);
  pool_.run([&](Member& member) {
    member.share(0, tokens_, 4, [&](int64_t begin, int64_t end) {
      for (int64_t token = begin; token < end; ++token) {
        k_.swiglu(gate_ + token * ffn_stride_, up_ + token * ffn_stride_, s_.ffn);
      }
    });
  });
  multiply(pool_, {gate_, ffn_stride_, tokens_, {w.w2}, residual_, s_.hidden, true}, product_scratch_);
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

void Pass::attend(const LayerWeights& w, int64_t task, float* scratch) {
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
  k_.attend(attend, scratch);
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
