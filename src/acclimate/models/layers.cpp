// All layers of a decoder for one id a row: norms, products, rotary positions, attention and gates, in one parallel region.
//
// A thread keeps its own columns of what runs through the layers, of queries, keys and values, and of the gate, so that only rows
// that meet weights pass from one to another. What runs through is float32; what meets weights, keys or values has their type.
#include <sched.h>

#include <atomic>
#include <cmath>

#include <omp.h>

#include "products.h"
#include "rows.h"
#include "step.h"

// w (n, k); b (n) or null. Low rank: down (rank, k) as w, up (rank, n) float32 with its scale in it; rank 0: none.
template <class X>
struct Matrix {
  const X* w;
  const float* b;
  const X* down;
  const float* up;
  long rank;
};

template <class X>
struct Layer {
  const X *before, *after;  // weights of the norms
  Matrix<X> q, k, v, o, gate, up, down;
  X *keys, *values;                   // this step's are put behind those before it
  long key_steps[3], value_steps[3];  // from row to row, from group to group, from token to token
};

struct Sizes {
  long layers, rows, hidden, inner, heads, groups, d, time;
};

// Threads that are as good as never late wait for each other without sleeping.
struct Meeting {
  std::atomic<int> there{0}, times{0};
  void wait(int all) {
    if (all == 1) return;
    const int before = times.load();
    if (there.fetch_add(1) + 1 == all) {
      there.store(0);
      times.store(before + 1);
    } else
      for (int turn = 0; times.load() == before; turn++) {
        if (turn > 20000) sched_yield();
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      }
  }
};

// Columns [first, last) of a product and of what rides on it, as rows of last − first numbers.
template <class X>
static void meet(
    const Rows<X>& x, const Matrix<X>& matrix, float* y, std::vector<float>& low, long m, long k, long n, long first, long last) {
  const long width = last - first;
  if (!width) return;
  x.meet(matrix.w + first * k, matrix.b ? matrix.b + first : nullptr, y, m, k, width, width);
  if (!matrix.rank) return;
  low.resize(m * matrix.rank);
  x.meet(matrix.down, nullptr, low.data(), m, k, matrix.rank, matrix.rank);
  for (long r = 0; r < m; r++)
    for (long i = 0; i < matrix.rank; i++)
      for (long c = 0; c < width; c += L)
        put(part(y + r * width + c) + part(matrix.up + i * n + first + c) * low[r * matrix.rank + i], y + r * width + c);
}

// A head's d numbers, turned by its position: x cos + (−x₂, x₁) sin, and rounded.
template <class X>
static void turn(const float* x, const float* cos, const float* sin, X* y, long d) {
  const long half = d / 2;
  for (long c = 0; c < half; c += L) {
    Floats one = part(x + c), two = part(x + half + c);
    put(one * part(cos + c) - two * part(sin + c), y + c);
    put(two * part(cos + half + c) + one * part(sin + half + c), y + half + c);
  }
}

