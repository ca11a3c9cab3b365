// RMSNorm, SwiGLU and rotary positions, forward and backward; scaling in place.
//
// Shapes: T tokens, H hidden, F feed-forward, B batch, S sequence, N heads, D head width.
#include <algorithm>

#include "operator.h"
#include "pool.h"
#include "train.h"

namespace codellama {
namespace {

constexpr int64_t kTokens = 32;  // taken at a time; the order of sums over tokens follows from it alone
constexpr int64_t kFloats = 8192;

template <class Body>
void for_items(int64_t count, int64_t step, Body&& body) {
  Pool& pool = Pool::instance();
  const std::lock_guard<std::mutex> lock(pool.mutex());
  pool.run([&](Member& member) { member.share(0, count, step, body); });
}

// Heads of x [B, S, N, D] by tables [B or 1, S, 1, D].
int rotate(const Arguments& a, bool back) {
  const int64_t rows = a.side(0, 0) * a.side(0, 1), heads = a.side(0, 2), width = a.side(0, 3);
  const int64_t angles = a.side(1, 0) * a.side(1, 1);
  const bool plausible = are_float32(a, 4) && width > 0 && width % 2 == 0 && angles > 0 && rows % angles == 0 &&
                         a.side(1, 1) == a.side(0, 1) && a.elements(0) == rows * heads * width &&
                         a.elements(1) == angles * width && a.elements(2) == angles * width &&
                         a.elements(3) == a.elements(0);
  return serve(plausible, [&] {
    const TrainKernels& k = train_kernels();
    for_items(rows, kTokens, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t at = row % angles * width;
        for (int64_t head = row * heads; head < (row + 1) * heads; ++head) {
          k.rotate(a.data<float>(0) + head * width, a.data<float>(1) + at, a.data<float>(2) + at, width, back,
                   a.data<float>(3) + head * width);
        }
      }
    });
  });
}

}  // namespace
}  // namespace codellama

using namespace codellama;

// x [T, H], weight [H], eps [1] -> y [T, H], rstd [T]
CODELLAMA_OPERATOR(codellama_rms_norm) {
  const int64_t tokens = a.side(0, 0), hidden = a.side(0, 1);
  const bool plausible = are_float32(a, 5) && a.is_shape(0, tokens, hidden) && a.elements(1) == hidden &&
                         a.elements(2) == 1 && a.is_shape(3, tokens, hidden) && a.elements(4) == tokens;
  return serve(plausible, [&] {
    const TrainKernels& k = train_kernels();
    for_items(tokens, kTokens, [&](int64_t begin, int64_t end) {
      for (int64_t token = begin; token < end; ++token) {
        a.data<float>(4)[token] = k.rms_norm(a.data<float>(0) + token * hidden, a.data<float>(1), *a.data<float>(2),
                                             hidden, a.data<float>(3) + token * hidden);
      }
    });
  });
}

// x [T, H], weight [H], rstd [T], dy [T, H] -> dx [T, H], d_weight [H]
CODELLAMA_OPERATOR(codellama_rms_norm_backward) {
  const int64_t tokens = a.side(0, 0), hidden = a.side(0, 1);
  const bool plausible = are_float32(a, 6) && a.is_shape(0, tokens, hidden) && a.elements(1) == hidden &&
                         a.elements(2) == tokens && a.is_shape(3, tokens, hidden) && a.is_shape(4, tokens, hidden) &&
                         a.elements(5) == hidden;
  return serve(plausible, [&] {
    const TrainKernels& k = train_kernels();
    Pool& pool = Pool::instance();
    const std::lock_guard<std::mutex> lock(pool.mutex());
    const int64_t parts = (tokens + kTokens - 1) / kTokens;
    float* sums = pool.scratch(parts * hidden);
    std::fill(sums, sums + parts * hidden, 0.0f);
    pool.run([&](Member& member) {
      member.share(0, tokens, kTokens, [&](int64_t begin, int64_t end) {
        for (int64_t token = begin; token < end; ++token) {
          k.rms_norm_backward(a.data<float>(0) + token * hidden, a.data<float>(1), a.data<float>(2)[token],
                              a.data<float>(3) + token * hidden, hidden, a.data<float>(4) + token * hidden,
                              sums + begin / kTokens * hidden);
        }
      });
    });
    for (int64_t part = 1; part < parts; ++part) k.add(sums + part * hidden, hidden, sums);
    std::copy(sums, sums + hidden, a.data<float>(5));
  });
}

// gate [T, F], up [T, F] -> y [T, F]
CODELLAMA_OPERATOR(codellama_swiglu) {
  const int64_t size = a.elements(0);
  const bool plausible = are_float32(a, 3) && a.elements(1) == size && a.elements(2) == size;
  return serve(plausible, [&] {
    const TrainKernels& k = train_kernels();
    for_items(size, kFloats, [&](int64_t begin, int64_t end) {
      k.swiglu(a.data<float>(0) + begin, a.data<float>(1) + begin, end - begin, a.data<float>(2) + begin);
    });
  });
}

// gate [T, F], up [T, F], dy [T, F] -> d_gate [T, F], d_up [T, F]
CODELLAMA_OPERATOR(codellama_swiglu_backward) {
  const int64_t size = a.elements(0);
  bool plausible = are_float32(a, 5);
  for (int index = 1; plausible && index < 5; ++index) plausible = a.elements(index) == size;
  return serve(plausible, [&] {
    const TrainKernels& k = train_kernels();
    for_items(size, kFloats, [&](int64_t begin, int64_t end) {
      k.swiglu_backward(a.data<float>(0) + begin, a.data<float>(1) + begin, a.data<float>(2) + begin, end - begin,
                        a.data<float>(3) + begin, a.data<float>(4) + begin);
    });
  });
}

// x [B, S, N, D], cos and sin [B or 1, S, 1, D] -> y as x
CODELLAMA_OPERATOR(codellama_rotate) { return rotate(a, false); }

// dy [B, S, N, D], cos and sin -> dx
CODELLAMA_OPERATOR(codellama_rotate_backward) { return rotate(a, true); }

// values: written, times factor [1] -> factor [1], for what must come afterwards
CODELLAMA_OPERATOR(codellama_scale) {
  return serve(are_float32(a, 3) && a.elements(1) == 1 && a.elements(2) == 1, [&] {
    const TrainKernels& k = train_kernels();
    const float factor = *a.data<float>(1);
    if (factor != 1.0f) {
      for_items(a.elements(0), kFloats, [&](int64_t begin, int64_t end) {
        k.multiply(a.data<float>(0) + begin, end - begin, factor);
      });
    }
    *a.data<float>(2) = factor;
  });
}
