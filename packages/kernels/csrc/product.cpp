// Widens weights to float32, some millions at a time, and hands them to the matrix product.
#include "product.h"

#include <algorithm>

#include "gemm.h"
#include "pool.h"

namespace codellama {
namespace {

constexpr int64_t kPanelFloats = 4 << 20;  // widened at a time: what is packed of the tokens is used for all of it
constexpr int64_t kWidenRows = 16;         // that a member widens at a time

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

int64_t panel_rows(int64_t rows, int64_t columns) {
  return std::min(rows, std::max<int64_t>(64, kPanelFloats / columns / 64 * 64));
}

// Rows begin..end of all the weights, counted through.
void widen(std::initializer_list<Matrix> weights, int64_t begin, int64_t end, float* to) {
  int64_t first = 0;
  for (const Matrix& w : weights) {
    const int64_t from = std::max(begin, first), until = std::min(end, first + w.rows);
    if (from < until) kernels().widen(w, from - first, until - first, to + (from - begin) * w.columns);
    first += w.rows;
  }
}

}  // namespace

int64_t multiply_scratch(int64_t tokens, int64_t rows, int64_t columns) {
  const int64_t panel = panel_rows(rows, columns);
  return round_up(panel * columns, 16) + gemm_scratch(tokens, panel, columns);
}

void multiply(Pool& pool, const ManyProduct& p, float* scratch) {
  const int64_t columns = p.weights.begin()->columns;
  int64_t rows = 0;
  bool narrow = true;  // float16 or int8
  for (const Matrix& w : p.weights) {
    rows += w.rows;
    narrow = narrow && w.type != Type::kFloat32;
  }
  const int64_t panel = panel_rows(rows, columns);
  float* widened = scratch;
  float* packed = scratch + round_up(panel * columns, 16);
  for (int64_t first = 0; first < rows; first += panel) {
    const int64_t count = std::min(panel, rows - first);
    pool.run([&](Member& member) {
      member.share(0, count, kWidenRows, [&](int64_t begin, int64_t end) {
        widen(p.weights, first + begin, first + end, widened + begin * columns);
      });
    });
    gemm(pool, {p.tokens, count, columns, {p.x, p.ldx, true}, {widened, columns, true}, p.out + first, p.ldo, p.add},
         packed, narrow ? narrow_gemm_kernels() : gemm_kernels());
  }
}

}  // namespace codellama
