// The tile of a product in vectors of float32, compiled once per instruction set (CODELLAMA_ISA names the table).
#include "gemm.h"
#include "simd.h"

namespace {

using codellama::Operand;
using codellama::Type;

// kRows x kVectors accumulators leave room for the operands.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRows = 8, kVectors = 3;  // of 32 registers
#else
constexpr int kRows = 6, kVectors = 2;  // of 16
#endif
constexpr int64_t kColumns = kVectors * kLanes;
constexpr int64_t kBlockDepth = 256;  // a sliver of B is 48 KiB at most, near the processor whatever its caches

template <class Source>
inline Vec load_some(const Source* from, int64_t count) {
  return count == kLanes ? load(from) : load_part(from, count);
}

// to [depth, Width] from `count` lines; squares of kLanes are transposed in registers.
template <int Width, class Source>
void pack_typed(const Operand& from, int64_t line, int64_t count, int64_t k, int64_t depth, float* to) {
  if (!from.depth_contiguous) {
    for (int64_t step = 0; step < depth; ++step) {
      const Source* source = from.at<Source>(line, k + step);
      for (int64_t i = 0; i < count; ++i) to[step * Width + i] = to_float(source[i]);
      for (int64_t i = count; i < Width; ++i) to[step * Width + i] = 0.0f;
    }
    return;
  }
  for (int64_t first = 0; first < Width; first += kLanes) {
    const int64_t wide = Width - first < kLanes ? Width - first : kLanes;
    for (int64_t step = 0; step < depth; step += kLanes) {
      const int64_t deep = depth - step < kLanes ? depth - step : kLanes;
      Vec square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        square[i] = first + i >= count ? Vec{} : load_some(from.at<Source>(line + first + i, k + step), deep);
        if constexpr (sizeof(Source) == 1) {  // kLanes from a multiple of it on lie within one group
          if (first + i < count) square[i] *= to_float(from.scale(line + first + i, k + step));
        }
      }
      transpose(square);
      if (wide == kLanes && deep == kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) store(to + (step + i) * Width + first, square[i]);
      } else {
        for (int i = 0; i < deep; ++i) store_part(to + (step + i) * Width + first, square[i], wide);
      }
    }
  }
}

template <int Width>
void pack(const Operand& from, int64_t line, int64_t count, int64_t k, int64_t depth, void* to) {
  float* floats = static_cast<float*>(to);
  switch (from.type) {
    case Type::kFloat32:
      return pack_typed<Width, float>(from, line, count, k, depth, floats);
    case Type::kFloat16:
      return pack_typed<Width, Half>(from, line, count, k, depth, floats);
    case Type::kInt8:
      return pack_typed<Width, int8_t>(from, line, count, k, depth, floats);
  }
}

void tile(int64_t depth, const void* a_packed, const void* b_packed, float* c, int64_t stride, int64_t rows,
          int64_t columns, bool add) {
  const float* a = static_cast<const float*>(a_packed);
  const float* b = static_cast<const float*>(b_packed);
  Vec sums[kRows][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vec of_b[kVectors];
#pragma GCC unroll 3
    for (int vector = 0; vector < kVectors; ++vector) of_b[vector] = load(b + k * kColumns + vector * kLanes);
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      const Vec factor = splat(a[k * kRows + row]);
#pragma GCC unroll 3
      for (int vector = 0; vector < kVectors; ++vector) sums[row][vector] += factor * of_b[vector];
    }
  }
  if (rows == kRows && columns == kColumns) {
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 3
      for (int vector = 0; vector < kVectors; ++vector) {
        float* to = c + row * stride + vector * kLanes;
        store(to, add ? load(to) + sums[row][vector] : sums[row][vector]);
      }
    }
    return;
  }
  float edge[kRows * kColumns];
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 3
    for (int vector = 0; vector < kVectors; ++vector) store(edge + row * kColumns + vector * kLanes, sums[row][vector]);
  }
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < columns; ++i) {
      float& to = c[row * stride + i];
      to = add ? to + edge[row * kColumns + i] : edge[row * kColumns + i];
    }
  }
}

void nothing() {}

}  // namespace

#define CODELLAMA_TEXT_OF(x) #x
#define CODELLAMA_TEXT(x) CODELLAMA_TEXT_OF(x)
#define CODELLAMA_JOIN_OF(a, b) a##b
#define CODELLAMA_JOIN(a, b) CODELLAMA_JOIN_OF(a, b)

namespace codellama {

extern const GemmKernels CODELLAMA_JOIN(gemm_, CODELLAMA_ISA);
const GemmKernels CODELLAMA_JOIN(gemm_, CODELLAMA_ISA) = {
    CODELLAMA_TEXT(CODELLAMA_ISA), kRows, kColumns, 1, kBlockDepth, sizeof(float), pack<kRows>, pack<kColumns>, tile,
    nothing, nothing,
};

}  // namespace codellama
