// Attention without stored scores, forward and backward (Dao et al. 2022,
// https://arxiv.org/abs/2205.14135), for the masks of `kernels/attention/mask.py`.
#include "attention.h"

#include <cmath>
#include <vector>

#include "handlers.h"
#include "threads.h"

namespace ziggurat {
namespace {

// Panels of keys that a block of queries can see: from `first` on, before `last`.
struct Range {
  int64_t first, last;
};

std::vector<Extent> panel_extents(const Attention& a, int64_t row) {
  std::vector<Extent> found;
  const int32_t* segments = a.key_segments == nullptr ? nullptr : a.key_segments + row * a.s;
  for (int64_t first = 0; first < a.s; first += kKeys) {
    found.push_back(extent(a.key_positions + row * a.s, segments, first,
                           std::min(first + kKeys, a.s)));
  }
  return found;
}

Extent query_extent(const Attention& a, int64_t row, int64_t first, int64_t count) {
  const int32_t* segments = a.query_segments == nullptr ? nullptr : a.query_segments + row * a.t;
  return extent(a.query_positions + row * a.t, segments, first, first + count);
}

Range range(const Attention& a, const Extent& queries, const std::vector<Extent>& panels) {
  Range found{0, static_cast<int64_t>(panels.size())};
  const auto hidden = [&](int64_t p) { return sight(a, queries, panels[p]) == Sight::kNone; };
  while (found.first < found.last && hidden(found.first)) found.first++;
  while (found.first < found.last && hidden(found.last - 1)) found.last--;
  return found;
}

// Calls vector(query, place, seen, masked) for each vector of scores of a query; `seen` is all ones
// where nothing is hidden. Keys beyond the last are hidden.
template <typename F>
ZIGGURAT_INLINE void each_vector(const Attention& a, int64_t row, int64_t query, int64_t panel,
                                 Sight sight, const F& vector) {
  const int64_t key = panel * kKeys;
  const bool whole = key + kKeys <= a.s;
  if (sight == Sight::kAll && whole) {
    ZIGGURAT_UNROLL
    for (int j = 0; j < 3; j++) vector(j * kLanes, ~IntVec{}, false);
    return;
  }
  ZIGGURAT_UNROLL
  for (int j = 0; j < 3; j++) {
    const int64_t at = key + j * kLanes;
    IntVec seen{};
    if (at + kLanes <= a.s) {
      seen = visible(a, row, query, at);
    } else if (at < a.s) {  // the last keys again, moved to their lanes
      int32_t lanes[kLanes] = {};
      for (int64_t i = 0; i < a.s - at; i++) {
        const int64_t distance = int64_t{a.query_positions[row * a.t + query]} -
                                 a.key_positions[row * a.s + at + i];
        const bool same = a.query_segments == nullptr ||
                          a.query_segments[row * a.t + query] == a.key_segments[row * a.s + at + i];
        const bool near = (!a.causal || distance >= 0) && (a.window == 0 || distance < a.window);
        lanes[i] = same && near ? -1 : 0;
      }
      std::memcpy(&seen, lanes, sizeof(seen));
    }
    vector(j * kLanes, seen, true);
  }
}

// One block of scores becomes weights relative to each query's largest score so far; sums and mixed
// values so far are scaled to it.
void weigh(const Attention& a, int64_t row, int64_t query, int64_t count, int64_t panel,
           int64_t panels, const std::vector<Sight>& sights, float* scores, float* most, float* sums,
           float* mixed) {
  const int64_t width = a.value_channels();
  for (int64_t r = 0; r < count; r++) {
    float* line = scores + r * kScoreRow;
    Vec top = all(kHidden);
    for (int64_t p = 0; p < panels; p++) {
      each_vector(a, row, query + r, panel + p, sights[panel + p], [&](int at, IntVec seen, bool masked) {
        float* here = line + p * kKeys + at;
        Vec x = load(here);
        if (a.softcap > 0) x = a.softcap * tangent(x * (1.0f / a.softcap));
        if (masked) x = seen ? x : all(kHidden);
        if (masked || a.softcap > 0) store(here, x);
        top = larger(x, top);
      });
    }
    const float highest = std::max(most[r], largest(top));
    const float base = highest <= kHidden ? 0.0f : highest;  // nothing seen yet: every weight is 0
    Vec total{};
    for (int64_t p = 0; p < panels * 3; p++) {
      const Vec weight = exponential(load(line + p * kLanes) - base);
      store(line + p * kLanes, weight);
      total += weight;
    }
    const float shrink = most[r] <= kHidden ? 0.0f : std::exp(most[r] - base);
    sums[r] = sums[r] * shrink + sum(total);
    if (shrink != 1.0f) {
      for (int64_t j = 0; j < width; j += kLanes) {
        float* to = mixed + r * width + j;
        store(to, load(to) * shrink);
      }
    }
    most[r] = highest;
  }
}

struct Forward {
  Attention a;
  const float *query, *key, *value, *sinks;  // sinks may be null
  float *out, *log_sums;                     // [b, t, h, z] and [b, h, t]
};

// Queries [first, last) of one head of one row.
void attend(const Forward& f, int64_t row, int64_t head, int64_t first, int64_t last) {
  const Attention& a = f.a;
  const int64_t shared = head / (a.h / a.k), channels = a.channels(), width = a.value_channels();
  const int64_t panels = a.panels(), keys = panels * kKeys;
  const Workspace memory(sizeof(float) * (keys * (a.c + width) + kQueries * (channels + width) +
                                          kQueries * (kScoreRow + 2)));
  float* key_panels = memory.as<float>();
  float* values = key_panels + keys * a.c;
  float* strips = values + keys * width;
  float* mixed = strips + kQueries * channels;
  float* scores = mixed + kQueries * width;
  float* most = scores + kQueries * kScoreRow;
  float* sums = most + kQueries;
  const std::vector<Extent> extents = panel_extents(a, row);
  std::vector<Sight> sights(panels);
  Range copied = range(a, query_extent(a, row, first, last - first), extents);
  const int64_t from = copied.first * kKeys, there = std::min(copied.last * kKeys, a.s) - from;
  if (there > 0) {
    const int64_t token = row * a.s + from;
    copy_panels(f.key + (token * a.k + shared) * a.c, a.k * a.c, there, a.c,
                key_panels + from * a.c);
    copy_rows(f.value + (token * a.k + shared) * a.z, a.k * a.z, there, a.z, 1.0f,
              round_up(there, kKeys), width, values + from * width);
  }
  for (int64_t query = first; query < last; query += kQueries) {
    const int64_t count = std::min(kQueries, last - query), rows = round_up(count, kRows);
    const Extent mine = query_extent(a, row, query, count);
    const Range seen = range(a, mine, extents);
    for (int64_t p = seen.first; p < seen.last; p++) sights[p] = sight(a, mine, extents[p]);
    const int64_t token = row * a.t + query;
    copy_strips(f.query + (token * a.h + head) * a.c, a.h * a.c, count, a.c, a.scale, strips);
    std::fill_n(mixed, kQueries * width, 0.0f);
    std::fill_n(most, kQueries, f.sinks == nullptr ? kHidden : f.sinks[head]);
    std::fill_n(sums, kQueries, f.sinks == nullptr ? 0.0f : 1.0f);
    for (int64_t panel = seen.first; panel < seen.last; panel += kBlock / kKeys) {
      const int64_t wide = std::min(kBlock / kKeys, seen.last - panel);
      score(rows, wide, a.c, strips, key_panels + panel * kKeys * a.c, scores);
      weigh(a, row, query, count, panel, wide, sights, scores, most, sums, mixed);
      for (int64_t r = count; r < rows; r++) std::fill_n(scores + r * kScoreRow, kBlock, 0.0f);
      tiles(rows, width / kLanes, wide * kKeys, scores, kScoreRow, int64_t{1},
            values + panel * kKeys * width, width, mixed, width, true);
    }
    for (int64_t r = 0; r < count; r++) {
      const float share = sums[r] > 0 || sums[r] != sums[r] ? 1.0f / sums[r] : 0.0f;
      float* to = f.out + ((token + r) * a.h + head) * a.z;
      for (int64_t e = 0; e < a.z; e++) to[e] = mixed[r * width + e] * share;
      const float log_sum = sums[r] == 0 ? 0.0f : most[r] + std::log(sums[r]);
      f.log_sums[(row * a.h + head) * a.t + query + r] = log_sum;
    }
  }
}

void forward(const Forward& f) {
  const Attention& a = f.a;
  const int64_t heads = a.b * a.h, blocks = (a.t + kQueries - 1) / kQueries;
  const int64_t cuts = std::min(blocks, std::max<int64_t>(1, 4 * thread_count() / heads));
  const int64_t run = (blocks + cuts - 1) / cuts * kQueries;
  const int64_t pieces = (a.t + run - 1) / run;
  parallel(heads * pieces, [&](int64_t task) {
    const int64_t piece = pieces - 1 - task / heads, head = task % heads;  // the longest first
    attend(f, head / a.h, head % a.h, piece * run, std::min((piece + 1) * run, a.t));
  });
}

struct Backward {
  Attention a;
  const float *query, *key, *value, *out, *log_sums, *d_out;
  float* d_query;
  float *d_key, *d_value;  // [b, s, h, c] and [b, s, h, z]: of every query head by itself
};

// Scores and products with d_out of one block become weights, and gradients of scores.
void slope(const Attention& a, int64_t row, int64_t query, int64_t count, int64_t panel,
           int64_t panels, const std::vector<Sight>& sights, const float* log_sums,
           const float* inner, float* scores, float* slopes) {
  for (int64_t r = 0; r < count; r++) {
    float *line = scores + r * kScoreRow, *other = slopes + r * kScoreRow;
    for (int64_t p = 0; p < panels; p++) {
      each_vector(a, row, query + r, panel + p, sights[panel + p], [&](int at, IntVec seen, bool masked) {
        const int64_t place = p * kKeys + at;
        Vec x = load(line + place), bent = all(1.0f);
        if (a.softcap > 0) {
          const Vec t = tangent(x * (1.0f / a.softcap));
          x = a.softcap * t, bent = 1.0f - t * t;
        }
        Vec weight = exponential(x - log_sums[r]);
        if (masked) weight = seen ? weight : Vec{};
        Vec gradient = weight * (load(other + place) - inner[r]);
        if (a.softcap > 0) gradient *= bent;
        store(line + place, weight);
        store(other + place, gradient);
      });
    }
  }
}

// All of one head of one row.
void differentiate(const Backward& f, int64_t row, int64_t head) {
  const Attention& a = f.a;
  const int64_t shared = head / (a.h / a.k), channels = a.channels(), width = a.value_channels();
  const int64_t panels = a.panels(), keys = panels * kKeys;
  const Workspace memory(sizeof(float) *
                         (keys * (a.c + a.z + 2 * channels + width) +
                          kQueries * (3 * channels + 2 * width + 2 * kScoreRow + 1)));
  float* place = memory.as<float>();
  const auto take = [&](int64_t count) { return std::exchange(place, place + count); };
  float *key_panels = take(keys * a.c), *value_panels = take(keys * a.z);
  float *key_rows = take(keys * channels), *d_key = take(keys * channels);
  float *d_value = take(keys * width), *scores = take(kQueries * kScoreRow);
  float *slopes = take(kQueries * kScoreRow), *query_strips = take(kQueries * channels);
  float *query_rows = take(kQueries * channels), *d_query = take(kQueries * channels);
  float *out_strips = take(kQueries * width), *out_rows = take(kQueries * width);
  float* inner = take(kQueries);
  const float* key = f.key + (row * a.s * a.k + shared) * a.c;
  copy_panels(key, a.k * a.c, a.s, a.c, key_panels);
  copy_panels(f.value + (row * a.s * a.k + shared) * a.z, a.k * a.z, a.s, a.z, value_panels);
  copy_rows(key, a.k * a.c, a.s, a.c, 1.0f, keys, channels, key_rows);
  std::fill_n(d_key, keys * channels, 0.0f);
  std::fill_n(d_value, keys * width, 0.0f);
  const std::vector<Extent> extents = panel_extents(a, row);
  std::vector<Sight> sights(panels);
  for (int64_t query = 0; query < a.t; query += kQueries) {
    const int64_t count = std::min(kQueries, a.t - query), rows = round_up(count, kRows);
    const Extent mine = query_extent(a, row, query, count);
    const Range seen = range(a, mine, extents);
    for (int64_t p = seen.first; p < seen.last; p++) sights[p] = sight(a, mine, extents[p]);
    const int64_t token = (row * a.t + query) * a.h + head;
    const float *from = f.query + token * a.c, *d_out = f.d_out + token * a.z;
    copy_strips(from, a.h * a.c, count, a.c, a.scale, query_strips);
    copy_rows(from, a.h * a.c, count, a.c, a.scale, count, channels, query_rows);
    copy_strips(d_out, a.h * a.z, count, a.z, 1.0f, out_strips);
    copy_rows(d_out, a.h * a.z, count, a.z, 1.0f, count, width, out_rows);
    for (int64_t r = 0; r < count; r++) {
      const float* made = f.out + (token + r * a.h) * a.z;
      float total = 0;
      for (int64_t e = 0; e < a.z; e++) total += made[e] * out_rows[r * width + e];
      inner[r] = total;
    }
    std::fill_n(d_query, kQueries * channels, 0.0f);
    for (int64_t panel = seen.first; panel < seen.last; panel += kBlock / kKeys) {
      const int64_t wide = std::min(kBlock / kKeys, seen.last - panel), first = panel * kKeys;
      score(rows, wide, a.c, query_strips, key_panels + first * a.c, scores);
      score(rows, wide, a.z, out_strips, value_panels + first * a.z, slopes);
      slope(a, row, query, count, panel, wide, sights,
            f.log_sums + (row * a.h + head) * a.t + query, inner, scores, slopes);
      tiles(wide * kKeys, width / kLanes, count, scores, int64_t{1}, kScoreRow, out_rows, width,
            d_value + first * width, width, true);
      tiles(wide * kKeys, channels / kLanes, count, slopes, int64_t{1}, kScoreRow, query_rows,
            channels, d_key + first * channels, channels, true);
      tiles(rows, channels / kLanes, wide * kKeys, slopes, kScoreRow, int64_t{1},
            key_rows + first * channels, channels, d_query, channels, true);
    }
    for (int64_t r = 0; r < count; r++) {
      float* to = f.d_query + (token + r * a.h) * a.c;
      for (int64_t p = 0; p < a.c; p++) to[p] = a.scale * d_query[r * channels + p];
    }
  }
  for (int64_t i = 0; i < a.s; i++) {
    const int64_t token = (row * a.s + i) * a.h + head;
    std::copy_n(d_key + i * channels, a.c, f.d_key + token * a.c);
    std::copy_n(d_value + i * width, a.z, f.d_value + token * a.z);
  }
}

// Gradients of query heads that share a key head, added in order: [n, h, c] to [n, k, c].
void gather_heads(int64_t tokens, int64_t h, int64_t k, int64_t c, const float* from, float* to) {
  const int64_t group = h / k, run = 64;
  parallel((tokens + run - 1) / run, [&](int64_t task) {
    const int64_t last = std::min((task + 1) * run, tokens) * k;
    for (int64_t i = task * run * k; i < last; i++) {
      std::copy_n(from + i * group * c, c, to + i * c);
      for (int64_t g = 1; g < group; g++) {
        for (int64_t p = 0; p < c; p++) to[i * c + p] += from[(i * group + g) * c + p];
      }
    }
  });
}

using F32 = ffi::Buffer<ffi::F32>;
using S32 = ffi::Buffer<ffi::S32>;

Attention problem(F32& query, F32& key, F32& value, S32& query_positions, S32& key_positions,
                  S32& query_segments, S32& key_segments, double scale, double softcap,
                  int64_t window, bool causal, bool segments) {
  const auto q = query.dimensions(), k = key.dimensions(), v = value.dimensions();
  return {q[0],
          q[1],
          k[1],
          q[2],
          k[2],
          q[3],
          v[3],
          static_cast<float>(scale),
          static_cast<float>(softcap),
          window,
          causal,
          query_positions.typed_data(),
          key_positions.typed_data(),
          segments ? query_segments.typed_data() : nullptr,
          segments ? key_segments.typed_data() : nullptr};
}

ffi::Error attention(double scale, double softcap, int64_t window, bool causal, bool segments,
                     bool sinks, F32 query, F32 key, F32 value, S32 query_positions,
                     S32 key_positions, S32 query_segments, S32 key_segments, F32 sink,
                     ffi::Result<F32> out, ffi::Result<F32> log_sums) {
  const Attention a = problem(query, key, value, query_positions, key_positions, query_segments,
                              key_segments, scale, softcap, window, causal, segments);
  forward({a, query.typed_data(), key.typed_data(), value.typed_data(),
           sinks ? sink.typed_data() : nullptr, out->typed_data(), log_sums->typed_data()});
  return ffi::Error::Success();
}

ffi::Error attention_gradient(double scale, double softcap, int64_t window, bool causal,
                              bool segments, F32 query, F32 key, F32 value, S32 query_positions,
                              S32 key_positions, S32 query_segments, S32 key_segments, F32 out,
                              F32 log_sums, F32 d_out, ffi::Result<F32> d_query,
                              ffi::Result<F32> d_key, ffi::Result<F32> d_value) {
  const Attention a = problem(query, key, value, query_positions, key_positions, query_segments,
                              key_segments, scale, softcap, window, causal, segments);
  const bool shared = a.h != a.k;
  const int64_t tokens = a.b * a.s;
  const Workspace keys(shared ? tokens * a.h * a.c * sizeof(float) : 0);
  const Workspace values(shared ? tokens * a.h * a.z * sizeof(float) : 0);
  const Backward f{a,
                   query.typed_data(),
                   key.typed_data(),
                   value.typed_data(),
                   out.typed_data(),
                   log_sums.typed_data(),
                   d_out.typed_data(),
                   d_query->typed_data(),
                   shared ? keys.as<float>() : d_key->typed_data(),
                   shared ? values.as<float>() : d_value->typed_data()};
  parallel(a.b * a.h, [&](int64_t task) { differentiate(f, task / a.h, task % a.h); });
  if (shared) {
    gather_heads(tokens, a.h, a.k, a.c, f.d_key, d_key->typed_data());
    gather_heads(tokens, a.h, a.k, a.z, f.d_value, d_value->typed_data());
  }
  return ffi::Error::Success();
}

auto masked() {
  return ffi::Ffi::Bind()
      .Attr<double>("scale")
      .Attr<double>("softcap")
      .Attr<int64_t>("window")
      .Attr<bool>("causal")
      .Attr<bool>("segments");
}

}  // namespace

ZIGGURAT_HANDLER(attention, attention,
                 masked()
                     .Attr<bool>("sinks")
                     .Arg<F32>()
                     .Arg<F32>()
                     .Arg<F32>()
                     .Arg<S32>()
                     .Arg<S32>()
                     .Arg<S32>()
                     .Arg<S32>()
                     .Arg<F32>()
                     .Ret<F32>()
                     .Ret<F32>());

ZIGGURAT_HANDLER(attention_gradient, attention_gradient,
                 masked()
                     .Arg<F32>()
                     .Arg<F32>()
                     .Arg<F32>()
                     .Arg<S32>()
                     .Arg<S32>()
                     .Arg<S32>()
                     .Arg<S32>()
                     .Arg<F32>()
                     .Arg<F32>()
                     .Arg<F32>()
                     .Ret<F32>()
                     .Ret<F32>()
                     .Ret<F32>());

}  // namespace ziggurat
