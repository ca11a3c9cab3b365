// One decoder layer over a few new tokens and a key/value cache, as one operator.
//
// Shapes: B batch, S new tokens a row, T = B * S, N query heads, K key/value heads, G = N / K, D head width, H hidden,
// F feed-forward, L cache positions, P rows of the rotary table.
//
// A token whose position is not in 0..L-2 is padding: it costs nothing, its keys and values are not written, and its
// row of the output is its row of the input.
#include <cmath>
#include <new>
#include <vector>

#include "arguments.h"
#include "pool.h"

namespace codellama {
namespace {

enum Argument {
  kX,          // [T, H]
  kPositions,  // int32 [B, S]
  kCosine,     // [P, D]
  kSine,       // [P, D]
  kKeys,       // [B * K * L, D], float32 or float16, written
  kValues,     // the same
  kAttentionNorm,  // [H]
  kWq,             // [N * D, H]; the matrices are float32 or float16
  kWk,             // [K * D, H]
  kWv,             // [K * D, H]
  kWo,             // [H, N * D]
  kFfnNorm,        // [H]
  kW1,             // [F, H]
  kW2,             // [H, F]
  kW3,             // [F, H]
  kEps,            // [1]
  kOut,            // [T, H]
  kArguments
};

constexpr int64_t kStreamBytes = 64 << 10;  // of a streamed weight that a member takes at a time: some microseconds
constexpr int64_t kSpan = 256;              // positions that a member attends to at a time when the cache is cut
constexpr int64_t kCutTokens = 16;  // up to so many tokens the cache is cut; more give every member blocks of their own

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Distance of rows in scratch: rows a power of two apart would fall into the same few sets of a cache.
int64_t row_stride(int64_t columns) { return round_up(columns, 16) + 16; }

// Rows of a weight to take at a time: few, for balance, but whole panels or many bytes.
int64_t rows_at_a_time(const Kernels& k, int64_t tokens, const Matrix& w) {
  if (tokens >= k.packed_tokens) return k.panel_rows;
  const int64_t bytes = w.columns * (w.type == Type::kFloat16 ? 2 : 4);
  return round_up(kStreamBytes / bytes + 1, 4);
}

// Consecutive tokens of one batch row that attend together, one task for each key/value head and span of the cache.
struct Block {
  int64_t first_token, tokens;
  int64_t spans;
  int64_t first_task;
  int64_t first_slot;  // of the results: [tokens, N, spans]
};

class Layer {
 public:
  explicit Layer(const Arguments& a)
      : a_(a),
        k_(kernels()),
        all_(a.elements(kPositions)),
        length_(a.side(kPositions, 1)),
        hidden_(a.side(kX, 1)),
        width_(a.side(kCosine, 1)),
        heads_(a.side(kWq, 0) / width_),
        kv_heads_(a.side(kWk, 0) / width_),
        group_(heads_ / kv_heads_),
        ffn_(a.side(kW1, 0)),
        cached_(a.side(kKeys, 0) / (a.side(kPositions, 0) * kv_heads_)),
        qkv_columns_((heads_ + 2 * kv_heads_) * width_),
        hidden_stride_(row_stride(hidden_)),
        ffn_stride_(row_stride(ffn_)),
        eps_(*a.data<float>(kEps)) {}

  void run() {
    Pool& pool = Pool::instance();
    const std::lock_guard<std::mutex> lock(pool.mutex());
    find_tokens();
    if (tokens_ > 0) {
      cut_attention(pool.size() > 1 && tokens_ <= kCutTokens);
      lay_out(pool);
      pool.run([this](Member& member) { compute(member); });
    }
    if (tokens_ < all_) scatter();
  }

 private:
  // Padding is left out from here on: the tokens that remain are numbered 0..tokens_-1.
  void find_tokens() {
    const int32_t* positions = a_.data<int32_t>(kPositions);
    for (int64_t token = 0; token < all_; ++token) {
      if (positions[token] < 0 || positions[token] >= cached_ - 1) continue;
      token_.push_back(token);
      position_.push_back(positions[token]);
    }
    tokens_ = static_cast<int64_t>(token_.size());
  }

  int64_t row(int64_t token) const { return token_[token] / length_; }

