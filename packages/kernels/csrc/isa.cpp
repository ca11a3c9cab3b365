// The arithmetic, compiled once per instruction set (CODELLAMA_ISA names the table).
//
// Products of a few tokens (decoding) stream the weight's rows past the tokens: every weight is read once, in order, and
// memory is the limit. Products of many (prompts) are in product.cpp.
#include <cmath>

#include "simd.h"

namespace {

using codellama::Attend;
using codellama::Half;
using codellama::kGroup;
using codellama::kKeyTile;
using codellama::kQueryRows;
using codellama::Matrix;
using codellama::Product;
using codellama::Type;

// Register tile of the outer product: kTileRows x kTileVectors accumulators leave room for the operands.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 8, kTileVectors = 3;  // of 32 registers
#else
constexpr int kTileRows = 6, kTileVectors = 2;  // of 16
#endif
constexpr int64_t kPackedRows = kTileRows == 8 ? 24 : 16;  // from so many query rows on, packing the keys pays
constexpr int64_t kAhead = 2048;  // bytes to prefetch ahead of a streamed weight

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// ---- a few tokens ------------------------------------------------------------------------------------------------

// A weight's rows, read as float32.
template <class W>
struct Rows {
  static constexpr bool kScaled = sizeof(W) == 1;

  explicit Rows(const Matrix& w) : data(static_cast<const W*>(w.data)), columns(w.columns), groups(w.groups()), scales(w.scales) {}

  const W* at(int64_t row, int64_t column) const { return data + row * columns + column; }
  // The factor of the group that holds the column.
  Vec scale(int64_t row, int64_t column) const {
    return kScaled ? splat(to_float(scales[row * groups + column / kGroup])) : Vec{};
  }
  static Vec scaled(Vec vector, Vec scale) { return kScaled ? vector * scale : vector; }
  // `count` columns of one group, zeros behind.
  Vec part(int64_t row, int64_t column, int64_t count) const {
    const W* from = at(row, column);
    return scaled(count == kLanes ? load(from) : load_part(from, count), scale(row, column));
  }

