// The product itself. A kernel [k, n] is walked block by block of rows,
// so that it is read from memory in the order in which it lies there; a table [n, k] row by row.
// Weights become floats in registers; from a handful of rows of activations on, in a small buffer.
#pragma once

#include <cstdint>

#include "lanes.h"
#include "project.h"

namespace ziggurat::projection {

constexpr int64_t few = 4;       // rows for which weights are converted as they are used
constexpr int64_t scratch = 64;  // columns of a converted tile
constexpr int64_t ahead = 8;     // rows of a table asked for before they are read

// Values of four-bit codes: integers in two's complement, and the quantiles of a normal
// distribution that QLoRA uses (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314).
constexpr float int4_values[16] = {0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1};
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

struct Kernels {
  using L = Lanes;
  using Floats = L::Floats;
  using Codes = L::Codes;
  static constexpr int W = L::width;

  // Sources give `step` consecutive values of the summed axis for W columns, or one column's alone.
  struct Float32 {
    static constexpr int step = 1;
    static constexpr int line = 16;  // columns in a line of the cache
    const float* values;
    int64_t stride;
    ZIGGURAT_INLINE void load(int64_t k, int64_t j, Floats* out) const {
      out[0] = L::load(values + k * stride + j);
    }
    ZIGGURAT_INLINE float at(int64_t k, int64_t j) const { return values[k * stride + j]; }
  };
  struct Bfloat16 {
    static constexpr int step = 1;
    static constexpr int line = 32;
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
    static constexpr int line = 64;
    const int8_t* values;
    int64_t stride;
    ZIGGURAT_INLINE void load(int64_t k, int64_t j, Floats* out) const {
      out[0] = L::from_int8(values + k * stride + j);
    }
    ZIGGURAT_INLINE float at(int64_t k, int64_t j) const { return values[k * stride + j]; }
  };
  struct Halves {
    static constexpr int step = 2;
    static constexpr int line = 64;
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

  // What a finished sum over [k0, k1) goes through on its way into y.
  struct Output {
    float* y;
    int64_t n;
    const float* scales;  // of this tile, by column; or null
    const int8_t* zeros;  // likewise
    const float* sums;    // of the activations over [k0, k1), one a row, `stride` apart
    int64_t stride;
    bool first;  // y has nothing yet

    ZIGGURAT_INLINE void add(int64_t row, int64_t j, Floats sum) const {
      if (zeros) {
        Floats zero = L::from_int8(zeros + j);
        sum = L::sub(sum, L::mul(zero, L::all(sums[row * stride])));
      }
      if (scales) sum = L::mul(sum, L::load(scales + j));
      float* to = y + row * n + j;
      L::store(to, first ? sum : L::add(L::load(to), sum));
    }
    ZIGGURAT_INLINE void add(int64_t row, int64_t j, float sum) const {
      if (zeros) sum -= zeros[j] * sums[row * stride];
      if (scales) sum *= scales[j];
      float* to = y + row * n + j;
      *to = first ? sum : *to + sum;
    }
  };

  // Asks for `columns` columns of one row, soon to be read.
  template <int columns, class Source>
  static ZIGGURAT_INLINE void fetch(const Source& source, int64_t k, int64_t j) {
    ZIGGURAT_UNROLL
    for (int i = 0; i < columns; i += Source::line) {
      __builtin_prefetch(source.values + k / Source::step * source.stride + j + i);
    }
  }

  // M rows times V vectors of columns. `shift` is where the columns of `source` lie in y.
  template <int M, int V, class Source>
  static ZIGGURAT_INLINE void tile(const Source& source, const float* x, int64_t ldx, int64_t k0,
                                   int64_t k1, int64_t j, int64_t row, int64_t shift,
                                   const Output& output) {
    constexpr int step = Source::step;
    Floats sum[M][V];
    ZIGGURAT_UNROLL
    for (int m = 0; m < M; ++m) {
      ZIGGURAT_UNROLL
      for (int v = 0; v < V; ++v) sum[m][v] = L::zero();
    }
    for (int64_t k = k0; k < k1; k += step) {
      Floats weight[V][step];
      fetch<V * W>(source, k, j + V * W);
      ZIGGURAT_UNROLL
      for (int v = 0; v < V; ++v) source.load(k, j + v * W, weight[v]);
      ZIGGURAT_UNROLL
      for (int m = 0; m < M; ++m) {
        ZIGGURAT_UNROLL
        for (int s = 0; s < step; ++s) {
          Floats factor = L::all(x[m * ldx + k + s]);
          ZIGGURAT_UNROLL
          for (int v = 0; v < V; ++v) sum[m][v] = L::fma(factor, weight[v][s], sum[m][v]);
        }
      }
    }
    ZIGGURAT_UNROLL
    for (int m = 0; m < M; ++m) {
      ZIGGURAT_UNROLL
      for (int v = 0; v < V; ++v) output.add(row + m, shift + j + v * W, sum[m][v]);
    }
  }

