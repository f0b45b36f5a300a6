// What is done to every token by itself: the root-mean-square norm, the gate of a feed-forward layer, and the turn by which
// queries and keys know their places. Forth and back.
#include <cmath>

#include "rows.h"

// y = w · x / √(mean x² + eps), the factor of each row kept in `scale`; x / √… is rounded before it meets w, as models have it.
template <class X>
static void norm(const X* x, const X* w, X* y, float* scale, long rows, long d, float eps, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * d > 65536)
  for (long r = 0; r < rows; r++) {
    const X* row = x + r * d;
    Floats sum = {};
    for (long c = 0; c < d; c += L) sum += part(row + c) * part(row + c);
    scale[r] = 1 / std::sqrt(total(sum) / d + eps);
    for (long c = 0; c < d; c += L) put(part(w + c) * rounded(part(row + c) * scale[r], x), y + r * d + c);
  }
}

// slope of x; w stands still.
template <class X>
static void norm_back(const X* x, const X* w, const X* slope, const float* scale, X* out, long rows, long d, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * d > 65536)
  for (long r = 0; r < rows; r++) {
    const X *row = x + r * d, *down = slope + r * d;
    Floats sum = {};
    for (long c = 0; c < d; c += L) sum += part(row + c) * part(down + c) * part(w + c);
    const float mean = total(sum) * scale[r] * scale[r] / d;
    for (long c = 0; c < d; c += L) put((part(down + c) * part(w + c) - part(row + c) * mean) * scale[r], out + r * d + c);
  }
}

// slope of w: threads have columns of their own, so that sums are in the order of the rows whatever their number.
template <class X>
static void norm_weight(const X* x, const X* slope, const float* scale, X* out, long rows, long d, int threads) {
  constexpr int each = 4;  // vectors that are read together: a line of memory or more
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * d > 65536)
  for (long c = 0; c < d; c += each * L) {
    Floats sums[each] = {};
    for (long r = 0; r < rows; r++)
      for (long v = 0; v < each && c + v * L < d; v++) {
        const long at = r * d + c + v * L;
        sums[v] += part(slope + at) * rounded(part(x + at) * scale[r], x);
      }
    for (long v = 0; v < each && c + v * L < d; v++) put(sums[v], out + c + v * L);
  }
}

// y = x σ(x) · u
template <class X>
static void gate(const X* x, const X* u, X* y, long count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (count > 65536)
  for (long i = 0; i < count; i += L) put(rounded(part(x + i) * logistic(part(x + i)), x) * part(u + i), y + i);
}

template <class X>
static void gate_back(const X* x, const X* u, const X* slope, X* dx, X* du, long count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (count > 65536)
  for (long i = 0; i < count; i += L) {
    const Floats at = part(x + i), open = logistic(at), down = part(slope + i);
    put(down * at * open, du + i);
    put(down * part(u + i) * open * (1 + at * (1 - open)), dx + i);
  }
}

// The halves a and b of each head become a·cos − b·sin and b·cos + a·sin; or, back, what turns that again. steps: of x, from
// row to row, token to token and head to head; `each`: tokens of cos and sin for each row, 0 where all rows have the same.
template <class X, class Y>
static void turn(
    const X* x, const long* steps, const Y* cos, const Y* sin, X* y, long rows, long tokens, long heads, long d, long each,
    bool back, int threads) {
  const long half = d / 2;
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * tokens * heads * d > 65536)
  for (long at = 0; at < rows * tokens; at++) {
    const long row = at / tokens, t = at % tokens, place = (row * each + t) * d;
    for (long h = 0; h < heads; h++) {
      const X *a = x + row * steps[0] + t * steps[1] + h * steps[2], *b = a + half;
      X* out = y + (at * heads + h) * d;
      for (long c = 0; c < half; c += L) {
        const Floats p = part(a + c), q = part(b + c), up = part(sin + place + c), down = part(sin + place + half + c);
        put(p * part(cos + place + c) + q * (back ? down : -up), out + c);
        put(q * part(cos + place + half + c) + p * (back ? -up : down), out + half + c);
      }
    }
  }
}

#define KERNELS(name, X)                                                                                                    \
  extern "C" void norm_##name(const X* x, const X* w, X* y, float* scale, long rows, long d, float eps, int threads) {        \
    norm(x, w, y, scale, rows, d, eps, threads);                                                                             \
  }                                                                                                                         \
  extern "C" void norm_back_##name(                                                                                          \
      const X* x, const X* w, const X* slope, const float* scale, X* out, long rows, long d, int threads) {                  \
    norm_back(x, w, slope, scale, out, rows, d, threads);                                                                    \
  }                                                                                                                         \
  extern "C" void norm_weight_##name(                                                                                        \
      const X* x, const X* slope, const float* scale, X* out, long rows, long d, int threads) {                              \
    norm_weight(x, slope, scale, out, rows, d, threads);                                                                     \
  }                                                                                                                         \
  extern "C" void gate_##name(const X* x, const X* u, X* y, long count, int threads) { gate(x, u, y, count, threads); }       \
  extern "C" void gate_back_##name(const X* x, const X* u, const X* slope, X* dx, X* du, long count, int threads) {           \
    gate_back(x, u, slope, dx, du, count, threads);                                                                          \
  }

#define TURN(name, X, Y)                                                                                                    \
  extern "C" void turn_##name(                                                                                               \
      const X* x, const long* steps, const Y* cos, const Y* sin, X* y, long rows, long tokens, long heads, long d, long each,  \
      int back, int threads) {                                                                                               \
    turn(x, steps, cos, sin, y, rows, tokens, heads, d, each, back, threads);                                                \
  }
KERNELS(float32, float)
KERNELS(bfloat16, uint16_t)
TURN(float32, float, float)
TURN(bfloat16, uint16_t, uint16_t)
TURN(mixed, uint16_t, float)
