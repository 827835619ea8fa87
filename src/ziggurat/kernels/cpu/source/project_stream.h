// A kernel [k, n] times few rows of activations: its rows go by one after another, each as it lies
// in memory, and the sums of all columns stay in the cache.
#pragma once

#include <cstdint>

#include "project_sources.h"

namespace ziggurat::projection {


constexpr int64_t kept = 2048;        // columns whose sums stay in the cache
constexpr int64_t pitch = kept + 80;  // between those of two rows of activations, no 4 KB apart

// One row of a kernel: `sums` of `width` columns from `from` on, a stretch of `pitch` for each of M
// rows of activations.
template <int M, bool first, class Source>
ZIGGURAT_INLINE void add_row(const Source& source, const float* x, int64_t ldx, int64_t k,
                             int64_t from, int64_t width, float* sums) {
  constexpr int step = Source::step, together = 4;
  Floats factor[M][step];
  ZIGGURAT_UNROLL
  for (int m = 0; m < M; ++m) {
    ZIGGURAT_UNROLL
    for (int s = 0; s < step; ++s) factor[m][s] = L::all(x[m * ldx + k + s]);
  }
  auto vector = [&](int64_t j) ZIGGURAT_INLINE_LAMBDA {
    Floats weight[step];
    source.load(k, from + j, weight);
    ZIGGURAT_UNROLL
    for (int m = 0; m < M; ++m) {
      float* to = sums + m * pitch + j;
      Floats sum = first ? L::mul(factor[m][0], weight[0])
                         : L::fma(factor[m][0], weight[0], L::load(to));
      if (step == 2) sum = L::fma(factor[m][step - 1], weight[step - 1], sum);
      L::store(to, sum);
    }
  };
  int64_t j = 0;
  for (; j + together * W <= width; j += together * W) {
    ask(source, k / step * source.stride + from + j);
    ZIGGURAT_UNROLL
    for (int v = 0; v < together; ++v) vector(j + v * W);
  }
  for (; j + W <= width; j += W) vector(j);
  for (; j < width; ++j) {
    for (int m = 0; m < M; ++m) {
      float sum = first ? 0 : sums[m * pitch + j];
      for (int s = 0; s < step; ++s) sum += x[m * ldx + k + s] * source.at(k + s, from + j);
      sums[m * pitch + j] = sum;
    }
  }
}

// Asks for part `part` of `parts` of `bytes` from `begin` on, for use when all parts are through.
ZIGGURAT_INLINE void ask_for(const void* begin, int64_t bytes, int64_t part, int64_t parts) {
  const char* from = static_cast<const char*>(begin);
  for (int64_t b = bytes * part / parts; b < bytes * (part + 1) / parts; b += 64)
    __builtin_prefetch(from + b);
}

// Kernel [k, n], M rows of activations: rows [k0, k1) one after another, each as it lies there.
// Sums go to y where a scale ends.
template <int M, class Source>
void stream(const Source& source, const Activations& x, const Weight& w, int64_t k0, int64_t k1,
            float* y) {
  constexpr int step = Source::step;
  alignas(64) float sums[M * pitch];
  for (int64_t from = 0; from < w.n; from += kept) {
    const int64_t width = w.n - from < kept ? w.n - from : kept;
    for (int64_t k = k0; k < k1;) {
      const int64_t tile = k / w.tile, ending = (tile + 1) * w.tile;
      const int64_t end = ending < k1 ? ending : k1;
      float total[M] = {};  // of the activations, for the zero points
      for (int64_t i = k / block; w.zeros && i * block < end; ++i)
        for (int m = 0; m < M; ++m) total[m] += x.sums[m * blocks(w.k) + i];
      const Output output{y,
                          w.n,
                          w.scales ? w.scales + tile * w.n : nullptr,
                          w.zeros ? w.zeros + tile * w.n : nullptr,
                          total,
                          1,
                          k == k0};
      const int64_t rest = (end - k) / step - 1;
      add_row<M, true>(source, x.rows, x.k, k, from, width, sums);
      k += step;
      for (int64_t i = 0; i < rest; ++i, k += step) {
        if (w.scales) ask_for(output.scales + from, width * 4, i, rest);
        if (w.zeros) ask_for(output.zeros + from, width, i, rest);
        add_row<M, false>(source, x.rows, x.k, k, from, width, sums);
      }
      for (int m = 0; m < M; ++m) {
        int64_t j = 0;
        for (; j + W <= width; j += W) output.add(m, from + j, L::load(sums + m * pitch + j));
        for (; j < width; ++j) output.add(m, from + j, sums[m * pitch + j]);
      }
    }
  }
}

}  // namespace ziggurat::projection
