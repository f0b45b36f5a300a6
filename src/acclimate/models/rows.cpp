// What is done to every token by itself: the root-mean-square norm, and the gate of a feed-forward layer. Forth and back.
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

#define KERNELS(name, X)                                                                                                    \
  extern "C" void norm_##name(const X* x, const X* w, X* y, float* scale, long rows, long d, float eps, int threads) {        \
    norm(x, w, y, scale, rows, d, eps, threads);                                                                             \
  }                                                                                                                         \
  extern "C" void norm_back_##name(                                                                                          \
      const X* x, const X* w, const X* slope, const float* scale, X* out, long rows, long d, int threads) {                  \
    norm_back(x, w, slope, scale, out, rows, d, threads);                                                                    \
  }                                                                                                                         \
  extern "C" void gate_##name(const X* x, const X* u, X* y, long count, int threads) { gate(x, u, y, count, threads); }       \
  extern "C" void gate_back_##name(const X* x, const X* u, const X* slope, X* dx, X* du, long count, int threads) {           \
    gate_back(x, u, slope, dx, du, count, threads);                                                                          \
  }
KERNELS(float32, float)
KERNELS(bfloat16, uint16_t)
