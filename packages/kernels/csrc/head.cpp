// The last norm, the output projection and the greedy choice of each row, as one operator.
//
// Shapes: B rows whose successor is wanted, T tokens, H hidden, V vocabulary.
#include <cmath>
#include <new>
#include <vector>

#include "arguments.h"
#include "pool.h"

namespace codellama {
namespace {

enum Argument {
  kX,       // [T, H]
  kLast,    // int32 [B], rows of x
  kNorm,    // [H]
  kWeight,  // [V, H], float32 or float16
  kEps,     // [1]
  kGreedy,  // int32 [B], written: the first of the largest logits
  kLogits,  // [B, V], written
  kArguments
};

constexpr int64_t kStreamBytes = 64 << 10;

struct Best {
  float logit = -INFINITY;
  int64_t id = 0;
  // Members see the ids out of order, so equal logits need the comparison of ids.
  void take(float other, int64_t other_id) {
    if (other > logit || (other == logit && other_id < id)) {
      logit = other;
      id = other_id;
    }
  }
};

void run(const Arguments& a) {
  const Kernels& k = kernels();
  const int64_t batch = a.elements(kLast), hidden = a.side(kX, 1), vocabulary = a.side(kWeight, 0);
  Pool& pool = Pool::instance();
  const std::lock_guard<std::mutex> lock(pool.mutex());
  const int64_t thread_floats = (k.product_scratch() + 15) / 16 * 16;
  float* thread_scratch = pool.scratch(thread_floats * pool.size() + batch * hidden);
  float* normed = thread_scratch + thread_floats * pool.size();
  for (int64_t row = 0; row < batch; ++row) {
    k.rms_norm(a.data<float>(kX) + a.data<int32_t>(kLast)[row] * hidden, a.data<float>(kNorm), *a.data<float>(kEps),
               hidden, normed + row * hidden);
  }
  float* logits = a.data<float>(kLogits);
  const Product product{normed, hidden, batch, a.matrix(kWeight), logits, vocabulary, nullptr, 0};
  const int64_t bytes = hidden * (product.w.type == Type::kFloat16 ? 2 : 4);
  const int64_t step = batch >= k.packed_tokens ? k.panel_rows : (kStreamBytes / bytes / 4 + 1) * 4;
  std::vector<Best> best(static_cast<size_t>(batch * pool.size()));
  pool.run([&](Member& member) {
    Best* mine = best.data() + member.rank() * batch;
    member.share(0, vocabulary, step, [&](int64_t begin, int64_t end) {
      k.product(product, begin, end, thread_scratch + member.rank() * thread_floats);
      for (int64_t row = 0; row < batch; ++row) {
        for (int64_t id = begin; id < end; ++id) mine[row].take(logits[row * vocabulary + id], id);
      }
    });
  });
  for (int64_t row = 0; row < batch; ++row) {
    Best whole;
    for (int member = 0; member < pool.size(); ++member) {
      const Best& part = best[static_cast<size_t>(member * batch + row)];
      whole.take(part.logit, part.id);
    }
    a.data<int32_t>(kGreedy)[row] = static_cast<int32_t>(whole.id);
  }
}

bool plausible(const Arguments& a) {
  if (a.count() != kArguments || !a.is(kX, "float32") || !a.is(kLast, "int32") || !a.is(kNorm, "float32") ||
      !a.is_real(kWeight) || !a.is(kEps, "float32") || !a.is(kGreedy, "int32") || !a.is(kLogits, "float32")) {
    return false;
  }
  const int64_t batch = a.elements(kLast), hidden = a.side(kX, 1), vocabulary = a.side(kWeight, 0);
  for (int64_t row = 0; row < batch; ++row) {
    const int32_t last = a.data<int32_t>(kLast)[row];
    if (last < 0 || last >= a.side(kX, 0)) return false;
  }
  return hidden > 0 && vocabulary > 0 && a.is_shape(kX, a.side(kX, 0), hidden) && a.elements(kNorm) == hidden &&
         a.is_shape(kWeight, vocabulary, hidden) && a.elements(kEps) == 1 && a.elements(kGreedy) == batch &&
         a.elements(kLogits) == batch * vocabulary;
}

}  // namespace
}  // namespace codellama

CODELLAMA_EXPORT int codellama_cached_head(int count, void** data, int* ndims, int64_t** shapes, const char** dtypes,
                                           void*, void*) {
  using namespace codellama;
  const Arguments arguments(count, data, ndims, shapes, dtypes);
  if (!plausible(arguments)) return kWrongArguments;
  try {
    run(arguments);
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  }
  return kDone;
}
