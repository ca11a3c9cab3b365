// Vectors of one instruction set: the width follows from the flags this file is compiled with.
//
// Written in the compilers' own vector types (GCC 9+, Clang 12+), so that AVX-512, AVX2, NEON and plain SSE2 share one
// source; intrinsics appear only where the types lack an operation (half precision). Included by files that are
// compiled several times, hence the anonymous namespace, and no templates of the standard library that a linker could
// merge across instruction sets.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "kernels.h"

using codellama::Half;

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef float UnalignedVec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

inline Vec splat(float value) { return value - Vec{}; }  // subtracting 0 is exact, so compilers drop it
inline Vec load(const float* from) { return *reinterpret_cast<const UnalignedVec*>(from); }
inline void store(float* to, Vec value) { *reinterpret_cast<UnalignedVec*>(to) = value; }

inline float to_float(float value) { return value; }
inline float to_float(int8_t value) { return value; }

inline float to_float(Half value) {
#if defined(__F16C__)
  return _cvtsh_ss(value.bits);
#else
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t rest = value.bits & 0x7fffu;
  uint32_t bits;
  float result;
  if (rest >= 0x7c00u) {
    bits = 0x7f800000u | (rest & 0x3ffu) << 13;
  } else if (rest >= 0x400u) {
    bits = (rest << 13) + (112u << 23);
  } else {  // subnormal: a multiple of 2^-24
    result = static_cast<float>(rest) * 0x1p-24f;
    std::memcpy(&bits, &result, 4);
  }
  bits |= sign;
  std::memcpy(&result, &bits, 4);
  return result;
#endif
}

inline void from_float(float value, float* to) { *to = value; }

// Rounds to nearest, ties to even; overflow becomes infinity.
inline void from_float(float value, Half* to) {
#if defined(__F16C__)
  to->bits = _cvtss_sh(value, 0);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t rest = bits & 0x7fffffffu;
  uint32_t half;
  if (rest > 0x7f800000u) {
    half = 0x7e00u;
  } else if (rest >= 0x477ff000u) {
    half = 0x7c00u;
  } else if (rest >= 0x38800000u) {
    half = (rest - (112u << 23) + 0xfffu + (rest >> 13 & 1u)) >> 13;
  } else {  // adding 0.5 leaves the rounded multiple of 2^-24 in the last bits
    float magnitude;
    std::memcpy(&magnitude, &rest, 4);
    magnitude += 0.5f;
    std::memcpy(&half, &magnitude, 4);
    half -= 0x3f000000u;
  }
  to->bits = static_cast<uint16_t>(sign | half);
#endif
}

inline Vec load(const Half* from) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__AVX2__)
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__aarch64__)
  return (Vec)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&from->bits)));
#else
  Vec result;
  for (int lane = 0; lane < kLanes; ++lane) result[lane] = to_float(from[lane]);
  return result;
#endif
}

inline Vec load(const int8_t* from) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return __builtin_convertvector((IntVec)_mm512_maskz_cvtepi8_epi32(0xffff, bytes), Vec);
#elif defined(__AVX2__)
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return __builtin_convertvector((IntVec)_mm256_cvtepi8_epi32(bytes), Vec);
#elif defined(__aarch64__)
  int32_t bytes;
  std::memcpy(&bytes, from, 4);
  const int16x8_t halves = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(bytes)));
  return (Vec)vcvtq_f32_s32(vmovl_s16(vget_low_s16(halves)));
#else
  Vec result;
  for (int lane = 0; lane < kLanes; ++lane) result[lane] = static_cast<float>(from[lane]);
  return result;
#endif
}

// The first `count` lanes, zeros behind; reads nothing beyond.
template <class Source>
inline Vec load_part(const Source* from, int64_t count) {
  float lanes[kLanes] = {};
  for (int64_t lane = 0; lane < count; ++lane) lanes[lane] = to_float(from[lane]);
  return load(lanes);
}

inline void store_part(float* to, Vec value, int64_t count) {
  float lanes[kLanes];
  store(lanes, value);
  for (int64_t lane = 0; lane < count; ++lane) to[lane] = lanes[lane];
}