// x (rows, hidden), what embeddings said, becomes what the last layer says. cos, sin (rows, d). exists (rows, time) or null.
template <class X>
static void layers(
    const Layer<X>* table, const Sizes& s, float* x, const float* cos, const float* sin, const bool* exists, float eps,
    float scale, int threads) {
  const long m = s.rows, hidden = s.hidden, inner = s.inner, wide = s.heads * s.d, d = s.d;
  const long each = s.heads / s.groups, block = 96, apart = (m + 15) / 16 * 16;
  std::vector<X> normed(m * hidden), asked(m * wide), seen(m * wide), gated(m * inner);
  std::vector<float> squares(threads * apart);
  Rows<X> outer, middle, deep;
  outer.at(normed.data(), m, hidden);
  middle.at(seen.data(), m, wide);
  deep.at(gated.data(), m, inner);
  Meeting meeting;
#pragma omp parallel num_threads(threads)
  {
    const int t = omp_get_thread_num(), all = omp_get_num_threads();
    long own, to, mine, until, front, back, unit, last;
    share(hidden, 32, t, all, own, to);
    share(inner, 32, t, all, mine, until);
    share(wide, 32, t, all, front, back);
    share(s.heads + 2 * s.groups, 1, t, all, unit, last);
    std::vector<float> room(m * std::max(std::max(to - own, 2 * block), (last - unit) * d)), low;
    const auto wait = [&] { meeting.wait(all); };
    const auto squared = [&] {  // of each row, over this thread's columns
      for (long r = 0; r < m; r++) {
        Floats sum = {};
        for (long c = own; c < to; c += L) sum += part(x + r * hidden + c) * part(x + r * hidden + c);
        squares[t * apart + r] = total(sum);
      }
    };
    const auto norm = [&](const X* w) {  // w · x / √(mean x² + eps), rounded before it meets w
      for (long r = 0; r < m; r++) {
        float sum = 0;
        for (int other = 0; other < all; other++) sum += squares[other * apart + r];
        const float by = 1 / std::sqrt(sum / hidden + eps);
        X* y = &normed[r * hidden];
        for (long c = own; c < to; c += L) put(part(w + c) * rounded(part(x + r * hidden + c) * by, y), y + c);
      }
      outer.prepare(m, hidden, own, to);
    };
    const auto add = [&](const Rows<X>& rows, const Matrix<X>& matrix, long k) {
      meet(rows, matrix, room.data(), low, m, k, hidden, own, to);
      for (long r = 0; r < m; r++)
        for (long c = own; c < to; c += L) put(part(x + r * hidden + c) + part(&room[r * (to - own) + c - own]), x + r * hidden + c);
      squared();
    };
    squared();
    wait();
    for (const Layer<X>* layer = table; layer < table + s.layers; layer++) {
      norm(layer->before);
      wait();
      const auto heads = [&](const Matrix<X>& matrix, long before, long count, auto then) {  // then: row, head, its numbers
        const long first = std::max(unit - before, 0l), end = std::min(last - before, count);
        if (first >= end) return;
        meet(outer, matrix, room.data(), low, m, hidden, count * d, first * d, end * d);
        for (long r = 0; r < m; r++)
          for (long h = first; h < end; h++) then(r, h, &room[(r * (end - first) + h - first) * d]);
      };
      const long *ks = layer->key_steps, *vs = layer->value_steps, now = s.time - 1;
      heads(layer->q, 0, s.heads, [&](long r, long h, float* q) { turn(q, cos + r * d, sin + r * d, &asked[r * wide + h * d], d); });
      heads(layer->k, s.heads, s.groups, [&](long r, long g, float* k) {
        turn(k, cos + r * d, sin + r * d, layer->keys + r * ks[0] + g * ks[1] + now * ks[2], d);
      });
      heads(layer->v, s.heads + s.groups, s.groups, [&](long r, long g, float* v) {
        for (long c = 0; c < d; c += L) put(part(v + c), layer->values + r * vs[0] + g * vs[1] + now * vs[2] + c);
      });
      wait();
      for (long i = m * s.groups * t / all; i < m * s.groups * (t + 1) / all; i++) {
        const long r = i / s.groups, g = i % s.groups, at = (r * s.heads + g * each) * d;
        attend<X>(&asked[at], layer->keys + r * ks[0] + g * ks[1], ks[2], layer->values + r * vs[0] + g * vs[1], vs[2],
                  exists ? exists + r * s.time : nullptr, s.time, each, d, scale, &seen[at]);
      }
      wait();
      middle.prepare(m, wide, front, back);
      wait();
      add(middle, layer->o, wide);
      wait();
      norm(layer->after);
      wait();
      for (long c = mine; c < until; c += block) {
        const long width = std::min(block, until - c);
        float *gate = room.data(), *up = gate + m * width;
        meet(outer, layer->gate, gate, low, m, hidden, inner, c, c + width);
        meet(outer, layer->up, up, low, m, hidden, inner, c, c + width);
        for (long i = 0; i < m * width; i += L)
          put(part(gate + i) * logistic(part(gate + i)) * part(up + i), &gated[i / width * inner + c + i % width]);
      }
      deep.prepare(m, inner, mine, until);
      wait();
      add(deep, layer->down, inner);
      wait();
    }
  }
}

#define KERNEL(name, X)                                                                                                        \
  extern "C" void layers_##name(                                                                                               \
      const void* table, const long* sizes, float* x, const float* cos, const float* sin, const bool* exists, float eps,       \
      float scale, int threads) {                                                                                              \
    layers<X>((const Layer<X>*)table, *(const Sizes*)sizes, x, cos, sin, exists, eps, scale, threads);                         \
  }
KERNEL(float32, float)
KERNEL(bfloat16, uint16_t)
