// y = x wᵀ + b for few rows: weights are read once, sums are float32, vectors are as wide as the machine's.
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "vectors.h"

typedef uint32_t Words __attribute__((vector_size(4 * L), aligned(2), may_alias));

static float one(float w) { return w; }
static float one(uint16_t w) {
  uint32_t word = uint32_t(w) << 16;
  float value;
  memcpy(&value, &word, 4);
  return value;
}

// How `step` numbers of a row of weights, in `step / each` parts, meet those of a row that is given.
struct Single {
  typedef float number, given;
  static constexpr int step = L, each = L;
  static Floats part(const float* w, int) { return *(const Floats*)w; }
  static Floats row(const float* x) { return *(const Floats*)x; }
  static Floats add(Floats sum, Floats row, Floats column) { return sum + row * column; }
};

// bfloat16 is the upper half of a float32; of a vector of pairs the even numbers are shifted, the odd ones masked.
struct Half {
  typedef uint16_t number;
  typedef float given;
  static constexpr int step = 2 * L, each = L;
  static Floats part(const uint16_t* w, int odd) {
    Words pairs = *(const Words*)w;
    return (Floats)(odd ? pairs & 0xffff0000u : pairs << 16);
  }
  static Floats row(const float* x) { return *(const Floats*)x; }
  static Floats add(Floats sum, Floats row, Floats column) { return sum + row * column; }
};

#if defined(__AVX512BF16__)
// The processor multiplies pairs itself.
struct Pairs {
  typedef uint16_t number, given;
  static constexpr int step = 2 * L, each = 2 * L;
  static Words part(const uint16_t* w, int) { return *(const Words*)w; }
  static Words row(const uint16_t* x) { return *(const Words*)x; }
  static Floats add(Floats sum, Words row, Words column) {
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)row, (__m512bh)column);
  }
};
#endif

static uint16_t rounded(float value) {  // to the nearest, to even between two
  uint32_t word;
  memcpy(&word, &value, 4);
  return value != value ? 0x7fc0 : (word + 0x7fff + (word >> 16 & 1)) >> 16;
}

// The totals of a tile's sums.
template <int R, int C>
static void reduced(Floats (&sums)[R][C], float (&whole)[R][C]) {
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) whole[r][c] = total(sums[r][c]);
}

#if defined(__AVX512F__) && (defined(__clang__) || __GNUC__ >= 12)
constexpr int WIDE = 4;  // columns of a tile of four rows, whose sums are one vector

// (j, j + L/2) of a and b in turns, added: of each half as many numbers are left, those of a and b in turns.
static Floats folded(Floats a, Floats b) {
  Floats low = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  Floats high = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  return low + high;
}

// 15 folds in the place of 16 sums across a vector.
static void reduced(Floats (&sums)[4][4], float (&whole)[4][4]) {
  Floats* v = &sums[0][0];
  for (int half = L / 2; half; half /= 2)
    for (int i = 0; i < half; i++) v[i] = folded(v[i], v[i + half]);
  memcpy(whole, v, sizeof *v);
}
#else
constexpr int WIDE = 3;
#endif

// R rows of x times C rows of w; the weights that come next are fetched meanwhile.
template <int R, int C, class W, class N = typename W::number, class X = typename W::given>
static void tile(const X* x, const N* w, const float* b, float* y, long k, long n, bool fetch) {
  Floats sums[R][C] = {};
  long i = 0;
  for (; i + W::step <= k; i += W::step)
    for (int p = 0; p < W::step / W::each; p++) {
      decltype(W::part(w, 0)) column[C];
      for (int c = 0; c < C; c++) {
        column[c] = W::part(w + c * k + i, p);
        if (fetch && !p) __builtin_prefetch(w + (c + C) * k + i);
      }
      for (int r = 0; r < R; r++) {
        auto row = W::row(x + r * k + i + p * W::each);
        for (int c = 0; c < C; c++) sums[r][c] = W::add(sums[r][c], row, column[c]);
      }
    }
  float whole[R][C];
  reduced(sums, whole);
  for (; i < k; i++)
    for (int t = 0; t < R * C; t++) whole[t / C][t % C] += one(x[t / C * k + i]) * one(w[t % C * k + i]);
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) y[r * n + c] = whole[r][c] + (b ? b[c] : 0);
}

template <int C, class W, class N = typename W::number, class X = typename W::given>
static void strip(const X* x, const N* w, const float* b, float* y, long m, long k, long n) {
  bool first = true;
  for (; m >= 4; m -= 4, x += 4 * k, y += 4 * n, first = false) tile<4, C, W>(x, w, b, y, k, n, first);
  if (m == 3) tile<3, C, W>(x, w, b, y, k, n, first);
  if (m == 2) tile<2, C, W>(x, w, b, y, k, n, first);
  if (m == 1) tile<1, C, W>(x, w, b, y, k, n, first);
}

template <int C, class W, class N = typename W::number, class X = typename W::given>
static void strips(const X* x, const N* w, const float* b, float* y, long m, long k, long n, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (m * n * k > 65536)
  for (long s = 0; s < (n + C - 1) / C; s++) {
    long j = s * C;
    if (j + C <= n)
      strip<C, W>(x, w + j * k, b ? b + j : b, y + j, m, k, n);
    else
      for (; j < n; j++) strip<1, W>(x, w + j * k, b ? b + j : b, y + j, m, k, n);
  }
}

// 64 rows at a time, which stay in the cache while all weights pass by.
template <class W, class N = typename W::number, class X = typename W::given>
static void product(const X* x, const N* w, const float* b, float* y, long m, long k, long n, int threads) {
  for (; m > 0; m -= 64, x += 64 * k, y += 64 * n)
    if (m == 1)
      strips<6, W>(x, w, b, y, m, k, n, threads);
    else
      strips<WIDE, W>(x, w, b, y, m < 64 ? m : 64, k, n, threads);
}

// x (m, k), w (n, k), b (n) or null, y (m, n), all contiguous.
extern "C" void product_float32(
    const float* x, const float* w, const float* b, float* y, long m, long k, long n, int threads) {
  product<Single>(x, w, b, y, m, k, n, threads);
}

extern "C" void product_bfloat16(
    const uint16_t* x, const uint16_t* w, const uint16_t* b, uint16_t* y, long m, long k, long n, int threads) {
  std::vector<float> offset(b ? n : 0), sums(m * n);
  for (long i = 0; i < long(offset.size()); i++) offset[i] = one(b[i]);
  const float* added = b ? offset.data() : nullptr;
#if defined(__AVX512BF16__)
  product<Pairs>(x, w, added, sums.data(), m, k, n, threads);
#else
  std::vector<float> rows(m * k);
  for (long i = 0; i < m * k; i++) rows[i] = one(x[i]);
  for (long r = 0; r < m; r++)
    for (long i = r * k; i + 2 * L <= (r + 1) * k; i += 2 * L)  // of each 2L numbers the even ones first
      for (int l = 0; l < L; l++) {
        rows[i + l] = one(x[i + 2 * l]);
        rows[i + L + l] = one(x[i + 2 * l + 1]);
      }
  product<Half>(rows.data(), w, added, sums.data(), m, k, n, threads);
#endif
  for (long i = 0; i < m * n; i++) y[i] = rounded(sums[i]);
}
