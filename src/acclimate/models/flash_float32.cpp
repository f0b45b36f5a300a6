// Attention of pieces of a stream in float32, with its way back, on vectors of whatever width the machine has.
//
// Blocks of scores lie with queries along the vector: maxima, sums and masks need nothing across it. All else is read and
// written where it lies.
#include <algorithm>
#include <vector>

#include "flash.h"
#include "vectors.h"

constexpr long N = 64;  // queries of a block, keys of a block
#if defined(__AVX512F__)
constexpr int R = 6, C = 4;  // rows and vectors of a product that are held in registers
#else
constexpr int R = 6, C = 2;
#endif

// c (rows, columns) = or += a (rows, steps) b (steps, columns), where the steps of `a` from row to row and along a row are given.
struct Product {
  const float *a;
  long down, along;
  const float* b;
  long wide;
  float* c;
  long width;
  bool add;

  template <int r, int v>
  void tile(long row, long steps, long column) const {
    Floats sums[r][v];
    float* out = c + row * width + column;
    for (int i = 0; i < r; i++)
      for (int j = 0; j < v; j++) sums[i][j] = add ? part(out + i * width + L * j) : Floats{};
    const float *left = a + row * down, *right = b + column;
    for (long s = 0; s < steps; s++, left += along, right += wide) {
      Floats line[v];
      for (int j = 0; j < v; j++) line[j] = part(right + L * j);
      for (int i = 0; i < r; i++)
        for (int j = 0; j < v; j++) sums[i][j] += left[i * down] * line[j];
    }
    for (int i = 0; i < r; i++)
      for (int j = 0; j < v; j++) put(sums[i][j], out + i * width + L * j);
  }

  template <int v>
  void strip(long rows, long steps, long column) const {
    long row = 0;
    for (; row + R <= rows; row += R) tile<R, v>(row, steps, column);
    for (; row + 2 <= rows; row += 2) tile<2, v>(row, steps, column);
    if (row < rows) tile<1, v>(row, steps, column);
  }

  void operator()(long rows, long steps, long columns) const {
    long column = 0;
    for (; column + C * L <= columns; column += C * L) strip<C>(rows, steps, column);
    for (; column < columns; column += L) strip<1>(rows, steps, column);
  }
};

// 2^x for x ≤ 0, 0 far below: numbers below all normal ones are slow to compute with.
static Floats share_of(Floats x) {
  const Ints none = x < -126;
  return (Floats)((Ints)power(x) & ~none);
}

// Rows with their numbers side by side, times a factor: (d, N), zeros behind the last row.
static void turned(Rows<float> x, long start, long count, long d, float factor, float* y) {
  for (long c = 0; c < d; c++) {
    for (long n = 0; n < count; n++) y[c * N + n] = x.row(start + n)[c] * factor;
    for (long n = count; n < N; n++) y[c * N + n] = 0;
  }
}

// A block of queries of a piece and a block of keys of one that it sees.
struct Meeting {
  const Shape& s;
  long queries, count;  // where its first query stands in its piece; how many there are
  long keys, need;      // the same of the keys, in the stream
  long hidden;          // keys up to which the first query sees; below 0 where it sees them all

  long asked() const { return (count + L - 1) / L * L; }

  // Scores in units of log2, below zero without end where a query does not see a key; (N, N), `need` rows of it.
  void scores(Rows<float> k, const float* query, float* out) const {
    Product{k.row(keys), k.step, 1, query, N, out, N, false}(need, s.d, asked());
    for (long r = 0; hidden >= 0 && r < need; r++)
      for (long n = 0; n < std::min(count, r - hidden); n++) out[r * N + n] = -__builtin_inff();
  }
};

// Calls `each` with the blocks of keys that a block of queries meets.
template <class F>
static void meet(const Shape& s, const std::vector<long>& way, long queries, long count, F each) {
  for (long p : way) {
    const bool own = s.causal && p == way.back();
    const long until = own ? std::min(s.pieces[p].length, queries + count) : s.pieces[p].length;
    for (long j = 0; j < until; j += N)
      each(Meeting{s, queries, count, s.pieces[p].start + j, std::min(N, until - j), own && j + N > queries ? queries - j : -1});
  }
}