  const W* data;
  int64_t columns, groups;
  const Half* scales;
};

// Count x Tokens dot products at once; Parts accumulators each, so that additions do not wait for one another.
template <int Count, int Tokens, int Parts, class W>
inline void dot_tile(const Product& p, const Rows<W>& w, int64_t row, const float* x, float* out, const float* add) {
  Vec sums[Count][Tokens][Parts] = {};
  int64_t k = 0;
  for (; k + kGroup <= w.columns; k += kGroup) {
    Vec scales[Count];
#pragma GCC unroll 4
    for (int i = 0; i < Count; ++i) scales[i] = w.scale(row + i, k);
#pragma GCC unroll 4
    for (int vector = 0; vector < kGroup / kLanes; ++vector) {
      const int64_t at = k + vector * kLanes;
      Vec weights[Count];
#pragma GCC unroll 4
      for (int i = 0; i < Count; ++i) {
        const W* from = w.at(row + i, at);
        if (vector * kLanes * sizeof(W) % 64 == 0) {
          __builtin_prefetch(reinterpret_cast<const char*>(from) + kAhead);
        }
        weights[i] = w.scaled(load(from), scales[i]);
      }
#pragma GCC unroll 4
      for (int token = 0; token < Tokens; ++token) {
        const Vec here = load(x + token * p.ldx + at);
#pragma GCC unroll 4
        for (int i = 0; i < Count; ++i) sums[i][token][vector % Parts] += weights[i] * here;
      }
    }
  }
  for (; k < w.columns; k += kLanes) {
    const int64_t count = least(kLanes, w.columns - k);
#pragma GCC unroll 4
    for (int token = 0; token < Tokens; ++token) {
      const Vec here = load_part(x + token * p.ldx + k, count);
#pragma GCC unroll 4
      for (int i = 0; i < Count; ++i) sums[i][token][0] += w.part(row + i, k, count) * here;
    }
  }
#pragma GCC unroll 4
  for (int token = 0; token < Tokens; ++token) {
#pragma GCC unroll 4
    for (int i = 0; i < Count; ++i) {
#pragma GCC unroll 4
      for (int part = 1; part < Parts; ++part) sums[i][token][0] += sums[i][token][part];
      const float dot = sum(sums[i][token][0]);
      out[token * p.ldo + i] = add ? dot + add[token * p.ldadd + i] : dot;
    }
  }
}

template <int Count, class W>
inline void dot_rows(const Product& p, const Rows<W>& w, int64_t row) {
  for (int64_t token = 0; token < p.tokens; token += 4) {
    const float* x = p.x + token * p.ldx;
    float* out = p.out + token * p.ldo + row;
    const float* add = p.add ? p.add + token * p.ldadd + row : nullptr;
    switch (least(4, p.tokens - token)) {
      case 1:
        dot_tile<Count, 1, Count == 1 ? 4 : 2>(p, w, row, x, out, add);
        break;
      case 2:
        dot_tile<Count, 2, Count == 4 ? 1 : 2>(p, w, row, x, out, add);
        break;
      case 3:
        dot_tile<Count, 3, 1>(p, w, row, x, out, add);
        break;
      default:
        dot_tile<Count, 4, 1>(p, w, row, x, out, add);
    }
  }
}

// Rows of the weight taken side by side: four streams keep memory busier than one, and share what is read of the tokens
// as far as there are registers for the sums.
constexpr int kStreams = 4;
constexpr int kSharingRows = kTileRows == 8 ? 4 : 2;

template <class W>
void dots(const Product& p, int64_t begin, int64_t end) {
  const Rows<W> w(p.w);
  int64_t row = begin;
  if (p.tokens == 1) {
    for (; row + kStreams <= end; row += kStreams) dot_rows<kStreams, W>(p, w, row);
  } else {
    for (; row + kSharingRows <= end; row += kSharingRows) dot_rows<kSharingRows, W>(p, w, row);
  }
  for (; row < end; ++row) dot_rows<1, W>(p, w, row);
}

// ---- many query rows -------------------------------------------------------------------------------------------------

// c [Rows, Vectors * kLanes] = a [Rows, depth] times b [depth, Vectors * kLanes], plus `add` where given.
template <int Rows, int Vectors>
inline void outer_tile(int64_t depth, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc,
                       const float* add, int64_t ldadd) {
  Vec sums[Rows][Vectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vec columns[Vectors];
#pragma GCC unroll 3
    for (int vector = 0; vector < Vectors; ++vector) columns[vector] = load(b + k * ldb + vector * kLanes);
#pragma GCC unroll 8
    for (int row = 0; row < Rows; ++row) {
      const Vec factor = splat(a[row * lda + k]);
#pragma GCC unroll 3
      for (int vector = 0; vector < Vectors; ++vector) sums[row][vector] += factor * columns[vector];
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll 3
    for (int vector = 0; vector < Vectors; ++vector) {
      if (add) sums[row][vector] += load(add + row * ldadd + vector * kLanes);
      store(c + row * ldc + vector * kLanes, sums[row][vector]);
    }
  }
}

template <int Vectors>
void outer_panel(int64_t rows, int64_t depth, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                 int64_t ldc, const float* add, int64_t ldadd) {
  for (int64_t row = 0; row < rows; row += kTileRows) {
    const float* a_row = a + row * lda;
    float* c_row = c + row * ldc;
    const float* add_row = add ? add + row * ldadd : nullptr;
    switch (least(kTileRows, rows - row)) {
#define CODELLAMA_CASE(n)                                                                       \
  case n:                                                                                       \
    outer_tile<n, Vectors>(depth, a_row, lda, b, ldb, c_row, ldc, add_row, ldadd);              \
    break
      CODELLAMA_CASE(1);
      CODELLAMA_CASE(2);
      CODELLAMA_CASE(3);
      CODELLAMA_CASE(4);
      CODELLAMA_CASE(5);
      CODELLAMA_CASE(6);
#if defined(__AVX512F__) || defined(__aarch64__)
      CODELLAMA_CASE(7);
      CODELLAMA_CASE(8);
#endif
#undef CODELLAMA_CASE
    }
  }
}

// c [rows, columns] = a [rows, depth] times b [depth, columns]; b and c are padded to whole vectors.
void outer(int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t lda, const float* b, int64_t ldb,
           float* c, int64_t ldc, const float* add, int64_t ldadd) {
  int64_t left = round_up(columns, kLanes) / kLanes;
  while (left > 0) {
    // Four vectors are two and two: a tile of one vector wastes most of its loads.
    const int64_t vectors = left == 4 ? 2 : least(kTileVectors, left);
    if (vectors == 1) {
      outer_panel<1>(rows, depth, a, lda, b, ldb, c, ldc, add, ldadd);
    } else if (vectors == 2) {
      outer_panel<2>(rows, depth, a, lda, b, ldb, c, ldc, add, ldadd);
    } else {
      outer_panel<kTileVectors>(rows, depth, a, lda, b, ldb, c, ldc, add, ldadd);
    }
    b += vectors * kLanes;
    c += vectors * kLanes;
    if (add) add += vectors * kLanes;
    left -= vectors;
  }
}

// panel [depth, ld]: rows and columns from (row, column) on, transposed and widened; `count` rows rounded up to whole
// vectors with zeros.
template <class W>
void pack(const Rows<W>& w, int64_t row, int64_t count, int64_t column, int64_t depth, float* panel, int64_t ld) {
  for (int64_t first = 0; first < count; first += kLanes) {
    const int64_t rows = least(kLanes, count - first);
    for (int64_t k = 0; k < depth; k += kLanes) {
      const int64_t deep = least(kLanes, depth - k);
      Vec square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) square[i] = i < rows ? w.part(row + first + i, column + k, deep) : Vec{};
      transpose(square);
      if (deep == kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) store(panel + (k + i) * ld + first, square[i]);
      } else {
        for (int i = 0; i < deep; ++i) store(panel + (k + i) * ld + first, square[i]);
      }
    }
  }
}

