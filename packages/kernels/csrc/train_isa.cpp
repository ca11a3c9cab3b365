// The arithmetic of training besides matrix products, compiled once per instruction set (CODELLAMA_ISA names the table).
#include <cmath>

#include "simd.h"
#include "train.h"

namespace {

using codellama::AdamwScalars;

// Calls body(load, store, offset) for whole vectors, and once more for what is left.
template <class Body>
inline void for_vectors(int64_t n, Body&& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    body([i](const float* from) { return load(from + i); }, [i](float* to, Vec value) { store(to + i, value); });
  }
  if (i < n) {
    const int64_t left = n - i;
    body([i, left](const float* from) { return load_part(from + i, left); },
         [i, left](float* to, Vec value) { store_part(to + i, value, left); });
  }
}

float dot(const float* a, const float* b, int64_t n) {
  Vec sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (int part = 0; part < 4; ++part) sums[part] += load(a + i + part * kLanes) * load(b + i + part * kLanes);
  }
  for (; i < n; i += kLanes) {
    const int64_t left = n - i < kLanes ? n - i : kLanes;
    sums[0] += left == kLanes ? load(a + i) * load(b + i) : load_part(a + i, left) * load_part(b + i, left);
  }
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

float rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out) {
  const float rstd = 1.0f / std::sqrt(dot(x, x, n) / static_cast<float>(n) + eps);
  for_vectors(n, [&](auto load, auto store) { store(out, load(x) * rstd * load(weight)); });
  return rstd;
}

void rms_norm_backward(const float* x, const float* weight, float rstd, const float* dy, int64_t n, float* dx,
                       float* d_weight) {
  Vec products = {};
  for_vectors(n, [&](auto load, auto) { products += load(x) * load(weight) * load(dy); });
  const float along = sum(products) * rstd * rstd / static_cast<float>(n);
  for_vectors(n, [&](auto load, auto store) {
    const Vec here = load(x), gradient = load(dy);
    store(dx, (gradient * load(weight) - here * along) * rstd);
    store(d_weight, load(d_weight) + gradient * here * rstd);
  });
}

void add(const float* from, int64_t n, float* to) {
  for_vectors(n, [&](auto load, auto store) { store(to, load(to) + load(from)); });
}

inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exponential(-x)); }

void swiglu(const float* gate, const float* up, int64_t n, float* out) {
  for_vectors(n, [&](auto load, auto store) {
    const Vec g = load(gate);
    store(out, g * sigmoid(g) * load(up));
  });
}

void swiglu_backward(const float* gate, const float* up, const float* dy, int64_t n, float* d_gate, float* d_up) {
  for_vectors(n, [&](auto load, auto store) {
    const Vec g = load(gate), gradient = load(dy), s = sigmoid(g);
    store(d_gate, gradient * load(up) * s * (1.0f + g * (1.0f - s)));
    store(d_up, gradient * g * s);
  });
}

void rotate(const float* x, const float* cosine, const float* sine, int64_t width, bool back, float* out) {
  const int64_t half = width / 2;
  if (back) {
    for (int64_t i = 0; i < half; ++i) {
      const float left = x[i], right = x[i + half];
      out[i] = left * cosine[i] + right * sine[i + half];
      out[i + half] = right * cosine[i + half] - left * sine[i];
    }
  } else {
    for (int64_t i = 0; i < half; ++i) {
      const float left = x[i], right = x[i + half];
      out[i] = left * cosine[i] - right * sine[i];
      out[i + half] = right * cosine[i + half] + left * sine[i + half];
    }
  }
}

void largest_and_total(const float* logits, int64_t n, float* largest, float* total) {
  Vec most = splat(-INFINITY);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) most = larger(load(logits + i), most);
  float found = maximum(most);
  for (; i < n; ++i) found = logits[i] > found ? logits[i] : found;
  Vec sums = {};
  for (i = 0; i + kLanes <= n; i += kLanes) sums += exponential(load(logits + i) - found);
  float rest = sum(sums);
  for (; i < n; ++i) rest += exponential(splat(logits[i] - found))[0];
  *largest = found;
  *total = rest;
}

