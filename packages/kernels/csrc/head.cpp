// The last norm, the output projection and the greedy choice of each row, as one operator.
//
// Shapes: B rows whose successor is wanted, T tokens, H hidden, V vocabulary.
#include <cmath>
#include <vector>

#include "operator.h"
#include "pool.h"
#include "product.h"

namespace codellama {
namespace {

enum Argument {
  kX,       // [T, H]
  kLast,    // int32 [B], rows of x
  kNorm,    // [H]
  kWeight,  // [V, H], float32, float16 or int8
  kEps,     // [1]
  kRest  // float16 [V, groups], the weight's scales where it is int8; then the results, which are written:
         // greedy int32 [B], the first of the largest logits, and logits [B, V]
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

int greedy_of(const Arguments& a) { return a.count() - 2; }
int logits_of(const Arguments& a) { return a.count() - 1; }

void run(const Arguments& a) {
  const Kernels& k = kernels();
  const int64_t batch = a.elements(kLast), hidden = a.side(kX, 1), vocabulary = a.side(kWeight, 0);
  const bool many = batch >= kManyTokens;
  Pool& pool = Pool::instance();
  const std::lock_guard<std::mutex> lock(pool.mutex());
  const Matrix weight = a.matrix(kWeight, a.is(kWeight, "int8") ? a.data<Half>(kRest) : nullptr);
  const GemmKernels& gemm = weight.type == Type::kFloat32 ? gemm_kernels() : narrow_gemm_kernels();
  const int64_t normed_floats = (batch * hidden + 15) / 16 * 16;
  const int64_t packed_floats = many ? PackedTokens::floats(gemm, batch, hidden) : 0;
  const int64_t weight_floats = many ? PackedTokens::weight_floats(gemm, hidden) : 0;
  float* normed = pool.scratch(normed_floats + packed_floats + weight_floats * pool.size());
  float* packed = normed + normed_floats;
  for (int64_t row = 0; row < batch; ++row) {
    k.rms_norm(a.data<float>(kX) + a.data<int32_t>(kLast)[row] * hidden, a.data<float>(kNorm), *a.data<float>(kEps),
               hidden, normed + row * hidden);
  }
  const PackedTokens tokens(gemm, batch, hidden, packed);
  if (many) {
    for (int64_t sliver = 0; sliver < tokens.slivers(); ++sliver) {
      tokens.pack(sliver, normed + sliver * tokens.rows() * hidden, hidden);
    }
  }
  float* logits = a.data<float>(logits_of(a));
  const Product product{normed, hidden, batch, weight, logits, vocabulary, nullptr, 0};
  const int64_t step =
      many ? tokens.rows_at_a_time(weight, pool.size()) : (kStreamBytes / weight.row_bytes() / 4 + 1) * 4;
  std::vector<Best> best(static_cast<size_t>(batch * pool.size()));
  pool.run([&](Member& member) {
    Best* mine = best.data() + member.rank() * batch;
    float* scratch = packed + packed_floats + member.rank() * weight_floats;
    member.share(0, vocabulary, step, [&](int64_t begin, int64_t end) {
      if (many) {
        tokens.multiply(weight, begin, end, logits, vocabulary, false, scratch);
      } else {
        k.product(product, begin, end);
      }
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
    a.data<int32_t>(greedy_of(a))[row] = static_cast<int32_t>(whole.id);
  }
}

bool plausible(const Arguments& a) {
  const bool quantized = a.count() == kRest + 3;
  if ((a.count() != kRest + 2 && !quantized) || !a.is(kX, "float32") || !a.is(kLast, "int32") ||
      !a.is(kNorm, "float32") || !a.is(kEps, "float32") || !a.is(greedy_of(a), "int32") ||
      !a.is(logits_of(a), "float32") || (quantized ? !a.is(kWeight, "int8") : !a.is_real(kWeight))) {
    return false;
  }
  const int64_t batch = a.elements(kLast), hidden = a.side(kX, 1), vocabulary = a.side(kWeight, 0);
  for (int64_t row = 0; row < batch; ++row) {
    const int32_t last = a.data<int32_t>(kLast)[row];
    if (last < 0 || last >= a.side(kX, 0)) return false;
  }
  return hidden > 0 && vocabulary > 0 && a.is_shape(kX, a.side(kX, 0), hidden) && a.elements(kNorm) == hidden &&
         a.is_shape(kWeight, vocabulary, hidden) && a.elements(kEps) == 1 && a.elements(greedy_of(a)) == batch &&
         a.elements(logits_of(a)) == batch * vocabulary && (!quantized || a.are_scales(kRest, vocabulary, hidden));
}

}  // namespace
}  // namespace codellama

using namespace codellama;

CODELLAMA_OPERATOR(codellama_cached_head) {
  return serve(plausible(a), [&] { run(a); });
}
