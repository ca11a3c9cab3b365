// Small products on one thread, from the same slivers and tiles as the team's: for operators that share out their work
// otherwise (attention).
#pragma once

#include <algorithm>

#include "gemm.h"

namespace codellama {

class LocalGemm {
 public:
  explicit LocalGemm(const GemmKernels& kernels) : kernels_(kernels) {}

  // Floats that a packed operand of so many lines takes, on either side; a multiple of 16.
  int64_t packed_floats(int64_t lines, int64_t depth) const {
    const int64_t whole = std::max(round_up(lines, kernels_.rows), round_up(lines, kernels_.columns));
    return round_up(whole * padded(depth) * kernels_.element_bytes / 4 + 1, 16);
  }

  void pack_a(const Operand& from, int64_t lines, int64_t depth, float* to) const {
    pack(kernels_.pack_a, kernels_.rows, from, lines, depth, to);
  }
  void pack_b(const Operand& from, int64_t lines, int64_t depth, float* to) const {
    pack(kernels_.pack_b, kernels_.columns, from, lines, depth, to);
  }

  // Floats from a packed sliver of so many lines, a tile's rows or columns, to the next.
  int64_t sliver_floats(int64_t lines, int64_t depth) const {
    return lines * padded(depth) * kernels_.element_bytes / 4;
  }

  // c [rows, columns] = packed a times packed b, or added to it. b may have been packed deeper than it is used.
  void multiply(int64_t rows, int64_t columns, int64_t depth, const float* a, const float* b, float* c, int64_t stride,
                bool add, int64_t b_depth = 0) const {
    const int64_t a_floats = sliver_floats(kernels_.rows, depth);
    const int64_t b_floats = sliver_floats(kernels_.columns, std::max(depth, b_depth));
    for (int64_t column = 0; column < columns; column += kernels_.columns, b += b_floats) {
      const float* a_sliver = a;
      for (int64_t row = 0; row < rows; row += kernels_.rows, a_sliver += a_floats) {
        kernels_.tile(padded(depth), a_sliver, b, c + row * stride + column, stride, std::min(kernels_.rows, rows - row),
                      std::min(kernels_.columns, columns - column), add);
      }
    }
  }

 private:
  static int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }
  int64_t padded(int64_t depth) const { return round_up(depth, kernels_.depth_multiple); }

  template <class Pack>
  void pack(Pack packing, int64_t side, const Operand& from, int64_t lines, int64_t depth, float* to) const {
    for (int64_t line = 0; line < lines; line += side, to += sliver_floats(side, depth)) {
      packing(from, line, std::min(side, lines - line), 0, depth, to);
    }
  }

  const GemmKernels& kernels_;
};

}  // namespace codellama
