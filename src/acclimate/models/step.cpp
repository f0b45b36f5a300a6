// Attention of one query a row to all that the row has read: a decoding step. Sums are float32.
#include <algorithm>
#include <vector>

#include "vectors.h"

// `heads` queries of d numbers, one after the other, that share keys and values (time, d); mask: which of them exist.
template <class X>
static void attend(
    const X* q, const X* k, long k_step, const X* v, long v_step, const bool* mask, long time, long heads, long d, float scale,
    X* out) {
  const long padded = (time + L - 1) / L * L;
  std::vector<float> query(heads * d), scores(heads * padded, -__builtin_inff());
  for (long i = 0; i < heads * d; i += L) put(part(q + i) * (scale * 1.44269504f), &query[i]);
  for (long t = 0; t < time; t++) {
    if (mask && !mask[t]) continue;
    for (long h = 0; h < heads; h++) {
      Floats sum = {};
      for (long c = 0; c < d; c += L) sum += part(k + t * k_step + c) * part(&query[h * d + c]);
      scores[h * padded + t] = total(sum);
    }
  }
  for (long h = 0; h < heads; h++) {
    float *row = &scores[h * padded], most = *std::max_element(row, row + padded);
    Floats sum = {};
    for (long t = 0; t < padded; t += L) {
      Floats share = power(part(row + t) - most);
      put(share, row + t);
      sum += share;
    }
    const float whole = total(sum);
    for (long c = 0; c < d; c += L) put(Floats{}, &query[h * d + c]);
    for (long t = 0; t < padded; t += L) put(part(row + t) / whole, row + t);
  }
  for (long t = 0; t < time; t++) {
    if (mask && !mask[t]) continue;
    for (long c = 0; c < d; c += L) {
      Floats value = part(v + t * v_step + c);
      for (long h = 0; h < heads; h++) put(part(&query[h * d + c]) + value * scores[h * padded + t], &query[h * d + c]);
    }
  }
  for (long i = 0; i < heads * d; i += L) put(part(&query[i]), out + i);
}

// q and out (rows, heads, d); steps of k and of v: from row to row, from group to group, from token to token; mask (rows, time).
template <class X>
static void all(
    const X* q, const X* k, const X* v, const long* steps, const bool* mask, long rows, long heads, long groups, long time, long d,
    float scale, int threads, X* out) {
  const long each = heads / groups;
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * time * heads * d > 65536)
  for (long unit = 0; unit < rows * groups; unit++) {
    const long r = unit / groups, g = unit % groups, first = (r * heads + g * each) * d;
    attend(q + first, k + r * steps[0] + g * steps[1], steps[2], v + r * steps[3] + g * steps[4], steps[5],
           mask ? mask + r * time : nullptr, time, each, d, scale, out + first);
  }
}

extern "C" void step_float32(
    const float* q, const float* k, const float* v, const long* steps, const bool* mask, long rows, long heads, long groups,
    long time, long d, float scale, int threads, float* out) {
  all(q, k, v, steps, mask, rows, heads, groups, time, d, scale, threads, out);
}

extern "C" void step_bfloat16(
    const uint16_t* q, const uint16_t* k, const uint16_t* v, const long* steps, const bool* mask, long rows, long heads,
    long groups, long time, long d, float scale, int threads, uint16_t* out) {
  all(q, k, v, steps, mask, rows, heads, groups, time, d, scale, threads, out);
}
