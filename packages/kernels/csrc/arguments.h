// The arguments of an operator as the engine passes them, read by number.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace codellama {

// What an operator returns to the engine. Shapes are checked in Python, where a message can name the argument; what is
// checked again here is what would otherwise write outside of memory.
enum Status { kDone = 0, kWrongArguments = 1, kOutOfMemory = 2, kFailed = 3 };

class Arguments {
 public:
  Arguments(int count, void** data, int* ndims, int64_t** shapes, const char** dtypes)
      : count_(count), data_(data), ndims_(ndims), shapes_(shapes), dtypes_(dtypes) {}

  int count() const { return count_; }
  template <class T>
  T* data(int index) const {
    return static_cast<T*>(data_[index]);
  }
  // Size of one side; 1 where the argument has fewer.
  int64_t side(int index, int axis) const { return axis < ndims_[index] ? shapes_[index][axis] : 1; }
  int64_t elements(int index) const {
    int64_t product = 1;
    for (int axis = 0; axis < ndims_[index]; ++axis) product *= shapes_[index][axis];
    return product;
  }
  bool is(int index, const char* dtype) const { return std::strcmp(dtypes_[index], dtype) == 0; }
  bool is_real(int index) const { return is(index, "float32") || is(index, "float16"); }
  // The scales of an int8 matrix belong to it, one for each group of a row.
  bool are_scales(int index, int64_t rows, int64_t columns) const {
    return is(index, "float16") && is_shape(index, rows, (columns + kGroup - 1) / kGroup);
  }
  bool is_shape(int index, int64_t rows, int64_t columns) const {
    return ndims_[index] == 2 && shapes_[index][0] == rows && shapes_[index][1] == columns;
  }
  Type type(int index) const {
    return is(index, "float16") ? Type::kFloat16 : is(index, "int8") ? Type::kInt8 : Type::kFloat32;
  }
  Matrix matrix(int index, const Half* scales) const {
    return {data_[index], type(index), side(index, 0), side(index, 1), scales};
  }

 private:
  int count_;
  void** data_;
  int* ndims_;
  int64_t** shapes_;
  const char** dtypes_;
};

}  // namespace codellama

#define CODELLAMA_EXPORT extern "C" __attribute__((visibility("default")))