void product(const Product& p, int64_t begin, int64_t end) {
  switch (p.w.type) {
    case Type::kFloat32:
      return dots<float>(p, begin, end);
    case Type::kFloat16:
      return dots<Half>(p, begin, end);
    case Type::kInt8:
      return dots<int8_t>(p, begin, end);
  }
}

// ---- attention ---------------------------------------------------------------------------------------------------

int64_t attend_scratch(int64_t width) {
  const int64_t padded = round_up(width, kLanes);
  const int64_t tile = round_up(kKeyTile, kLanes);
  return kQueryRows * width + width * tile + tile * padded + kQueryRows * tile + kQueryRows * padded + 3 * kQueryRows;
}

// Online softmax (arXiv:2112.05682): tiles of keys, each rescaling what the earlier ones have left.
template <class C>
void attend_typed(const Attend& a, float* scratch) {
  const int64_t rows = a.tokens * a.group, width = a.width, padded = round_up(width, kLanes);
  const int64_t tile = round_up(kKeyTile, kLanes);
  float* query = scratch;
  float* panel = query + kQueryRows * width;
  float* widened = panel + width * tile;
  float* scores = widened + tile * padded;
  float* mixed = scores + kQueryRows * tile;
  float* largest = mixed + kQueryRows * padded;
  float* total = largest + kQueryRows;
  for (int64_t row = 0; row < rows; ++row) {
    const float* from = a.query + row / a.group * a.token_stride + row % a.group * width;
    for (int64_t i = 0; i < width; ++i) query[row * width + i] = from[i] * a.scale;
    for (int64_t i = 0; i < padded; ++i) mixed[row * padded + i] = 0.0f;
    largest[row] = -INFINITY;
    total[row] = 0.0f;
  }
  int64_t seen = 0;  // keys that the furthest token sees
  for (int64_t token = 0; token < a.tokens; ++token) {
    if (a.positions[token] + 1 > seen) seen = a.positions[token] + 1;
  }
  const int64_t end = least(a.end, seen);
  for (int64_t first = a.begin; first < end; first += kKeyTile) {
    const int64_t count = least(kKeyTile, end - first);
    const int64_t count_padded = round_up(count, kLanes);
    const C* keys = static_cast<const C*>(a.keys) + first * width;
    const C* values = static_cast<const C*>(a.values) + first * width;
    const Matrix matrix{keys, sizeof(C) == 2 ? Type::kFloat16 : Type::kFloat32, count, width, nullptr};
    if (rows < kPackedRows) {
      dots<C>(Product{query, width, rows, matrix, scores, tile, nullptr, 0}, 0, count);
    } else {
      pack(Rows<C>(matrix), 0, count, 0, width, panel, tile);
      outer(rows, count, width, query, width, panel, tile, scores, tile, nullptr, 0);
    }
    for (int64_t row = 0; row < rows; ++row) {
      float* score = scores + row * tile;
      int64_t visible = a.positions[row / a.group] + 1 - first;
      visible = visible < 0 ? 0 : least(visible, count);
      for (int64_t i = visible; i < count_padded; ++i) score[i] = -INFINITY;
      if (visible == 0) {
        for (int64_t i = 0; i < count_padded; ++i) score[i] = 0.0f;
        continue;
      }
      Vec most = splat(-INFINITY);
      for (int64_t i = 0; i < count_padded; i += kLanes) most = larger(load(score + i), most);
      const float before = largest[row];
      const float now = maximum(larger(most, splat(before)));
      Vec added = {};
      for (int64_t i = 0; i < count_padded; i += kLanes) {
        const Vec weight = exponential(load(score + i) - now);
        store(score + i, weight);
        added += weight;
      }
      const float shrink = before == -INFINITY ? 0.0f : exponential(splat(before - now))[0];
      total[row] = total[row] * shrink + sum(added);
      largest[row] = now;
      if (shrink != 1.0f) {
        for (int64_t i = 0; i < padded; i += kLanes) {
          store(mixed + row * padded + i, load(mixed + row * padded + i) * shrink);
        }
      }
    }
    const float* columns;
    if (sizeof(C) == 4 && padded == width) {
      columns = reinterpret_cast<const float*>(values);
    } else {
      for (int64_t key = 0; key < count; ++key) {
        for (int64_t i = 0; i < padded; i += kLanes) {
          const C* from = values + key * width + i;
          store(widened + key * padded + i, i + kLanes <= width ? load(from) : load_part(from, width - i));
        }
      }
      columns = widened;
    }
    outer(rows, width, count, scores, tile, columns, padded, mixed, padded, mixed, padded);
  }
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t slot = row / a.group * a.token_slots + row % a.group * a.head_slots;
    const float factor = a.finish ? 1.0f / total[row] : 1.0f;
    for (int64_t i = 0; i < width; ++i) a.mixed[slot * width + i] = mixed[row * padded + i] * factor;
    if (!a.finish) {
      a.largest[slot] = largest[row];
      a.total[slot] = total[row];
    }
  }
}

