// What every operator's definition shares: the engine's signature, and turning what happens into a status.
#pragma once

#include <new>

#include "arguments.h"

namespace codellama {

// Runs an operator's body where its arguments are plausible, and turns what happens into a status.
template <class Body>
int serve(bool plausible, Body&& body) {
  if (!plausible) return kWrongArguments;
  try {
    body();
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  }
  return kDone;
}

inline bool are_float32(const Arguments& a, int count) {
  for (int index = 0; index < count; ++index) {
    if (!a.is(index, "float32")) return false;
  }
  return a.count() == count;
}

}  // namespace codellama

// Defines the function `name` that the engine calls; what follows is its body, which sees `const Arguments& a`.
#define CODELLAMA_OPERATOR(name)                                                                                  \
  static int name##_of(const codellama::Arguments& a);                                                            \
  CODELLAMA_EXPORT int name(int count, void** data, int* ndims, int64_t** shapes, const char** dtypes, void*,     \
                            void*) {                                                                              \
    return name##_of(codellama::Arguments(count, data, ndims, shapes, dtypes));                                   \
  }                                                                                                               \
  static int name##_of(const codellama::Arguments& a)
