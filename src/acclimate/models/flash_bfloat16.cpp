// Attention of pieces of a stream in bfloat16, with its way back. Products of pairs (AVX512-BF16, AMX) summed in float32.
//
// All tiles lie with queries along the vector: maxima, sums and masks need nothing across it. "Pairs" are two bfloat16 in a
// word: neighbours along what is summed over.
#if defined(__AVX512BF16__)
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "flash.h"
#include "tiles.h"

typedef uint16_t Half;
typedef uint32_t Pair;
constexpr long N = 64;  // queries of a block, keys of a block, columns of a product
constexpr int V = N / 16;
constexpr long STEP = 32;  // of which what is computed of a block is a multiple

// C (R, 64) = or += A (R, steps) B (steps, 64), of pairs; a row of A begins at a + r·down.
template <int R>
static void tile(long steps, const Pair* a, long down, const Pair* b, long wide, float* c, long width, bool add) {
  __m512 sums[R][V];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) sums[r][v] = add ? _mm512_loadu_ps(c + r * width + 16 * v) : _mm512_setzero_ps();
  for (long i = 0; i < steps; i++) {
    __m512i row[V];
    for (int v = 0; v < V; v++) row[v] = _mm512_loadu_si512(b + i * wide + 16 * v);
    for (int r = 0; r < R; r++) {
      __m512i one = _mm512_set1_epi32(a[r * down + i]);
      for (int v = 0; v < V; v++) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], (__m512bh)one, (__m512bh)row[v]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) _mm512_storeu_ps(c + r * width + 16 * v, sums[r][v]);
}

#if defined(TILES)
// As below, by tiles: 32 rows and 32 columns at a time.
static void by_tiles(
    long rows, long steps, long columns, const Pair* a, long down, const Pair* b, long wide, float* c, long width, bool add) {
  for (long r = 0; r < rows; r += 2 * TILE)
    for (long n = 0; n < columns; n += 2 * TILE) {
      float *low = c + r * width + n, *high = low + TILE * width;
      if (add) {
        _tile_loadd(0, low, 4 * width);
        _tile_loadd(1, low + TILE, 4 * width);
        _tile_loadd(2, high, 4 * width);
        _tile_loadd(3, high + TILE, 4 * width);
      } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
      }
      for (long i = 0; i < steps; i += TILE) {
        _tile_loadd(4, a + r * down + i, 4 * down);
        _tile_loadd(5, a + (r + TILE) * down + i, 4 * down);
        _tile_loadd(6, b + i * wide + n, 4 * wide);
        _tile_loadd(7, b + i * wide + n + TILE, 4 * wide);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(0, low, 4 * width);
      _tile_stored(1, low + TILE, 4 * width);
      _tile_stored(2, high, 4 * width);
      _tile_stored(3, high + TILE, 4 * width);
    }
}

struct Tiles {  // on while it lives
  Tiles() {
    if (tiles_allowed()) tiles_on();
  }
  ~Tiles() {
    if (tiles_allowed()) _tile_release();
  }
};
#else
struct Tiles {
  Tiles() {}
  ~Tiles() {}
};
#endif

// C (rows, columns) = or += A (rows, steps) B (steps, 64); rows and columns are multiples of 32, steps of 16. While `Tiles` live.
static void tiles(
    long rows, long steps, long columns, const Pair* a, long down, const Pair* b, long wide, float* c, long width, bool add) {
#if defined(TILES)
  if (tiles_allowed()) return by_tiles(rows, steps, columns, a, down, b, wide, c, width, add);
#endif
  for (; rows >= 6; rows -= 6, a += 6 * down, c += 6 * width) tile<6>(steps, a, down, b, wide, c, width, add);
  for (; rows; rows -= 2, a += 2 * down, c += 2 * width) tile<2>(steps, a, down, b, wide, c, width, add);
}

static inline long up(long x) { return (x + STEP - 1) / STEP * STEP; }

// 2^x for x ≤ 0, 0 far below; Taylor's polynomial within half a step of the nearest whole number.
static inline __m512 power(__m512 x) {
  const __mmask16 near = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);  // below it numbers are slow to make
  x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);  // in this order it keeps NaN
  __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 rest = _mm512_sub_ps(x, whole), y = _mm512_set1_ps(1.5403530e-4f);
  for (float factor : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f})
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(factor));
  return _mm512_maskz_scalef_ps(near, y, whole);
}

