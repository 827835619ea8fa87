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
};

// One matrix. With `table` it is [n, k], else [k, n], in order of memory.
struct Weight {
  Stored stored;
  bool table;
  const void* values;
  const float* scales;  // [k / tile, n], of a table [n, k / tile]; null: none
  const int8_t* zeros;  // like scales; null: none
  int64_t tile;         // summed values that share a scale; k where there is one
  int64_t k, n;
};

// Activations [rows, k], in the two orders in which weights want them.
struct Activations {
  const float* rows;
  const float* paired;  // for tables of four bits: see `pair`
  const float* sums;    // [rows, k / tile], where there are zeros; of a kernel [rows, k / block]
  int64_t count, k;
};

// Number of summed values between two visits to an output of a kernel [k, n]. Divides tiles.
constexpr int64_t block = 32;

}  // namespace ziggurat::projection