static void forward(const Shape& s, long piece, Rows<float> q, Rows<float> k, Rows<float> v, float* out, float* lse) {
  const long d = s.d, start = s.pieces[piece].start, length = s.pieces[piece].length, step = s.heads * d;
  const std::vector<long> way = s.way(piece);
  std::vector<float> query(d * N), score(N * N);
  alignas(64) float most[N], sum[N], kept[N];
  for (long i = 0; i < length; i += N) {
    const long count = std::min(N, length - i);
    turned(q, start + i, count, d, s.scale * 1.44269504f, query.data());
    std::fill(most, most + N, -__builtin_inff()), std::fill(sum, sum + N, 0.0f);
    float* rows = out + (start + i) * step;
    bool begun = false;
    meet(s, way, i, count, [&](const Meeting& m) {
      m.scores(k, query.data(), score.data());
      for (long n = 0; n < m.asked(); n += L) {
        float* at = &score[n];
        Floats before = part(most + n), now = before, whole = {};
        for (long r = 0; r < m.need; r++) {
          const Floats x = part(at + r * N);
          now = now > x ? now : x;
        }
        for (long r = 0; r < m.need; r++) {
          const Floats share = share_of(part(at + r * N) - now);
          put(share, at + r * N);
          whole += share;
        }
        const Floats less = share_of(before - now);
        put(less, kept + n), put(now, most + n), put(part(sum + n) * less + whole, sum + n);
      }
      for (long n = 0; begun && n < count; n++)
        for (long c = 0; c < d; c += L) put(part(rows + n * step + c) * kept[n], rows + n * step + c);
      Product{score.data(), 1, N, v.row(m.keys), v.step, rows, step, begun}(count, m.need, d);
      begun = true;
    });
    for (long n = 0; n < count; n++) {
      for (long c = 0; c < d; c += L) put(part(rows + n * step + c) * (1 / sum[n]), rows + n * step + c);
      lse[start + i + n] = most[n] + __builtin_log2f(sum[n]);
    }
  }
}

// dq lies like out; dk and dv (tokens, d) of this head are added to.
static void backward(
    const Shape& s, long piece, Rows<float> q, Rows<float> k, Rows<float> v, Rows<float> out, Rows<float> slope, const float* lse,
    float* dq, float* dk, float* dv) {
  const long d = s.d, start = s.pieces[piece].start, length = s.pieces[piece].length, step = s.heads * d;
  const std::vector<long> way = s.way(piece);
  std::vector<float> query(d * N), slopes(d * N), score(N * N), rise(N * N);
  alignas(64) float mean[N], log[N];
  for (long i = 0; i < length; i += N) {
    const long count = std::min(N, length - i);
    turned(q, start + i, count, d, s.scale * 1.44269504f, query.data());
    turned(slope, start + i, count, d, 1, slopes.data());
    std::fill(mean, mean + N, 0.0f), std::fill(log, log + N, 0.0f);
    for (long n = 0; n < count; n++) {
      Floats both = {};
      for (long c = 0; c < d; c += L) both += part(out.row(start + i + n) + c) * part(slope.row(start + i + n) + c);
      mean[n] = total(both), log[n] = lse[start + i + n];
    }
    bool begun = false;
    meet(s, way, i, count, [&](const Meeting& m) {
      m.scores(k, query.data(), score.data());
      Product{v.row(m.keys), v.step, 1, slopes.data(), N, rise.data(), N, false}(m.need, d, m.asked());
      for (long r = 0; r < m.need; r++)
        for (long n = 0; n < m.asked(); n += L) {
          float *share = &score[r * N + n], *change = &rise[r * N + n];
          const Floats p = share_of(part(share) - part(log + n));
          put(p, share), put(p * (part(change) - part(mean + n)) * s.scale, change);
        }
      Product{score.data(), N, 1, slope.row(start + i), slope.step, dv + m.keys * d, d, true}(m.need, count, d);
      Product{rise.data(), N, 1, q.row(start + i), q.step, dk + m.keys * d, d, true}(m.need, count, d);
      Product{rise.data(), 1, N, k.row(m.keys), k.step, dq + (start + i) * step, step, begun}(count, m.need, d);
      begun = true;
    });
  }
}

// steps: from token to token and from head to head of q, k and v. out (tokens, heads, d), lse (heads, tokens) in log2.
extern "C" void attention_forward_float32(
    const float* q, const float* k, const float* v, const long* steps, const long* pieces, const long* sizes, float scale, int causal,
    int threads, float* out, float* lse) {
  every_piece(Shape(pieces, sizes, scale, causal), q, k, v, steps, threads, out, lse, forward);
}

// out and slope (tokens, heads, d), dq like them; dk and dv (heads, tokens, d) hold zeros.
extern "C" void attention_backward_float32(
    const float* q, const float* k, const float* v, const long* steps, const long* pieces, const long* sizes, float scale, int causal,
    int threads, const float* out, const float* lse, const float* slope, float* dq, float* dk, float* dv) {
  every_tree(Shape(pieces, sizes, scale, causal), q, k, v, steps, threads, out, lse, slope, dq, dk, dv, backward);
}
