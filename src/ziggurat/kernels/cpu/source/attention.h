// What both directions of attention share: the problem, who sees whom, scores of a block.
#pragma once

#include <algorithm>
#include <cstdint>

#include "tile.h"
#include "transpose.h"

namespace ziggurat {

constexpr int64_t kQueries = 64;                  // queries of a block
constexpr int64_t kKeys = 3 * kLanes;             // keys of a panel
constexpr int64_t kBlock = 192;                   // keys of a block: whole panels for every kLanes
constexpr int64_t kScoreRow = kBlock + 16;        // rows of scores do not fall on the same sets
constexpr float kHidden = -1e30f;
static_assert(kBlock % kKeys == 0 && kQueries % kRows == 0 && kKeys % kRows == 0);

inline int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

struct Span {
  int32_t least, most;
};

// Sizes carry the letters of the glossary: [b, t, h, c] queries, [b, s, k, c] keys, z channels of
// values. Masks have a number per token; without segments their pointers are null.
struct Attention {
  int64_t b, t, s, h, k, c, z;
  float scale, softcap;  // softcap 0: none
  int64_t window;        // 0: all keys
  bool causal;
  const int32_t *query_positions, *key_positions, *query_segments, *key_segments;

  int64_t channels() const { return round_up(c, kLanes); }
  int64_t value_channels() const { return round_up(z, kLanes); }
  int64_t panels() const { return (s + kKeys - 1) / kKeys; }
};

// Positions and segments of some tokens of a row, as intervals.
struct Extent {
  Span position, segment;
};

inline Extent extent(const int32_t* positions, const int32_t* segments, int64_t first, int64_t last) {
  const auto span = [&](const int32_t* x) {
    if (x == nullptr) return Span{0, 0};
    const auto ends = std::minmax_element(x + first, x + last);
    return Span{*ends.first, *ends.second};
  };
  return {span(positions), span(segments)};
}

enum class Sight { kNone, kSome, kAll };

// How much the queries of one extent see of the keys of another; kSome where that is not certain.
inline Sight sight(const Attention& a, const Extent& query, const Extent& key) {
  const int64_t nearest = int64_t{query.position.most} - key.position.least;
  const int64_t farthest = int64_t{query.position.least} - key.position.most;
  if (query.segment.least > key.segment.most || query.segment.most < key.segment.least ||
      (a.causal && nearest < 0) || (a.window > 0 && farthest >= a.window)) {
    return Sight::kNone;
  }
  const bool one = query.segment.least == query.segment.most &&
                   key.segment.least == key.segment.most;
  const bool all = one && (!a.causal || farthest >= 0) && (a.window == 0 || nearest < a.window);
  return all ? Sight::kAll : Sight::kSome;
}

// Which of kLanes keys from `key` on query `query` of the row sees; they exist.
ZIGGURAT_INLINE IntVec visible(const Attention& a, int64_t row, int64_t query, int64_t key) {
  const IntVec distance = all(a.query_positions[row * a.t + query]) -
                          load(a.key_positions + row * a.s + key);
  IntVec seen = a.causal ? distance >= all(int32_t{0}) : distance == distance;
  if (a.window > 0) seen &= distance < all(static_cast<int32_t>(a.window));
  if (a.query_segments != nullptr) {
    seen &= load(a.key_segments + row * a.s + key) == all(a.query_segments[row * a.t + query]);
  }
  return seen;
}

// Transposed copy for the right side of scores: panels of kKeys keys, [panel][channel][key], zeros
// beyond the last. Keys are `row` apart.
inline void copy_panels(const float* from, int64_t row, int64_t keys, int64_t channels, float* to) {
  for (int64_t first = 0; first < keys; first += kKeys, to += kKeys * channels) {
    copy_transposed(channels, std::min(kKeys, keys - first), kKeys, from + first * row, row, to);
  }
}

// Rows times a factor, padded with zeros to `padded` channels and `padded_rows` rows.
inline void copy_rows(const float* from, int64_t row, int64_t rows, int64_t channels, float factor,
                      int64_t padded_rows, int64_t padded, float* to) {
  for (int64_t i = 0; i < padded_rows; i++, to += padded) {
    const int64_t width = i < rows ? channels : 0;
    for (int64_t p = 0; p < width; p++) to[p] = factor * from[i * row + p];
    for (int64_t p = width; p < padded; p++) to[p] = 0;
  }
}

// Left side of scores: strips of kRows queries, [strip][channel][query].
inline void copy_strips(const float* from, int64_t row, int64_t queries, int64_t channels,
                        float factor, float* to) {
  for (int64_t first = 0; first < queries; first += kRows, to += kRows * channels) {
    for (int64_t r = 0; r < kRows; r++) {
      const bool there = first + r < queries;
      const float* source = from + (first + r) * row;
      for (int64_t p = 0; p < channels; p++) to[p * kRows + r] = there ? factor * source[p] : 0;
    }
  }
}

// scores[query][key] for strips of queries and `panels` panels of keys.
inline void score(int64_t queries, int64_t panels, int64_t channels, const float* strips,
                  const float* keys, float* scores) {
  for (int64_t panel = 0; panel < panels; panel++) {
    for (int64_t i = 0; i < queries; i += kRows) {
      tile<3>(channels, strips + i * channels, 1, kRows, keys + panel * kKeys * channels, kKeys,
              scores + i * kScoreRow + panel * kKeys, kScoreRow, false);
    }
  }
}

ZIGGURAT_INLINE Vec tangent(Vec x) {  // tanh, to 1e-7 absolute
  const Vec e = exponential(-2.0f * (x < Vec{} ? -x : x));
  const Vec t = (1.0f - e) / (1.0f + e);
  return x < Vec{} ? -t : t;
}

}  // namespace ziggurat
