// Offers paged attention to XLA: writes new keys and values into the cache, which is the same
// memory before and after, and attends.
#include "paged_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "handlers.h"
#include "lanes.h"
#include "threads.h"

#if defined(ZIGGURAT_LANES)
#include "paged_attention_tiles.h"

namespace ziggurat::paged {
namespace {

constexpr int64_t worth_splitting = 128;  // tokens of the cache
constexpr int64_t most_splits = 64;

struct Cache {
  const float* fresh;  // [b, t, kv, size]
  float* kept;         // [kv, blocks, slots, size]
  int64_t size;
};

void write(const Attention& a, const Cache& cache, int64_t row) {
  for (int64_t i = 0; i < a.counts[row]; i++) {
    const int64_t position = a.positions[row * a.t + i];
    const int64_t block = a.tables[row * a.pages + position / a.slots];
    for (int64_t head = 0; head < a.kv; head++) {
      const int64_t slot = (head * a.blocks + block) * a.slots + position % a.slots;
      std::memcpy(cache.kept + slot * cache.size,
                  cache.fresh + ((row * a.t + i) * a.kv + head) * cache.size,
                  sizeof(float) * cache.size);
    }
  }
}

// The call as tiles: queries of a row and head together, and tokens in `splits` parts where there
// would be too few tiles for the threads.
struct Plan {
  int64_t groups, splits;  // of queries in a row and head; of tokens

  Plan(const Attention& a, int64_t rows, int64_t longest) {
    groups = (a.t * (a.h / a.kv) + rows_together - 1) / rows_together;
    const int64_t tiles = rows * a.kv * groups, wanted = 4 * thread_count();
    const int64_t most = std::clamp<int64_t>(longest / worth_splitting, 1, most_splits);
    splits = std::clamp<int64_t>(wanted / tiles, 1, most);
  }