  void cut_attention(bool cut) {
    const int64_t most = kQueryRows / group_ > 1 ? kQueryRows / group_ : 1;
    for (int64_t token = 0; token < tokens_;) {
      Block block{token, 0, 1, tasks_, slots_};
      int32_t last = 0;
      for (; token < tokens_ && row(token) == row(block.first_token) && block.tokens < most; ++token, ++block.tokens) {
        if (position_[token] > last) last = position_[token];
        block_.push_back(static_cast<int64_t>(blocks_.size()));
      }
      if (cut) block.spans = last / kSpan + 1;
      tasks_ += block.spans * kv_heads_;
      slots_ += block.spans * block.tokens * heads_;
      blocks_.push_back(block);
    }
    cut_ = slots_ > tokens_ * heads_;
  }

  void lay_out(Pool& pool) {
    const int64_t product = k_.product_scratch(), attend = k_.attend_scratch(width_);
    thread_floats_ = round_up(product > attend ? product : attend, 16);
    const bool padded = tokens_ < all_;
    const struct {
      float** part;
      int64_t size;
    } parts[] = {
        {&x_, padded ? tokens_ * hidden_ : 0},
        {&out_, padded ? tokens_ * hidden_ : 0},
        {&normed_, tokens_ * hidden_stride_},
        {&qkv_, tokens_ * qkv_columns_},
        {&mixed_, tokens_ * heads_ * width_},
        {&middle_, tokens_ * hidden_},
        {&gate_, tokens_ * ffn_stride_},
        {&up_, tokens_ * ffn_stride_},
        {&slot_mixed_, cut_ ? slots_ * width_ : 0},
        {&slot_largest_, cut_ ? slots_ : 0},
        {&slot_total_, cut_ ? slots_ : 0},
        {&thread_scratch_, thread_floats_ * pool.size()},
    };
    int64_t total = 0;
    for (const auto& part : parts) total += round_up(part.size, 16);
    float* scratch = pool.scratch(total);
    for (const auto& part : parts) {
      *part.part = scratch;
      scratch += round_up(part.size, 16);
    }
    if (padded) {
      for (int64_t token = 0; token < tokens_; ++token) {
        copy(a_.data<float>(kX) + token_[token] * hidden_, x_ + token * hidden_);
      }
    } else {
      x_ = a_.data<float>(kX);
      out_ = a_.data<float>(kOut);
    }
  }

  void scatter() {
    std::memcpy(a_.data<float>(kOut), a_.data<float>(kX), static_cast<size_t>(all_ * hidden_) * sizeof(float));
    for (int64_t token = 0; token < tokens_; ++token) {
      copy(out_ + token * hidden_, a_.data<float>(kOut) + token_[token] * hidden_);
    }
  }

  void copy(const float* from, float* to) const {
    std::memcpy(to, from, static_cast<size_t>(hidden_) * sizeof(float));
  }

  // What every member does. A phase needs nothing of its own; a barrier stands wherever the next phase reads what
  // other members have written.
  void compute(Member& member) {
    float* scratch = thread_scratch_ + member.rank() * thread_floats_;
    norm(member, 0, x_, kAttentionNorm);
    member.barrier();
    float* column = qkv_;
    product(member, 1, {normed_, hidden_stride_, tokens_, a_.matrix(kWq), column, qkv_columns_, nullptr, 0}, scratch);
    column += heads_ * width_;
    product(member, 2, {normed_, hidden_stride_, tokens_, a_.matrix(kWk), column, qkv_columns_, nullptr, 0}, scratch);
    column += kv_heads_ * width_;
    product(member, 3, {normed_, hidden_stride_, tokens_, a_.matrix(kWv), column, qkv_columns_, nullptr, 0}, scratch);
    member.barrier();
    member.share(4, tokens_, 1, [&](int64_t token, int64_t) { place(token); });
    member.barrier();
    member.share(5, tasks_, 1, [&](int64_t task, int64_t) { attend(task, scratch); });
    member.barrier();
    if (cut_) {
      member.share(6, tokens_ * heads_, 4, [&](int64_t begin, int64_t end) { merge(begin, end); });
      member.barrier();
    }
    const int64_t mixed = heads_ * width_;
    product(member, 7, {mixed_, mixed, tokens_, a_.matrix(kWo), middle_, hidden_, x_, hidden_}, scratch);
    member.barrier();
    norm(member, 8, middle_, kFfnNorm);
    member.barrier();
    const Product gate{normed_, hidden_stride_, tokens_, a_.matrix(kW1), gate_, ffn_stride_, nullptr, 0};
    const Product up{normed_, hidden_stride_, tokens_, a_.matrix(kW3), up_, ffn_stride_, nullptr, 0};
    member.share(9, ffn_, rows_at_a_time(k_, tokens_, gate.w), [&](int64_t begin, int64_t end) {
      k_.product(gate, begin, end, scratch);
      k_.product(up, begin, end, scratch);
      for (int64_t token = 0; token < tokens_; ++token) {
        k_.swiglu(gate_ + token * ffn_stride_ + begin, up_ + token * ffn_stride_ + begin, end - begin);
      }
    });
    member.barrier();
    product(member, 10, {gate_, ffn_stride_, tokens_, a_.matrix(kW2), out_, hidden_, middle_, hidden_}, scratch);
  }

