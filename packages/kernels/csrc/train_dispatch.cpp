// Chooses the arithmetic of training, once a process: the same instruction set as the other kernels.
#include <cstring>

#include "kernels.h"
#include "train.h"

namespace codellama {

extern const TrainKernels train_generic;
#if defined(CODELLAMA_HAVE_AVX2)
extern const TrainKernels train_avx2;
#endif
#if defined(CODELLAMA_HAVE_AVX512)
extern const TrainKernels train_avx512;
#endif

const TrainKernels& train_kernels() {
#if defined(CODELLAMA_HAVE_AVX512)
  if (std::strcmp(kernels().name, "avx512") == 0) return train_avx512;
#endif
#if defined(CODELLAMA_HAVE_AVX2)
  if (std::strcmp(kernels().name, "avx2") == 0) return train_avx2;
#endif
  return train_generic;
}

}  // namespace codellama