  // `count` rows, at most few, times columns [first, last).
  template <int M, class Source>
  static void columns(const Source& source, const float* x, int64_t ldx, int64_t k0, int64_t k1,
                      int64_t first, int64_t last, int64_t row, int64_t shift,
                      const Output& output) {
    constexpr int V = M == 1 ? 2 * L::vectors : L::vectors;
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

  template <class Source>
  static void rows(const Source& source, const float* x, int64_t ldx, int64_t count, int64_t k0,
                   int64_t k1, int64_t first, int64_t last, int64_t shift, const Output& output) {
    int64_t row = 0;
    for (; row + 4 <= count; row += 4)
      columns<4>(source, x + row * ldx, ldx, k0, k1, first, last, row, shift, output);
    const float* rest = x + row * ldx;
    if (count - row == 3) columns<3>(source, rest, ldx, k0, k1, first, last, row, shift, output);
    if (count - row == 2) columns<2>(source, rest, ldx, k0, k1, first, last, row, shift, output);
    if (count - row == 1) columns<1>(source, rest, ldx, k0, k1, first, last, row, shift, output);
  }

  static ZIGGURAT_INLINE Output output(const Activations& x, const Weight& w, int64_t k, float* y) {
    int64_t blocks = (w.k + block - 1) / block, tile = k / w.tile;
    return {y,
            w.n,
            w.scales ? w.scales + tile * w.n : nullptr,
            w.zeros ? w.zeros + tile * w.n : nullptr,
            x.sums ? x.sums + k / block : nullptr,
            blocks,
            k == 0};
  }

  // Kernel [k, n], few rows: block by block of k, all columns of each.
  template <class Source>
  static void through(const Source& source, const Activations& x, const Weight& w, int64_t first,
                      int64_t last, float* y) {
    for (int64_t k = 0; k < w.k; k += block) {
      int64_t end = k + block < w.k ? k + block : w.k;
      rows(source, x.rows, x.k, x.count, k, end, first, last, 0, output(x, w, k, y));
    }
  }

  // Kernel [k, n], many rows: columns in groups; of each, block by block of k, converted once.
  template <class Source>
  static void converted(const Source& source, const Activations& x, const Weight& w, int64_t first,
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

  template <class Source>
  static void convert(const Source& source, int64_t k0, int64_t k1, int64_t first, int64_t width,
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

  template <class Source>
  static void kernel(const Source& source, const Activations& x, const Weight& w, int64_t first,
                     int64_t last, float* y) {
    if (x.count <= few)
      through(source, x, w, first, last, y);
    else
      converted(source, x, w, first, last, y);
  }

  // Sources of tables give consecutive values of one row: step * W of them, as `step` vectors.
  // Rows of halves come as the even values, then the odd ones; activations are paired likewise.

  // R rows of the table times M rows of activations, over values [k0, k1).
  template <int R, int M, class Source>
  static ZIGGURAT_INLINE void dots(const Source& source, const float* x, int64_t ldx, int64_t row,
                                   int64_t k0, int64_t k1, Floats (&sum)[R][M]) {
    constexpr int step = Source::step;
    for (int64_t k = k0; k < k1; k += step * W) {
      Floats factor[M][step];
      ZIGGURAT_UNROLL
      for (int m = 0; m < M; ++m) {
        ZIGGURAT_UNROLL
        for (int s = 0; s < step; ++s) factor[m][s] = L::load(x + m * ldx + k + s * W);
      }
      ZIGGURAT_UNROLL
      for (int r = 0; r < R; ++r) {
        Floats weight[step];
        source.fetch_row(row + r + ahead, k);
        source.load_row(row + r, k, weight);
        ZIGGURAT_UNROLL
        for (int m = 0; m < M; ++m) {
          ZIGGURAT_UNROLL
          for (int s = 0; s < step; ++s) sum[r][m] = L::fma(weight[s], factor[m][s], sum[r][m]);
        }
      }
    }
  }

  template <class Source>
  struct Rows : Source {
    ZIGGURAT_INLINE void load_row(int64_t row, int64_t k, Floats* out) const {
      // a row is contiguous: what `load` takes for columns are its values
      Source::load(0, row * (this->stride) + k / Source::step, out);
    }
    ZIGGURAT_INLINE void fetch_row(int64_t row, int64_t k) const {
      __builtin_prefetch(this->values + row * this->stride + k / Source::step);
    }
    ZIGGURAT_INLINE float value(int64_t row, int64_t k) const {
      return Source::step == 1 ? Source::at(0, row * this->stride + k)
                               : Source::at(k & 1, row * this->stride + (k >> 1));
    }
  };

  template <int R, int M, class Source>
  static void table_tile(const Rows<Source>& source, const Activations& x, const Weight& w,
                         int64_t row, int64_t from, float* y) {
    constexpr int chunk = Source::step * W;
    const float* ordered = Source::step == 1 ? x.rows : x.paired;
    ordered += from * x.k;
    int64_t tiles = w.k / w.tile;
    float total[R][M] = {};
    Floats sums[R][M];
    ZIGGURAT_UNROLL
    for (int r = 0; r < R; ++r) {
      ZIGGURAT_UNROLL
      for (int m = 0; m < M; ++m) sums[r][m] = L::zero();
    }
    for (int64_t t = 0; t < tiles; ++t) {
      int64_t k0 = t * w.tile, k1 = k0 + w.tile, whole = k0 + w.tile / chunk * chunk;
      Floats part[R][M];
      ZIGGURAT_UNROLL
      for (int r = 0; r < R; ++r) {
        ZIGGURAT_UNROLL
        for (int m = 0; m < M; ++m) part[r][m] = L::zero();
      }
      dots<R, M>(source, ordered, x.k, row, k0, whole, part);
      ZIGGURAT_UNROLL
      for (int r = 0; r < R; ++r) {
        float scale = w.scales ? w.scales[(row + r) * tiles + t] : 1.0f;
        ZIGGURAT_UNROLL
        for (int m = 0; m < M; ++m) {
          sums[r][m] = L::fma(part[r][m], L::all(scale), sums[r][m]);
          float rest = 0;
          for (int64_t k = whole; k < k1; ++k)
            rest += source.value(row + r, k) * x.rows[(from + m) * x.k + k];
          if (w.zeros)
            rest -= w.zeros[(row + r) * tiles + t] * x.sums[(from + m) * tiles + t];
          total[r][m] += scale * rest;
        }
      }
    }
    ZIGGURAT_UNROLL
    for (int r = 0; r < R; ++r) {
      ZIGGURAT_UNROLL
      for (int m = 0; m < M; ++m) {
        y[(from + m) * w.n + row + r] = total[r][m] + L::sum(sums[r][m]);
      }
    }
  }

  template <int R, class Source>
  static void table_rows(const Rows<Source>& source, const Activations& x, const Weight& w,
                         int64_t row, float* y) {
    int64_t from = 0;
    for (; from + 4 <= x.count; from += 4) table_tile<R, 4>(source, x, w, row, from, y);
    if (x.count - from == 3) table_tile<R, 3>(source, x, w, row, from, y);
    if (x.count - from == 2) table_tile<R, 2>(source, x, w, row, from, y);
    if (x.count - from == 1) table_tile<R, 1>(source, x, w, row, from, y);
  }

  template <class Source>
  static void table(const Rows<Source>& source, const Activations& x, const Weight& w,
                    int64_t first, int64_t last, float* y) {
    int64_t row = first;
    if (x.count == 1) {
      for (; row + 8 <= last; row += 8) table_tile<8, 1>(source, x, w, row, 0, y);
    }
    for (; row + 4 <= last; row += 4) table_rows<4>(source, x, w, row, y);
    for (; row < last; ++row) table_rows<1>(source, x, w, row, y);
  }

  template <class Source>
  static void either(const Source& source, const Activations& x, const Weight& w, int64_t first,
                     int64_t last, float* y) {
    if (w.table)
      table(Rows<Source>{source}, x, w, first, last, y);
    else
      kernel(source, x, w, first, last, y);
  }

  static void project(const Activations& x, const Weight& w, int64_t first, int64_t last,
                      float* y) {
    int64_t stride = w.table ? w.k : w.n;
    switch (w.stored) {
      case Stored::float32:
        return either(Float32{(const float*)w.values, stride}, x, w, first, last, y);
      case Stored::bfloat16:
        return either(Bfloat16{(const uint16_t*)w.values, stride}, x, w, first, last, y);
      case Stored::int8:
        return either(Int8{(const int8_t*)w.values, stride}, x, w, first, last, y);
      case Stored::int4:
      case Stored::nf4: {
        if (w.table) stride /= 2;
        const float* values = w.stored == Stored::int4 ? int4_values : nf4_values;
        return either(Halves{(const uint8_t*)w.values, stride, L::codes(values), values}, x, w,
                      first, last, y);
      }
    }
  }
};

}  // namespace ziggurat::projection
