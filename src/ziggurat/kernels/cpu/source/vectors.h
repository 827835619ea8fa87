// Vectors of the widest registers that the file is compiled for, by the vector extension of GCC and
// Clang: one source for AVX-512, AVX2, SSE and NEON.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__clang__)
#define ZIGGURAT_UNROLL _Pragma("clang loop unroll(full)")
#else
#define ZIGGURAT_UNROLL _Pragma("GCC unroll 64")
#endif
#define ZIGGURAT_INLINE inline __attribute__((always_inline))
#define ZIGGURAT_INLINE_LAMBDA __attribute__((always_inline))

namespace ziggurat {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kRows = 8;  // rows of a register tile: kRows * 3 sums leave room in the registers
#elif defined(__AVX__)
constexpr int kLanes = 8;
constexpr int kRows = 4;
#elif defined(__aarch64__)
constexpr int kLanes = 4;
constexpr int kRows = 8;
#else
constexpr int kLanes = 4;
constexpr int kRows = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef float LooseVec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int32_t LooseIntVec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

ZIGGURAT_INLINE Vec load(const float* from) { return *reinterpret_cast<const LooseVec*>(from); }
ZIGGURAT_INLINE IntVec load(const int32_t* from) {
  return *reinterpret_cast<const LooseIntVec*>(from);
}
ZIGGURAT_INLINE void store(float* to, Vec value) { *reinterpret_cast<LooseVec*>(to) = value; }
ZIGGURAT_INLINE Vec all(float value) { return value - Vec{}; }
ZIGGURAT_INLINE IntVec all(int32_t value) { return value - IntVec{}; }

// The larger of two; where one is no number, `b`.
ZIGGURAT_INLINE Vec larger(Vec a, Vec b) { return a > b ? a : b; }

ZIGGURAT_INLINE float sum(Vec v) {
  float lanes[kLanes];
  std::memcpy(lanes, &v, sizeof(v));
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

ZIGGURAT_INLINE float largest(Vec v) {
  float lanes[kLanes];
  std::memcpy(lanes, &v, sizeof(v));
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; i++) {
      lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
    }
  }
  return lanes[0];
}

// e^x to about one unit in the last place for x <= 88; 0 below -87.3 (no denormals), NaN for NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2, e^r by its series to r^7.
ZIGGURAT_INLINE Vec exponential(Vec x) {
  const Vec least = all(-87.3f), most = all(88.3f);
  const IntVec tiny = x < least;
  x = x > most ? most : x;
  x = x < least ? least : x;
  const Vec magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  Vec n = x * 1.44269504088896341f + magic;
  IntVec bits;
  std::memcpy(&bits, &n, sizeof(n));
  n -= magic;
  Vec r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Vec p = all(1.9841270e-4f);
  p = p * r + 1.3888889e-3f;
  p = p * r + 8.3333333e-3f;
  p = p * r + 4.1666667e-2f;
  p = p * r + 1.6666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  IntVec scaled;
  std::memcpy(&scaled, &p, sizeof(p));
  scaled += bits << 23;  // the lower bits of n's mantissa are the integer; its others shift out
  Vec out;
  std::memcpy(&out, &scaled, sizeof(out));
  return tiny ? Vec{} : out;
}

}  // namespace ziggurat
