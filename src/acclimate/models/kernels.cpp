// y = x wᵀ + b for few rows: weights are read once, sums are float32, vectors are as wide as the machine's.
#include "products.h"

// 64 rows at a time, which stay in the cache while all weights pass by.
template <class X>
static void product(const X* x, const X* w, const float* b, float* y, long m, long k, long n, int threads) {
  Rows<X> rows;
  for (; m > 0; m -= 64, x += 64 * k, y += 64 * n) {
    const long some = m < 64 ? m : 64;
    rows.at(x, some, k);
    rows.prepare(some, k, 0, k);
#pragma omp parallel for num_threads(threads) schedule(static) if (some * n * k > 65536)
    for (int t = 0; t < threads; t++) {
      long first, last;
      share(n, 96, t, threads, first, last);
      rows.meet(w + first * k, b ? b + first : b, y + first, some, k, last - first, n);
    }
  }
}

// x (m, k), w (n, k), b (n) or null, y (m, n), all contiguous.
extern "C" void product_float32(
    const float* x, const float* w, const float* b, float* y, long m, long k, long n, int threads) {
  product(x, w, b, y, m, k, n, threads);
}

// As below, y float32 and without b.
extern "C" void product_widened(const uint16_t* x, const uint16_t* w, float* y, long m, long k, long n, int threads) {
  product<uint16_t>(x, w, nullptr, y, m, k, n, threads);
}

extern "C" void product_bfloat16(
    const uint16_t* x, const uint16_t* w, const uint16_t* b, uint16_t* y, long m, long k, long n, int threads) {
  std::vector<float> offset(b ? n : 0), sums(m * n);
  for (long i = 0; i < long(offset.size()); i++) offset[i] = one(b[i]);
  product(x, w, b ? offset.data() : nullptr, sums.data(), m, k, n, threads);
  long i = 0;
  for (; i + L <= m * n; i += L) put(part(&sums[i]), y + i);
  for (; i < m * n; i++) put_one(sums[i], y + i);
}
