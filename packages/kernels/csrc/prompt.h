// Attention of many tokens: scores and mixtures as matrix products.
#pragma once

#include <cstdint>

#include "gemm.h"
#include "kernels.h"

namespace codellama {

// Query rows of one `attend_prompt`: so many use what is packed of the keys and values, and stay in a core's own cache.
constexpr int64_t kPromptRows = 384;

// Floats of scratch for up to so many query rows (tokens * group) of heads of this width.
int64_t attend_prompt_scratch(const GemmKernels& kernels, int64_t rows, int64_t width);

// The whole span of an `Attend` that asks to be finished, on the calling thread; `scratch` is 64-byte aligned.
void attend_prompt(const GemmKernels& kernels, const Attend& attend, float* scratch);

}  // namespace codellama