  // Tile number i; false where all its queries are padding.
  bool tile(const Attention& a, int64_t i, Tile& tile) const {
    const int64_t heads = a.h / a.kv, part = i % splits, group = i / splits % groups;
    tile.head = i / splits / groups % a.kv;
    tile.row = i / splits / groups / a.kv;
    tile.first = group * rows_together;
    tile.last = std::min(tile.first + rows_together, a.counts[tile.row] * heads);
    if (tile.first >= tile.last) return false;
    const int32_t* positions = a.positions + tile.row * a.t;
    const int64_t newest = positions[(tile.last - 1) / heads];
    const int64_t oldest = positions[tile.first / heads];
    const int64_t from = a.window > 0 ? std::max<int64_t>(0, oldest - a.window + 1) : 0;
    const int64_t size = (newest + 1 - from + splits - 1) / splits;
    tile.begin = from + part * size;
    tile.end = std::min(newest + 1, tile.begin + size);
    return true;
  }
};

// The parts of a tile's tokens together, into the output.
void merge(const Attention& a, const Tile& tile, const Partial* parts, int64_t count) {
  const int64_t heads = a.h / a.kv;
  for (int64_t r = 0; r < tile.last - tile.first; r++) {
    const int64_t token = (tile.first + r) / heads;
    const int64_t head = tile.head * heads + (tile.first + r) % heads;
    float* out = a.out + ((tile.row * a.t + token) * a.h + head) * a.z;
    float peak = a.sinks ? a.sinks[head] : hidden;
    for (int64_t s = 0; s < count; s++) peak = std::max(peak, parts[s].peak[r]);
    float total = a.sinks ? std::exp(a.sinks[head] - peak) : 0;
    for (int64_t s = 0; s < count; s++) {
      total += parts[s].total[r] * std::exp(parts[s].peak[r] - peak);
    }
    for (int64_t s = 0; s < count; s++) {
      const float share = std::exp(parts[s].peak[r] - peak) / std::max(total, 1e-30f);
      const float* from = parts[s].out + r * a.z;
      for (int64_t i = 0; i < a.z; i++) out[i] = (s == 0 ? 0 : out[i]) + share * from[i];
    }
  }
}

void run(const Attention& a, int64_t rows) {
  int64_t longest = 1;
  for (int64_t row = 0; row < rows; row++)
    if (a.counts[row] > 0) {
      longest = std::max<int64_t>(longest, a.positions[row * a.t + a.counts[row] - 1] + 1);
    }
  const Plan plan(a, rows, longest);
  const int64_t tiles = rows * a.kv * plan.groups, parts = tiles * plan.splits;
  const int64_t size = rows_together * (a.z + 2);
  Workspace space(sizeof(float) * parts * size);
  const auto partial = [&](int64_t part) {
    float* out = space.as<float>() + part * size;
    return Partial{out, out + rows_together * a.z, out + rows_together * (a.z + 1)};
  };
  parallel(parts, [&](int64_t part) {
    Tile tile;
    if (!plan.tile(a, part, tile)) return;
    const Partial result = partial(part);
    Kernels::attend(a, tile, result);
    if (plan.splits == 1) merge(a, tile, &result, 1);
  });
  if (plan.splits == 1) return;
  for (int64_t i = 0; i < tiles; i++) {
    Tile tile;
    Partial results[most_splits];
    if (!plan.tile(a, i * plan.splits, tile)) continue;
    for (int64_t s = 0; s < plan.splits; s++) results[s] = partial(i * plan.splits + s);
    merge(a, tile, results, plan.splits);
  }
}

using Floats = ffi::Buffer<ffi::F32>;
using Integers = ffi::Buffer<ffi::S32>;

ffi::Error attention(Floats query, Floats key, Floats value, Floats, Floats, Integers tables,
                     Integers positions, Integers counts, Floats sinks, ffi::Result<Floats> out,
                     ffi::Result<Floats> keys, ffi::Result<Floats> values, double scale,
                     double softcap, int64_t window) {
  const auto q = query.dimensions(), cache = keys->dimensions();
  if (q.size() != 4 || cache.size() != 4 || q[2] % cache[0] != 0)
    return ffi::Error::InvalidArgument("paged_attention: shapes");
  Attention a = {};
  a.query = query.typed_data(), a.keys = keys->typed_data(), a.values = values->typed_data();
  a.tables = tables.typed_data(), a.positions = positions.typed_data();
  a.counts = counts.typed_data(), a.out = out->typed_data();
  a.sinks = sinks.element_count() > 0 ? sinks.typed_data() : nullptr;
  a.t = q[1], a.h = q[2], a.c = q[3], a.kv = cache[0], a.blocks = cache[1], a.slots = cache[2];
  a.z = values->dimensions()[3], a.pages = tables.dimensions()[1];
  a.scale = static_cast<float>(scale), a.softcap = static_cast<float>(softcap), a.window = window;
  const int64_t rows = q[0];
  for (int64_t row = 0; row < rows; row++) {  // queries of padding give zeros
    const int64_t left = std::max<int64_t>(0, a.t - a.counts[row]), size = a.h * a.z;
    std::memset(a.out + ((row + 1) * a.t - left) * size, 0, sizeof(float) * left * size);
    if (key.element_count() == 0) continue;  // the cache has the new tokens already
    write(a, {key.typed_data(), keys->typed_data(), a.c}, row);
    write(a, {value.typed_data(), values->typed_data(), a.z}, row);
  }
  run(a, rows);
  return ffi::Error::Success();
}

}  // namespace

ZIGGURAT_HANDLER(paged_attention, attention,
                 ffi::Ffi::Bind()
                     .Arg<Floats>()    // query
                     .Arg<Floats>()    // key, perhaps none
                     .Arg<Floats>()    // value, perhaps none
                     .Arg<Floats>()    // keys
                     .Arg<Floats>()    // values
                     .Arg<Integers>()  // tables
                     .Arg<Integers>()  // positions
                     .Arg<Integers>()  // counts
                     .Arg<Floats>()    // sinks, perhaps none
                     .Ret<Floats>()
                     .Ret<Floats>()
                     .Ret<Floats>()
                     .Attr<double>("scale")
                     .Attr<double>("softcap")
                     .Attr<int64_t>("window"));

}  // namespace ziggurat::paged
#endif
