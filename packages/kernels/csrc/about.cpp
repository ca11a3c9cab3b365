// What Python asks the library about itself.
#include "arguments.h"
#include "gemm.h"
#include "pool.h"

// Name of the instruction set in use; products may have a unit of their own.
CODELLAMA_EXPORT const char* codellama_isa() { return codellama::gemm_kernels().name; }

// Members of this process's team of threads, the calling one included.
CODELLAMA_EXPORT int codellama_threads() { return codellama::Pool::instance().size(); }