static inline __m512i narrow(__m512 x) { return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x)); }
static inline __m512i both(__m512i low, __m512i high) { return _mm512_or_si512(low, _mm512_slli_epi32(high, 16)); }
static inline __m512i spread(const Half* x) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)x)); }
static inline __m512i side_by_side(const Half* low, const Half* high) { return both(spread(low), spread(high)); }
// What of 16 queries sees key `key`, `first` being the last key that the first of them sees.
static inline __mmask16 seen(long key, long first, bool causal) {
  return !causal || key <= first ? 0xffff : key - first > 15 ? 0 : __mmask16(0xffff << (key - first));
}

typedef Rows<Half> Line;

// The keys that a piece sees, those of its ancestors first; `own` of them are not its own.
struct Seen {
  long own = 0, whole = 0;
  std::vector<long> places;
  std::vector<Half> keys, values;  // (whole rounded up to N, d), zeros at the end
  std::vector<Pair> pairs;         // (d, whole rounded up to N, halved), of two neighbours' numbers
  long line = 0;                   // pairs of a row

  Seen(const Shape& s, long piece, Line k, Line v, bool pair_keys) {
    for (long p : s.way(piece)) {
      own = places.size();
      for (long t = 0; t < s.pieces[p].length; t++) places.push_back(s.pieces[p].start + t);
    }
    whole = places.size();
    const long all = (whole + N - 1) / N * N;
    line = all / 2;
    keys.resize(all * s.d), values.resize(all * s.d), pairs.resize(all / 2 * s.d);
    for (long j = 0; j < whole; j++) {
      memcpy(&keys[j * s.d], k.row(places[j]), s.d * sizeof(Half));
      memcpy(&values[j * s.d], v.row(places[j]), s.d * sizeof(Half));
    }
    const std::vector<Half>& from = pair_keys ? keys : values;
    for (long j = 0; j < all; j += 32)
      for (long c = 0; c < s.d; c += 16) {
        __m512i v[16];
        for (long i = 0; i < 16; i++) v[i] = side_by_side(&from[(j + 2 * i) * s.d + c], &from[(j + 2 * i + 1) * s.d + c]);
        turned(v);
        for (long i = 0; i < 16; i++) _mm512_storeu_si512(&pairs[(c + i) * line + j / 2], v[i]);
      }
  }
};

// Up to N rows as pairs along d with rows side by side, (d / 2, N); and, where asked, as pairs of rows, (N / 2, d).
static void packed(Line x, long start, long count, long d, Pair* along, Pair* across) {
  static const Half none[16] = {};
  const auto at = [&](long i, long c) { return i < count ? x.row(start + i) + c : none; };
  for (long i = 0; i < N; i += 16)
    for (long c = 0; c < d; c += 32) {
      __m512i v[16];
      turned_rows(at(i, c), x.step, count - i, v);
      for (long r = 0; r < 16; r++) _mm512_storeu_si512(along + (c / 2 + r) * N + i, v[r]);
    }
  for (long i = 0; across && i < N; i += 2)
    for (long c = 0; c < d; c += 16) _mm512_storeu_si512(across + i / 2 * d + c, side_by_side(at(i, c), at(i + 1, c)));
}

// x (d, N) with queries side by side → rows of d numbers, each times its query's factor.
static void unpacked(const float* x, const float* factor, long count, long d, Half* y, long step) {
  for (long i = 0; i < count; i += 16)
    for (long c = 0; c < d; c += 16) {
      __m512i v[16];
      const __m512 by = _mm512_loadu_ps(factor + i);
      for (long r = 0; r < 16; r++) v[r] = (__m512i)_mm512_mul_ps(_mm512_loadu_ps(x + (c + r) * N + i), by);
      turned(v);
      for (long r = 0; r < 16 && i + r < count; r++)
        _mm256_storeu_si256((__m256i*)(y + (i + r) * step + c), (__m256i)_mm512_cvtneps_pbh((__m512)v[r]));
    }
}

