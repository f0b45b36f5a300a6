// What is asked of logits, (rows, n): the highest, the logarithm of what they add up to, a draw; and what training wants of them.
#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.h"

static float highest(const float* x, long n, long& place) {  // NaN where there is one
  Floats most = Floats{} - __builtin_inff(), strange = {};
  long i = 0;
  for (; i + L <= n; i += L) {
    const Floats each = part(x + i);
    most = each > most ? each : most;
    strange += each - each == 0 ? Floats{} : each - each;  // infinite or NaN
  }
  float best = most[0];
  for (int l = 1; l < L; l++) best = most[l] > best ? most[l] : best;
  bool odd = total(strange) != 0;
  for (; i < n; i++) {
    best = x[i] > best ? x[i] : best;
    odd |= !std::isfinite(x[i]);
  }
  if (odd)
    for (long j = 0; j < n; j++)
      if (x[j] != x[j]) {
        place = j;
        return x[j];
      }
  for (place = 0; x[place] != best;) place++;
  return best;
}

// values (rows), places (rows): the first of the highest.
extern "C" void highest_of(const float* x, float* values, long* places, long rows, long n, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 1)
  for (long r = 0; r < rows; r++) values[r] = highest(x + r * n, n, places[r]);
}

static Floats shares(const float* x, float most) {
  const Floats at = (part(x) - most) * 1.44269504f;
  return at < -126 ? Floats{} : power(at);
}

static float share(float x, float most) {
  float each[L];
  for (int l = 0; l < L; l++) each[l] = x;
  return shares(each, most)[0];
}

extern "C" void logarithms_of(const float* x, float* y, long rows, long n, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 1)
  for (long r = 0; r < rows; r++) {
    const float* row = x + r * n;
    long place, i = 0;
    const float most = highest(row, n, place);
    if (!std::isfinite(most)) {
      y[r] = most;
      continue;
    }
    double sum = 0;
    while (i + L <= n) {  // 1,024 vectors at a time, so that little is lost
      Floats some = {};
      for (long end = i + 1024 * L; i < end && i + L <= n; i += L) some += shares(row + i, most);
      sum += total(some);
    }
    for (; i < n; i++) sum += share(row[i], most);
    y[r] = most + std::log(sum);
  }
}

// The first place at which what stands before it and at it adds up to more than draw · all.
extern "C" void drawn_from(const float* x, const double* draws, long* places, long rows, long n, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 1)
  for (long r = 0; r < rows; r++) {
    const float* row = x + r * n;
    long place, i = 0;
    const float most = highest(row, n, place);
    std::vector<double> sums((n + L - 1) / L);
    double sum = 0;
    for (; i + L <= n; i += L) sums[i / L] = sum += total(shares(row + i, most));
    if (i < n) {
      for (long j = i; j < n; j++) sum += share(row[j], most);
      sums[i / L] = sum;
    }
    const double target = std::fmin(draws[r] * sum, std::nextafter(sum, 0.0));
    long block = 0, last = long(sums.size()) - 1;
    while (block < last && sums[block] <= target) block++;
    double before = block ? sums[block - 1] : 0;
    place = -1;
    for (long j = block * L; j < n && j < (block + 1) * L; j++) {
      const float each = share(row[j], most);
      if (each > 0) place = j;  // what has no share is never drawn, however sums are rounded
      if ((before += each) > target && each > 0) break;
    }
    places[r] = place;
  }
}

// Of logits / temperature: the logarithm of the target's share, the entropy in nats and, unless null, all shares less 1 at the target.
template <class X>
static void survey(
    const X* x, const long* targets, float temperature, float* chosen, float* entropy, X* shares, long rows, long n, int threads) {
  const float by = 1 / temperature;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long r = 0; r < rows; r++) {
    static thread_local std::vector<float> room;
    if (long(room.size()) < n) room.resize(n);
    const X* row = x + r * n;
    const long even = n / L * L;
    Floats high = Floats{} - __builtin_inff();
    for (long i = 0; i < even; i += L) high = part(row + i) > high ? part(row + i) : high;
    float most = -__builtin_inff();
    for (int l = 0; l < L; l++) most = high[l] > most ? high[l] : most;
    for (long i = even; i < n; i++) most = one(row[i]) > most ? one(row[i]) : most;
    double sum = 0, meant = 0;
    const auto add = [&](Floats logit, float* to, int count) {  // below −80 nothing adds up to anything
      Floats at = (logit - most) * by;
      at = at < -80 ? Floats{} - 80 : at;
      Floats each = power(at * 1.44269504f);
      for (int l = count; l < L; l++) each[l] = 0;
      put(each, to);
      return each;
    };
    for (long i = 0; i < even;) {
      Floats some = {}, more = {};
      for (const long end = std::min(even, i + 256 * L); i < end; i += L) {
        const Floats each = add(part(row + i), &room[i], L);
        some += each;
        more += each * ((part(row + i) - most) * by < -80 ? Floats{} - 80 : (part(row + i) - most) * by);
      }
      sum += total(some), meant += total(more);
    }
    for (long i = even; i < n; i++) {
      float each[L];
      sum += add(Floats{} + one(row[i]), each, 1)[0];
      meant += each[0] * std::fmax((one(row[i]) - most) * by, -80.0f);
      room[i] = each[0];
    }
    const double log = std::log(sum);
    chosen[r] = (one(row[targets[r]]) - most) * by - log;
    entropy[r] = log - meant / sum;
    if (!shares) continue;
    const float each = 1 / sum;
    X* to = shares + r * n;
    for (long i = 0; i < even; i += L) put(part(&room[i]) * each, to + i);
    for (long i = even; i < n; i++) put_one(room[i] * each, to + i);
    put_one(room[targets[r]] * each - 1, to + targets[r]);
  }
}

extern "C" void survey_float32(
    const float* x, const long* targets, float* chosen, float* entropy, float* shares, float temperature, long rows, long n,
    int threads) {
  survey(x, targets, temperature, chosen, entropy, shares, rows, n, threads);
}

extern "C" void survey_bfloat16(
    const uint16_t* x, const long* targets, float* chosen, float* entropy, uint16_t* shares, float temperature, long rows, long n,
    int threads) {
  survey(x, targets, temperature, chosen, entropy, shares, rows, n, threads);
}
