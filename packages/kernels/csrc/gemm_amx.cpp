// The tile of a product on a processor's matrix unit (Intel AMX), which multiplies bfloat16 and sums in float32.
//
// A float32 of 24 significant bits is exactly the sum of three bfloat16 of 8: x = x0 + x1 + x2, each about 2^-8 of the
// one before. Of the nine products of the parts the six largest are summed; what is left out is below 2^-24 of x y, as
// float32's own rounding is (arXiv:1904.06376, "bf16x3" with six products). Six products of the matrix unit still take
// a third of the time of one in float32 vectors. Parts below 2^-126 count as zero; infinities come out as NaN.
//
// For prompts there is a table of two parts, 16 significant bits, and three products ("bf16x3"): half the time, and what
// is left out is below 2^-16 of x y. A float16 weight is exactly the sum of two parts. And one of a single part and product,
// for those who ask for bfloat16: both operands are rounded to 8 bits, to the nearest, ties to even.

// GCC 12 takes the "undefined" operands of its own intrinsics for uninitialized variables.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <cstring>

#include "gemm.h"

namespace {

using codellama::Half;
using codellama::Operand;
using codellama::Type;

constexpr int64_t kSide = 32;            // of a tile of the result: 2 x 2 of the unit's 16 x 16
constexpr int64_t kStep = 32;            // depth of one tile of an operand
constexpr int64_t kTileWords = 16 * 16;  // of 32 bits, each a pair of the depth: (k, k + 16), of one part (k, k + 1)
constexpr int64_t kBlockDepth = 512;     // a sliver is 96 KiB: the unit reads a core's second cache at full speed
// For prompts: the unit is as fast from a core's second cache, and a tile of the result is touched once for most networks.
constexpr int64_t kPromptDepth = 2048;
// A step of a sliver: part 0 of both halves, part 1, part 2.
constexpr int64_t step_words(int parts) { return 2 * parts * kTileWords; }

template <int Parts>
struct Pair {
  __m512i words[Parts];
};

// Rounds to bfloat16, still as a float32.
inline __m512 narrowed(__m512 x) {
  const __m512i rounded = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
  return _mm512_castsi512_ps(_mm512_and_si512(rounded, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

inline __m512i joined(__m512 low, __m512 high) {
  const __m512i shifted = _mm512_srli_epi32(_mm512_castps_si512(low), 16);
  // 0xf8: a | (b & c)
  return _mm512_ternarylogic_epi32(shifted, _mm512_castps_si512(high),
                                   _mm512_set1_epi32(static_cast<int>(0xffff0000u)), 0xf8);
}

// Both rounded to bfloat16, neighbours in a word.
inline __m512i rounded(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

// The same, `low` in the lower halves of the words.
inline __m512i rounded_in_pairs(__m512 low, __m512 high) {
  alignas(64) static constexpr uint16_t kTurns[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kTurns), rounded(low, high));
}

// The two or three parts of both, `low` in the lower halves of the words.
template <int Parts>
inline Pair<Parts> split(__m512 low, __m512 high) {
  Pair<Parts> pair;
  const __m512 low0 = narrowed(low), high0 = narrowed(high);
  pair.words[0] = joined(low0, high0);
  low = _mm512_sub_ps(low, low0);
  high = _mm512_sub_ps(high, high0);
  const __m512 low1 = narrowed(low), high1 = narrowed(high);
  pair.words[1] = joined(low1, high1);
  if constexpr (Parts == 3) pair.words[2] = joined(_mm512_sub_ps(low, low1), _mm512_sub_ps(high, high1));
  return pair;
}

inline __mmask16 first_lanes(int64_t count) {
  return count <= 0 ? 0 : count >= 16 ? 0xffff : static_cast<__mmask16>((1u << count) - 1);
}

inline __m512 load(const float* from, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, from); }
inline __m512 load(const Half* from, __mmask16 mask) {
  return _mm512_maskz_cvtph_ps(mask, _mm256_maskz_loadu_epi16(mask, from));
}
inline __m512 load(const int8_t* from, __mmask16 mask) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, from)));
}

