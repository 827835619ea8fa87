// Offers the product to XLA: `project(x, weights..., [layer]) -> products`, several matrices of one
// kind with the same activations in one call, since a call's fixed cost shows where a token takes
// milliseconds. Given a layer, weights are stacks of which only that layer is read.
#include "project.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "handlers.h"
#include "lanes.h"
#include "threads.h"

#if defined(ZIGGURAT_LANES)
#include "project_panels.h"
#include "project_tiles.h"

namespace ziggurat::projection {
namespace {

constexpr int64_t most = 8;             // weights in a call
constexpr int64_t parts_each = 2;       // parts of the work for each thread
constexpr int64_t most_parts_each = 8;  // where a matrix has many panels

// Columns of a unit of the work: a cache line of floats, or a panel.
int64_t unit_of(const Weight& w) { return w.packed ? panel_width : 16; }

// Activations whose sum is taken, where there are zero points; 0: none.
int64_t summed_together(const Activations& x, const Weight& w) {
  if (!(w.zeros || w.offsets) || (w.packed && x.count > few)) return 0;
  return w.packed ? w.tile : block;
}

struct Job {
  Activations x;
  Weight weights[most];
  float* y[most];
  int64_t units[most + 1];  // where each weight's units of columns begin
  int64_t count;
};

// Values of a four-bit type's codes.
const float* values_of(Stored stored) {
  switch (stored) {
    case Stored::nf4: return nf4_values;
    case Stored::uint4: return uint4_values;
    case Stored::iq4: return iq4_values;
    case Stored::fp4_e2m1: return fp4_e2m1_values;
    case Stored::fp4_bitsandbytes: return fp4_bitsandbytes_values;
    default: return int4_values;
  }
}

// `call` with what reads the weight.
template <class F>
void with_source(const Weight& w, const F& call) {
  const int64_t stride = w.packed ? panel_width : w.n;
  switch (w.stored) {
    case Stored::float32:
      return call(Float32{(const float*)w.values, stride});
    case Stored::bfloat16:
      return call(Bfloat16{(const uint16_t*)w.values, stride});
    case Stored::int8:
      return call(Int8{(const int8_t*)w.values, stride});
    default: {
      const float* values = values_of(w.stored);
      return call(Halves{(const uint8_t*)w.values, stride, L::codes(values), values});
    }
  }
}

// Columns [first, last) of y, whole units.
void columns_of(const Activations& x, const Weight& w, int64_t first, int64_t last, float* y) {
  with_source(w, [&](const auto& source) {
    if (w.packed)
      panels(source, x, w, first / panel_width, last / panel_width, y);
    else
      converted(source, x, w, first, last, y);
  });
}

// Units [first, last) of all weights' columns one after another.
void run_units(const Job& job, int64_t first, int64_t last) {
  for (int64_t i = 0; i < job.count; i++) {
    const int64_t from = std::max(first, job.units[i]), to = std::min(last, job.units[i + 1]);
    if (from >= to) continue;
    const Weight& w = job.weights[i];
    const int64_t unit = unit_of(w);
    columns_of(job.x, w, (from - job.units[i]) * unit,
                     std::min(w.n, (to - job.units[i]) * unit), job.y[i]);
  }
}

// Sums of activations over the values that share a zero point, or over the blocks of a kernel.
void add_up(const float* x, int64_t rows, int64_t k, int64_t size, float* sums) {
  for (int64_t row = 0; row < rows; row++)
    for (int64_t from = 0; from < k; from += size) {
      Floats some = L::zero();
      float rest = 0;
      int64_t i = row * k + from;
      const int64_t end = row * k + std::min(k, from + size);
      for (; i + W <= end; i += W) some = L::add(some, L::load(x + i));
      for (; i < end; i++) rest += x[i];
      *sums++ = rest + L::sum(some);
    }
}

int64_t bytes_of(Stored stored) {
  return stored == Stored::float32 ? 4 : stored == Stored::bfloat16 ? 2 : 1;
}

bool four_bit(Stored stored) {
  return stored >= Stored::int4;
}

void run(Job& job) {
  const Weight& w = job.weights[0];
  const int64_t size = summed_together(job.x, w);
  Workspace space(size ? sizeof(float) * job.x.count * ((job.x.k + size - 1) / size) : 0);
  if (size) {
    add_up(job.x.rows, job.x.count, job.x.k, size, space.as<float>());
    job.x.sums = space.as<float>();
  }
  const int64_t units = job.units[job.count];
  const int64_t each = w.packed && units >= panel_width ? most_parts_each : parts_each;
  const int64_t parts = std::min(units, each * thread_count());
  parallel(parts, [&](int64_t part) {
    run_units(job, units * part / parts, units * (part + 1) / parts);
  });
}

bool stored_as(ffi::DataType type, Stored stored) {
  switch (stored) {
    case Stored::float32: return type == ffi::F32;
    case Stored::bfloat16: return type == ffi::BF16;
    case Stored::int8: return type == ffi::S8;
    default: return type == ffi::U8;
  }
}

ffi::Error project(ffi::Buffer<ffi::F32> x, ffi::RemainingArgs arguments,
                   ffi::RemainingRets results, int64_t stored, int64_t tile,
                   bool packed, bool scaled, bool shifted, bool offset, bool layered) {
  Job job = {};
  const int64_t parts = 1 + scaled + (shifted || offset);
  job.count = static_cast<int64_t>(results.size());
  const int64_t given = static_cast<int64_t>(arguments.size()) - layered;
  if (job.count < 1 || job.count > most || given != job.count * parts ||
      x.dimensions().size() != 2)
    return ffi::Error::InvalidArgument("project: wrong number of arguments");
  const int64_t k = x.dimensions()[1];
  job.x = {x.typed_data(), nullptr, x.dimensions()[0], k};
  int64_t layer = 0;
  if (layered) {
    const auto index = arguments.get<ffi::Buffer<ffi::S32>>(given);
    if (!index) return ffi::Error::InvalidArgument("project: the layer");
    layer = *index->typed_data();
  }
  for (int64_t i = 0; i < job.count; i++) {
    const auto values = arguments.get<ffi::AnyBuffer>(i * parts);
    const auto scales = arguments.get<ffi::AnyBuffer>(i * parts + (scaled ? 1 : 0));
    const auto zeros = arguments.get<ffi::AnyBuffer>(i * parts + (shifted || offset ? 2 : 0));
    auto y = results.get<ffi::AnyBuffer>(i);
    if (!values || !scales || !zeros || !y) return ffi::Error::InvalidArgument("project: buffers");
    const auto kind = static_cast<Stored>(stored);
    const int64_t n = (*y)->dimensions().back();
    const int64_t size = (four_bit(kind) ? k / 2 : k) * n;  // elements of a layer
    const int64_t held = static_cast<int64_t>(values->element_count());
    if (!stored_as(values->element_type(), kind) || (layered ? held % size : held - size) != 0 ||
        layer < 0 || layer >= held / size ||
        (*y)->element_type() != ffi::F32)
      return ffi::Error::InvalidArgument("project: a weight of another type or shape");
    const int64_t before = layer * (k / tile) * n;  // scales of the layers before
    job.weights[i] = {kind,
                      packed,
                      static_cast<const char*>(values->untyped_data()) +
                          layer * size * bytes_of(kind),
                      scaled ? scales->reinterpret_data<float>() + before : nullptr,
                      shifted ? zeros->reinterpret_data<int8_t>() + before : nullptr,
                      offset ? zeros->reinterpret_data<float>() + before : nullptr,
                      tile,
                      k,
                      n};
    job.y[i] = (*y)->reinterpret_data<float>();
    const int64_t unit = unit_of(job.weights[i]);
    if (packed && n % unit != 0)
      return ffi::Error::InvalidArgument("project: columns that are no whole panels");
    job.units[i + 1] = job.units[i] + (n + unit - 1) / unit;
  }
  run(job);
  return ffi::Error::Success();
}

}  // namespace

ZIGGURAT_HANDLER(project, project,
                 ffi::Ffi::Bind()
                     .Arg<ffi::Buffer<ffi::F32>>()
                     .RemainingArgs()
                     .RemainingRets()
                     .Attr<int64_t>("stored")
                     .Attr<int64_t>("tile")
                     .Attr<bool>("packed")
                     .Attr<bool>("scaled")
                     .Attr<bool>("shifted")
                     .Attr<bool>("offset")
                     .Attr<bool>("layered"));

}  // namespace ziggurat::projection
#endif
