// What decides: scores in double precision, the bound on the errors of the others, and differences of two codes.

#pragma once

#include <math.h>
#include <string.h>

#include "packing.inl"

namespace vqkit {
namespace {

// The score of one code in double precision; infinite for a code that may not win. Four sums side by side: one alone would
// wait for itself.
template <Metric metric>
inline double exact_score_in(const Book& book, const float* row, int64_t k) {
  constexpr int64_t together = 4;
  const float* code = book.codes + k * book.depth;
  Doubles sums[together] = {}, squares[together] = {};
  double sum = 0, square = 0;
  const auto add = [&](int64_t i, int64_t d) {
    const Doubles m = widen(book.center + d), y = widen(row + d), f = widen(code + d) - m;
    if (metric == Metric::euclidean) sums[i] += (0.5 * f - (y - m)) * f;
    if (metric != Metric::euclidean) sums[i] -= y * f;
    if (metric == Metric::cosine) squares[i] += f * f;
  };
  int64_t d = 0;
  for (; d + together * kDoubles <= book.depth; d += together * kDoubles) {
    for (int64_t i = 0; i < together; ++i) add(i, d + i * kDoubles);
  }
  for (; d + kDoubles <= book.depth; d += kDoubles) add(0, d);
  for (; d < book.depth; ++d) {
    const double m = book.center[d], y = row[d], f = code[d] - m;
    if (metric == Metric::euclidean) sum += (0.5 * f - (y - m)) * f;
    if (metric != Metric::euclidean) sum -= y * f;
    if (metric == Metric::cosine) square += f * f;
  }
  double score = sum + add_up((sums[0] + sums[1]) + (sums[2] + sums[3]));
  if (metric == Metric::cosine) {
    square += add_up((squares[0] + squares[1]) + (squares[2] + squares[3]));
    score = square > 0 ? score / sqrt(square) : square;  // what is not a number stays so
  }
  return isfinite(score) ? score : INFINITY;
}

double exact_score(const Book& book, const float* row, int64_t k) {
  if (!book.may_win(k)) return INFINITY;
  if (book.metric == Metric::euclidean) return exact_score_in<Metric::euclidean>(book, row, k);
  if (book.metric == Metric::dot) return exact_score_in<Metric::dot>(book, row, k);
  return exact_score_in<Metric::cosine>(book, row, k);
}

// The length |x - e| that a score h |f|^2 - y . f belongs to.
double distance_of(double norm, double score) {
  const double square = 2 * score + norm * norm;
  return square > 0 ? sqrt(square) : 0;
}

// Longer codes cannot be the best: they are farther away than a code with this score, or there are none.
double reach_of(const Book& book, double norm, double score) {
  const double reach = 2 * (norm + distance_of(norm, score));
  return book.metric == Metric::euclidean && reach < book.largest ? reach : book.largest;
}

// How far above the best score, both in double precision, a code may be tied with it: docs/search.md.
double tie_width(const Book& book, double norm, double best) {
  const double reach = reach_of(book, norm, best);
  return 32 * score_error(book.metric == Metric::euclidean, norm, reach, rounding_of_doubles(book.depth));
}

// A length that no code exceeds, less the center: tie_width reads it.
double length_of_longest(const Book& book) {
  if (book.metric == Metric::euclidean) return INFINITY;  // reach_of knows one of its own
  if (book.metric == Metric::cosine) return 1;
  double largest = 0;
  for (int64_t k = 0; k < book.size; ++k) {
    const double square = book.may_win(k) ? squared_length(book.codes + k * book.depth, book.depth) : 0;
    if (isfinite(square)) largest = larger(largest, square);
  }
  return sqrt(largest) + sqrt(squared_length(book.center, book.depth));
}

struct Difference {  // by how much a code is worse than another, at least and at most
  double least, most;
};

bool are_equal(const Book& book, int64_t k, int64_t other) {
  return memcmp(book.codes + k * book.depth, book.codes + other * book.depth, book.depth * sizeof(float)) == 0;
}

// Sums over the row and both codes, in which nothing cancels where the data lie far from the origin, and the sizes that
// their rounding errors are relative to. The equations are those of float64_ties.py.
Difference compare(const Book& book, const float* row, int64_t k, int64_t other) {
  if (are_equal(book, k, other)) return {0, 0};
  const float *e = book.codes + k * book.depth, *r = book.codes + other * book.depth;
  const double relative = tie_error(book.depth);
  double difference = 0, size = 0;
  if (book.metric != Metric::cosine) {
    for (int64_t d = 0; d < book.depth; ++d) {
      const double x = row[d], a = e[d], b = r[d];
      difference += book.metric == Metric::euclidean ? (a - b) * ((a - x) + (b - x)) : (b - a) * x;
      size += fabs(a - b) * (book.metric == Metric::euclidean ? fabs(a - x) + fabs(b - x) : fabs(x));
    }
    return {difference - relative * size, difference + relative * size};
  }
  const double length_e = sqrt(squared_length(e, book.depth)), length_r = sqrt(squared_length(r, book.depth));
  const bool first = length_e < length_r;
  const float *shorter = first ? e : r, *longer = first ? r : e;
  const double of_shorter = first ? length_e : length_r, of_longer = first ? length_r : length_e;
  if (of_longer == 0) return {0, 0};
  double along = 0, along_size = 0, across = 0, across_size = 0, short_sum = 0, short_size = 0;
  for (int64_t d = 0; d < book.depth; ++d) {
    const double x = row[d], s = shorter[d], l = longer[d], step = l - s;
    along += step * (l + s);
    along_size += fabs(step) * (fabs(l) + fabs(s));
    across += x * step;
    across_size += fabs(x * step);
    short_sum += x * s;
    short_size += fabs(x * s);
  }
  // A code of length zero has a cosine of zero.
  const double scale = of_shorter > 0 ? 1 / ((of_longer + of_shorter) * of_shorter) : 0;
  difference = (across - short_sum * along * scale) / of_longer;
  size = (across_size + short_size * along_size * scale) / of_longer;
  if (!first) difference = -difference;
  return {difference - relative * size, difference + relative * size};
}

// How far above the best score of the tiles a score has to be for its code to be worse; infinite where any may overflow.
double doubt_width(const Book& book, double norm, double best) {
  const Rounding rounding = rounding_of_tiles(book.depth);
  const double reach = reach_of(book, norm, best);
  if (!isfinite(best) || larger(norm, reach) >= kFar || !(rounding.operations < 0x1p16)) return INFINITY;
  return 2 * score_error(book.metric == Metric::euclidean, norm, reach, rounding);
}

// Memory in which candidates of one row are compared.
struct Scratch {
  explicit Scratch(int64_t most) : scores(most), codes(most), differences(most) {}
  Array<double> scores;
  Array<int32_t> codes;
  Array<Difference> differences;
};

// The lowest k codes that may win and are finite, then -1; the lowest that may win, where none is finite.
void lowest_usable(const Book& book, int64_t k, int64_t* indices) {
  int64_t number = 0, first_valid = -1;
  for (int64_t code = 0; code < book.size && number < k; ++code) {
    if (!book.may_win(code)) continue;
    if (first_valid < 0) first_valid = code;
    if (isfinite(squared_length(book.codes + code * book.depth, book.depth))) indices[number++] = code;
  }
  if (number == 0) indices[number++] = first_valid < 0 ? 0 : first_valid;
  for (; number < k; ++number) indices[number] = -1;
}

// The best of these codes, which are all finite: ties go to the lowest index, `picks` times over.
void choose(
    const Book& book, const float* row, int64_t reference, const int32_t* codes, int64_t number, int64_t picks,
    Difference* differences, int64_t* indices) {
  for (int64_t i = 0; i < number; ++i) differences[i] = compare(book, row, codes[i], reference);
  for (int64_t pick = 0; pick < picks; ++pick) {
    double bar = INFINITY;
    for (int64_t i = 0; i < number; ++i) bar = differences[i].most < bar ? differences[i].most : bar;
    int64_t chosen = -1;
    for (int64_t i = 0; i < number; ++i) {
      if (differences[i].least <= bar && (chosen < 0 || codes[i] < codes[chosen])) chosen = i;
    }
    indices[pick] = codes[chosen];
    differences[chosen] = {INFINITY, INFINITY};
  }
}

// The k-th smallest score, infinite where there are fewer; k at most kMostCodes.
double kth_smallest(const double* scores, int64_t number, int64_t k) {
  double sorted[kMostCodes];
  for (int64_t i = 0; i < k; ++i) sorted[i] = INFINITY;
  for (int64_t i = 0; i < number; ++i) {
    if (!(scores[i] < sorted[k - 1])) continue;
    int64_t place = k - 1;
    for (; place > 0 && sorted[place - 1] > scores[i]; --place) sorted[place] = sorted[place - 1];
    sorted[place] = scores[i];
  }
  return sorted[k - 1];
}

// The k best of these codes, which are in increasing order, or of all where `codes` is null; -1 where there are fewer.
void best_of(
    const Book& book, const float* row, double norm, const int32_t* codes, int64_t number, int64_t k, Scratch& scratch,
    int64_t* indices) {
  double* scores = scratch.scores;
  const auto code = [&](int64_t i) { return codes == nullptr ? static_cast<int32_t>(i) : codes[i]; };
  int64_t best = 0, close = 0, copies = 0;
  for (int64_t i = 0; i < number; ++i) {
    scores[i] = exact_score(book, row, code(i));
    if (scores[i] < scores[best]) best = i;
  }
  if (scores[best] == INFINITY) return lowest_usable(book, k, indices);
  const double last = kth_smallest(scores, number, k);
  const double limit = last < INFINITY ? last + tie_width(book, norm, last) : INFINITY;
  for (int64_t i = 0; i < number; ++i) {
    if (!(scores[i] <= limit && scores[i] < INFINITY)) continue;
    if (are_equal(book, code(i), code(best)) && ++copies > k) continue;  // k earlier ones are as good
    scratch.codes[close++] = code(i);
  }
  const int64_t picks = smaller(k, close);
  if (close == 1) {
    indices[0] = code(best);
  } else {
    choose(book, row, code(best), scratch.codes, close, picks, scratch.differences, indices);
  }
  for (int64_t i = picks; i < k; ++i) indices[i] = -1;
}

}  // namespace
}  // namespace vqkit
