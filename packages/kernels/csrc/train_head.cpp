// Output projection and cross-entropy as one operator, in chunks of tokens: the logits of all tokens never exist.
//
// Shapes: T tokens, H hidden, V vocabulary (or a slice of it).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "gemm.h"
#include "operator.h"
#include "pool.h"
#include "train.h"

namespace codellama {
namespace {

constexpr int64_t kLogitsBytes = 32 << 20;  // of a chunk; the weight is packed again for each, which this makes rare
constexpr int64_t kLeastTokens = 32;

int64_t divide_up(int64_t value, int64_t step) { return (value + step - 1) / step; }

// The logits of some tokens, a chunk at a time, and the products of their gradients.
struct Head {
  const float *x, *weight;  // [T, H], [V, H]
  int64_t tokens, hidden, vocabulary;
  float *dx, *d_weight;  // the same shapes, written; both null where no gradient is wanted

  // Calls each(token, logits [V]) for the chosen tokens, which replaces the logits by their gradient where one is
  // wanted. Tokens that are not chosen have no gradient.
  template <class Each>
  void run(const std::vector<int64_t>& chosen, Each&& each) const {
    Pool& pool = Pool::instance();
    const std::lock_guard<std::mutex> lock(pool.mutex());
    const int64_t count = static_cast<int64_t>(chosen.size());
    if (dx) std::fill(dx, dx + tokens * hidden, 0.0f);
    if (count == 0) {
      if (d_weight) std::fill(d_weight, d_weight + vocabulary * hidden, 0.0f);
      return;
    }
    const int64_t most = std::max(kLeastTokens, kLogitsBytes / (vocabulary * int64_t{sizeof(float)}));
    const int64_t chunk = divide_up(count, divide_up(count, most));
    const int64_t stride = divide_up(vocabulary, 16) * 16 + 16, rows = divide_up(chunk * hidden, 16) * 16;
    int64_t products = gemm_scratch(chunk, vocabulary, hidden);
    if (dx) products = std::max(products, gemm_of_gradients_scratch(chunk, hidden, vocabulary));
    if (d_weight) products = std::max(products, gemm_scratch(vocabulary, hidden, chunk));
    float* logits = pool.scratch(chunk * stride + 2 * rows + products);
    float* gathered = logits + chunk * stride;
    float* gradients = gathered + rows;
    float* scratch = gradients + rows;
    for (int64_t first = 0; first < count; first += chunk) {
      const int64_t here = std::min(chunk, count - first);
      for (int64_t i = 0; i < here; ++i) copy(x + chosen[first + i] * hidden, gathered + i * hidden);
      gemm(pool, {here, vocabulary, hidden, {gathered, hidden, true}, {weight, hidden, true}, logits, stride, false},
           scratch);
      pool.run([&](Member& member) {
        member.share(0, here, 1, [&](int64_t i, int64_t) { each(chosen[first + i], logits + i * stride); });
      });
      if (dx) {
        gemm_of_gradients(pool,
                          {here, hidden, vocabulary, {logits, stride, true}, {weight, hidden, false}, gradients, hidden,
                           false},
                          scratch);
        for (int64_t i = 0; i < here; ++i) copy(gradients + i * hidden, dx + chosen[first + i] * hidden);
      }
      if (d_weight) {
        gemm(pool, {vocabulary, hidden, here, {logits, stride, false}, {gathered, hidden, false}, d_weight, hidden,
                    first > 0},
             scratch);
      }
    }
  }

  void copy(const float* from, float* to) const {
    std::memcpy(to, from, static_cast<size_t>(hidden) * sizeof(float));
  }
};

bool is_head(const Arguments& a) {  // x [T, H], weight [V, H], labels int32 [T]
  return a.count() > 3 && a.is(0, "float32") && a.is(1, "float32") && a.is(2, "int32") && a.side(1, 0) > 0 &&
         a.side(0, 1) > 0 && a.is_shape(0, a.side(0, 0), a.side(0, 1)) && a.is_shape(1, a.side(1, 0), a.side(0, 1)) &&
         a.elements(2) == a.side(0, 0);
}

bool are_vectors(const Arguments& a, int begin, int end) {  // float32 [T]
  for (int index = begin; index < end; ++index) {
    if (!a.is(index, "float32") || a.elements(index) != a.side(0, 0)) return false;
  }
  return true;
}

bool are_gradients(const Arguments& a, int dx) {  // dx [T, H], d_weight [V, H]
  return a.is(dx, "float32") && a.is(dx + 1, "float32") && a.elements(dx) == a.elements(0) &&
         a.elements(dx + 1) == a.elements(1);
}

Head head(const Arguments& a, int dx) {
  const bool wanted = dx > 0;
  return {a.data<float>(0), a.data<float>(1), a.side(0, 0), a.side(0, 1), a.side(1, 0),
          wanted ? a.data<float>(dx) : nullptr, wanted ? a.data<float>(dx + 1) : nullptr};
}

}  // namespace
}  // namespace codellama

