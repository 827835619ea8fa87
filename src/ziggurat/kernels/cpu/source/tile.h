// The register tile of every float32 product: kRows x (vectors * kLanes) sums held in registers.
#pragma once

#include "vectors.h"

namespace ziggurat {

// C = A B, or C += A B if `add`, for kRows rows and `vectors` (1 to 3) vectors of columns.
// A(i, p) is a[i * a_row + p * a_step]; row p of B begins at b + p * b_row; C has rows of c_row.
// Strides are constants where this is called, and so in the code that comes of it.
template <int vectors>
ZIGGURAT_INLINE void tile(int64_t depth, const float* a, int64_t a_row, int64_t a_step,
                          const float* b, int64_t b_row, float* c, int64_t c_row, bool add) {
  Vec sums[kRows][vectors];
  ZIGGURAT_UNROLL
  for (int i = 0; i < kRows; i++) {
    ZIGGURAT_UNROLL
    for (int j = 0; j < vectors; j++) sums[i][j] = Vec{};
  }
  for (int64_t p = 0; p < depth; p++) {
    Vec row[vectors];
    ZIGGURAT_UNROLL
    for (int j = 0; j < vectors; j++) row[j] = load(b + p * b_row + j * kLanes);
    ZIGGURAT_UNROLL
    for (int i = 0; i < kRows; i++) {
      const Vec factor = all(a[i * a_row + p * a_step]);
      ZIGGURAT_UNROLL
      for (int j = 0; j < vectors; j++) sums[i][j] += factor * row[j];
    }
  }
  ZIGGURAT_UNROLL
  for (int i = 0; i < kRows; i++) {
    ZIGGURAT_UNROLL
    for (int j = 0; j < vectors; j++) {
      float* to = c + i * c_row + j * kLanes;
      store(to, add ? load(to) + sums[i][j] : sums[i][j]);
    }
  }
}

// The same for any number of vectors: `rows` (a multiple of kRows) x `vectors` of C, in local
// buffers that have room for whole tiles.
template <typename Stride>
ZIGGURAT_INLINE void tiles(int64_t rows, int64_t vectors, int64_t depth, const float* a, Stride a_row,
                           Stride a_step, const float* b, int64_t b_row, float* c, int64_t c_row,
                           bool add) {
  for (int64_t j = 0; j < vectors;) {
    const int64_t left = vectors - j;
    const int64_t taken = left == 4 ? 2 : left < 3 ? left : 3;
    for (int64_t i = 0; i < rows; i += kRows) {
      const float *left_part = a + i * a_row, *right_part = b + j * kLanes;
      float* to = c + i * c_row + j * kLanes;
      if (taken == 3) {
        tile<3>(depth, left_part, a_row, a_step, right_part, b_row, to, c_row, add);
      } else if (taken == 2) {
        tile<2>(depth, left_part, a_row, a_step, right_part, b_row, to, c_row, add);
      } else {
        tile<1>(depth, left_part, a_row, a_step, right_part, b_row, to, c_row, add);
      }
    }
    j += taken;
  }
}

}  // namespace ziggurat
