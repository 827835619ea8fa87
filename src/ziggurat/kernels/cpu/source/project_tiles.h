// A kernel [k, n] times many rows of activations: weights become floats in a small buffer, which
// all rows then use, tile by tile.
#pragma once

#include <cstdint>

#include "project_sources.h"

namespace ziggurat::projection {

constexpr int64_t scratch = 64;  // columns of the buffer

// M rows times V vectors of columns. `shift` is where the columns of `source` lie in y.
template <int M, int V>
ZIGGURAT_INLINE void tile(const Float32& source, const float* x, int64_t ldx, int64_t k0,
                          int64_t k1, int64_t j, int64_t row, int64_t shift, const Output& output) {
  Floats sum[M][V];
  ZIGGURAT_UNROLL
  for (int m = 0; m < M; ++m) {
    ZIGGURAT_UNROLL
    for (int v = 0; v < V; ++v) sum[m][v] = L::zero();
  }
  for (int64_t k = k0; k < k1; ++k) {
    Floats weight[V];
    ZIGGURAT_UNROLL
    for (int v = 0; v < V; ++v) source.load(k, j + v * W, &weight[v]);
    ZIGGURAT_UNROLL
    for (int m = 0; m < M; ++m) {
      Floats factor = L::all(x[m * ldx + k]);
      ZIGGURAT_UNROLL
      for (int v = 0; v < V; ++v) sum[m][v] = L::fma(factor, weight[v], sum[m][v]);
    }
  }
  ZIGGURAT_UNROLL
  for (int m = 0; m < M; ++m) {
    ZIGGURAT_UNROLL
    for (int v = 0; v < V; ++v) output.add(row + m, shift + j + v * W, sum[m][v]);
  }
}

// M rows times columns [first, last).
template <int M>
void columns(const Float32& source, const float* x, int64_t ldx, int64_t k0, int64_t k1,
             int64_t first, int64_t last, int64_t row, int64_t shift, const Output& output) {
  constexpr int V = L::vectors;
  int64_t j = first;
  for (; j + V * W <= last; j += V * W)
    tile<M, V>(source, x, ldx, k0, k1, j, row, shift, output);
  if (V >= 4)
    for (; j + 2 * W <= last; j += 2 * W)
      tile<M, 2>(source, x, ldx, k0, k1, j, row, shift, output);
  for (; j + W <= last; j += W) tile<M, 1>(source, x, ldx, k0, k1, j, row, shift, output);
  for (; j < last; ++j) {
    for (int m = 0; m < M; ++m) {
      float sum = 0;
      for (int64_t k = k0; k < k1; ++k) sum += x[m * ldx + k] * source.at(k, j);
      output.add(row + m, shift + j, sum);
    }
  }
}

inline void rows(const Float32& source, const float* x, int64_t ldx, int64_t count, int64_t k0,
                 int64_t k1, int64_t first, int64_t last, int64_t shift, const Output& output) {
  int64_t row = 0;
  for (; row + 4 <= count; row += 4)
    columns<4>(source, x + row * ldx, ldx, k0, k1, first, last, row, shift, output);
  const float* rest = x + row * ldx;
  if (count - row == 3) columns<3>(source, rest, ldx, k0, k1, first, last, row, shift, output);
  if (count - row == 2) columns<2>(source, rest, ldx, k0, k1, first, last, row, shift, output);
  if (count - row == 1) columns<1>(source, rest, ldx, k0, k1, first, last, row, shift, output);
}

template <class Source>
void convert(const Source& source, int64_t k0, int64_t k1, int64_t first, int64_t width,
             float* buffer) {
  constexpr int step = Source::step;
  for (int64_t k = k0; k < k1; k += step) {
    float* to = buffer + (k - k0) * scratch;
    int64_t j = 0;
    for (; j + W <= width; j += W) {
      Floats values[step];
      source.load(k, first + j, values);
      ZIGGURAT_UNROLL
      for (int s = 0; s < step; ++s) L::store(to + s * scratch + j, values[s]);
    }
    for (; j < width; ++j) {
      for (int s = 0; s < step; ++s) to[s * scratch + j] = source.at(k + s, first + j);
    }
  }
}

// Kernel [k, n], many rows: columns in groups; of each, block by block of k, converted once.
template <class Source>
void converted(const Source& source, const Activations& x, const Weight& w, int64_t first,
               int64_t last, float* y) {
  alignas(64) float buffer[block * scratch];
  for (int64_t j = first; j < last; j += scratch) {
    int64_t width = last - j < scratch ? last - j : scratch;
    for (int64_t k = 0; k < w.k; k += block) {
      int64_t end = k + block < w.k ? k + block : w.k;
      convert(source, k, end, j, width, buffer);
      Float32 plain{buffer, scratch};
      // the buffer begins at k and j, as do the activations and the outputs handed on
      rows(plain, x.rows + k, x.k, x.count, 0, end - k, 0, width, j, output(x, w, k, y));
    }
  }
}

}  // namespace ziggurat::projection
