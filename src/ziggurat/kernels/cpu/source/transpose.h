// Transposed copies in registers. A lane's number and a register's number are bits; exchanging one
// bit of each for all pairs of registers is one step of a transposition.
#pragma once

#include <utility>

#include "vectors.h"

namespace ziggurat {

template <int bit, int... lane>
ZIGGURAT_INLINE void exchange(Vec& a, Vec& b, std::integer_sequence<int, lane...>) {
  const Vec first = __builtin_shufflevector(a, b, ((lane & bit) ? kLanes + lane - bit : lane)...);
  b = __builtin_shufflevector(a, b, ((lane & bit) ? kLanes + lane : lane + bit)...);
  a = first;
}

// Exchanges every bit of `rows` registers' numbers, from `row_bit` down, with the lanes' bit that is
// `ratio` times as high.
template <int rows, int ratio, int row_bit>
ZIGGURAT_INLINE void exchange_bits(Vec (&v)[rows]) {
  if constexpr (row_bit > 0) {
    ZIGGURAT_UNROLL
    for (int i = 0; i < rows; i++) {
      if ((i & row_bit) == 0) {
        exchange<row_bit * ratio>(v[i], v[i + row_bit], std::make_integer_sequence<int, kLanes>{});
      }
    }
    exchange_bits<rows, ratio, row_bit / 2>(v);
  }
}

template <int... lane>
ZIGGURAT_INLINE Vec unmix(Vec v, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(v, v, (lane % kRows * (kLanes / kRows) + lane / kRows)...);
}

// kLanes rows of kLanes elements, rows `row` apart, to columns `column` apart.
ZIGGURAT_INLINE void transpose_square(const float* from, int64_t row, float* to, int64_t column) {
  Vec v[kLanes];
  ZIGGURAT_UNROLL
  for (int i = 0; i < kLanes; i++) v[i] = load(from + i * row);
  exchange_bits<kLanes, 1, kLanes / 2>(v);
  ZIGGURAT_UNROLL
  for (int i = 0; i < kLanes; i++) store(to + i * column, v[i]);
}

constexpr bool kStripInRegisters = kLanes == 2 * kRows;

// kRows rows of kLanes elements to a strip, [element][row].
ZIGGURAT_INLINE void transpose_strip(const float* from, int64_t row, float* to) {
  Vec v[kRows];
  ZIGGURAT_UNROLL
  for (int i = 0; i < kRows; i++) v[i] = load(from + i * row);
  exchange_bits<kRows, 2, kRows / 2>(v);
  ZIGGURAT_UNROLL
  for (int i = 0; i < kRows; i++) {
    store(to + i * kLanes, unmix(v[i], std::make_integer_sequence<int, kLanes>{}));
  }
}

// `width` rows of `count` elements, rows `row` apart, to [element][padded] with zeros from `width`
// on; `padded` is a multiple of kLanes, or kRows.
inline void copy_transposed(int64_t count, int64_t width, int64_t padded, const float* from,
                            int64_t row, float* to) {
  int64_t done = 0;  // elements
  for (; done + kLanes <= count; done += kLanes) {
    int64_t e = 0;  // rows
    float* here = to + done * padded;
    if (kStripInRegisters && padded == kRows && width == kRows) {
      transpose_strip(from + done, row, here);
      continue;
    }
    for (; e + kLanes <= width; e += kLanes) {
      transpose_square(from + e * row + done, row, here + e, padded);
    }
    for (; e < width; e++) {
      for (int64_t p = 0; p < kLanes; p++) here[p * padded + e] = from[e * row + done + p];
    }
    for (; e < padded; e++) {
      for (int64_t p = 0; p < kLanes; p++) here[p * padded + e] = 0;
    }
  }
  for (; done < count; done++) {
    for (int64_t e = 0; e < width; e++) to[done * padded + e] = from[e * row + done];
    for (int64_t e = width; e < padded; e++) to[done * padded + e] = 0;
  }
}

}  // namespace ziggurat
