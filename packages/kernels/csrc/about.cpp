// What Python asks the library about itself.
#include "arguments.h"
#include "gemm.h"
#include "pool.h"

// Name of the instruction set in use; products may have a unit of their own.
CODELLAMA_EXPORT const char* codellama_isa() { return codellama::gemm_kernels().name; }

// Whether products can be computed in bfloat16: 1 or 0.
CODELLAMA_EXPORT int codellama_bfloat16() { return codellama::bfloat16_gemm_kernels() != nullptr; }

// Members of this process's team of threads, the calling one included.
CODELLAMA_EXPORT int codellama_threads() { return codellama::Pool::instance().size(); }