void attend(const Attend& a, float* scratch) {
  a.type == Type::kFloat16 ? attend_typed<Half>(a, scratch) : attend_typed<float>(a, scratch);
}

// 2^x of x <= 0 to 2 units in the last place; 0 below -126.
inline Vec power_of_two(Vec x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, held in the last bits
  const Vec bounded = x < -126.0f ? splat(-126.0f) : x;
  const Vec shifted = bounded + magic;
  const Vec rest = bounded - (shifted - magic);
  // The polynomial of degree 5 whose largest error relative to 2^rest, |rest| <= 1/2, is the least: 7.5e-8.
  Vec series = splat(0.0013276472f);
  series = series * rest + 0.00967554138f;
  series = series * rest + 0.0555071327f;
  series = series * rest + 0.240221197f;
  series = series * rest + 0.693146967f;
  series = series * rest + 1.00000007f;
  const Vec result = (Vec)((IntVec)series + ((IntVec)shifted << 23));
  return x < -126.0f ? splat(0.0f) : result;
}

void weigh(float* scores, int64_t visible, int64_t count, float* mixed, int64_t width, float* largest, float* total) {
  if (visible < count) std::memset(scores + visible, 0, static_cast<size_t>(count - visible) * sizeof(float));
  if (visible == 0) return;
  const int64_t whole = visible / kLanes * kLanes;
  Vec most = splat(*largest);
  for (int64_t i = 0; i < whole; i += kLanes) most = larger(load(scores + i), most);
  float now = maximum(most);
  for (int64_t i = whole; i < visible; ++i) now = scores[i] > now ? scores[i] : now;
  Vec added = {};
  for (int64_t i = 0; i < whole; i += kLanes) {
    const Vec weight = power_of_two(load(scores + i) - now);
    store(scores + i, weight);
    added += weight;
  }
  float sums = sum(added);
  if (whole < visible) {
    const int64_t left = visible - whole;
    store_part(scores + whole, power_of_two(load_part(scores + whole, left) - now), left);
    for (int64_t i = whole; i < visible; ++i) sums += scores[i];
  }
  if (now == *largest) {
    *total += sums;
    return;
  }
  const float shrink = *largest == -INFINITY ? 0.0f : power_of_two(splat(*largest - now))[0];
  *total = *total * shrink + sums;
  *largest = now;
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) store(mixed + i, load(mixed + i) * shrink);
  for (; i < width; ++i) mixed[i] *= shrink;
}

