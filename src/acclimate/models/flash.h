// What attention of pieces of a stream is given, whatever its numbers are.
#pragma once
#include <vector>

struct Piece {
  long start, length, parent;
};

struct Shape {
  const Piece* pieces;
  long count, tokens, heads, groups, d;  // groups: heads of keys and values
  float scale;
  bool causal;

  Shape(const long* pieces, const long* sizes, float scale, int causal)
      : pieces((const Piece*)pieces), count(sizes[0]), tokens(sizes[1]), heads(sizes[2]), groups(sizes[3]), d(sizes[4]),
        scale(scale), causal(causal) {}

  long group(long head) const { return head / (heads / groups); }

  // Those that a piece sees: its ancestors, the first one first, and itself.
  std::vector<long> way(long piece) const {
    std::vector<long> found;
    for (long p = piece; p >= 0; p = pieces[p].parent) found.insert(found.begin(), p);
    return found;
  }

  // Trees: each as its pieces, those that are followed before those that follow.
  std::vector<std::vector<long>> trees() const {
    std::vector<std::vector<long>> found;
    std::vector<long> place(count);
    for (long p = 0; p < count; p++) {
      const long parent = pieces[p].parent;
      place[p] = parent < 0 ? long(found.size()) : place[parent];
      if (parent < 0) found.emplace_back();
      found[place[p]].push_back(p);
    }
    return found;
  }
};

template <class X>
struct Rows {  // of one head: `row(t)` has d numbers
  const X* start;
  long step;
  const X* row(long t) const { return start + t * step; }
};

// Head h of a tensor whose steps from token to token and from head to head are given.
template <class X>
static Rows<X> head(const X* x, const long* steps, long h) { return Rows<X>{x + h * steps[1], steps[0]}; }

// `one` for every piece and head: forward of a stream. steps: from token to token and from head to head of q, k and v.
template <class X, class F>
static void every_piece(const Shape& s, const X* q, const X* k, const X* v, const long* steps, int threads, X* out, float* lse, F one) {
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (long unit = 0; unit < s.count * s.heads; unit++) {
    const long piece = unit / s.heads, h = unit % s.heads, g = s.group(h);
    one(s, piece, head(q, steps, h), head(k, steps + 2, g), head(v, steps + 4, g), out + h * s.d, lse + h * s.tokens);
  }
}

// The way back: a tree's head is one thread's, because its pieces add to the same keys and values.
template <class X, class F>
static void every_tree(
    const Shape& s, const X* q, const X* k, const X* v, const long* steps, int threads, const X* out, const float* lse,
    const X* slope, X* dq, float* dk, float* dv, F one) {
  const std::vector<std::vector<long>> trees = s.trees();
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (long unit = 0; unit < long(trees.size()) * s.heads; unit++) {
    const long h = unit % s.heads, g = s.group(h), own = h * s.tokens * s.d, step = s.heads * s.d;
    const Rows<X> whole{out + h * s.d, step}, down{slope + h * s.d, step};
    for (long p : trees[unit / s.heads])
      one(s, p, head(q, steps, h), head(k, steps + 2, g), head(v, steps + 4, g), whole, down, lse + h * s.tokens, dq + h * s.d,
          dk + own, dv + own);
  }
}
