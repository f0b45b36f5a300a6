// A decoding step's attention: one query a row.
#include "step.h"

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
