// How far scores can lie from the exact ones: the bounds of vqkit/kernels/bounds.py for the sums that are formed here. They
// are derived in docs/search.md, "The bound" and "The compiled search".

#pragma once

#include <stdint.h>

namespace vqkit {
namespace {

// Relative errors of the products and of the bias in a score, how many operations they come from, and the smallest number
// that is not flushed to zero.
struct Rounding {
  double product, bias, operations, smallest;
};

// Of sums in float32, of D products and D additions in any order, of numbers that are rounded once or three times.
inline Rounding rounding_of_floats(int64_t depth) {
  const double operations = depth + 3, relative = operations * 0x1p-24 / (1 - operations * 0x1p-24);
  return {relative, relative, operations, 0x1p-126};
}

// Of sums in float32, of so many additions, of three products of numbers split into two of bfloat16. Each half leaves out
// at most 2^-8 of what it rounds. So low low, and the two numbers less their halves, are at most 2^-16 of |x| |e| each, and
// the terms that are summed have at most (1 + 2^-5) |x| |e|. No term passes more additions than there are.
inline Rounding rounding_of_halves(double additions) {
  const double operations = additions + 4, relative = operations * 0x1p-24 / (1 - operations * 0x1p-24);
  return {3 * 0x1p-16 * (1 + 0x1p-7) + (1 + 0x1p-5) * relative, relative, operations, 0x1p-126};
}

// Of sums in double precision.
inline Rounding rounding_of_doubles(int64_t depth) {
  const double operations = depth + 3, relative = operations * 0x1p-53;
  return {relative, relative, operations, 0x1p-1022};
}

// Of a difference of two scores in double precision, relative to the same sum of absolute values.
inline double tie_error(int64_t depth) { return 4 * (depth + 4.0) * 0x1p-53; }

// Bound on the error of every score that can matter, of a row with a norm and codes within its reach.
inline double score_error(bool is_euclidean, double norm, double reach, const Rounding& rounding) {
  const double bias = is_euclidean ? 0.5 * reach * reach : 0;
  const double underflow = 2 * rounding.operations * rounding.smallest * (1 + norm + reach);
  return 1.01 * (rounding.bias * bias + rounding.product * norm * reach) + underflow;
}

}  // namespace
}  // namespace vqkit
