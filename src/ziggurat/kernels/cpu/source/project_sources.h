// What reads stored weights as floats, and what takes finished sums.
#pragma once

#include <cstdint>

#include "lanes.h"
#include "project.h"

namespace ziggurat::projection {

constexpr int64_t ahead = 4096;  // bytes between what is read and what is asked for

// Values of four-bit codes: integers in two's complement, the quantiles of a normal distribution
// that QLoRA uses (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314), and the tables of
// ziggurat/kernels/linear/weight_types.py.
constexpr float int4_values[16] = {0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1};
constexpr float uint4_values[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
constexpr float iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113};
constexpr float fp4_e2m1_values[16] = {0,  0.5f,  1,  1.5f,  2,  3,  4,  6,
                                       -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
constexpr float fp4_bitsandbytes_values[16] = {
    0.0f / 12,  0.0625f / 12,  8.0f / 12,  12.0f / 12,  4.0f / 12,  6.0f / 12,  2.0f / 12,  3.0f / 12,
    -0.0f / 12, -0.0625f / 12, -8.0f / 12, -12.0f / 12, -4.0f / 12, -6.0f / 12, -2.0f / 12, -3.0f / 12};
constexpr float nf4_values[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f};

using L = Lanes;
using Floats = L::Floats;
using Codes = L::Codes;
constexpr int W = L::width;

// Sources give `step` consecutive values of the summed axis for W columns, or one column's alone.
struct Float32 {
  static constexpr int step = 1;
  const float* values;
  int64_t stride;
  ZIGGURAT_INLINE void load(int64_t k, int64_t j, Floats* out) const {
    out[0] = L::load(values + k * stride + j);
  }
  ZIGGURAT_INLINE float at(int64_t k, int64_t j) const { return values[k * stride + j]; }
};
struct Bfloat16 {
  static constexpr int step = 1;
  const uint16_t* values;
  int64_t stride;
  ZIGGURAT_INLINE void load(int64_t k, int64_t j, Floats* out) const {
    out[0] = L::from_bf16(values + k * stride + j);
  }
  ZIGGURAT_INLINE float at(int64_t k, int64_t j) const {
    uint32_t bits = (uint32_t)values[k * stride + j] << 16;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
  }
};
struct Int8 {
  static constexpr int step = 1;
  const int8_t* values;
  int64_t stride;
  ZIGGURAT_INLINE void load(int64_t k, int64_t j, Floats* out) const {
    out[0] = L::from_int8(values + k * stride + j);
  }
  ZIGGURAT_INLINE float at(int64_t k, int64_t j) const { return values[k * stride + j]; }
};
struct Halves {
  static constexpr int step = 2;
  const uint8_t* values;
  int64_t stride;
  Codes codes;
  const float* table;
  ZIGGURAT_INLINE void load(int64_t k, int64_t j, Floats* out) const {
    L::from_halves(values + (k >> 1) * stride + j, codes, out[0], out[1]);
  }
  ZIGGURAT_INLINE float at(int64_t k, int64_t j) const {
    uint8_t byte = values[(k >> 1) * stride + j];
    return table[k & 1 ? byte >> 4 : byte & 15];
  }
};

// Asks for the row of a panel that lies some rows after the one that holds value k: bytes become
// floats more slowly than memory could give them, and without being asked for wait for that.
template <class Source>
ZIGGURAT_INLINE void ask_row(const Source& source, int64_t k) {
  constexpr int64_t line = 64 / sizeof(*source.values);
  const auto* next = source.values + k / Source::step * panel_width + ahead / 64 * line;
  ZIGGURAT_UNROLL
  for (int64_t j = 0; j < panel_width; j += line) __builtin_prefetch(next + j);
}

// What a finished sum over [k0, k1) goes through on its way into y.
struct Output {
  float* y;
  int64_t n;
  const float* scales;  // of this tile, by column; or null
  const int8_t* zeros;  // likewise
  const float* offsets;  // likewise
  const float* sums;    // of the activations over [k0, k1), one a row, `stride` apart
  int64_t stride;
  bool first;  // y has nothing yet

  ZIGGURAT_INLINE void add(int64_t row, int64_t j, Floats sum) const {
    if (zeros) {
      Floats zero = L::from_int8(zeros + j);
      sum = L::sub(sum, L::mul(zero, L::all(sums[row * stride])));
    }
    if (scales) sum = L::mul(sum, L::load(scales + j));
    if (offsets) sum = L::fma(L::load(offsets + j), L::all(sums[row * stride]), sum);
    float* to = y + row * n + j;
    L::store(to, first ? sum : L::add(L::load(to), sum));
  }
  ZIGGURAT_INLINE void add(int64_t row, int64_t j, float sum) const {
    if (zeros) sum -= zeros[j] * sums[row * stride];
    if (scales) sum *= scales[j];
    if (offsets) sum += offsets[j] * sums[row * stride];
    float* to = y + row * n + j;
    *to = first ? sum : *to + sum;
  }
};

ZIGGURAT_INLINE int64_t blocks(int64_t k) { return (k + block - 1) / block; }

ZIGGURAT_INLINE Output output(const Activations& x, const Weight& w, int64_t k, float* y) {
  int64_t tile = k / w.tile;
  return {y,
          w.n,
          w.scales ? w.scales + tile * w.n : nullptr,
          w.zeros ? w.zeros + tile * w.n : nullptr,
          w.offsets ? w.offsets + tile * w.n : nullptr,
          x.sums ? x.sums + k / block : nullptr,
          blocks(w.k),
          k == 0};
}

}  // namespace ziggurat::projection