// rows[i][j] becomes rows[j][i].
inline void transpose(__m512i (&r)[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
    r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
    r[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
    r[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
  }
}

inline void transpose(__m512 (&r)[16]) {
  __m512i words[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) words[i] = _mm512_castps_si512(r[i]);
  transpose(words);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = _mm512_castsi512_ps(words[i]);
}

// 16 lines of 16 elements of the depth, as rows of what is contiguous in memory; what is missing of them is zero.
template <bool Whole, class Source>
inline void load_square(const Operand& from, int64_t line, int64_t lines, int64_t k, int64_t deep, __m512 (&rows)[16]) {
  const Source* source = from.at<Source>(line, k);
  const int64_t count = from.depth_contiguous ? lines : deep;
  const __mmask16 mask = Whole ? 0xffff : first_lanes(from.depth_contiguous ? deep : lines);
#pragma GCC unroll 16
  for (int64_t i = 0; i < 16; ++i) {
    rows[i] = Whole || i < count ? load(source + i * from.stride, mask) : _mm512_setzero_ps();
    if constexpr (sizeof(Source) == 1) {  // of whole lines; a step of the depth lies within one group
      if (Whole || i < count) rows[i] = _mm512_mul_ps(rows[i], _mm512_set1_ps(_cvtsh_ss(from.scale(line + i, k).bits)));
    }
  }
}

// Packs 16 lines by a step of the depth, of every part. A tile of A has a line a row and pairs of the depth along it; a tile
// of B has a pair a row and the lines along it: one kind of source comes in that order, the other is turned around. What is
// turned is whatever is less: both squares of floats, or the words of a single part.
template <bool Whole, bool LineARow, int Parts, class Source>
inline void pack_half(const Operand& from, int64_t line, int64_t lines, int64_t k, int64_t deep, uint32_t* to) {
  const bool turn = from.depth_contiguous != LineARow;
  __m512 low[16], high[16];
  load_square<Whole, Source>(from, line, lines, k, deep, low);
  if (Parts > 1 && turn) transpose(low);
  load_square<Whole, Source>(from, line, lines, k + 16, deep - 16, high);
  if (Parts > 1 && turn) transpose(high);
  if constexpr (Parts == 1) {
    __m512i words[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      if (from.depth_contiguous) {
        words[i] = rounded(low[i], high[i]);
        words[8 + i] = rounded(low[8 + i], high[8 + i]);
      } else {
        words[i] = rounded_in_pairs(low[2 * i], low[2 * i + 1]);
        words[8 + i] = rounded_in_pairs(high[2 * i], high[2 * i + 1]);
      }
    }
    if (turn) transpose(words);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) _mm512_store_si512(to + i * 16, words[i]);
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      const Pair<Parts> pair = split<Parts>(low[i], high[i]);
#pragma GCC unroll 3
      for (int part = 0; part < Parts; ++part) {
        _mm512_store_si512(to + part * 2 * kTileWords + i * 16, pair.words[part]);
      }
    }
  }
}

template <bool LineARow, int Parts, class Source>
void pack_typed(const Operand& from, int64_t line, int64_t count, int64_t k, int64_t depth, uint32_t* to) {
  for (int64_t step = 0; step < depth; step += kStep, to += step_words(Parts)) {
    const int64_t deep = depth - step;
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t first = half * 16, lines = count - first;
      uint32_t* tile = to + half * kTileWords;
      if (lines >= 16 && deep >= kStep) {
        pack_half<true, LineARow, Parts, Source>(from, line + first, 16, k + step, kStep, tile);
      } else {
        pack_half<false, LineARow, Parts, Source>(from, line + first, lines, k + step, deep, tile);
      }
    }
  }
}

template <bool LineARow, int Parts>
void pack(const Operand& from, int64_t line, int64_t count, int64_t k, int64_t depth, void* to) {
  uint32_t* words = static_cast<uint32_t*>(to);
  switch (from.type) {
    case Type::kFloat32:
      return pack_typed<LineARow, Parts, float>(from, line, count, k, depth, words);
    case Type::kFloat16:
      return pack_typed<LineARow, Parts, Half>(from, line, count, k, depth, words);
    case Type::kInt8:
      return pack_typed<LineARow, Parts, int8_t>(from, line, count, k, depth, words);
  }
}

// Registers 0..3 hold the result's quarters, 4 and 5 the halves of A, 6 and 7 those of B.
#define CODELLAMA_LOAD_A(part)                            \
  _tile_loadd(4, a + (part) * 2 * kTileWords, 64);        \
  _tile_loadd(5, a + ((part) * 2 + 1) * kTileWords, 64)
#define CODELLAMA_LOAD_B(part)                            \
  _tile_loadd(6, b + (part) * 2 * kTileWords, 64);        \
  _tile_loadd(7, b + ((part) * 2 + 1) * kTileWords, 64)
#define CODELLAMA_MULTIPLY()  \
  _tile_dpbf16ps(0, 4, 6);    \
  _tile_dpbf16ps(1, 4, 7);    \
  _tile_dpbf16ps(2, 5, 6);    \
  _tile_dpbf16ps(3, 5, 7)

