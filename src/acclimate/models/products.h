// Products of few rows with weights as they lie, summed in float32, for one thread.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "tiles.h"
#include "vectors.h"

typedef uint32_t Words __attribute__((vector_size(4 * L), aligned(2), may_alias));

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

// The totals of a tile's sums.
template <int R, int C>
static void reduced(Floats (&sums)[R][C], float (&whole)[R][C]) {
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) whole[r][c] = total(sums[r][c]);
}

#if defined(FOLDS)
constexpr int WIDE = 4;  // columns of a tile of four rows, whose sums are one vector

static void reduced(Floats (&sums)[4][4], float (&whole)[4][4]) {
  const Floats each = totals(&sums[0][0]);
  memcpy(whole, &each, sizeof each);
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

// y = x wᵀ + b, its n columns six or WIDE at a time; y from row to row: step.
template <class W, class N = typename W::number, class X = typename W::given>
static void columns(const X* x, const N* w, const float* b, float* y, long m, long k, long n, long step) {
  long j = 0;
  if (m == 1)
    for (; j + 6 <= n; j += 6) strip<6, W>(x, w + j * k, b ? b + j : b, y + j, m, k, step);
  else
    for (; j + WIDE <= n; j += WIDE) strip<WIDE, W>(x, w + j * k, b ? b + j : b, y + j, m, k, step);
  for (; j < n; j++) strip<1, W>(x, w + j * k, b ? b + j : b, y + j, m, k, step);
}

// The share of thread t of `threads` in n columns, in steps of `each`.
static void share(long n, long each, int t, int threads, long& first, long& last) {
  const long steps = (n + each - 1) / each, low = steps * t / threads * each, high = steps * (t + 1) / threads * each;
  first = low < n ? low : n, last = high < n ? high : n;
}

#if defined(__AVX512F__)
// Numbers that `packed` needs for m rows of k.
static long packed_size(long m, long k) { return (m + TILE - 1) / TILE * TILE * k; }

// Columns [first, last) of x, whole words of 16: of 16 rows, word after word (a number, or a pair of halves), that word of every row.
template <class X>
static void pack(const X* x, X* out, long m, long k, long first, long last) {
  for (long r = 0; r < m; r += TILE, out += TILE * k)
    for (long c = first; c < last; c += 64 / sizeof(X)) {
      __m512i v[16];
      turned_rows(x + r * k + c, k, m - r, v);
      memcpy(out + c * TILE, v, sizeof v);
    }
}

// f of 0, of 1, … as constants, so that what it names by them lies in registers.
template <int N, class F>
static inline __attribute__((always_inline)) void times(F&& f) {
  if constexpr (N > 1) times<N - 1>(f);
  f(std::integral_constant<int, N - 1>{});
}

// V times 16 rows, as `pack` has them, times C rows of w, a number of them at a time for all rows: no sum goes across a vector.
template <int V, int C>
static void across(const float* x, const float* w, const float* b, float* y, long m, long k, long n, bool fetch) {
  Floats sums[V][C] = {};
  for (long i = 0; i < k; i += TILE) {
    if (fetch)
      for (int c = 0; c < C; c++) __builtin_prefetch(w + (c + C) * k + i);
    for (long j = i; j < i + TILE; j++) {
      Floats row[V];
      times<V>([&](auto v) __attribute__((always_inline)) { row[v] = part(x + (v * k + j) * TILE); });
      times<C>([&](auto c) __attribute__((always_inline)) {
        const Floats weight = w[c * k + j] - Floats{};  // not +, which is not free: it makes 0 of −0
        times<V>([&](auto v) __attribute__((always_inline)) { sums[v][c] += row[v] * weight; });
      });
    }
  }
  constexpr __mmask16 whole = (1 << C) - 1;
  const __m512 offset = b ? _mm512_maskz_loadu_ps(whole, b) : _mm512_setzero_ps();
  times<V>([&](auto v) __attribute__((always_inline)) {
    __m512i rows[16] = {};
    times<C>([&](auto c) __attribute__((always_inline)) { rows[c] = (__m512i)sums[v][c]; });
    turned(rows);
    for (long r = v * TILE; r < m && r < (v + 1) * TILE; r++)
      _mm512_mask_storeu_ps(y + r * n, whole, _mm512_add_ps((__m512)rows[r - v * TILE], offset));
  });
}

// C columns of w, 32 rows at a time.
template <int C>
static void band(const float* x, const float* w, const float* b, float* y, long m, long k, long n) {
  for (long r = 0; r < m; r += 2 * TILE, x += 2 * TILE * k, y += 2 * TILE * n)
    if (m - r > TILE)
      across<2, C>(x, w, b, y, m - r, k, n, !r);
    else
      across<1, C>(x, w, b, y, m - r, k, n, !r);
}

// y = x wᵀ + b, as many of its n columns as four divides, which are told; y from row to row: step.
static long bands(const float* x, const float* w, const float* b, float* y, long m, long k, long n, long step) {
  long j = 0;
  for (; j + 12 <= n; j += 12) band<12>(x, w + j * k, b ? b + j : b, y + j, m, k, step);
  for (; j + 4 <= n; j += 4) band<4>(x, w + j * k, b ? b + j : b, y + j, m, k, step);
  return j;
}
#endif

#if defined(TILES)
// What stands in a tile, 16 weights of up to 16 rows, into its place in y, and b beside it.
static void unpack(const float* sums, const float* b, float* y, long rows, long n) {
  __m512i v[16];
  memcpy(v, sums, sizeof v);
  turned(v);
  const Floats offset = b ? part(b) : Floats{};
  for (long r = 0; r < rows; r++) put((Floats)v[r] + offset, y + r * n);
}

// 32 weights and 32 rows at a time; x as `pack` has it; y from row to row: wide. Between `tiles_on` and `_tile_release`.
static void tiled(const uint16_t* x, const uint16_t* w, const float* b, float* y, long m, long k, long n, long wide) {
  alignas(64) float sums[4][TILE * TILE];
  for (long j = 0, step; j + TILE <= n; j += step) {
    const bool two = j + 2 * TILE <= n;
    step = two ? 2 * TILE : TILE;
    const uint16_t *one = w + j * k, *other = one + TILE * k;
    for (long r = 0; r < m; r += 2 * TILE) {
      const bool both = r + TILE < m;
      const uint16_t *near = x + r * k, *far = near + TILE * k;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (long c = 0; c < k; c += DEPTH) {
        _tile_loadd(4, one + c, 2 * k);
        _tile_loadd(6, near + c * TILE, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (two) {
          _tile_loadd(5, other + c, 2 * k);
          _tile_dpbf16ps(1, 5, 6);
        }
        if (both) {
          _tile_loadd(7, far + c * TILE, 64);
          _tile_dpbf16ps(2, 4, 7);
          if (two) _tile_dpbf16ps(3, 5, 7);
        }
        if (!r)  // the weights that come next
          for (long i = step; i < 2 * step; i++) __builtin_prefetch(one + i * k + c, 0, 2);
      }
      _tile_stored(0, sums[0], 64);
      _tile_stored(1, sums[1], 64);
      _tile_stored(2, sums[2], 64);
      _tile_stored(3, sums[3], 64);
      for (int part = 0; part < 4; part++) {
        const long row = r + part / 2 * TILE, column = j + part % 2 * TILE, rows = m - row < TILE ? m - row : TILE;
        if (rows > 0 && column < j + step) unpack(sums[part], b ? b + column : b, y + row * wide + column, rows, wide);
      }
    }
  }
}
#endif

// Rows that meet weights of their type: told where they lie, their columns prepared, 32 of them or all at least, and met.
template <class X>
struct Rows;

template <>
struct Rows<float> {
  const float* x = nullptr;
#if defined(__AVX512F__)
  std::vector<float> packed;
  static bool beside(long m, long k) { return 5 * m >= 3 * packed_size(m, 1) && k % TILE == 0; }  // fuller than not
  void at(const float* rows, long m, long k) {
    x = rows;
    if (beside(m, k) && long(packed.size()) < packed_size(m, k)) packed.resize(packed_size(m, k));
  }
  void prepare(long m, long k, long first, long last) {
    if (beside(m, k)) pack(x, packed.data(), m, k, first, last);
  }
  void meet(const float* w, const float* b, float* y, long m, long k, long n, long step) const {
    const long from = beside(m, k) ? bands(packed.data(), w, b, y, m, k, n, step) : 0;
    columns<Single>(x, w + from * k, b ? b + from : b, y + from, m, k, n - from, step);
  }
#else
  void at(const float* rows, long, long) { x = rows; }
  void prepare(long, long, long, long) {}
  void meet(const float* w, const float* b, float* y, long m, long k, long n, long step) const {
    columns<Single>(x, w, b, y, m, k, n, step);
  }
#endif
};

template <>
struct Rows<uint16_t> {
  const uint16_t* x = nullptr;
#if defined(TILES)
  std::vector<uint16_t> tiles;
  static bool tiled_by(long m, long k) { return m > 2 && k % DEPTH == 0 && tiles_allowed(); }
  void at(const uint16_t* rows, long m, long k) {
    x = rows;
    if (tiled_by(m, k) && long(tiles.size()) < packed_size(m, k)) tiles.resize(packed_size(m, k));
  }
  void prepare(long m, long k, long first, long last) {
    if (tiled_by(m, k)) pack(x, tiles.data(), m, k, first, last);
  }
  void meet(const uint16_t* w, const float* b, float* y, long m, long k, long n, long step) const {
    long from = 0;
    if (tiled_by(m, k)) {
      tiles_on();
      tiled(tiles.data(), w, b, y, m, k, n, step);
      _tile_release();
      from = n / TILE * TILE;
    }
    columns<Pairs>(x, w + from * k, b ? b + from : b, y + from, m, k, n - from, step);
  }
#elif defined(__AVX512BF16__)
  void at(const uint16_t* rows, long, long) { x = rows; }
  void prepare(long, long, long, long) {}
  void meet(const uint16_t* w, const float* b, float* y, long m, long k, long n, long step) const {
    columns<Pairs>(x, w, b, y, m, k, n, step);
  }
#else
  std::vector<float> wide;
  void at(const uint16_t* rows, long m, long k) {
    x = rows;
    if (long(wide.size()) < m * k) wide.resize(m * k);
  }
  void prepare(long m, long k, long first, long last) {
    for (long r = 0; r < m; r++) {
      const uint16_t* from = x + r * k;
      float* to = &wide[r * k];
      for (long i = first; i < last; i++) to[i] = one(from[i]);
      for (long i = first; i + 2 * L <= last; i += 2 * L)  // of each 2L numbers the even ones first
        for (int l = 0; l < L; l++) {
          to[i + l] = one(from[i + 2 * l]);
          to[i + L + l] = one(from[i + 2 * l + 1]);
        }
    }
  }
  void meet(const uint16_t* w, const float* b, float* y, long m, long k, long n, long step) const {
    columns<Half>(wide.data(), w, b, y, m, k, n, step);
  }
#endif
};
