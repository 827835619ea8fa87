// Goto's scheme: both matrices are copied into panels that the register tile reads in order, a slab
// of the summed dimension at a time (Goto and van de Geijn 2008,
// https://doi.org/10.1145/1356052.1356053).
#include "product.h"

#include <algorithm>

#include "handlers.h"
#include "threads.h"
#include "tile.h"
#include "transpose.h"

namespace ziggurat {
namespace {

constexpr int64_t kDepth = 384;             // longest slab of the summed dimension
constexpr int64_t kBlockRows = 96;          // rows of A that one task keeps in its L2 cache
constexpr int64_t kPanel = 3 * kLanes;      // columns of a panel of B
constexpr int64_t kAlone = 1 << 17;         // multiply-adds for which threads are not woken
constexpr int64_t kTasksEach = 4;           // tasks for each thread, so that they end together

int64_t up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }
int64_t parts(int64_t x, int64_t unit) { return (x + unit - 1) / unit; }

// `count` lines of `width` elements, lines `row` apart, to [line][padded] with zeros from `width` on.
ZIGGURAT_INLINE void copy_lines(int64_t count, int64_t width, int64_t padded, const float* from,
                                int64_t row, float* to) {
  for (int64_t p = 0; p < count; p++) {
    for (int64_t e = 0; e < width; e++) to[p * padded + e] = from[p * row + e];
    for (int64_t e = width; e < padded; e++) to[p * padded + e] = 0;
  }
}

// A part of a matrix whose lines run along the summed dimension (`along`) or across it, to
// [summed][padded].
void copy_part(const float* data, int64_t row, bool along, int64_t start, int64_t depth,
               int64_t first, int64_t width, int64_t padded, float* to) {
  if (along) copy_transposed(depth, width, padded, data + first * row + start, row, to);
  else if (width == padded && padded == kPanel) copy_lines(depth, kPanel, kPanel, data + start * row + first, row, to);
  else if (width == padded && padded == kRows) copy_lines(depth, kRows, kRows, data + start * row + first, row, to);
  else copy_lines(depth, width, padded, data + start * row + first, row, to);
}

template <int vectors>
void panel_rows(int64_t rows, int64_t columns, int64_t depth, const float* a, const float* b,
                float* c, int64_t c_row, bool add) {
  constexpr int64_t kWidth = vectors * kLanes;
  for (int64_t i = 0; i < rows; i += kRows) {
    const float* panel = a + i * depth;
    if (rows - i >= kRows && columns == kWidth) {
      tile<vectors>(depth, panel, 1, kRows, b, kWidth, c + i * c_row, c_row, add);
      continue;
    }
    float edge[kRows * kWidth];
    tile<vectors>(depth, panel, 1, kRows, b, kWidth, edge, kWidth, false);
    const int64_t last = std::min<int64_t>(kRows, rows - i);
    for (int64_t r = 0; r < last; r++) {
      float* to = c + (i + r) * c_row;
      for (int64_t j = 0; j < columns; j++) to[j] = (add ? to[j] : 0) + edge[r * kWidth + j];
    }
  }
}

// One task: a block of rows times the panels [first, last).
void block(int64_t rows, int64_t n, int64_t depth, const float* a, const float* b, int64_t first,
           int64_t last, float* c, int64_t c_row, bool add) {
  for (int64_t panel = first; panel < last; panel++) {
    const int64_t start = panel * kPanel, columns = std::min(kPanel, n - start);
    const float* from = b + start * depth;
    float* to = c + start;
    if (columns > 2 * kLanes) panel_rows<3>(rows, columns, depth, a, from, to, c_row, add);
    else if (columns > kLanes) panel_rows<2>(rows, columns, depth, a, from, to, c_row, add);
    else panel_rows<1>(rows, columns, depth, a, from, to, c_row, add);
  }
}

}  // namespace

void multiply(int64_t m, int64_t n, int64_t k, Matrix a, Matrix b, float* c, int64_t c_row,
              bool add) {
  if (m == 0 || n == 0) return;
  if (k == 0) {
    for (int64_t i = 0; i < m && !add; i++) std::fill_n(c + i * c_row, n, 0.0f);
    return;
  }
  const int64_t slabs = parts(k, kDepth), deepest = up(parts(k, slabs), 8);
  const int64_t panels = parts(n, kPanel), strips = parts(m, kRows);
  const int64_t wanted = m * n * k <= kAlone ? 1 : kTasksEach * thread_count();
  const int64_t block_rows = std::min(kBlockRows, up(parts(m, wanted), kRows));
  const int64_t blocks = parts(m, block_rows);
  const int64_t groups = std::min(panels, parts(wanted, blocks)), wide = parts(panels, groups);
  const Workspace left(strips * kRows * deepest * sizeof(float));
  const Workspace right(panels * kPanel * deepest * sizeof(float));
  float *packed_a = left.as<float>(), *packed_b = right.as<float>();
  const int64_t run = std::max<int64_t>(1, parts(panels + strips, wanted));  // copies in one task

  for (int64_t start = 0; start < k; start += deepest) {
    const int64_t depth = std::min(deepest, k - start);
    const auto copy = [&](int64_t place) {
      if (place < panels) {
        const int64_t first = place * kPanel, width = std::min(kPanel, n - first);
        copy_part(b.data, b.row, b.transposed, start, depth, first, width, up(width, kLanes),
                  packed_b + first * depth);
      } else {
        const int64_t first = (place - panels) * kRows, width = std::min<int64_t>(kRows, m - first);
        copy_part(a.data, a.row, !a.transposed, start, depth, first, width, kRows,
                  packed_a + first * depth);
      }
    };
    parallel(parts(panels + strips, run), [&](int64_t task) {
      const int64_t last = std::min((task + 1) * run, panels + strips);
      for (int64_t place = task * run; place < last; place++) copy(place);
    });
    parallel(blocks * groups, [&](int64_t task) {
      const int64_t row = task / groups * block_rows, first = task % groups * wide;
      block(std::min(block_rows, m - row), n, depth, packed_a + row * depth, packed_b, first,
            std::min(first + wide, panels), c + row * c_row, c_row, add || start > 0);
    });
  }
}

namespace {

using F32 = ffi::Buffer<ffi::F32>;

struct Lines {
  int64_t count, length;
};

Lines lines(const F32& x) {
  const auto sizes = x.dimensions();
  Lines found{1, sizes[sizes.size() - 1]};
  for (size_t i = 0; i + 1 < sizes.size(); i++) found.count *= sizes[i];
  return found;
}

// [m, k] x [k, n], each as it is or transposed; all dimensions but the last count as one.
ffi::Error product(bool transpose_a, bool transpose_b, F32 a, F32 b, ffi::Result<F32> out) {
  const Lines left = lines(a), right = lines(b);
  const int64_t m = transpose_a ? left.length : left.count;
  const int64_t k = transpose_a ? left.count : left.length;
  const int64_t n = transpose_b ? right.count : right.length;
  multiply(m, n, k, {a.typed_data(), left.length, transpose_a},
           {b.typed_data(), right.length, transpose_b}, out->typed_data(), n, false);
  return ffi::Error::Success();
}

}  // namespace

ZIGGURAT_HANDLER(product, product,
                 ffi::Ffi::Bind()
                     .Attr<bool>("transpose_a")
                     .Attr<bool>("transpose_b")
                     .Arg<F32>()
                     .Arg<F32>()
                     .Ret<F32>());

}  // namespace ziggurat
