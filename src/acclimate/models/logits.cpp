// What is asked of the logits of a step, (rows, n) float32: the highest, the logarithm of what they add up to, and a draw.
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