// Lane i of the result is lane `Index<i>::value` of a, or of b counted from kLanes.
template <template <int> class Index>
inline Vec shuffle(Vec a, Vec b) {
#if defined(__clang__)
#define CODELLAMA_SHUFFLE(...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define CODELLAMA_SHUFFLE(...) __builtin_shuffle(a, b, IntVec{__VA_ARGS__})
#endif
#define CODELLAMA_I4(n) Index<n>::value, Index<n + 1>::value, Index<n + 2>::value, Index<n + 3>::value
#if defined(__AVX512F__)
  return CODELLAMA_SHUFFLE(CODELLAMA_I4(0), CODELLAMA_I4(4), CODELLAMA_I4(8), CODELLAMA_I4(12));
#elif defined(__AVX2__)
  return CODELLAMA_SHUFFLE(CODELLAMA_I4(0), CODELLAMA_I4(4));
#else
  return CODELLAMA_SHUFFLE(CODELLAMA_I4(0));
#endif
#undef CODELLAMA_I4
#undef CODELLAMA_SHUFFLE
}

template <int Distance>
struct Across {  // the lane `Distance` away
  template <int Lane>
  struct Index {
    static constexpr int value = Lane ^ Distance;
  };
};

template <int Distance>
struct Exchange {  // one stage of a transposition
  template <int Lane>
  struct Low {
    static constexpr int value = Lane & Distance ? kLanes + Lane - Distance : Lane;
  };
  template <int Lane>
  struct High {
    static constexpr int value = Lane & Distance ? kLanes + Lane : Lane + Distance;
  };
};

template <int Distance = kLanes / 2>
inline float sum(Vec value) {
  value += shuffle<Across<Distance>::template Index>(value, value);
  if constexpr (Distance > 1) {
    return sum<Distance / 2>(value);
  } else {
    return value[0];
  }
}

inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

template <int Distance = kLanes / 2>
inline float maximum(Vec value) {
  value = larger(value, shuffle<Across<Distance>::template Index>(value, value));
  if constexpr (Distance > 1) {
    return maximum<Distance / 2>(value);
  } else {
    return value[0];
  }
}

// rows[i][j] becomes rows[j][i].
template <int Distance = kLanes / 2>
inline void transpose(Vec (&rows)[kLanes]) {
#pragma GCC unroll 16
  for (int row = 0; row < kLanes; ++row) {
    if (row & Distance) continue;
    const Vec low = shuffle<Exchange<Distance>::template Low>(rows[row], rows[row + Distance]);
    rows[row + Distance] = shuffle<Exchange<Distance>::template High>(rows[row], rows[row + Distance]);
    rows[row] = low;
  }
  if constexpr (Distance > 1) transpose<Distance / 2>(rows);
}

// e^x to 2 units in the last place; 0 below -87.3, e^88 above 88. A NaN comes back as a NaN.
inline Vec exponential(Vec x) {
  const Vec bounded = x < -87.3f ? splat(-87.3f) : (x > 88.0f ? splat(88.0f) : x);
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, held in the last bits
  const Vec shifted = bounded * 1.44269504f + magic;
  const Vec whole = shifted - magic;
  // ln 2 in two parts, so that the remainder keeps all its bits (Cody and Waite).
  Vec rest = bounded - whole * 0.693359375f;
  rest = rest + whole * 2.12194440e-4f;
  Vec series = splat(1.0f / 5040);  // Taylor's: |rest| <= ln 2 / 2, next term below 5e-9
  series = series * rest + 1.0f / 720;
  series = series * rest + 1.0f / 120;
  series = series * rest + 1.0f / 24;
  series = series * rest + 1.0f / 6;
  series = series * rest + 0.5f;
  series = series * rest + 1.0f;
  series = series * rest + 1.0f;
  const IntVec exponent = ((IntVec)shifted - (IntVec)splat(magic) + 127) << 23;
  const Vec result = series * (Vec)exponent;
  return x < -87.3f ? splat(0.0f) : result;
}

}  // namespace
