// Codebooks and rows as the tiles read them: less the centre, of length one (cosine), in panels and blocks.

#pragma once

#include <math.h>
#include <string.h>

#include "search.h"
#include "vectors.inl"

namespace vqkit {
namespace {

constexpr int64_t kPanels = 4;              // most panels of a group
constexpr int64_t kCodeBytes = 256 * 1024;  // packed codes that stay in the second level cache
constexpr int64_t kRowsAtOnce = 4096;       // bounds the memory of a thread
constexpr double kFar = 0x1p62;             // rows and codes shorter than this make no score that overflows

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

}  // namespace
}  // namespace vqkit