void exponentials(float* logits, int64_t n, float shift, float factor) {
  for_vectors(n, [&](auto load, auto store) { store(logits, exponential(load(logits) - shift) * factor); });
}

void clear(float* row, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) row[i] = 0.0f;
}

float softmax_row(float* scores, int64_t n, int64_t begin, int64_t end, float scale, float* largest, float* total) {
  clear(scores, 0, begin < n ? begin : n);
  clear(scores, end > begin ? end : begin, n);
  if (end <= begin) return 1.0f;
  float* seen = scores + begin;
  const int64_t count = end - begin;
  Vec most = splat(-INFINITY);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) most = larger(load(seen + i), most);
  float found = maximum(most);
  for (; i < count; ++i) found = seen[i] > found ? seen[i] : found;
  const float before = *largest;
  const float now = found * scale > before ? found * scale : before;
  Vec sums = {};
  for (i = 0; i + kLanes <= count; i += kLanes) {
    const Vec weight = exponential(load(seen + i) * scale - now);
    store(seen + i, weight);
    sums += weight;
  }
  if (i < count) {
    const Vec weight = exponential(load_part(seen + i, count - i) * scale - now);
    store_part(seen + i, weight, count - i);
    sums += load_part(seen + i, count - i);
  }
  const float shrink = before == -INFINITY ? 0.0f : exponential(splat(before - now))[0];
  *total = *total * shrink + sum(sums);
  *largest = now;
  return shrink;
}

void softmax_row_backward(float* scores, float* dp, int64_t n, int64_t begin, int64_t end, float scale, float lse,
                          float dot) {
  if (end < begin) end = begin;
  const int64_t unseen = begin < n ? begin : n;
  clear(scores, 0, unseen);
  clear(dp, 0, unseen);
  clear(scores, end, n);
  clear(dp, end, n);
  float* p = scores + begin;
  float* d = dp + begin;
  for_vectors(end - begin, [&](auto load, auto store) {
    const Vec weight = exponential(load(p) * scale - lse);
    store(p, weight);
    store(d, weight * (load(d) - dot) * scale);
  });
}

void multiply(float* row, int64_t n, float factor) {
  for_vectors(n, [&](auto load, auto store) { store(row, load(row) * factor); });
}

inline Vec square_root(Vec x) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_sqrt_ps(0xffff, (__m512)x);
#elif defined(__AVX2__)
  return (Vec)_mm256_sqrt_ps((__m256)x);
#else
  for (int lane = 0; lane < kLanes; ++lane) x[lane] = std::sqrt(x[lane]);
  return x;
#endif
}

// arXiv:1711.05101, algorithm 2, with the learning rate on the decay as well, as torch.optim.AdamW has it.
void adamw(float* parameter, float* first, float* second, const float* gradient, int64_t n, const AdamwScalars& s) {
  const float keep = 1.0f - s.rate * s.decay;
  const float step = s.rate / s.correction1, root = 1.0f / std::sqrt(s.correction2);
  for_vectors(n, [&](auto load, auto store) {
    const Vec g = load(gradient) * s.scale;
    const Vec m = load(first) * s.beta1 + g * (1.0f - s.beta1);
    const Vec v = load(second) * s.beta2 + g * g * (1.0f - s.beta2);
    store(first, m);
    store(second, v);
    store(parameter, load(parameter) * keep - step * m / (square_root(v) * root + s.eps));
  });
}

}  // namespace

#define CODELLAMA_JOIN_OF(a, b) a##b
#define CODELLAMA_JOIN(a, b) CODELLAMA_JOIN_OF(a, b)

namespace codellama {

extern const TrainKernels CODELLAMA_JOIN(train_, CODELLAMA_ISA);
const TrainKernels CODELLAMA_JOIN(train_, CODELLAMA_ISA) = {
    rms_norm, rms_norm_backward, add, swiglu, swiglu_backward, rotate, largest_and_total, exponentials,
    softmax_row, softmax_row_backward, dot, multiply, adamw,
};

}  // namespace codellama