  void product(Member& member, int phase, const Product& p, float* scratch) {
    member.share(phase, p.w.rows, rows_at_a_time(k_, tokens_, p.w),
                 [&](int64_t begin, int64_t end) { k_.product(p, begin, end, scratch); });
  }

  void norm(Member& member, int phase, const float* x, Argument weight) {
    member.share(phase, tokens_, 4, [&](int64_t begin, int64_t end) {
      for (int64_t token = begin; token < end; ++token) {
        k_.rms_norm(x + token * hidden_, a_.data<float>(weight), eps_, hidden_, normed_ + token * hidden_stride_);
      }
    });
  }

  // Position 0 of a batch row's key/value head in a cache.
  void* cache(Argument which, int64_t batch_row, int64_t head) const {
    const int64_t elements = (batch_row * kv_heads_ + head) * cached_ * width_;
    return a_.data<char>(which) + elements * (a_.type(which) == Type::kFloat16 ? 2 : 4);
  }

  void append(const float* from, Argument which, int64_t token, int64_t head) {
    const Type type = a_.type(which);
    const int64_t bytes = position_[token] * width_ * (type == Type::kFloat16 ? 2 : 4);
    k_.append(from, static_cast<char*>(cache(which, row(token), head)) + bytes, type, width_);
  }

  // Rotates one token's queries and keys and writes its keys and values into the cache.
  void place(int64_t token) {
    const float* cosine = a_.data<float>(kCosine) + position_[token] * width_;
    const float* sine = a_.data<float>(kSine) + position_[token] * width_;
    float* head = qkv_ + token * qkv_columns_;
    for (int64_t i = 0; i < heads_ + kv_heads_; ++i) k_.rotate(head + i * width_, cosine, sine, width_);
    head += heads_ * width_;
    for (int64_t i = 0; i < kv_heads_; ++i) append(head + i * width_, kKeys, token, i);
    head += kv_heads_ * width_;
    for (int64_t i = 0; i < kv_heads_; ++i) append(head + i * width_, kValues, token, i);
  }

  void attend(int64_t task, float* scratch) {
    size_t index = 0;
    while (index + 1 < blocks_.size() && blocks_[index + 1].first_task <= task) ++index;
    const Block& block = blocks_[index];
    const int64_t head = (task - block.first_task) / block.spans, span = (task - block.first_task) % block.spans;
    const int64_t token = block.first_token, first_head = head * group_;
    Attend attend{};
    attend.query = qkv_ + token * qkv_columns_ + first_head * width_;
    attend.token_stride = qkv_columns_;
    attend.positions = position_.data() + token;
    attend.tokens = block.tokens;
    attend.group = group_;
    attend.width = width_;
    attend.scale = 1.0f / std::sqrt(static_cast<float>(width_));
    attend.keys = cache(kKeys, row(token), head);
    attend.values = cache(kValues, row(token), head);
    attend.type = a_.type(kKeys);
    attend.begin = span * kSpan;
    attend.end = span + 1 == block.spans ? cached_ : (span + 1) * kSpan;
    attend.finish = !cut_;
    if (cut_) {
      const int64_t slot = block.first_slot + first_head * block.spans + span;
      attend.mixed = slot_mixed_ + slot * width_;
      attend.largest = slot_largest_ + slot;
      attend.total = slot_total_ + slot;
      attend.token_slots = heads_ * block.spans;
      attend.head_slots = block.spans;
    } else {
      attend.mixed = mixed_ + (token * heads_ + first_head) * width_;
      attend.token_slots = heads_;
      attend.head_slots = 1;
    }
    k_.attend(attend, scratch);
  }

