// Vectors as wide as the machine's, of float32 and of bfloat16, which is the upper half of one.
#pragma once
#include <cstdint>
#include <cstring>
#include <initializer_list>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int L = 16;
#elif defined(__AVX__)
constexpr int L = 8;
#else
constexpr int L = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * L), aligned(4), may_alias));
typedef float Quad __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(4 * L), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * L), aligned(2), may_alias));

static Floats part(const float* x) { return *(const Floats*)x; }
static Floats part(const uint16_t* x) {
  return (Floats)(__builtin_convertvector(*(const Halves*)x, Ints) << 16);
}
static void put(Floats x, float* y) { *(Floats*)y = x; }
static void put(Floats x, uint16_t* y) {  // to the nearest, to even between two
#if defined(__AVX512BF16__)
  if (!_mm512_fpclass_ps_mask((__m512)x, 0x20)) {  // of what is below all normal numbers the processor makes 0
    _mm256_storeu_si256((__m256i*)y, (__m256i)_mm512_cvtneps_pbh((__m512)x));
    return;
  }
#endif
  Ints word = (Ints)x;
  Ints upper = (word + 0x7fff + (word >> 16 & 1)) >> 16 & 0xffff;
  *(Halves*)y = __builtin_convertvector(x == x ? upper : Ints{} + 0x7fc0, Halves);
}

static float one(float x) { return x; }
static float one(uint16_t x) {
  const uint32_t word = uint32_t(x) << 16;
  float value;
  memcpy(&value, &word, 4);
  return value;
}

static void put_one(float x, float* y) { *y = x; }
static void put_one(float x, uint16_t* y) {
  uint16_t each[L];
  put(Floats{} + x, each);
  *y = each[0];
}

static float total(Floats v) {
  Quad quads[L / 4];
  memcpy(quads, &v, sizeof v);
  for (int q = 1; q < L / 4; q++) quads[0] += quads[q];
  return (quads[0][0] + quads[0][1]) + (quads[0][2] + quads[0][3]);
}

#if defined(__AVX512F__) && (defined(__clang__) || __GNUC__ >= 12)
#define FOLDS 1
// (j, j + L/2) of a and b in turns, added: of each half as many numbers are left, those of a and b in turns.
static Floats folded(Floats a, Floats b) {
  Floats low = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  Floats high = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  return low + high;
}
#endif

// The totals of L vectors, which are spent: 15 folds in the place of 16 sums across a vector.
static Floats totals(Floats* v) {
#if defined(FOLDS)
  for (int half = L / 2; half; half /= 2)
    for (int i = 0; i < half; i++) v[i] = folded(v[i], v[i + half]);
  return v[0];
#else
  Floats each;
  for (int i = 0; i < L; i++) each[i] = total(v[i]);
  return each;
#endif
}

// 2^x for x ≤ 0, as good as 0 far below; Taylor's polynomial within half a step of the nearest whole number.
static Floats power(Floats x) {
  x = x < -126 ? Floats{} - 126 : x;
  Floats whole = (x + 12582912.0f) - 12582912.0f, rest = x - whole, y = Floats{} + 1.5403530e-4f;
  for (float factor : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f}) y = y * rest + factor;
  return (Floats)((Ints)y + (__builtin_convertvector(whole, Ints) << 23));
}

// 1 / x for 1 ≤ x ≤ 2: an estimate and a step of Newton's, as near as a division and quicker.
static Floats inverse(Floats x) {
#if defined(__AVX512F__)
  const Floats near = (Floats)_mm512_rcp14_ps((__m512)x);
  return near * (2 - x * near);
#else
  return 1 / x;
#endif
}
