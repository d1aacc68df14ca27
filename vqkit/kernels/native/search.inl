// The search. One source file per variant names it (VQKIT_VARIANT, VQKIT_NAME), includes the tiles that it is made of
// (float_tiles.inl or amx_tiles.inl), then this file.
//
// Scores are bias - x . e (docs/search.md), formed in tiles of kRows rows and kPanel codes that never leave the core. Three
// steps:
//   scan      keeps, for each row and lane, the smallest score, the group of codes that it comes from, and the smallest
//             score of all other groups;
//   decide    a row whose best group leads by more than the rounding error: its codes in double precision, no others;
//   look twice at the rows that are left: every code within the rounding error of the best, in double precision.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <new>

#include "search.h"

namespace vqkit {
namespace {

constexpr int64_t kPanels = 4;              // most panels of a group
constexpr int64_t kCodeBytes = 256 * 1024;  // packed codes that stay in the second level cache
constexpr int64_t kRowsAtOnce = 4096;       // bounds the memory of a thread
constexpr double kFar = 0x1p62;             // rows and codes shorter than this make no score that overflows
constexpr int64_t kCandidates = 30;         // codes that may tie for a row, before all are searched

typedef int32_t Ints __attribute__((vector_size(kLanes * 4), may_alias));
typedef float HalfFloats __attribute__((vector_size(kLanes * 2), aligned(4), may_alias));
typedef double Doubles __attribute__((vector_size(kLanes * 4), may_alias));
constexpr int64_t kDoubles = kLanes / 2;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline double larger(double a, double b) { return a > b ? a : b; }
inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

template <class T>
class Array {  // aligned memory, not initialised
 public:
  explicit Array(int64_t size) : data_(static_cast<T*>(aligned_alloc(64, round_up(size * sizeof(T) + 1, 64)))) {
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Array() { free(data_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  operator T*() { return data_; }
  operator const T*() const { return data_; }

 private:
  T* data_;
};

// ------------------------------------------------------------------------------------------- vectors of one row or code

inline Doubles widen(const float* values) {
  return __builtin_convertvector(*reinterpret_cast<const HalfFloats*>(values), Doubles);
}

inline double add_up(Doubles values) {
  double part[kDoubles];
  memcpy(part, &values, sizeof(part));
  for (int64_t width = kDoubles / 2; width > 0; width /= 2) {
    for (int64_t lane = 0; lane < width; ++lane) part[lane] += part[lane + width];
  }
  return part[0];
}

double squared_length(const float* values, int64_t depth) {
  Doubles sums[2] = {};
  int64_t d = 0;
  for (; d + 2 * kDoubles <= depth; d += 2 * kDoubles) {
    sums[0] += widen(values + d) * widen(values + d);
    sums[1] += widen(values + d + kDoubles) * widen(values + d + kDoubles);
  }
  double sum = add_up(sums[0] + sums[1]);
  for (; d < depth; ++d) sum += static_cast<double>(values[d]) * values[d];
  return sum;
}

// target = scale * source - center, rounded once; returns its squared length.
double shift(const float* source, const float* center, double scale, int64_t depth, float* target) {
  Doubles sums = {};
  int64_t d = 0;
  for (; d + kDoubles <= depth; d += kDoubles) {
    const Doubles value = scale * widen(source + d) - widen(center + d);
    sums += value * value;
    *reinterpret_cast<HalfFloats*>(target + d) = __builtin_convertvector(value, HalfFloats);
  }
  double sum = add_up(sums);
  for (; d < depth; ++d) {
    const double value = scale * source[d] - center[d];
    sum += value * value;
    target[d] = static_cast<float>(value);
  }
  return sum;
}

// --------------------------------------------------------------------------------------------------- codebooks and rows

struct Book : Codebook {
  int64_t depth;
  Metric metric;
  const float* center;  // subtracted from the codes, and from the rows where the metric is euclidean
  double largest;       // length of the longest code, less the center

  bool may_win(int64_t k) const { return valid == nullptr || valid[k]; }
  // The size of a group decides between fewer instructions for a score and fewer codes to look at again.
  int64_t panels_of_group() const { return size >= 8192 ? kPanels : size >= 2048 ? 2 : 1; }
};

// Any center is right; one amid the codes makes for small rounding errors. The median of a few is not moved by one far
// out or not finite; where even that is huge, zero, so that code - center is finite exactly where the code is.
void find_center(const Codebook& book, int64_t depth, Metric metric, float* center) {
  constexpr int64_t most = 15;
  const int64_t step = (book.size + most - 1) / most, number = (book.size + step - 1) / step;
  for (int64_t d = 0; d < depth; ++d) {
    float sorted[most];
    for (int64_t i = 0; i < number && metric != Metric::cosine; ++i) {
      const float value = book.codes[i * step * depth + d];
      int64_t place = i;
      for (; place > 0 && !(sorted[place - 1] <= value); --place) sorted[place] = sorted[place - 1];
      sorted[place] = value;
    }
    center[d] = metric == Metric::cosine ? 0 : sorted[number / 2];
    if (!(fabsf(center[d]) < 0x1p100f)) center[d] = 0;
  }
}

// A code as it is searched; returns its squared length, which is infinite or not a number if it may not win.
double pack_code(const Book& book, int64_t k, float* target) {
  if (!book.may_win(k)) return INFINITY;
  const float* code = book.codes + k * book.depth;
  double scale = 1;
  if (book.metric == Metric::cosine) {
    const double square = squared_length(code, book.depth);
    scale = square == 0 ? 0 : 1 / sqrt(square);
  }
  return shift(code, book.center, scale, book.depth, target);
}

// Codes [first, last) as panels, and their bias; infinite for padding, for codes that may not win, and for codes so long
// that a score could overflow: `doubt_width` looks after the rows that those could win.
// Returns the length of the longest.
double pack_codes(const Book& book, int64_t first, int64_t last, float* panels, float* bias) {
  const int64_t depth = book.depth;
  Array<float> shifted(kPanel * depth);
  double largest = 0;
  for (int64_t start = first; start < last; start += kPanel, panels += panel_floats(depth), bias += kPanel) {
    for (int64_t j = 0; j < kPanel; ++j) {
      const int64_t k = start + j;
      const double length = k < last ? pack_code(book, k, shifted + j * depth) : INFINITY;
      if (isfinite(length)) largest = larger(largest, length);
      if (!(length < kFar * kFar)) {
        memset(shifted + j * depth, 0, depth * sizeof(float));
        bias[j] = INFINITY;
        continue;
      }
      bias[j] = book.metric == Metric::euclidean ? static_cast<float>(0.5 * length) : 0.0f;
    }
    pack_panel(shifted, depth, panels);
  }
  return sqrt(largest);
}

// Rows as blocks of -(x - center), and their lengths; a row that is not finite has a length that is not.
void pack_rows(const Book& book, const float* x, int64_t rows, float* packed, double* norms) {
  const int64_t depth = book.depth;
  Array<float> shifted(kRows * depth), origin(depth);
  memset(origin, 0, depth * sizeof(float));
  for (int64_t start = 0; start < rows; start += kRows, packed += block_floats(depth)) {
    memset(shifted, 0, kRows * depth * sizeof(float));
    for (int64_t r = start; r < smaller(start + kRows, rows); ++r) {
      float* target = shifted + (r - start) * depth;
      const float* subtracted = book.metric == Metric::euclidean ? book.center : origin;
      norms[r] = sqrt(shift(x + r * depth, subtracted, 1, depth, target));
      for (int64_t d = 0; d < depth; ++d) target[d] = -target[d];
    }
    pack_block(shifted, depth, packed);
  }
}

// ----------------------------------------------------------------------------------------------------------------- scan

struct Lanes {  // what is known of a row after some codes, in each lane
  Floats best;
  Floats second;  // the smallest score outside of the best group
  Ints group;     // of the best score: codes group * panels * kPanel + lane + multiples of kLanes
};

void clear(Lanes* lanes, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) lanes[r] = {INFINITY - Floats{}, INFINITY - Floats{}, Ints{}};
}

inline void join(Lanes& lanes, Floats score, Floats second, Ints group) {
  const Ints closer = score < lanes.best;
  const Floats loser = closer ? lanes.best : score;
  lanes.second = second < lanes.second ? second : lanes.second;
  lanes.second = loser < lanes.second ? loser : lanes.second;
  lanes.group = closer ? group : lanes.group;
  lanes.best = closer ? score : lanes.best;
}

// Calls `use(panels, bias, first, number of panels)` for codes [first, last), as many at a time as the cache holds; `first` is
// a multiple of the largest group. Returns the length of the longest code.
template <class Use>
double for_packed_codes(const Book& book, int64_t first, int64_t last, Use use) {
  const int64_t group = book.panels_of_group() * kPanel;
  int64_t size = kCodeBytes / 4 * kPanel / panel_floats(book.depth) / group * group;
  size = smaller(size < group ? group : size, round_up(last - first, kPanel));
  Array<float> panels(size / kPanel * panel_floats(book.depth)), bias(size);
  double largest = 0;
  for (int64_t start = first; start < last; start += size) {
    const int64_t end = smaller(start + size, last);
    largest = larger(largest, pack_codes(book, start, end, panels, bias));
    use(static_cast<const float*>(panels), static_cast<const float*>(bias), start, (end - start + kPanel - 1) / kPanel);
  }
  return largest;
}

double scan(const Book& book, int64_t first, int64_t last, const float* packed_rows, int64_t padded, Lanes* lanes) {
  const int64_t depth = book.depth, per_group = book.panels_of_group();
  return for_packed_codes(book, first, last, [&](const float* panels, const float* bias, int64_t start, int64_t number) {
    for (int64_t row = 0; row < padded; row += kRows) {
      int64_t group = start / (per_group * kPanel);
      for (int64_t begin = 0; begin < number; begin += per_group, ++group) {
        Floats minima[kRows];
        for (int64_t r = 0; r < kRows; ++r) minima[r] = INFINITY - Floats{};
        for (int64_t p = begin; p < smaller(begin + per_group, number); ++p) {
          tile(packed_rows + row / kRows * block_floats(depth), panels + p * panel_floats(depth), bias + p * kPanel, depth,
               [&](int64_t r, Floats low, Floats high) {
                 const Floats least = low < high ? low : high;
                 minima[r] = least < minima[r] ? least : minima[r];
               });
        }
        const Ints own = static_cast<int32_t>(group) - Ints{};
        for (int64_t r = 0; r < kRows; ++r) join(lanes[row + r], minima[r], INFINITY - Floats{}, own);
      }
    }
  });
}

// ------------------------------------------------------------------------------------------------------ double precision

// The score of one code in double precision; infinite for a code that may not win.
template <Metric metric>
inline double exact_score_in(const Book& book, const float* row, int64_t k) {
  const float* code = book.codes + k * book.depth;
  Doubles sums = {}, squares = {};
  double sum = 0, square = 0;
  int64_t d = 0;
  for (; d + kDoubles <= book.depth; d += kDoubles) {
    const Doubles m = widen(book.center + d), y = widen(row + d), f = widen(code + d) - m;
    if (metric == Metric::euclidean) sums += (0.5 * f - (y - m)) * f;
    if (metric != Metric::euclidean) sums -= y * f;
    if (metric == Metric::cosine) squares += f * f;
  }
  for (; d < book.depth; ++d) {
    const double m = book.center[d], y = row[d], f = code[d] - m;
    if (metric == Metric::euclidean) sum += (0.5 * f - (y - m)) * f;
    if (metric != Metric::euclidean) sum -= y * f;
    if (metric == Metric::cosine) square += f * f;
  }
  double score = sum + add_up(sums);
  if (metric == Metric::cosine) {
    square += add_up(squares);
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

// Bound on the rounding error of every score that can matter: docs/search.md, "The bound", and vqkit/kernels/rounding.py.
double rounding_error(const Book& book, double norm, double reach, const Rounding& rounding) {
  const double bias = book.metric == Metric::euclidean ? 0.5 * reach * reach : 0;
  const double underflow = 2 * rounding.operations * rounding.smallest * (1 + norm + reach);
  return 1.01 * (rounding.bias * bias + rounding.product * norm * reach) + underflow;
}

// How far above the best score, both in double precision, a code may be tied with it: docs/search.md.
double tie_width(const Book& book, double norm, double best) {
  const double operations = book.depth + 3, relative = operations * 0x1p-53;
  return 32 * rounding_error(book, norm, reach_of(book, norm, best), {relative, relative, operations, 0x1p-1022});
}

struct Difference {  // by how much a code is worse than another, at least and at most
  double least, most;
};

// Sums over the row and both codes, in which nothing cancels where the data lie far from the origin, and the sizes that
// their rounding errors are relative to. The equations are those of float64.py.
Difference compare(const Book& book, const float* row, int64_t k, int64_t other) {
  const float *e = book.codes + k * book.depth, *r = book.codes + other * book.depth;
  if (memcmp(e, r, book.depth * sizeof(float)) == 0) return {0, 0};
  const double relative = 4 * (book.depth + 4.0) * 0x1p-53;
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
  return 2 * rounding_error(book, norm, reach, rounding);
}

// The lowest index of a code that may win and is finite; of one that may win, where none is finite.
int64_t first_usable(const Book& book) {
  int64_t first_valid = -1;
  for (int64_t k = 0; k < book.size; ++k) {
    if (!book.may_win(k)) continue;
    if (isfinite(squared_length(book.codes + k * book.depth, book.depth))) return k;
    if (first_valid < 0) first_valid = k;
  }
  return larger(first_valid, 0);
}

// The lowest index among those codes that tie with the best; `codes` in increasing order, or null for all of the book.
int64_t first_of_best(
    const Book& book, const float* row, double norm, const double* scores, const int32_t* codes, int64_t number) {
  const auto code = [&](int64_t i) { return codes == nullptr ? i : codes[i]; };
  int64_t best = 0;
  for (int64_t i = 1; i < number; ++i) best = scores[i] < scores[best] ? i : best;
  if (scores[best] == INFINITY) return first_usable(book);
  const double limit = scores[best] + tie_width(book, norm, scores[best]);
  int64_t close = 0;
  for (int64_t i = 0; i < number; ++i) close += scores[i] <= limit;
  if (close == 1) return code(best);
  double bar = INFINITY;
  for (int64_t i = 0; i < number; ++i) {
    if (!(scores[i] <= limit)) continue;
    const double most = compare(book, row, code(i), code(best)).most;
    bar = most < bar ? most : bar;
  }
  int64_t i = 0;
  while (!(scores[i] <= limit && compare(book, row, code(i), code(best)).least <= bar)) ++i;
  return code(i);
}

int64_t search_all(const Book& book, const float* row, double norm, double* scores) {
  for (int64_t k = 0; k < book.size; ++k) scores[k] = exact_score(book, row, k);
  return first_of_best(book, row, norm, scores, nullptr, book.size);
}

// ------------------------------------------------------------------------------------------------------------- decisions

// The index that the best group decides, or -1 where it cannot; `limit` is then the largest score that can be the best.
int64_t decide(const Book& book, const float* row, double norm, const Lanes& lanes, double* limit) {
  int64_t lane = 0;
  for (int64_t other = 1; other < kLanes; ++other) lane = lanes.best[other] < lanes.best[lane] ? other : lane;
  const double best = lanes.best[lane], width = doubt_width(book, norm, best);
  double second = INFINITY;
  for (int64_t other = 0; other < kLanes; ++other) {
    if (other != lane && lanes.best[other] < second) second = lanes.best[other];
    if (lanes.second[other] < second) second = lanes.second[other];
  }
  *limit = best + width;
  if (!(second > *limit)) return -1;

  const int64_t group = book.panels_of_group() * kPanel, start = lanes.group[lane] * group;
  double scores[2 * kPanels];
  int32_t codes[2 * kPanels];
  int64_t number = 0;
  for (int64_t k = start + lane; k < smaller(start + group, book.size); k += kLanes) {
    scores[number] = exact_score(book, row, k);
    codes[number++] = static_cast<int32_t>(k);
  }
  return first_of_best(book, row, norm, scores, codes, number);
}

struct Candidates {
  int32_t number;
  int32_t codes[kCandidates + 1];
};

// Rows that were not decided: collects the codes whose float32 score is within the limit, and decides among those.
void look_twice(
    const Book& book, const float* x, const double* norms, const double* limits, const int64_t* undecided,
    int64_t number, int64_t* indices, int64_t stride) {
  const int64_t depth = book.depth, padded = round_up(number, kRows);
  Array<double> scores(book.size), own_norms(number);
  Array<Candidates> candidates(padded);
  Array<float> bounds(padded), rows(number * depth), packed(padded / kRows * block_floats(depth));
  for (int64_t i = 0; i < padded; ++i) {
    candidates[i].number = 0;
    bounds[i] = -INFINITY;
    if (i >= number) continue;
    const double limit = limits[undecided[i]];
    bounds[i] = isfinite(limit) ? static_cast<float>(limit + fabs(limit) * 0x1p-23) : -INFINITY;
    if (!isfinite(limit)) candidates[i].number = kCandidates + 1;
    memcpy(rows + i * depth, x + undecided[i] * depth, depth * sizeof(float));
  }
  pack_rows(book, rows, number, packed, own_norms);
  for_packed_codes(book, 0, book.size, [&](const float* panels, const float* bias, int64_t start, int64_t panel_count) {
    for (int64_t row = 0; row < padded; row += kRows) {
      for (int64_t p = 0; p < panel_count; ++p) {
        tile(packed + row / kRows * block_floats(depth), panels + p * panel_floats(depth), bias + p * kPanel, depth,
             [&](int64_t r, Floats low, Floats high) {
               const float bound = bounds[row + r];
               const Floats least = low < high ? low : high;
               bool any = false;
               for (int64_t lane = 0; lane < kLanes; ++lane) any |= least[lane] <= bound;
               if (!any) return;
               Candidates& own = candidates[row + r];
               for (int64_t j = 0; j < kPanel; ++j) {
                 const float score = j < kLanes ? low[j] : high[j - kLanes];
                 if (score <= bound && own.number <= kCandidates) {
                   own.codes[own.number++] = static_cast<int32_t>(start + p * kPanel + j);
                 }
               }
             });
      }
    }
  });
  for (int64_t i = 0; i < number; ++i) {
    const int64_t r = undecided[i];
    const Candidates& own = candidates[i];
    if (own.number > kCandidates) {
      indices[r * stride] = search_all(book, x + r * depth, norms[r], scores);
      continue;
    }
    for (int64_t c = 0; c < own.number; ++c) scores[c] = exact_score(book, x + r * depth, own.codes[c]);
    indices[r * stride] = first_of_best(book, x + r * depth, norms[r], scores, own.codes, own.number);
  }
}

// The index of each row, from what the lanes know of it.
void resolve(
    const Book& book, const float* x, int64_t rows, const double* norms, const Lanes* lanes, int64_t* indices,
    int64_t stride) {
  Array<int64_t> undecided(rows);
  Array<double> limits(rows);
  int64_t number = 0, fallback = -1;
  for (int64_t r = 0; r < rows; ++r) {
    const bool ties_with_all = book.metric != Metric::euclidean && norms[r] == 0;
    if (isfinite(norms[r]) && !ties_with_all) {
      indices[r * stride] = decide(book, x + r * book.depth, norms[r], lanes[r], &limits[r]);
      if (indices[r * stride] < 0) undecided[number++] = r;
    } else {
      if (fallback < 0) fallback = first_usable(book);
      indices[r * stride] = fallback;
    }
  }
  if (number >= kRows) {
    look_twice(book, x, norms, limits, undecided, number, indices, stride);
  } else if (number > 0) {  // packing the codes again would cost more
    Array<double> scores(book.size);
    for (int64_t i = 0; i < number; ++i) {
      const int64_t r = undecided[i];
      indices[r * stride] = search_all(book, x + r * book.depth, norms[r], scores);
    }
  }
}

// ------------------------------------------------------------------------------------------------------------- the variant

// Rows [first, last) of the problem in every level, at most kRowsAtOnce of them.
void search_levels(const Problem& problem, int64_t first, int64_t last) {
  const int64_t depth = problem.depth, rows = last - first, padded = round_up(rows, kRows);
  const int64_t left_over = problem.levels > 1 ? rows * depth : 0;
  Array<float> center(depth), packed(padded / kRows * block_floats(depth)), total(left_over), left(left_over);
  Array<double> norms(rows);
  Array<Lanes> lanes(padded);
  const float* x = problem.x + first * depth;
  for (int64_t level = 0; level < problem.levels; ++level) {
    int64_t* indices = problem.indices + first * problem.levels + level;
    find_center(problem.codebooks[level], depth, problem.metric, center);
    Book book{problem.codebooks[level], depth, problem.metric, center, 0};
    pack_rows(book, x, rows, packed, norms);
    clear(lanes, padded);
    book.largest = scan(book, 0, book.size, packed, padded, lanes);
    resolve(book, x, rows, norms, lanes, indices, problem.levels);
    if (level + 1 == problem.levels) break;
    // The sum of the codes first, then the difference: what is left is rounded as in a loop over the levels.
    for (int64_t r = 0; r < rows; ++r) {
      const float* code = book.codes + indices[r * problem.levels] * depth;
      for (int64_t d = 0; d < depth; ++d) {
        total[r * depth + d] = level == 0 ? code[d] : total[r * depth + d] + code[d];
        left[r * depth + d] = problem.x[(first + r) * depth + d] - total[r * depth + d];
      }
    }
    x = left;
  }
}

void search_rows(const Problem& problem, int64_t first, int64_t last) {
  const Session session;
  for (; first < last; first += kRowsAtOnce) search_levels(problem, first, smaller(first + kRowsAtOnce, last));
}

// Layout of `found`: the lanes of all rows, then the length of the longest code.
int64_t found_bytes(const Problem& problem) {
  return round_up(round_up(problem.rows, kRows) * static_cast<int64_t>(sizeof(Lanes)) + sizeof(double), 64);
}

void scan_codes(const Problem& problem, int64_t first, int64_t last, void* found) {
  const Session session;
  const int64_t depth = problem.depth, padded = round_up(problem.rows, kRows);
  Array<float> center(depth), packed(padded / kRows * block_floats(depth));
  Array<double> norms(problem.rows);
  find_center(problem.codebooks[0], depth, problem.metric, center);
  const Book book{problem.codebooks[0], depth, problem.metric, center, 0};
  pack_rows(book, problem.x, problem.rows, packed, norms);
  Lanes* lanes = static_cast<Lanes*>(found);
  clear(lanes, padded);
  const double largest = scan(book, first, last, packed, padded, lanes);
  memcpy(lanes + padded, &largest, sizeof(largest));
}

void resolve_rows(const Problem& problem, int64_t parts, const void* found) {
  const Session session;
  const int64_t depth = problem.depth, rows = problem.rows, padded = round_up(rows, kRows);
  Array<float> center(depth), packed(padded / kRows * block_floats(depth));
  Array<double> norms(rows);
  Array<Lanes> lanes(rows);
  find_center(problem.codebooks[0], depth, problem.metric, center);
  Book book{problem.codebooks[0], depth, problem.metric, center, 0};
  pack_rows(book, problem.x, rows, packed, norms);
  clear(lanes, rows);
  for (int64_t part = 0; part < parts; ++part) {
    const char* start = static_cast<const char*>(found) + part * found_bytes(problem);
    const Lanes* own = reinterpret_cast<const Lanes*>(start);
    for (int64_t r = 0; r < rows; ++r) join(lanes[r], own[r].best, own[r].second, own[r].group);
    double largest;
    memcpy(&largest, own + padded, sizeof(largest));
    book.largest = larger(book.largest, largest);
  }
  resolve(book, problem.x, rows, norms, lanes, problem.indices, 1);
}

}  // namespace

extern const Variant VQKIT_VARIANT = {
    VQKIT_NAME, kRows, kPanel * kPanels, kLeastDepth, search_rows, found_bytes, scan_codes, resolve_rows};

}  // namespace vqkit
