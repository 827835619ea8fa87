// A table [n, k] times rows of activations: dot products, row of the table by row.
#pragma once

#include <cstdint>

#include "project_sources.h"

namespace ziggurat::projection {

// Sources of tables give consecutive values of one row: step * W of them, as `step` vectors.
// Rows of halves come as the even values, then the odd ones; activations are paired likewise.

// A row of the table times M rows of activations, over values [k0, k1): U sums of each, since one
// alone would wait for itself.
template <int M, int U, class Source>
ZIGGURAT_INLINE void dots(const Source& source, const float* x, int64_t ldx, int64_t row,
                                 int64_t k0, int64_t k1, Floats (&sum)[U][M]) {
  constexpr int step = Source::step;
  auto chunk = [&](int64_t k, Floats(&to)[M]) ZIGGURAT_INLINE_LAMBDA {
    Floats weight[step];
    source.load_row(row, k, weight);
    ZIGGURAT_UNROLL
    for (int m = 0; m < M; ++m) {
      ZIGGURAT_UNROLL
      for (int s = 0; s < step; ++s)
        to[m] = L::fma(weight[s], L::load(x + m * ldx + k + s * W), to[m]);
    }
  };
  int64_t k = k0;
  for (; k + U * step * W <= k1; k += U * step * W) {
    ask(source, row * source.stride + k / step);
    ZIGGURAT_UNROLL
    for (int u = 0; u < U; ++u) chunk(k + u * step * W, sum[u]);
  }
  for (; k < k1; k += step * W) chunk(k, sum[0]);
}

template <class Source>
struct Rows : Source {
  ZIGGURAT_INLINE void load_row(int64_t row, int64_t k, Floats* out) const {
    // a row is contiguous: what `load` takes for columns are its values
    Source::load(0, row * (this->stride) + k / Source::step, out);
  }
  ZIGGURAT_INLINE float value(int64_t row, int64_t k) const {
    return Source::step == 1 ? Source::at(0, row * this->stride + k)
                             : Source::at(k & 1, row * this->stride + (k >> 1));
  }
};

template <int M, class Source>
void table_row(const Rows<Source>& source, const Activations& x, const Weight& w, int64_t row,
               int64_t from, float* y) {
  constexpr int chunk = Source::step * W, U = 4 / M > 2 ? 4 / M : 2;
  const float* ordered = Source::step == 1 ? x.rows : x.paired;
  ordered += from * x.k;
  int64_t tiles = w.k / w.tile;
  float rest[M] = {};
  Floats sums[M];
  ZIGGURAT_UNROLL
  for (int m = 0; m < M; ++m) sums[m] = L::zero();
  for (int64_t t = 0; t < tiles; ++t) {
    int64_t k0 = t * w.tile, k1 = k0 + w.tile, whole = k0 + w.tile / chunk * chunk;
    float scale = w.scales ? w.scales[row * tiles + t] : 1.0f;
    Floats part[U][M];
    ZIGGURAT_UNROLL
    for (int u = 0; u < U; ++u) {
      ZIGGURAT_UNROLL
      for (int m = 0; m < M; ++m) part[u][m] = L::zero();
    }
    dots<M, U>(source, ordered, x.k, row, k0, whole, part);
    ZIGGURAT_UNROLL
    for (int m = 0; m < M; ++m) {
      ZIGGURAT_UNROLL
      for (int u = 1; u < U; ++u) part[0][m] = L::add(part[0][m], part[u][m]);
      sums[m] = L::fma(part[0][m], L::all(scale), sums[m]);
      float left = 0;
      for (int64_t k = whole; k < k1; ++k)
        left += source.value(row, k) * x.rows[(from + m) * x.k + k];
      if (w.zeros) left -= w.zeros[row * tiles + t] * x.sums[(from + m) * tiles + t];
      rest[m] += scale * left;
    }
  }
  ZIGGURAT_UNROLL
  for (int m = 0; m < M; ++m) y[(from + m) * w.n + row] = rest[m] + L::sum(sums[m]);
}

template <class Source>
void table(const Rows<Source>& source, const Activations& x, const Weight& w, int64_t first,
           int64_t last, float* y) {
  for (int64_t row = first; row < last; ++row) {
    int64_t from = 0;
    for (; from + 4 <= x.count; from += 4) table_row<4>(source, x, w, row, from, y);
    if (x.count - from == 3) table_row<3>(source, x, w, row, from, y);
    if (x.count - from == 2) table_row<2>(source, x, w, row, from, y);
    if (x.count - from == 1) table_row<1>(source, x, w, row, from, y);
  }
}

}  // namespace ziggurat::projection