// Scores of `need` keys j… of `held` for `asked` queries in units of log2, below zero without end where one does not see the other.
static void scores(const Shape& s, const Seen& held, long j, long need, long first, long asked, const Pair* q, float* out) {
  tiles(need, s.d / 2, asked, (const Pair*)&held.keys[j * s.d], s.d / 2, q, N, out, N, false);
  const __m512 factor = _mm512_set1_ps(s.scale * 1.44269504f), never = _mm512_set1_ps(-__builtin_inff());
  bool whole = j + N <= held.whole && (!s.causal || j + N - 1 <= first);
  for (long r = 0; r < need; r++)
    for (int v = 0; v < asked / 16; v++) {
      float* at = out + r * N + 16 * v;
      __m512 x = _mm512_mul_ps(_mm512_loadu_ps(at), factor);
      __mmask16 see = whole ? 0xffff : j + r >= held.whole ? 0 : seen(j + r, first + 16 * v, s.causal);
      _mm512_storeu_ps(at, _mm512_mask_blend_ps(see, never, x));
    }
}

static void forward(const Shape& s, long piece, Line q, Line k, Line v, Half* out, float* lse) {
  const long d = s.d, start = s.pieces[piece].start, length = s.pieces[piece].length;
  Seen held(s, piece, k, v, false);
  std::vector<Pair> query(d / 2 * N), share(N / 2 * N);
  std::vector<float> score(N * N), sum(d * N);
  float most[N], total[N], factor[N] = {};
  const Tiles on;
  for (long i = 0; i < length; i += N) {
    const long count = std::min(N, length - i), asked = up(count), first = held.own + i;
    packed(q, start + i, count, d, query.data(), nullptr);
    std::fill(most, most + N, -__builtin_inff()), std::fill(total, total + N, 0.0f);
    const long until = s.causal ? std::min(held.whole, first + count) : held.whole;
    for (long j = 0; j < until; j += N) {
      const long need = up(std::min(N, until - j));
      scores(s, held, j, need, first, asked, query.data(), score.data());
      for (int u = 0; u < asked / 16; u++) {
        float* at = &score[16 * u];
        __m512 before = _mm512_loadu_ps(most + 16 * u), now = before;
        for (long r = 0; r < need; r++) now = _mm512_max_ps(now, _mm512_loadu_ps(at + r * N));
        __m512 kept = power(_mm512_sub_ps(before, now)), add = _mm512_setzero_ps();
        for (long r = 0; r < need; r += 2) {
          __m512 low = power(_mm512_sub_ps(_mm512_loadu_ps(at + r * N), now));
          __m512 high = power(_mm512_sub_ps(_mm512_loadu_ps(at + r * N + N), now));
          add = _mm512_add_ps(add, _mm512_add_ps(low, high));
          _mm512_storeu_si512(&share[r / 2 * N + 16 * u], both(narrow(low), narrow(high)));
        }
        _mm512_storeu_ps(most + 16 * u, now);
        _mm512_storeu_ps(total + 16 * u, _mm512_fmadd_ps(_mm512_loadu_ps(total + 16 * u), kept, add));
        for (long c = 0; j && c < d; c++) {
          float* part = &sum[c * N + 16 * u];
          _mm512_storeu_ps(part, _mm512_mul_ps(_mm512_loadu_ps(part), kept));
        }
      }
      tiles(d, need / 2, asked, &held.pairs[j / 2], held.line, share.data(), N, sum.data(), N, j > 0);
    }
    for (long n = 0; n < count; n++) {
      factor[n] = 1 / total[n];
      lse[start + i + n] = most[n] + __builtin_log2f(total[n]);
    }
    unpacked(sum.data(), factor, count, d, out + (start + i) * s.heads * d, s.heads * d);
  }
}

