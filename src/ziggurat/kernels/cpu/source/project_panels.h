// A kernel in panels of columns times rows of activations: a panel is [k, panel_width] values that
// lie one after another, so that a thread reads its panels from end to end, and their sums stay in
// registers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "project_sources.h"
#include "project_tiles.h"

namespace ziggurat::projection {

// One panel of a weight, and where its columns of y begin.
template <class Source>
struct Panel {
  Source source;
  const float* scales;  // [k / tile, panel_width], or null
  const int8_t* zeros;  // likewise
  const float* offsets;  // likewise
  float* y;
};

constexpr int64_t depth = 2 * block;  // summed values between two visits to y, with many rows

// V vectors of a panel's columns from `first` on, M rows of activations.
template <int M, int V, class Source>
ZIGGURAT_INLINE void few_columns(const Panel<Source>& panel, const Activations& x, const Weight& w,
                                 int64_t first) {
  constexpr int step = Source::step;
  const int64_t tiles = w.k / w.tile;
  Floats total[M][V];
  ZIGGURAT_UNROLL
  for (int m = 0; m < M; ++m) {
    ZIGGURAT_UNROLL
    for (int v = 0; v < V; ++v) total[m][v] = L::zero();
  }
  for (int64_t t = 0; t < tiles; ++t) {
    Floats sum[M][V];
    ZIGGURAT_UNROLL
    for (int m = 0; m < M; ++m) {
      ZIGGURAT_UNROLL
      for (int v = 0; v < V; ++v) sum[m][v] = L::zero();
    }
    for (int64_t k = t * w.tile; k < (t + 1) * w.tile; k += step) {
      ask_row(panel.source, k);
      ZIGGURAT_UNROLL
      for (int v = 0; v < V; ++v) {
        Floats weight[step];
        panel.source.load(k, first + v * W, weight);
        ZIGGURAT_UNROLL
        for (int m = 0; m < M; ++m) {
          ZIGGURAT_UNROLL
          for (int s = 0; s < step; ++s)
            sum[m][v] = L::fma(L::all(x.rows[m * x.k + k + s]), weight[s], sum[m][v]);
        }
      }
    }
    const int64_t at = t * panel_width + first;
    ZIGGURAT_UNROLL
    for (int m = 0; m < M; ++m) {
      ZIGGURAT_UNROLL
      for (int v = 0; v < V; ++v) {
        if (panel.zeros) {
          const Floats zero = L::from_int8(panel.zeros + at + v * W);
          sum[m][v] = L::sub(sum[m][v], L::mul(zero, L::all(x.sums[m * tiles + t])));
        }
        total[m][v] = panel.scales
                          ? L::fma(sum[m][v], L::load(panel.scales + at + v * W), total[m][v])
                          : L::add(sum[m][v], total[m][v]);
        if (panel.offsets)
          total[m][v] = L::fma(L::load(panel.offsets + at + v * W), L::all(x.sums[m * tiles + t]),
                               total[m][v]);
      }
    }
  }
  ZIGGURAT_UNROLL
  for (int m = 0; m < M; ++m) {
    ZIGGURAT_UNROLL
    for (int v = 0; v < V; ++v) L::store(panel.y + m * w.n + first + v * W, total[m][v]);
  }
}

template <int M, class Source>
ZIGGURAT_INLINE void few_rows(const Panel<Source>& panel, const Activations& x, const Weight& w) {
  constexpr int held = L::rows * L::vectors / M, all = panel_width / W;
  constexpr int V = held >= all ? all : held >= 8 ? 8 : held >= 4 ? 4 : held >= 2 ? 2 : 1;
  for (int64_t first = 0; first < panel_width; first += V * W)
    few_columns<M, V>(panel, x, w, first);
}

// Values [k0, k1) of a panel with their scales and zero points, in a buffer.
template <class Source>
void convert_panel(const Panel<Source>& panel, const Weight& w, int64_t k0, int64_t k1,
                   float* buffer) {
  convert(panel.source, k0, k1, 0, panel_width, buffer);
  if (!panel.scales) return;
  for (int64_t k = k0; k < k1;) {
    const int64_t t = k / w.tile, end = std::min(k1, (t + 1) * w.tile);
    for (; k < end; ++k) {
      float* row = buffer + (k - k0) * scratch;
      ZIGGURAT_UNROLL
      for (int64_t j = 0; j < panel_width; j += W) {
        Floats value = L::load(row + j);
        if (panel.zeros)
          value = L::sub(value, L::from_int8(panel.zeros + t * panel_width + j));
        value = L::mul(value, L::load(panel.scales + t * panel_width + j));
        if (panel.offsets)
          value = L::add(value, L::load(panel.offsets + t * panel_width + j));
        L::store(row + j, value);
      }
    }
  }
}

// Any number of rows: block by block of k, converted once for all of them.
template <class Source>
void many_rows(const Panel<Source>& panel, const Activations& x, const Weight& w) {
  alignas(64) float buffer[depth * scratch];
  for (int64_t k = 0; k < w.k; k += depth) {
    const int64_t end = std::min(k + depth, w.k);
    Float32 plain{buffer, scratch};
    if constexpr (std::is_same_v<Source, Float32>)
      plain = {panel.source.values + k * panel_width, panel_width};
    else
      convert_panel(panel, w, k, end, buffer);
    const Output output{panel.y, w.n, nullptr, nullptr, nullptr, nullptr, 0, k == 0};
    rows(plain, x.rows + k, x.k, x.count, 0, end - k, 0, panel_width, 0, output);
  }
}

template <class Source>
void columns_of_panel(const Panel<Source>& panel, const Activations& x, const Weight& w) {
  switch (x.count) {
    case 1: return few_rows<1>(panel, x, w);
    case 2: return few_rows<2>(panel, x, w);
    case 3: return few_rows<3>(panel, x, w);
    case 4: return few_rows<4>(panel, x, w);
    default: return many_rows(panel, x, w);
  }
}

// Panels [first, last).
template <class Source>
void panels(const Source& source, const Activations& x, const Weight& w, int64_t first,
            int64_t last, float* y) {
  const int64_t scales = w.k / w.tile * panel_width;
  for (int64_t p = first; p < last; ++p) {
    Source own = source;
    own.values += p * (w.k / Source::step) * panel_width;
    columns_of_panel(Panel<Source>{own, w.scales ? w.scales + p * scales : nullptr,
                                   w.zeros ? w.zeros + p * scales : nullptr,
                                   w.offsets ? w.offsets + p * scales : nullptr,
                                   y + p * panel_width},
                     x, w);
  }
}

}  // namespace ziggurat::projection
