// Attention over a paged cache: a running softmax over tokens (Milakov and Gimelshein 2018,
// https://arxiv.org/abs/1805.02867).
#pragma once

#include <cstdint>

#include "lanes.h"
#include "paged_attention.h"

namespace ziggurat::paged {

struct Kernels {
  using L = Lanes;
  using Floats = L::Floats;
  static constexpr int W = L::width;

  // exp to about one unit in the last place; x <= 88, from -87 down the smallest normal number.
  static ZIGGURAT_INLINE Floats exponential(Floats x) {
    x = L::max(x, L::all(-87.0f));
    Floats n = L::round(L::mul(x, L::all(1.44269504088896341f)));
    Floats r = L::fma(n, L::all(-0.693359375f), x);
    r = L::fma(n, L::all(2.12194440e-4f), r);
    Floats p = L::all(1.9841270e-4f);
    p = L::fma(p, r, L::all(1.3888889e-3f));
    p = L::fma(p, r, L::all(8.3333333e-3f));
    p = L::fma(p, r, L::all(4.1666667e-2f));
    p = L::fma(p, r, L::all(1.6666667e-1f));
    p = L::fma(p, r, L::all(0.5f));
    p = L::fma(p, r, L::all(1.0f));
    p = L::fma(p, r, L::all(1.0f));
    return L::mul(p, L::power_of_two(n));
  }

  static ZIGGURAT_INLINE Floats capped(Floats x, float cap) {  // cap * tanh(x / cap)
    Floats y = L::mul(x, L::all(2.0f / cap));
    y = L::max(L::min(y, L::all(30.0f)), L::all(-30.0f));
    Floats e = exponential(y), one = L::all(1.0f);
    return L::mul(L::all(cap), L::div(L::sub(e, one), L::add(e, one)));
  }

  // Scores of one query against W tokens.
  static ZIGGURAT_INLINE Floats scores(const float* query, const float* const* keys, int64_t c) {
    Floats sum[W];
    ZIGGURAT_UNROLL
    for (int s = 0; s < W; ++s) sum[s] = L::zero();
    int64_t i = 0;
    for (; i + W <= c; i += W) {
      Floats q = L::load(query + i);
      ZIGGURAT_UNROLL
      for (int s = 0; s < W; ++s) sum[s] = L::fma(q, L::load(keys[s] + i), sum[s]);
    }
    if (i < c) {
      Floats q = L::load_part(query + i, (int)(c - i));
      ZIGGURAT_UNROLL
      for (int s = 0; s < W; ++s) {
        sum[s] = L::fma(q, L::load_part(keys[s] + i, (int)(c - i)), sum[s]);
      }
    }
    return L::sums(sum);
  }

  // out = out * shrink + weights x values, V vectors from channel z on.
  template <int V>
  static ZIGGURAT_INLINE void mix(float* out, const float* weights, const float* const* values,
                                  int64_t count, float shrink, int64_t z) {
    Floats sum[V];
    ZIGGURAT_UNROLL
    for (int v = 0; v < V; ++v) sum[v] = L::mul(L::load(out + z + v * W), L::all(shrink));
    for (int64_t s = 0; s < count; ++s) {
      Floats weight = L::all(weights[s]);
      ZIGGURAT_UNROLL
      for (int v = 0; v < V; ++v) {
        sum[v] = L::fma(weight, L::load(values[s] + z + v * W), sum[v]);
      }
    }
    ZIGGURAT_UNROLL
    for (int v = 0; v < V; ++v) L::store(out + z + v * W, sum[v]);
  }

  static void mix_all(float* out, const float* weights, const float* const* values,
                      int64_t count, float shrink, int64_t channels) {
    constexpr int V = 4;
    int64_t z = 0;
    for (; z + V * W <= channels; z += V * W) mix<V>(out, weights, values, count, shrink, z);
    for (; z + W <= channels; z += W) mix<1>(out, weights, values, count, shrink, z);
    if (z == channels) return;
    const int rest = (int)(channels - z);
    Floats sum = L::mul(L::load_part(out + z, rest), L::all(shrink));
    for (int64_t s = 0; s < count; ++s)
      sum = L::fma(L::all(weights[s]), L::load_part(values[s] + z, rest), sum);
    L::store_part(out + z, sum, rest);
  }

  // Tokens [first, last) against one query; those outside [from, to) it does not see.
  static void query(const Attention& a, const float* query, const float* const* keys,
                    const float* const* values, int64_t first, int64_t from, int64_t to,
                    float* out, float& total, float& peak) {
    alignas(64) float weights[tokens_together];
    const int64_t begin = from - first, end = to - first, start = begin / W * W;
    Floats highest = L::all(hidden);
    for (int64_t s = start; s < end; s += W) {
      Floats score = L::mul(scores(query, keys + s, a.c), L::all(a.scale));
      if (a.softcap > 0) score = capped(score, a.softcap);
      L::store(weights + s, score);
      for (int64_t i = s; i < begin; ++i) weights[i] = hidden;
      for (int64_t i = end; i < s + W; ++i) weights[i] = hidden;
      highest = L::max(highest, L::load(weights + s));
    }
    float higher = L::largest(highest);
    higher = higher > peak ? higher : peak;
    Floats sum = L::zero();
    for (int64_t s = start; s < end; s += W) {
      Floats weight = exponential(L::sub(L::load(weights + s), L::all(higher)));
      L::store(weights + s, weight);
      sum = L::add(sum, weight);
    }
    const float shrink = one_exponential(peak - higher);
    total = total * shrink + L::sum(sum);
    peak = higher;
    mix_all(out, weights + begin, values + begin, end - begin, shrink, a.z);
  }

  static ZIGGURAT_INLINE float one_exponential(float x) {
    alignas(64) float lanes[W];
    L::store(lanes, exponential(L::all(x)));
    return lanes[0];
  }

  static void attend(const Attention& a, const Tile& tile, const Partial& partial) {
    const int64_t heads = a.h / a.kv, rows = tile.last - tile.first;
    for (int64_t r = 0; r < rows; ++r) {
      partial.total[r] = 0;
      partial.peak[r] = hidden;
      for (int64_t i = 0; i < a.z; ++i) partial.out[r * a.z + i] = 0;
    }
    const float* keys[tokens_together + W];
    const float* values[tokens_together + W];
    const int32_t* table = a.tables + tile.row * a.pages;
    for (int64_t from = tile.begin; from < tile.end; from += tokens_together) {
      const int64_t to = from + tokens_together < tile.end ? from + tokens_together : tile.end;
      for (int64_t p = from; p < to; ++p) {
        const int64_t slot = (tile.head * a.blocks + table[p / a.slots]) * a.slots + p % a.slots;
        keys[p - from] = a.keys + slot * a.c;
        values[p - from] = a.values + slot * a.z;
      }
      for (int64_t p = to; (p - from) % W; ++p) keys[p - from] = keys[to - 1 - from];
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t token = (tile.first + r) / heads;
        const int64_t head = tile.head * heads + (tile.first + r) % heads;
        const int64_t position = a.positions[tile.row * a.t + token];
        const int64_t seen = a.window > 0 ? position - a.window + 1 : 0;
        const int64_t begin = seen > from ? seen : from;
        const int64_t end = position + 1 < to ? position + 1 : to;
        if (begin >= end) continue;
        const float* q = a.query + ((tile.row * a.t + token) * a.h + head) * a.c;
        query(a, q, keys, values, from, begin, end, partial.out + r * a.z, partial.total[r],
              partial.peak[r]);
      }
    }
  }
};

}  // namespace ziggurat::paged
