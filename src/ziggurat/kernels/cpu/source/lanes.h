// Sixteen or eight floats at once, with the conversions that stored weights need. A file that uses
// them is compiled for AVX-512 or for AVX2; without either there is no ZIGGURAT_LANES.
#pragma once

#include <cstdint>

#include "vectors.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define ZIGGURAT_LANES 16
#elif defined(__AVX2__) && defined(__FMA__)
#define ZIGGURAT_LANES 8
#endif

#if defined(ZIGGURAT_LANES)
#include <immintrin.h>

namespace ziggurat {

#if ZIGGURAT_LANES == 16
struct Lanes {
  using Floats = __m512;
  static constexpr int width = 16;
  // Rows of activations and vectors of columns that one tile keeps in registers.
  static constexpr int rows = 4, vectors = 4;

  static ZIGGURAT_INLINE Floats zero() { return _mm512_setzero_ps(); }
  static ZIGGURAT_INLINE Floats all(float x) { return _mm512_set1_ps(x); }
  static ZIGGURAT_INLINE Floats load(const float* p) { return _mm512_loadu_ps(p); }
  static ZIGGURAT_INLINE void store(float* p, Floats x) { _mm512_storeu_ps(p, x); }
  static ZIGGURAT_INLINE Floats load_part(const float* p, int count) {
    return _mm512_maskz_loadu_ps(mask(count), p);
  }
  static ZIGGURAT_INLINE void store_part(float* p, Floats x, int count) {
    _mm512_mask_storeu_ps(p, mask(count), x);
  }
  static ZIGGURAT_INLINE Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static ZIGGURAT_INLINE Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
  static ZIGGURAT_INLINE Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static ZIGGURAT_INLINE Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
  static ZIGGURAT_INLINE Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
  static ZIGGURAT_INLINE Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
  static ZIGGURAT_INLINE Floats fma(Floats a, Floats b, Floats c) {
    return _mm512_fmadd_ps(a, b, c);
  }
  static ZIGGURAT_INLINE float sum(Floats x) { return _mm512_reduce_add_ps(x); }
  static ZIGGURAT_INLINE float largest(Floats x) { return _mm512_reduce_max_ps(x); }

  static ZIGGURAT_INLINE Floats from_bf16(const uint16_t* p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static ZIGGURAT_INLINE Floats from_int8(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
  }

  // The values of sixteen codes.
  struct Codes {
    __m512 values;
  };
  static ZIGGURAT_INLINE Codes codes(const float* p) { return {_mm512_loadu_ps(p)}; }
  // Values of the low and of the high halves of `width` bytes.
  static ZIGGURAT_INLINE void from_halves(const uint8_t* p, Codes codes, Floats& low,
                                          Floats& high) {
    __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
    low = _mm512_permutexvar_ps(bytes, codes.values);  // looks at four bits only
    high = _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), codes.values);
  }

  // 2 to the power of x, an integer in (-127, 128).
  static ZIGGURAT_INLINE Floats power_of_two(Floats x) {
    __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23));
  }
  static ZIGGURAT_INLINE Floats round(Floats x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }

  // Sums of `width` vectors, one in each lane.
  static ZIGGURAT_INLINE Floats sums(const Floats* x) {
    __m512 pairs[8], fours[4], eights[2];
    ZIGGURAT_UNROLL
    for (int i = 0; i < 8; ++i) {  // lanes 0 2 4 ..: of x[i]; 1 3 5 ..: of x[i + 8]
      __m512 even = _mm512_mask_blend_ps(0xAAAA, x[i], x[i + 8]);
      __m512 odd = _mm512_mask_blend_ps(0x5555, x[i], x[i + 8]);
      pairs[i] = _mm512_add_ps(even, _mm512_permute_ps(odd, 0xB1));
    }
    ZIGGURAT_UNROLL
    for (int i = 0; i < 4; ++i) {  // pairs of lanes: of pairs[i], of pairs[i + 4]
      __m512 even = _mm512_mask_blend_ps(0xCCCC, pairs[i], pairs[i + 4]);
      __m512 odd = _mm512_mask_blend_ps(0x3333, pairs[i], pairs[i + 4]);
      fours[i] = _mm512_add_ps(even, _mm512_permute_ps(odd, 0x4E));
    }
    ZIGGURAT_UNROLL
    for (int i = 0; i < 2; ++i) {  // fours of lanes: of fours[i], of fours[i + 2]
      __m512 even = _mm512_mask_blend_ps(0xF0F0, fours[i], fours[i + 2]);
      __m512 odd = _mm512_mask_blend_ps(0x0F0F, fours[i], fours[i + 2]);
      eights[i] = _mm512_add_ps(even, _mm512_shuffle_f32x4(odd, odd, 0xB1));
    }
    __m512 even = _mm512_mask_blend_ps(0xFF00, eights[0], eights[1]);
    __m512 odd = _mm512_mask_blend_ps(0x00FF, eights[0], eights[1]);
    __m512 all = _mm512_add_ps(even, _mm512_shuffle_f32x4(odd, odd, 0x4E));
    // Lane 8a + 4b + 2c + d holds the sum of x[a + 2b + 4c + 8d]: bits in reverse.
    const __m512i order =
        _mm512_setr_epi32(0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15);
    return _mm512_permutexvar_ps(order, all);
  }

 private:
  static ZIGGURAT_INLINE __mmask16 mask(int count) { return (__mmask16)((1u << count) - 1); }
};
#else
struct Lanes {
  using Floats = __m256;
  static constexpr int width = 8;
  // Rows of activations and vectors of columns that one tile keeps in registers.
  static constexpr int rows = 4, vectors = 2;

