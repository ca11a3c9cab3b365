// Chooses the kernels of matrix products, once a process.
#include <cstdlib>
#include <cstring>

#if defined(CODELLAMA_HAVE_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "gemm.h"
#include "kernels.h"

namespace codellama {

extern const GemmKernels gemm_generic;
#if defined(CODELLAMA_HAVE_AVX2)
extern const GemmKernels gemm_avx2;
#endif
#if defined(CODELLAMA_HAVE_AVX512)
extern const GemmKernels gemm_avx512;
#endif
#if defined(CODELLAMA_HAVE_AMX)
extern const GemmKernels gemm_amx, gemm_amx_narrow, gemm_amx_bfloat16;
#endif

namespace {

#if defined(CODELLAMA_HAVE_AMX)
// The processor has a matrix unit and Linux lets this process use its registers (asked for once, inherited by threads).
bool may_use_amx() {
  unsigned a = 7, b, c = 0, d;
  asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if ((d & kAmxBf16) == 0 || (d & kAmxTile) == 0) return false;
  a = 7;
  c = 1;
  asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  constexpr unsigned kAvx512Bf16 = 1u << 5;
  if ((a & kAvx512Bf16) == 0) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

// Follows the table of the other kernels; the matrix unit belongs to avx512 unless that was asked for by name.
const GemmKernels* choose() {
  const char* name = kernels().name;
#if defined(CODELLAMA_HAVE_AMX)
  const char* wanted = std::getenv("CODELLAMA_KERNELS_ISA");
  const bool allowed = !wanted || !*wanted || std::strcmp(wanted, "amx") == 0;
  if (allowed && std::strcmp(name, "avx512") == 0 && may_use_amx()) return &gemm_amx;
#endif
#if defined(CODELLAMA_HAVE_AVX512)
  if (std::strcmp(name, "avx512") == 0) return &gemm_avx512;
#endif
#if defined(CODELLAMA_HAVE_AVX2)
  if (std::strcmp(name, "avx2") == 0) return &gemm_avx2;
#endif
  static_cast<void>(name);
  return &gemm_generic;
}

}  // namespace

const GemmKernels& gemm_kernels() {
  static const GemmKernels* const chosen = choose();
  return *chosen;
}

const GemmKernels& narrow_gemm_kernels() {
#if defined(CODELLAMA_HAVE_AMX)
  if (&gemm_kernels() == &gemm_amx) return gemm_amx_narrow;
#endif
  return gemm_kernels();
}

const GemmKernels* bfloat16_gemm_kernels() {
#if defined(CODELLAMA_HAVE_AMX)
  if (&gemm_kernels() == &gemm_amx) return &gemm_amx_bfloat16;
#endif
  return nullptr;
}

}  // namespace codellama
