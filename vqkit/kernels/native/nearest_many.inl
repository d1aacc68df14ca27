// The k best codes of each row: the scan keeps a list of somewhat more than k small scores for each row. Where the list
// holds all codes that can be among the best, those whose scores differ by more than the rounding error are in order, and
// runs of closer ones are compared in double precision.

#pragma once

#include "exact.inl"
#include "lists.inl"

namespace vqkit {
namespace {

constexpr int64_t kSpare = 8;                // more scores are kept than k: the next ones may be as close
constexpr int64_t kListBytes = 1024 * 1024;  // lists that are filled at once

class NearestMany {
 public:
  static int64_t bytes(int64_t rows, int64_t k) { return Lists::bytes(rows, room_of(k)); }
  static int64_t rows_at_once(int64_t k) {
    return smaller(kRowsAtOnce, round_up(kListBytes / Lists::bytes(1, room_of(k)), kRows));
  }

  NearestMany(void* memory, int64_t rows, int64_t k)
      : lists_(memory, rows, room_of(k)), rows_(rows), k_(k), sorted_scores_(room_of(k)), sorted_codes_(room_of(k)),
        scratch_(room_of(k)) {}

  // `rows`: those that are no padding.
  void clear(int64_t rows) {
    for (int64_t r = 0; r < rows_; ++r) lists_.clear(r, r < rows ? INFINITY : -INFINITY);
  }

  // Adds codes [first, last). Returns the length of the longest.
  double scan(const Book& book, int64_t first, int64_t last, const float* packed_rows) {
    return collect(book, first, last, packed_rows, rows_, lists_, [this](int64_t row) { lists_.shrink(row, keep()); });
  }

  // Adds what another scan over other codes found for the same rows.
  void merge(const NearestMany& other) { lists_.merge(other.lists_, keep()); }

  // Whether the list decides the indices of a row; `limit` is the largest score that can be among the best.
  bool decide(const Book& book, const float* row, double norm, int64_t r, int64_t* indices, double* limit) {
    *limit = INFINITY;
    if (lists_.number(r) < k_) return false;
    lists_.shrink(r, keep());
    lists_.sort(r, sorted_scores_, sorted_codes_);
    const double width = doubt_width(book, norm, sorted_scores_[k_ - 1]);
    *limit = sorted_scores_[k_ - 1] + width;
    if (!(lists_.bounds()[r] > *limit)) return false;

    int64_t number = k_, reference = -1;
    while (number < lists_.number(r) && sorted_scores_[number] <= *limit) ++number;
    for (int64_t first = 0, end = 1; first < k_; first = end++) {
      while (end < number && sorted_scores_[end] - static_cast<double>(sorted_scores_[end - 1]) <= width) ++end;
      if (first == 0) reference = best_score(book, row, end);
      if (end - first == 1) {
        indices[first] = sorted_codes_[first];
      } else {
        const int64_t picks = smaller(end, k_) - first;
        choose(book, row, reference, sorted_codes_ + first, end - first, picks, scratch_.differences, indices + first);
      }
    }
    return true;
  }

 private:
  static int64_t room_of(int64_t k) { return round_up(2 * (k + kSpare) + kPanel, kLanes); }
  int64_t keep() const { return k_ + kSpare; }

  // The code with the best score in double precision, among the first ones of the list.
  int64_t best_score(const Book& book, const float* row, int64_t number) const {
    if (number == 1) return sorted_codes_[0];
    int64_t best = -1;
    double least = INFINITY;
    for (int64_t i = 0; i < number; ++i) {
      const double score = exact_score(book, row, sorted_codes_[i]);
      if (score < least || (score == least && sorted_codes_[i] < best)) {
        best = sorted_codes_[i];
        least = score;
      }
    }
    return best;
  }

  Lists lists_;
  int64_t rows_, k_;
  Array<float> sorted_scores_;
  Array<int32_t> sorted_codes_;
  Scratch scratch_;
};

}  // namespace
}  // namespace vqkit
