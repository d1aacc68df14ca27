// The best code of each row: the scan keeps, for each row and lane, the smallest score, the group of codes that it comes
// from, and the smallest score of all other groups. Where the best group leads by more than the rounding error, its codes
// alone are scored in double precision.

#pragma once

#include "exact.inl"

namespace vqkit {
namespace {

struct Lanes {  // what is known of a row after some codes, in each lane
  Floats best;
  Floats second;  // the smallest score outside of the best group
  Ints group;     // of the best score: codes group * panels * kPanel + lane + multiples of kLanes
};

class NearestOne {
 public:
  static int64_t bytes(int64_t rows, int64_t) { return rows * static_cast<int64_t>(sizeof(Lanes)); }
  static int64_t rows_at_once(int64_t) { return kRowsAtOnce; }

  NearestOne(void* memory, int64_t rows, int64_t) : lanes_(static_cast<Lanes*>(memory)), rows_(rows) {}

  void clear(int64_t) {
    for (int64_t r = 0; r < rows_; ++r) lanes_[r] = {INFINITY - Floats{}, INFINITY - Floats{}, Ints{}};
  }

  // Adds codes [first, last). Returns the length of the longest.
  double scan(const Book& book, int64_t first, int64_t last, const float* packed_rows) {
    const int64_t depth = book.depth, per_group = book.panels_of_group();
    return for_packed_codes(book, first, last, [&](const float* panels, const float* bias, int64_t start, int64_t number) {
      for (int64_t row = 0; row < rows_; row += kRows) {
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
          for (int64_t r = 0; r < kRows; ++r) join(lanes_[row + r], minima[r], INFINITY - Floats{}, own);
        }
      }
    });
  }

  // Adds what another scan over other codes found for the same rows.
  void merge(const NearestOne& other) {
    for (int64_t r = 0; r < rows_; ++r) {
      join(lanes_[r], other.lanes_[r].best, other.lanes_[r].second, other.lanes_[r].group);
    }
  }

  // Whether the best group decides the index of a row; `limit` is then or else the largest score that can be the best.
  bool decide(const Book& book, const float* row, double norm, int64_t r, int64_t* index, double* limit) {
    const Lanes& lanes = lanes_[r];
    int64_t lane = 0;
    for (int64_t other = 1; other < kLanes; ++other) lane = lanes.best[other] < lanes.best[lane] ? other : lane;
    const double best = lanes.best[lane], width = doubt_width(book, norm, best);
    double second = INFINITY;
    for (int64_t other = 0; other < kLanes; ++other) {
      if (other != lane && lanes.best[other] < second) second = lanes.best[other];
      if (lanes.second[other] < second) second = lanes.second[other];
    }
    *limit = best + width;
    if (!(second > *limit)) return false;

    const int64_t group = book.panels_of_group() * kPanel, start = lanes.group[lane] * group;
    int32_t codes[2 * kPanels];
    int64_t number = 0;
    for (int64_t k = start + lane; k < smaller(start + group, book.size); k += kLanes) {
      codes[number++] = static_cast<int32_t>(k);
    }
    best_of(book, row, norm, codes, number, 1, scratch_, index);
    return true;
  }

 private:
  static inline void join(Lanes& lanes, Floats score, Floats second, Ints group) {
    const Ints closer = score < lanes.best;
    const Floats loser = closer ? lanes.best : score;
    lanes.second = second < lanes.second ? second : lanes.second;
    lanes.second = loser < lanes.second ? loser : lanes.second;
    lanes.group = closer ? group : lanes.group;
    lanes.best = closer ? score : lanes.best;
  }

  Lanes* lanes_;
  int64_t rows_;
  Scratch scratch_{2 * kPanels};
};

}  // namespace
}  // namespace vqkit