  void merge(int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Block& block = blocks_[static_cast<size_t>(block_[static_cast<size_t>(i / heads_)])];
      const int64_t slot = block.first_slot + (i - block.first_token * heads_) * block.spans;
      k_.merge(slot_mixed_ + slot * width_, slot_largest_ + slot, slot_total_ + slot, block.spans, width_,
               mixed_ + i * width_);
    }
  }

  const Arguments& a_;
  const Kernels& k_;
  const int64_t all_, length_, hidden_, width_, heads_, kv_heads_, group_, ffn_;
  const int64_t cached_;  // L
  const int64_t qkv_columns_, hidden_stride_, ffn_stride_;
  const float eps_;
  int64_t tokens_ = 0, tasks_ = 0, slots_ = 0, thread_floats_ = 0;
  bool cut_ = false;  // some task attends to a part of the cache only
  std::vector<int64_t> token_;     // number among all tokens, padding included
  std::vector<int32_t> position_;  // of each token
  std::vector<int64_t> block_;     // of each token
  std::vector<Block> blocks_;
  float *x_, *out_, *normed_, *qkv_, *mixed_, *middle_, *gate_, *up_;
  float *slot_mixed_, *slot_largest_, *slot_total_, *thread_scratch_;
};

bool plausible(const Arguments& a) {
  if (a.count() != kArguments) return false;
  for (const int index : {kX, kCosine, kSine, kAttentionNorm, kFfnNorm, kEps, kOut}) {
    if (!a.is(index, "float32")) return false;
  }
  for (const int index : {kKeys, kValues, kWq, kWk, kWv, kWo, kW1, kW2, kW3}) {
    if (!a.is_real(index)) return false;
  }
  const int64_t tokens = a.elements(kPositions), batch = a.side(kPositions, 0), hidden = a.side(kX, 1);
  const int64_t width = a.side(kCosine, 1), query = a.side(kWq, 0), key = a.side(kWk, 0), ffn = a.side(kW1, 0);
  if (tokens < 1 || hidden < 1 || width < 2 || width % 2 || key < 1 || key % width || query % key || ffn < 1) {
    return false;
  }
  const int64_t caches = batch * (key / width);
  return a.is(kPositions, "int32") && a.is_shape(kX, tokens, hidden) && a.is_shape(kOut, tokens, hidden) &&
         a.is_shape(kSine, a.side(kCosine, 0), width) && a.side(kKeys, 0) % caches == 0 &&
         a.side(kKeys, 0) / caches <= a.side(kCosine, 0) + 1 && a.is_shape(kKeys, a.side(kKeys, 0), width) &&
         a.is_shape(kValues, a.side(kKeys, 0), width) && a.type(kKeys) == a.type(kValues) &&
         a.elements(kAttentionNorm) == hidden && a.elements(kFfnNorm) == hidden && a.is_shape(kWq, query, hidden) &&
         a.is_shape(kWk, key, hidden) && a.is_shape(kWv, key, hidden) && a.is_shape(kWo, hidden, query) &&
         a.is_shape(kW1, ffn, hidden) && a.is_shape(kW2, hidden, ffn) && a.is_shape(kW3, ffn, hidden) &&
         a.elements(kEps) == 1;
}

}  // namespace
}  // namespace codellama

CODELLAMA_EXPORT int codellama_cached_layer(int count, void** data, int* ndims, int64_t** shapes, const char** dtypes,
                                            void*, void*) {
  using namespace codellama;
  const Arguments arguments(count, data, ndims, shapes, dtypes);
  if (!plausible(arguments)) return kWrongArguments;
  try {
    Layer(arguments).run();
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  }
  return kDone;
}
