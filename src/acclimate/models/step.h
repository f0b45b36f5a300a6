// Attention of one query a row to all that the row has read. Sums are float32.
#pragma once
#include <algorithm>
#include <vector>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "vectors.h"

static Floats dotted(const float* q, const float* k, long d) {
  Floats sum = {};
  for (long c = 0; c < d; c += L) sum += part(q + c) * part(k + c);
  return sum;
}

static Floats dotted(const uint16_t* q, const uint16_t* k, long d) {
  Floats sum = {};
  long c = 0;
#if defined(__AVX512BF16__)
  for (; c + 2 * L <= d; c += 2 * L)
    sum = (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(q + c), (__m512bh)_mm512_loadu_si512(k + c));
#endif
  for (; c < d; c += L) sum += part(q + c) * part(k + c);
  return sum;
}

// Σ shares · values of H heads, L numbers of each.
template <int H, class X>
static void gathered(const float* shares, long padded, const X* v, long v_step, const bool* mask, long time, X* out, long d) {
  Floats sums[H] = {};
  for (long t = 0; t < time; t++) {
    if (mask && !mask[t]) continue;
    const Floats value = part(v + t * v_step);
    for (int h = 0; h < H; h++) sums[h] += value * shares[h * padded + t];
  }
  for (int h = 0; h < H; h++) put(sums[h], out + h * d);
}

// `heads` queries of d numbers, one after the other, that share keys and values (time, d); mask: which of them exist.
template <class X>
static void attend(
    const X* q, const X* k, long k_step, const X* v, long v_step, const bool* mask, long time, long heads, long d, float scale,
    X* out) {
  const long padded = (time + L - 1) / L * L;
  static thread_local std::vector<float> room;
  if (long(room.size()) < heads * padded) room.resize(heads * padded);
  float* scores = room.data();
  for (long t = 0; t < padded; t += L)
    for (long h = 0; h < heads; h++) {
      Floats sums[L];
      for (int i = 0; i < L; i++) sums[i] = dotted(q + h * d, k + std::min(t + i, time - 1) * k_step, d);
      Floats each = totals(sums) * (scale * 1.44269504f);
      if (mask || t + L > time)
        for (int i = 0; i < L; i++)
          if (t + i >= time || (mask && !mask[t + i])) each[i] = -__builtin_inff();
      put(each, scores + h * padded + t);
    }
  for (long h = 0; h < heads; h++) {
    float *row = scores + h * padded, most = *std::max_element(row, row + padded);
    Floats sum = {};
    for (long t = 0; t < padded; t += L) {
      Floats share = power(part(row + t) - most);
      put(share, row + t);
      sum += share;
    }
    const float whole = total(sum);
    for (long t = 0; t < padded; t += L) put(part(row + t) / whole, row + t);
  }
  for (long h = 0; h < heads;) {
    const long some = std::min(heads - h, 4l);
    for (long c = 0; c < d; c += L) {
      const float* shares = scores + h * padded;
      if (some == 4) gathered<4>(shares, padded, v + c, v_step, mask, time, out + h * d + c, d);
      if (some == 3) gathered<3>(shares, padded, v + c, v_step, mask, time, out + h * d + c, d);
      if (some == 2) gathered<2>(shares, padded, v + c, v_step, mask, time, out + h * d + c, d);
      if (some == 1) gathered<1>(shares, padded, v + c, v_step, mask, time, out + h * d + c, d);
    }
    h += some;
  }
}
