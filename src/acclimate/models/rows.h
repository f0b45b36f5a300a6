// What a norm and a gate do to a vector of numbers.
#pragma once
#include "vectors.h"

static Floats rounded(Floats x, const float*) { return x; }
static Floats rounded(Floats x, const uint16_t*) {
  uint16_t half[L];
  put(x, half);
  return part(half);
}

static Floats logistic(Floats x) {
  Floats negative = power((x < 0 ? x : -x) * 1.44269504f);  // e^−|x|
  return (x < 0 ? negative : Floats{} + 1) * inverse(1 + negative);
}