  static ZIGGURAT_INLINE Floats zero() { return _mm256_setzero_ps(); }
  static ZIGGURAT_INLINE Floats all(float x) { return _mm256_set1_ps(x); }
  static ZIGGURAT_INLINE Floats load(const float* p) { return _mm256_loadu_ps(p); }
  static ZIGGURAT_INLINE void store(float* p, Floats x) { _mm256_storeu_ps(p, x); }
  static ZIGGURAT_INLINE Floats load_part(const float* p, int count) {
    return _mm256_maskload_ps(p, mask(count));
  }
  static ZIGGURAT_INLINE void store_part(float* p, Floats x, int count) {
    _mm256_maskstore_ps(p, mask(count), x);
  }
  static ZIGGURAT_INLINE Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static ZIGGURAT_INLINE Floats sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
  static ZIGGURAT_INLINE Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static ZIGGURAT_INLINE Floats div(Floats a, Floats b) { return _mm256_div_ps(a, b); }
  static ZIGGURAT_INLINE Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
  static ZIGGURAT_INLINE Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
  static ZIGGURAT_INLINE Floats fma(Floats a, Floats b, Floats c) {
    return _mm256_fmadd_ps(a, b, c);
  }
  static ZIGGURAT_INLINE float sum(Floats x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
  }
  static ZIGGURAT_INLINE float largest(Floats x) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
  }

  static ZIGGURAT_INLINE Floats from_bf16(const uint16_t* p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static ZIGGURAT_INLINE Floats from_int8(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
  }

  // The values of sixteen codes, in two halves.
  struct Codes {
    __m256 first, second;
  };
  static ZIGGURAT_INLINE Codes codes(const float* p) {
    return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
  }
  // Values of the low and of the high halves of `width` bytes.
  static ZIGGURAT_INLINE void from_halves(const uint8_t* p, Codes codes, Floats& low,
                                          Floats& high) {
    __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
    low = value(bytes, codes);
    high = value(_mm256_srli_epi32(bytes, 4), codes);
  }

  // 2 to the power of x, an integer in (-127, 128).
  static ZIGGURAT_INLINE Floats power_of_two(Floats x) {
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
  }
  static ZIGGURAT_INLINE Floats round(Floats x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }

  // Sums of `width` vectors, one in each lane.
  static ZIGGURAT_INLINE Floats sums(const Floats* x) {
    __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
    __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(x[4], x[5]), _mm256_hadd_ps(x[6], x[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20),
                         _mm256_permute2f128_ps(low, high, 0x31));
  }

 private:
  static ZIGGURAT_INLINE __m256i mask(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static ZIGGURAT_INLINE __m256 value(__m256i code, Codes codes) {  // by the low four bits
    __m256 first = _mm256_permutevar8x32_ps(codes.first, code);
    __m256 second = _mm256_permutevar8x32_ps(codes.second, code);
    return _mm256_blendv_ps(first, second, _mm256_castsi256_ps(_mm256_slli_epi32(code, 28)));
  }
};
#endif

}  // namespace ziggurat
#endif