template <int Parts>
void tile(int64_t depth, const void* a_packed, const void* b_packed, float* c, int64_t stride, int64_t rows,
          int64_t columns, bool add) {
  const uint32_t* a = static_cast<const uint32_t*>(a_packed);
  const uint32_t* b = static_cast<const uint32_t*>(b_packed);
  const bool whole = rows == kSide && columns == kSide;
  // Of three parts, each block of the depth is a sum of its own that is added to the earlier ones: fewer roundings one
  // after another.
  const bool continued = Parts < 3 && add && whole;
  const int64_t row_bytes = stride * static_cast<int64_t>(sizeof(float));
  if (continued) {
    _tile_loadd(0, c, row_bytes);
    _tile_loadd(1, c + 16, row_bytes);
    _tile_loadd(2, c + 16 * stride, row_bytes);
    _tile_loadd(3, c + 16 * stride + 16, row_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t step = 0; step < depth; step += kStep, a += step_words(Parts), b += step_words(Parts)) {
    // Small products first, and every change of part loads one side only.
    if constexpr (Parts == 3) {
      CODELLAMA_LOAD_A(2);
      CODELLAMA_LOAD_B(0);
      CODELLAMA_MULTIPLY();
      CODELLAMA_LOAD_A(1);
      CODELLAMA_MULTIPLY();
      CODELLAMA_LOAD_B(1);
      CODELLAMA_MULTIPLY();
      CODELLAMA_LOAD_A(0);
      CODELLAMA_MULTIPLY();
      CODELLAMA_LOAD_B(2);
      CODELLAMA_MULTIPLY();
      CODELLAMA_LOAD_B(0);
      CODELLAMA_MULTIPLY();
    } else if constexpr (Parts == 2) {
      CODELLAMA_LOAD_A(1);
      CODELLAMA_LOAD_B(0);
      CODELLAMA_MULTIPLY();
      CODELLAMA_LOAD_A(0);
      CODELLAMA_MULTIPLY();
      CODELLAMA_LOAD_B(1);
      CODELLAMA_MULTIPLY();
    } else {
      CODELLAMA_LOAD_A(0);
      CODELLAMA_LOAD_B(0);
      CODELLAMA_MULTIPLY();
    }
  }
  const bool direct = whole && (continued || !add);
  alignas(64) float apart[kSide * kSide];
  float* out = direct ? c : apart;
  const int64_t wide = direct ? stride : kSide, bytes = wide * static_cast<int64_t>(sizeof(float));
  _tile_stored(0, out, bytes);
  _tile_stored(1, out + 16, bytes);
  _tile_stored(2, out + 16 * wide, bytes);
  _tile_stored(3, out + 16 * wide + 16, bytes);
  if (direct) return;
  const __mmask16 left = first_lanes(columns), right = first_lanes(columns - 16);
  for (int64_t row = 0; row < rows; ++row) {
    float* to = c + row * stride;
    const float* from = apart + row * kSide;
    __m512 first = _mm512_load_ps(from), second = _mm512_load_ps(from + 16);
    if (add) {
      first = _mm512_add_ps(first, load(to, left));
      second = _mm512_add_ps(second, load(to + 16, right));
    }
    _mm512_mask_storeu_ps(to, left, first);
    _mm512_mask_storeu_ps(to + 16, right, second);
  }
}

// Eight tiles of 16 rows of 64 bytes.
void enter() {
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } shape;
  std::memset(&shape, 0, sizeof shape);
  shape.palette = 1;
  for (int i = 0; i < 8; ++i) {
    shape.row_bytes[i] = 64;
    shape.rows[i] = 16;
  }
  asm volatile("" ::: "memory");
  _tile_loadconfig(&shape);
}

void leave() { _tile_release(); }

}  // namespace

namespace codellama {

extern const GemmKernels gemm_amx, gemm_amx_narrow, gemm_amx_bfloat16;
const GemmKernels gemm_amx = {"amx",         kSide,          kSide,   kStep, kBlockDepth, 2 * 3,
                              pack<true, 3>, pack<false, 3>, tile<3>, enter, leave};
const GemmKernels gemm_amx_narrow = {"amx",         kSide,          kSide,   kStep, kPromptDepth, 2 * 2,
                                     pack<true, 2>, pack<false, 2>, tile<2>, enter, leave};
const GemmKernels gemm_amx_bfloat16 = {"amx",         kSide,          kSide,   kStep, kPromptDepth, 2,
                                       pack<true, 1>, pack<false, 1>, tile<1>, enter, leave};

}  // namespace codellama
