// The arithmetic of training besides matrix products: the table that each instruction set fills (train_isa.cpp).
//
// Every function runs on one thread and allocates nothing. Rows are [n].
#pragma once

#include <cstdint>

namespace codellama {

struct AdamwScalars {
  float rate, beta1, beta2, eps, decay, scale;
  float correction1, correction2;  // 1 - beta^step
};

struct TrainKernels {
  // out = x * rstd * weight; returns rstd = 1 / sqrt(mean(x^2) + eps).
  float (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* out);
  // dx of a row; adds the row's part of the weight's gradient to `d_weight`.
  void (*rms_norm_backward)(const float* x, const float* weight, float rstd, const float* dy, int64_t n, float* dx,
                            float* d_weight);
  void (*add)(const float* from, int64_t n, float* to);  // to += from
  void (*swiglu)(const float* gate, const float* up, int64_t n, float* out);
  void (*swiglu_backward)(const float* gate, const float* up, const float* dy, int64_t n, float* d_gate, float* d_up);
  // One head [D], half-split form; `back` multiplies by the transposed matrix.
  void (*rotate)(const float* x, const float* cosine, const float* sine, int64_t width, bool back, float* out);
  // A row of logits: the largest, and the sum of exp(logit - largest).
  void (*largest_and_total)(const float* logits, int64_t n, float* largest, float* total);
  // logits = factor * exp(logits - shift)
  void (*exponentials)(float* logits, int64_t n, float shift, float factor);
  // One row of attention's online softmax, over n scores of which the first `begin` and those from `end` on are unseen:
  // scores = exp(scale * scores - largest), 0 where unseen. Updates largest and total, returns the factor by which
  // what was gathered under the former largest shrinks.
  float (*softmax_row)(float* scores, int64_t n, int64_t begin, int64_t end, float scale, float* largest, float* total);
  // Backward of a row: scores become p = exp(scale * scores - lse), 0 where unseen; dp becomes scale * p * (dp - dot).
  void (*softmax_row_backward)(float* scores, float* dp, int64_t n, int64_t begin, int64_t end, float scale, float lse,
                               float dot);
  float (*dot)(const float* a, const float* b, int64_t n);
  void (*multiply)(float* row, int64_t n, float factor);
  void (*adamw)(float* parameter, float* first, float* second, const float* gradient, int64_t n, const AdamwScalars& s);
};

// The table for this processor, or the one that CODELLAMA_KERNELS_ISA names.
const TrainKernels& train_kernels();

}  // namespace codellama
