// Vectors as wide as the machine's, of float32 and of bfloat16, which is the upper half of one.
#pragma once
#include <cstdint>
#include <cstring>
#include <initializer_list>

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
  Ints word = (Ints)x;
  Ints upper = (word + 0x7fff + (word >> 16 & 1)) >> 16 & 0xffff;
  *(Halves*)y = __builtin_convertvector(x == x ? upper : Ints{} + 0x7fc0, Halves);
}

static float total(Floats v) {
  Quad quads[L / 4];
  memcpy(quads, &v, sizeof v);
  for (int q = 1; q < L / 4; q++) quads[0] += quads[q];
  return (quads[0][0] + quads[0][1]) + (quads[0][2] + quads[0][3]);
}

// 2^x for x ≤ 0, as good as 0 far below; Taylor's polynomial within half a step of the nearest whole number.
static Floats power(Floats x) {
  x = x < -126 ? Floats{} - 126 : x;
  Floats whole = (x + 12582912.0f) - 12582912.0f, rest = x - whole, y = Floats{} + 1.5403530e-4f;
  for (float factor : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f}) y = y * rest + factor;
  return (Floats)((Ints)y + (__builtin_convertvector(whole, Ints) << 23));
}
