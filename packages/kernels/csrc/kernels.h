// What the instruction sets have in common: the types of the arguments and the table each of them fills.
//
// Every function here runs on one thread and allocates nothing. Matrices lie in rows; `ld` is the distance between rows
// in elements.
#pragma once

#include <cstdint>

namespace codellama {

struct Half {  // IEEE binary16
  uint16_t bits;
};

enum class Type { kFloat32, kFloat16, kInt8 };

inline int64_t bytes_of(Type type) { return type == Type::kFloat32 ? 4 : type == Type::kFloat16 ? 2 : 1; }

constexpr int64_t kGroup = 64;  // neighbours in a row of an int8 matrix that share a scale; a row's last may be fewer

// A matrix [rows, columns] without gaps. Of int8, an element is its whole number times its group's scale.
struct Matrix {
  const void* data;
  Type type;
  int64_t rows;
  int64_t columns;
  const Half* scales;  // [rows, groups()]; int8 only

  int64_t groups() const { return (columns + kGroup - 1) / kGroup; }
  int64_t row_bytes() const { return columns * bytes_of(type) + (type == Type::kInt8 ? groups() * 2 : 0); }
};

// out[t, r] = dot(x[t], w[r]) (+ add[t, r] where `add` is given), for tokens t and rows r of the weight.
struct Product {
  const float* x;
  int64_t ldx;
  int64_t tokens;
  Matrix w;
  float* out;
  int64_t ldo;
  const float* add;
  int64_t ldadd;
};

// Attention of a few tokens of one batch row to a span of one head's cache. The query rows are the tokens' heads that
// share the key: row = token * group + head. A token at position p sees the keys 0..p.
struct Attend {
  const float* query;        // of the first token's first head of the group
  int64_t token_stride;      // from one token's query to the next
  const int32_t* positions;  // of the tokens
  int64_t tokens;
  int64_t group;
  int64_t width;  // D
  float scale;
  const void* keys;    // [.., D], first position of this head
  const void* values;  // the same
  Type type;
  int64_t begin;  // span of positions
  int64_t end;
  // Results, one slot a query row at token * token_slots + head * head_slots: the mixed values [D]; without `finish`
  // also the largest score and the sum of exp(score - largest), by which the values are yet to be divided. A row that
  // sees no key of the span gets (-inf, 0, zeros).
  float* mixed;
  float* largest;
  float* total;
  int64_t token_slots;
  int64_t head_slots;
  bool finish;
};

constexpr int64_t kQueryRows = 96;  // query rows of one `attend`, at most
constexpr int64_t kKeyTile = 96;    // positions whose scores exist at a time

struct Kernels {
  const char* name;

  // Floats of scratch that attention to heads of this width needs.
  int64_t (*attend_scratch)(int64_t width);

  // x [n] / sqrt(mean(x^2) + eps) * weight -> out
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* out);
  // One head [D] in place, half-split form.
  void (*rotate)(float* head, const float* cosine, const float* sine, int64_t width);
  // n floats into a cache.
  void (*append)(const float* from, void* to, Type type, int64_t n);
  // gate = silu(gate) * up
  void (*swiglu)(float* gate, const float* up, int64_t n);
  // Rows begin..end of the weight, all tokens: a few, past which the weight is streamed once.
  void (*product)(const Product& product, int64_t begin, int64_t end);
  void (*attend)(const Attend& attend, float* scratch);
  // A tile of scores of one query row, in units of log 2, becomes weights 2^(score - largest), 0 from `visible` to
  // `count`; what earlier tiles have left in mixed [width] and total is rescaled to the new largest score.
  void (*weigh)(float* scores, int64_t visible, int64_t count, float* mixed, int64_t width, float* largest,
                float* total);
  // Folds `count` spans of one query row, as `attend` left them in neighbouring slots, into out [D].
  void (*merge)(const float* mixed, const float* largest, const float* total, int64_t count, int64_t width, float* out);
};

// The table for this processor, or the one that CODELLAMA_KERNELS_ISA names.
const Kernels& kernels();

}  // namespace codellama