using namespace codellama;

// x [T, H], weight [V, H], labels int32 [T], ignore_index int32 [1], z_loss [1] -> loss [1], tokens [1]
// and, where a gradient is wanted, dx [T, H], d_weight [V, H] of the loss
CODELLAMA_OPERATOR(codellama_linear_cross_entropy) {
  constexpr int kWithout = 7, kWith = 9;
  bool plausible = is_head(a) && (a.count() == kWithout || a.count() == kWith) && a.is(3, "int32") &&
                   a.elements(3) == 1;
  for (int index = 4; plausible && index < kWithout; ++index) {
    plausible = a.is(index, "float32") && a.elements(index) == 1;
  }
  if (plausible && a.count() == kWith) plausible = are_gradients(a, kWithout);
  const int64_t tokens = a.side(0, 0), vocabulary = a.side(1, 0);
  const int32_t* labels = a.data<int32_t>(2);
  for (int64_t token = 0; plausible && token < tokens; ++token) {
    plausible = labels[token] == *a.data<int32_t>(3) || (labels[token] >= 0 && labels[token] < vocabulary);
  }
  return serve(plausible, [&] {
    const TrainKernels& k = train_kernels();
    const Head h = head(a, a.count() == kWith ? kWithout : 0);
    const float z_loss = *a.data<float>(4);
    std::vector<int64_t> chosen;
    for (int64_t token = 0; token < tokens; ++token) {
      if (labels[token] != *a.data<int32_t>(3)) chosen.push_back(token);
    }
    std::vector<float> losses(static_cast<size_t>(tokens));
    h.run(chosen, [&](int64_t token, float* logits) {
      float largest, total;
      k.largest_and_total(logits, vocabulary, &largest, &total);
      const float lse = largest + std::log(total);
      losses[static_cast<size_t>(token)] = lse - logits[labels[token]] + z_loss * lse * lse;
      if (!h.dx) return;
      k.exponentials(logits, vocabulary, largest, (1.0f + 2.0f * z_loss * lse) / total);
      logits[labels[token]] -= 1.0f;
    });
    double sum = 0;
    for (const int64_t token : chosen) sum += losses[static_cast<size_t>(token)];
    *a.data<float>(5) = static_cast<float>(sum);
    *a.data<float>(6) = static_cast<float>(chosen.size());
  });
}

// x, weight, labels -> largest [T], total [T] = sum of exp(logit - largest), logit [T] of the label, -inf where the
// label is not in the slice
CODELLAMA_OPERATOR(codellama_vocabulary_slice) {
  const bool plausible = is_head(a) && a.count() == 6 && are_vectors(a, 3, 6);
  return serve(plausible, [&] {
    const TrainKernels& k = train_kernels();
    const Head h = head(a, 0);
    std::vector<int64_t> all(static_cast<size_t>(h.tokens));
    for (int64_t token = 0; token < h.tokens; ++token) all[static_cast<size_t>(token)] = token;
    h.run(all, [&](int64_t token, const float* logits) {
      k.largest_and_total(logits, h.vocabulary, a.data<float>(3) + token, a.data<float>(4) + token);
      const int32_t label = a.data<int32_t>(2)[token];
      a.data<float>(5)[token] = label >= 0 && label < h.vocabulary ? logits[label] : -INFINITY;
    });
  });
}

// x, weight, labels, largest [T], total [T] over the whole vocabulary, d_lse [T], d_logit [T] -> dx, d_weight:
// of d_lse * (largest + log(total)) + d_logit * logit, summed over the tokens
CODELLAMA_OPERATOR(codellama_vocabulary_slice_backward) {
  const bool plausible = is_head(a) && a.count() == 9 && are_vectors(a, 3, 7) && are_gradients(a, 7);
  return serve(plausible, [&] {
    const TrainKernels& k = train_kernels();
    const Head h = head(a, 7);
    std::vector<int64_t> chosen;
    for (int64_t token = 0; token < h.tokens; ++token) {
      if (a.data<float>(5)[token] != 0.0f || a.data<float>(6)[token] != 0.0f) chosen.push_back(token);
    }
    h.run(chosen, [&](int64_t token, float* logits) {
      k.exponentials(logits, h.vocabulary, a.data<float>(3)[token], a.data<float>(5)[token] / a.data<float>(4)[token]);
      const int32_t label = a.data<int32_t>(2)[token];
      if (label >= 0 && label < h.vocabulary) logits[label] += a.data<float>(6)[token];
    });
  });
}
