// Products of a few rows of activations with a matrix of weights, as stored.
#pragma once

#include <cstdint>

namespace ziggurat::projection {

// How a weight is stored.
enum class Stored : int64_t {
  float32 = 0,
  bfloat16 = 1,
  int8 = 2,
  int4 = 3,  // two values in a byte, along the summed axis, the first in the low half
  nf4 = 4,   // likewise
  uint4 = 5,
  iq4 = 6,
  fp4_e2m1 = 7,
  fp4_bitsandbytes = 8,
};

// One matrix: [k, n], or packed [n / panel_width, k, panel_width].
struct Weight {
  Stored stored;
  bool packed;
  const void* values;
  const float* scales;  // laid out alike, with k / tile in the place of k; null: none
  const int8_t* zeros;  // like scales; null: none
  const float* offsets;  // like scales, added after them; null: none
  int64_t tile;         // summed values that share a scale; k where there is one
  int64_t k, n;
};

// Activations [rows, k].
struct Activations {
  const float* rows;
  const float* sums;  // where there are zeros or offsets: [rows, k / size], see `summed_together`
  int64_t count, k;
};

// Number of summed values between two visits to an output of a kernel [k, n]. Divides tiles.
constexpr int64_t block = 32;
constexpr int64_t panel_width = 64;  // columns
constexpr int64_t few = 4;           // rows of activations whose sums stay in registers

}  // namespace ziggurat::projection