// dq like out; dk and dv (tokens, d) of this head are added to.
static void backward(
    const Shape& s, long piece, Line q, Line k, Line v, Line out, Line slope, const float* lse, Half* dq, float* dk, float* dv) {
  const long d = s.d, start = s.pieces[piece].start, length = s.pieces[piece].length;
  Seen held(s, piece, k, v, true);
  std::vector<float> keys(held.keys.size()), values(held.keys.size()), score(N * N), rise(N * N), sum(d * N);
  std::vector<Pair> query(d / 2 * N), slopes(d / 2 * N), queries(N / 2 * d), across(N / 2 * d), pairs(N / 2 * N);
  alignas(64) Half share[N * N], change[N * N];
  float mean[N], log[N], factor[N];
  const Tiles on;
  for (long i = 0; i < length; i += N) {
    const long count = std::min(N, length - i), asked = up(count), first = held.own + i;
    packed(q, start + i, count, d, query.data(), queries.data());
    packed(slope, start + i, count, d, slopes.data(), across.data());
    for (long n = 0; n < N; n++) {
      mean[n] = log[n] = 0, factor[n] = s.scale;
      if (n >= count) continue;
      const Half *a = out.row(start + i + n), *b = slope.row(start + i + n);
      __m512 sums = _mm512_setzero_ps();
      for (long c = 0; c < d; c += 32) sums = _mm512_dpbf16_ps(sums, (__m512bh)_mm512_loadu_si512(a + c), (__m512bh)_mm512_loadu_si512(b + c));
      mean[n] = _mm512_reduce_add_ps(sums);
      log[n] = lse[start + i + n];
    }
    const long until = s.causal ? std::min(held.whole, first + count) : held.whole;
    for (long j = 0; j < until; j += N) {
      const long need = up(std::min(N, until - j));
      scores(s, held, j, need, first, asked, query.data(), score.data());
      tiles(need, d / 2, asked, (const Pair*)&held.values[j * d], d / 2, slopes.data(), N, rise.data(), N, false);
      for (long r = 0; r < need; r += 2)
        for (int u = 0; u < asked / 16; u++) {
          __m512i part[2];
          for (int odd = 0; odd < 2; odd++) {
            const long at = (r + odd) * N + 16 * u;
            __m512 p = power(_mm512_sub_ps(_mm512_loadu_ps(&score[at]), _mm512_loadu_ps(log + 16 * u)));
            __m512 x = _mm512_mul_ps(p, _mm512_sub_ps(_mm512_loadu_ps(&rise[at]), _mm512_loadu_ps(mean + 16 * u)));
            __m256i narrowed = (__m256i)_mm512_cvtneps_pbh(x);
            _mm256_storeu_si256((__m256i*)&share[at], (__m256i)_mm512_cvtneps_pbh(p));
            _mm256_storeu_si256((__m256i*)&change[at], narrowed);
            part[odd] = _mm512_cvtepu16_epi32(narrowed);
          }
          _mm512_storeu_si512(&pairs[r / 2 * N + 16 * u], both(part[0], part[1]));
        }
      for (long c = 0; c < d; c += N) {
        tiles(need, asked / 2, N, (const Pair*)share, N / 2, &across[c], d, &values[j * d + c], d, true);
        tiles(need, asked / 2, N, (const Pair*)change, N / 2, &queries[c], d, &keys[j * d + c], d, true);
      }
      tiles(d, need / 2, asked, &held.pairs[j / 2], held.line, pairs.data(), N, sum.data(), N, j > 0);
    }
    unpacked(sum.data(), factor, count, d, dq + (start + i) * s.heads * d, s.heads * d);
  }
  for (long j = 0; j < held.whole; j++)
    for (long c = 0; c < d; c++) {
      dk[held.places[j] * d + c] += s.scale * keys[j * d + c];
      dv[held.places[j] * d + c] += values[j * d + c];
    }
}

// steps: from token to token and from head to head of q, k and v. out (tokens, heads, d), lse (heads, tokens) in log2.
extern "C" void attention_forward_bfloat16(
    const Half* q, const Half* k, const Half* v, const long* steps, const long* pieces, const long* sizes, float scale, int causal,
    int threads, Half* out, float* lse) {
  every_piece(Shape(pieces, sizes, scale, causal), q, k, v, steps, threads, out, lse, forward);
}

// out and slope (tokens, heads, d), dq like them; dk and dv (heads, tokens, d) hold zeros.
extern "C" void attention_backward_bfloat16(
    const Half* q, const Half* k, const Half* v, const long* steps, const long* pieces, const long* sizes, float scale, int causal,
    int threads, const Half* out, const float* lse, const Half* slope, Half* dq, float* dk, float* dv) {
  every_tree(Shape(pieces, sizes, scale, causal), q, k, v, steps, threads, out, lse, slope, dq, dk, dv, backward);
}
#endif
