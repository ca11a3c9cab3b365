// Chooses the instruction set, once a process.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace codellama {

extern const Kernels kernels_generic;
#if defined(CODELLAMA_HAVE_AVX2)
extern const Kernels kernels_avx2;
#endif
#if defined(CODELLAMA_HAVE_AVX512)
extern const Kernels kernels_avx512;
#endif

namespace {

const Kernels* choose() {
  const char* wanted = std::getenv("CODELLAMA_KERNELS_ISA");
  const auto allowed = [&](const char* name) { return !wanted || !*wanted || std::strcmp(wanted, name) == 0; };
#if defined(CODELLAMA_HAVE_AVX512)
  if ((allowed("avx512") || allowed("amx")) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    return &kernels_avx512;
  }
#endif
#if defined(CODELLAMA_HAVE_AVX2)
  // Every processor with AVX2 has F16C; the compilers' names for it differ, so it is not asked for.
  if (allowed("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &kernels_avx2;
#endif
  static_cast<void>(allowed);
  return &kernels_generic;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels* const chosen = choose();
  return *chosen;
}

}  // namespace codellama
