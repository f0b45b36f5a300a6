// y = x B of many rows in bfloat16, by the tiles of AMX: sums in float32, rounded once.
//
// B is rearranged once into panels of 32 columns, which all threads share; each has rows of its own, of which so many at a time
// meet all panels as its cache holds.
#include <omp.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "tiles.h"

#if defined(TILES)
extern "C" int tiles_given() { return tiles_allowed(); }

typedef uint16_t Half;
typedef uint32_t Pair;
constexpr long WIDE = 2 * TILE;     // rows and columns that are computed at a time
constexpr long CACHED = 400 << 10;  // numbers of x

// Columns j… of B as pairs along k, in the order that tiles take them. across: B is wᵀ of a w (n, k); else w (k, n) itself.
static void panel(const Half* w, long k, long n, long j, bool across, Pair* out) {
  for (long c = 0; c < k; c += DEPTH)
    for (long h = 0; h < WIDE; h += TILE, out += TILE * TILE) {
      __m512i v[16];
      if (across) turned_rows(w + (j + h) * k + c, k, TILE, v);
      for (long i = 0; i < TILE; i++)
        if (across)
          __builtin_prefetch(w + (j + h + i) * k + c + 4 * DEPTH);
        else {
          const Half *low = w + (c + 2 * i) * n + j + h, *high = low + n;
          __builtin_prefetch(low + DEPTH * n);
          __builtin_prefetch(high + DEPTH * n);
          v[i] = _mm512_or_si512(
              _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)low)),
              _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)high)), 16));
        }
      memcpy(out, v, sizeof v);
    }
}

// To the nearest; what is below all normal numbers becomes 0, as in the tiles themselves.
static void rounded(const float* sums, Half* y, long n, long rows) {
  for (long r = 0; r < rows; r++)
    _mm256_storeu_si256((__m256i*)(y + r * n), (__m256i)_mm512_cvtneps_pbh(_mm512_load_ps(sums + r * TILE)));
}

// 32 rows of x times a panel, of which `rows` are kept.
static void block(const Half* x, long k, const Pair* b, Half* y, long n, long rows) {
  alignas(64) float sums[4][TILE * TILE];
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (long c = 0; c < k; c += DEPTH, b += 2 * TILE * TILE) {
    _tile_loadd(4, x + c, 2 * k);
    _tile_loadd(6, b, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + TILE * TILE, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, x + TILE * k + c, 2 * k);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  _tile_stored(2, sums[2], 64);
  _tile_stored(3, sums[3], 64);
  for (long part = 0; part < 4; part++) {
    const long row = part / 2 * TILE;
    rounded(sums[part], y + row * n + part % 2 * TILE, n, std::min(rows - row, TILE));
  }
}

// x (m, k), y (m, n); k and n are multiples of 32.
extern "C" void matrices(const Half* x, const Half* w, Half* y, long m, long k, long n, int across, int threads) {
  static thread_local std::vector<Pair> room;
  const long panels = n / WIDE, one = WIDE * k / 2, blocks = (m + WIDE - 1) / WIDE, some = std::max(1l, CACHED / (WIDE * k));
  if (long(room.size()) < panels * one + 16) room.resize(panels * one + 16);
  Pair* b = (Pair*)((uintptr_t(room.data()) + 63) & ~uintptr_t(63));
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (long p = 0; p < panels; p++) panel(w, k, n, p * WIDE, across, b + p * one);
    tiles_on();
    const long t = omp_get_thread_num(), all = omp_get_num_threads(), from = blocks * t / all, to = blocks * (t + 1) / all;
    std::vector<Half> rest;  // the last rows, and zeros behind them
    if (to == blocks && m % WIDE) {
      rest.resize(WIDE * k);
      std::copy(x + m / WIDE * WIDE * k, x + m * k, rest.begin());
    }
    for (long r = from; r < to; r += some)
      for (long p = 0; p < panels; p++)
        for (long i = r; i < std::min(r + some, to); i++) {
          const long rows = std::min(WIDE, m - WIDE * i);
          if (!p && i + 1 < to && m - WIDE * (i + 1) >= WIDE)  // x is met for the first time: the rows that come next
            for (long c = 0; c < WIDE * k; c += DEPTH) __builtin_prefetch(x + WIDE * (i + 1) * k + c, 0, 2);
          block(rows < WIDE ? rest.data() : x + WIDE * i * k, k, b + p * one, y + WIDE * i * n + p * WIDE, n, rows);
        }
    _tile_release();
  }
}
#endif
