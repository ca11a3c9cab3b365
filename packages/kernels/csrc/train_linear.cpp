// y = x W^T, and the gradients of both.
//
// Shapes: T tokens, I inputs, O outputs; x [T, I], weight [O, I], y [T, O].
#include "gemm.h"
#include "operator.h"
#include "pool.h"

namespace codellama {
namespace {

bool is_matrix(const Arguments& a, int index, int64_t rows, int64_t columns) {
  return a.is(index, "float32") && a.is_shape(index, rows, columns);
}

void multiply(const Gemm& product) {
  Pool& pool = Pool::instance();
  const std::lock_guard<std::mutex> lock(pool.mutex());
  gemm(pool, product, pool.scratch(gemm_scratch(product.rows, product.columns, product.depth)));
}

void multiply_gradients(const Gemm& g) {
  Pool& pool = Pool::instance();
  const std::lock_guard<std::mutex> lock(pool.mutex());
  gemm_of_gradients(pool, g, pool.scratch(gemm_of_gradients_scratch(g.rows, g.columns, g.depth)));
}

}  // namespace
}  // namespace codellama

using namespace codellama;

// x [T, I], weight [O, I] -> y [T, O]
CODELLAMA_OPERATOR(codellama_linear) {
  const int64_t tokens = a.side(0, 0), inputs = a.side(0, 1), outputs = a.side(1, 0);
  const bool plausible = a.count() == 3 && is_matrix(a, 0, tokens, inputs) && is_matrix(a, 1, outputs, inputs) &&
                         is_matrix(a, 2, tokens, outputs);
  return serve(plausible, [&] {
    multiply({tokens, outputs, inputs, {a.data<float>(0), inputs, true}, {a.data<float>(1), inputs, true},
              a.data<float>(2), outputs, false});
  });
}

// dy [T, O], weight [O, I] -> dx [T, I]
CODELLAMA_OPERATOR(codellama_linear_dx) {
  const int64_t tokens = a.side(0, 0), outputs = a.side(0, 1), inputs = a.side(1, 1);
  const bool plausible = a.count() == 3 && is_matrix(a, 0, tokens, outputs) && is_matrix(a, 1, outputs, inputs) &&
                         is_matrix(a, 2, tokens, inputs);
  return serve(plausible, [&] {
    multiply({tokens, inputs, outputs, {a.data<float>(0), outputs, true}, {a.data<float>(1), inputs, false},
              a.data<float>(2), inputs, false});
  });
}

// dy [T, O], x [T, I] -> dW [O, I]
CODELLAMA_OPERATOR(codellama_linear_dw) {
  const int64_t tokens = a.side(0, 0), outputs = a.side(0, 1), inputs = a.side(1, 1);
  const bool plausible = a.count() == 3 && is_matrix(a, 0, tokens, outputs) && is_matrix(a, 1, tokens, inputs) &&
                         is_matrix(a, 2, outputs, inputs);
  return serve(plausible, [&] {
    multiply_gradients({outputs, inputs, tokens, {a.data<float>(0), outputs, false}, {a.data<float>(1), inputs, false},
                        a.data<float>(2), inputs, false});
  });
}