void merge(const float* mixed, const float* largest, const float* total, int64_t count, int64_t width, float* out) {
  float most = -INFINITY;
  for (int64_t span = 0; span < count; ++span) {
    if (largest[span] > most) most = largest[span];
  }
  float sums = 0.0f;
  for (int64_t i = 0; i < width; ++i) out[i] = 0.0f;
  for (int64_t span = 0; span < count; ++span) {
    if (largest[span] == -INFINITY) continue;  // a span behind this token
    const float share = exponential(splat(largest[span] - most))[0];
    sums += total[span] * share;
    for (int64_t i = 0; i < width; ++i) out[i] += mixed[span * width + i] * share;
  }
  for (int64_t i = 0; i < width; ++i) out[i] /= sums;
}

// ---- the rest ----------------------------------------------------------------------------------------------------

void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out) {
  Vec squares = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) squares += load(x + i) * load(x + i);
  float square = sum(squares);
  for (; i < n; ++i) square += x[i] * x[i];
  const float factor = 1.0f / std::sqrt(square / static_cast<float>(n) + eps);
  for (i = 0; i < n; ++i) out[i] = x[i] * factor * weight[i];
}

void rotate(float* head, const float* cosine, const float* sine, int64_t width) {
  const int64_t half = width / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float left = head[i], right = head[i + half];
    head[i] = left * cosine[i] - right * sine[i];
    head[i + half] = right * cosine[i + half] + left * sine[i + half];
  }
}

void append(const float* from, void* to, Type type, int64_t n) {
  if (type == Type::kFloat32) {
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
  } else {
    for (int64_t i = 0; i < n; ++i) from_float(from[i], static_cast<Half*>(to) + i);
  }
}

inline Vec swiglu(Vec gate, Vec up) { return gate / (1.0f + exponential(-gate)) * up; }

void swiglu(float* gate, const float* up, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(gate + i, swiglu(load(gate + i), load(up + i)));
  if (i < n) store_part(gate + i, swiglu(load_part(gate + i, n - i), load_part(up + i, n - i)), n - i);
}

}  // namespace

#define CODELLAMA_TEXT_OF(x) #x
#define CODELLAMA_TEXT(x) CODELLAMA_TEXT_OF(x)
#define CODELLAMA_JOIN_OF(a, b) a##b
#define CODELLAMA_JOIN(a, b) CODELLAMA_JOIN_OF(a, b)

namespace codellama {

extern const Kernels CODELLAMA_JOIN(kernels_, CODELLAMA_ISA);
const Kernels CODELLAMA_JOIN(kernels_, CODELLAMA_ISA) = {
    CODELLAMA_TEXT(CODELLAMA_ISA), attend_scratch, rms_norm, rotate, append, swiglu, product, attend, weigh, merge,
};

}  // namespace codellama
