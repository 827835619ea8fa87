// Attention of new tokens over the blocks of a paged cache.
#pragma once

#include <cstdint>

namespace ziggurat::paged {

struct Attention {
  const float* query;          // [b, t, h, c]
  const float* keys;           // [kv, blocks, slots, c], the new tokens written
  const float* values;         // [kv, blocks, slots, z]
  const int32_t* tables;       // [b, pages]
  const int32_t* positions;    // [b, t]
  const int32_t* counts;       // [b]: new tokens that are none are padding
  const float* sinks;          // [h], or null
  float* out;                  // [b, t, h, z]
  int64_t t, h, kv, c, z, blocks, slots, pages;
  float scale, softcap;        // softcap 0: none
  int64_t window;              // 0: all
};

constexpr int64_t rows_together = 16;   // queries of a tile: tokens times the heads of a group
constexpr int64_t tokens_together = 64;  // of the cache, between two looks at the largest score

// One tile: some queries of one row that share a head of keys, against part of the tokens.
struct Tile {
  int64_t row, head;     // of the batch; of keys and values
  int64_t first, last;   // queries: token times (h / kv), plus number among the heads
  int64_t begin, end;    // tokens of the cache
};

// What a tile leaves: sums of values weighted by exp(score - peak), the weights' sums, the peaks.
struct Partial {
  float* out;    // [rows_together, z]
  float* total;  // [rows_together]
  float* peak;   // [rows_together]
};

constexpr float hidden = -1e30f;  // peak where no token is seen

}  // namespace ziggurat::paged
