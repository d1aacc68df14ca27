// Lists of the codes with small scores, one for each row: those below a bound that falls as the list fills up, or below
// one that stays.

#pragma once

#include <math.h>
#include <string.h>

#include "packing.inl"

namespace vqkit {
namespace {

// The order of floats as integers, and back.
inline int32_t flip(int32_t bits) { return bits ^ (bits >> 31 & 0x7fffffff); }

inline int32_t order_of(float value) {
  int32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return flip(bits);
}

inline float value_of(int32_t order) {
  const int32_t bits = flip(order);
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

class Lists {
 public:
  // `room`: entries of a list, a multiple of kLanes; `memory`: `bytes` of it, aligned to 64.
  static int64_t bytes(int64_t rows, int64_t room) {
    return rows * stride_of(room) * 8 + round_up(rows * 4, 64) + round_up(rows * 4, 64);
  }

  Lists(void* memory, int64_t rows, int64_t room) : rows_(rows), room_(room), stride_(stride_of(room)) {
    char* start = static_cast<char*>(memory);
    scores_ = reinterpret_cast<float*>(start);
    codes_ = reinterpret_cast<int32_t*>(start + rows * stride_ * 4);
    bounds_ = reinterpret_cast<float*>(start + rows * stride_ * 8);
    numbers_ = reinterpret_cast<int32_t*>(start + rows * stride_ * 8 + round_up(rows * 4, 64));
  }

  // Empties a list, which takes scores below the bound from now on.
  void clear(int64_t row, float bound) {
    bounds_[row] = bound;
    numbers_[row] = 0;
  }

  // A list that was closed takes no more, and is full.
  void close(int64_t row) {
    bounds_[row] = -INFINITY;
    numbers_[row] = static_cast<int32_t>(room_ + 1);
  }

  bool is_full(int64_t row) const { return numbers_[row] > room_; }
  int64_t number(int64_t row) const { return numbers_[row]; }
  const int32_t* codes(int64_t row) const { return codes_ + row * stride_; }
  // Of each row: codes that were left out have at least this score, where lists were shrunk.
  const float* bounds() const { return bounds_; }

  // Adds the scores of codes first, first + 1, ... of a panel that are below the bound; calls `make_room(row)` for a full
  // list. Rarely called, and not inlined, so that the loop over all scores stays short.
  template <class MakeRoom>
  __attribute__((noinline)) void add(int64_t row, Floats low, Floats high, int64_t first, MakeRoom make_room) {
    const float bound = bounds_[row];
    float* scores = scores_ + row * stride_;
    int32_t* codes = codes_ + row * stride_;
    int64_t number = numbers_[row];
    const int32_t start = static_cast<int32_t>(first);
    number += compress(low, count_from(start), lanes_below(low, bound), scores + number, codes + number);
    number += compress(high, count_from(start + kLanes), lanes_below(high, bound), scores + number, codes + number);
    numbers_[row] = static_cast<int32_t>(number);
    if (number > room_) make_room(row);
  }

  // Leaves the `keep` smallest scores in a list, or a few more, and lowers its bound to the smallest of the others.
  void shrink(int64_t row, int64_t keep) {
    float* scores = scores_ + row * stride_;
    int32_t* codes = codes_ + row * stride_;
    const int64_t number = numbers_[row], padded = pad(row), most = keep + keep / 4;
    if (number <= most) return;
    // Bisection: fewer than `keep` scores are below value_of(low), at least as many are below value_of(high).
    const bool bounded = bounds_[row] < INFINITY;  // then a score may be equal to it
    int64_t low = order_of(least(scores, padded)), high = order_of(bounds_[row]) + bounded, below = number;
    while (below > most && high - low > 1) {
      const int64_t middle = (low + high) / 2;
      const int64_t count = count_below(scores, padded, value_of(static_cast<int32_t>(middle)));
      if (count < keep) {
        low = middle;
      } else {
        high = middle;
        below = count;
      }
    }
    // Where too many are left they are equal: some of them stay.
    const bool ties = below > most;
    const float bound = value_of(static_cast<int32_t>(ties ? low : high)), next = value_of(static_cast<int32_t>(high));
    int64_t spare = ties ? keep - count_below(scores, padded, bound) : 0, kept = 0;
    for (int64_t i = 0; i < padded; i += kLanes) {
      const Floats values = *reinterpret_cast<const Floats*>(scores + i);
      uint32_t mask = lanes_below(values, bound), equal = lanes_below(values, next) & ~mask;
      for (; equal != 0 && spare > 0; equal &= equal - 1, --spare) mask |= equal & -equal;
      kept += compress(values, *reinterpret_cast<const Ints*>(codes + i), mask, scores + kept, codes + kept);
    }
    bounds_[row] = bound;
    numbers_[row] = static_cast<int32_t>(kept);
  }

  // Adds what another pass over other codes found for the same rows.
  void merge(const Lists& other, int64_t keep) {
    for (int64_t row = 0; row < rows_; ++row) {
      const int64_t start = row * stride_, own = numbers_[row];
      bounds_[row] = other.bounds_[row] < bounds_[row] ? other.bounds_[row] : bounds_[row];
      numbers_[row] = 0;
      for (int64_t i = 0; i < own; ++i) offer(row, scores_[start + i], codes_[start + i], keep);
      for (int64_t i = 0; i < other.numbers_[row]; ++i) {
        offer(row, other.scores_[start + i], other.codes_[start + i], keep);
      }
    }
  }

  // Scores and codes of a list, the smallest score first.
  void sort(int64_t row, float* sorted_scores, int32_t* sorted_codes) {
    const float* scores = scores_ + row * stride_;
    const int64_t number = numbers_[row], padded = pad(row);
    for (int64_t block = 0; block < number; block += kLanes) {
      for (int64_t i = block; i < smaller(block + kLanes, number); ++i) {
        int64_t rank = count_below(scores + block, padded - block, scores[i]);
        for (int64_t j = 0; j < block; ++j) rank += scores[j] <= scores[i];
        for (int64_t j = block; j < i; ++j) rank += scores[j] == scores[i];
        sorted_scores[rank] = scores[i];
        sorted_codes[rank] = codes_[row * stride_ + i];
      }
    }
  }

 private:
  static int64_t stride_of(int64_t room) { return room + kPanel; }  // a panel is added before the list is looked at

  void offer(int64_t row, float score, int32_t code, int64_t keep) {
    if (!(score <= bounds_[row]) || score == INFINITY) return;
    const int64_t place = row * stride_ + numbers_[row]++;
    scores_[place] = score;
    codes_[place] = code;
    if (numbers_[row] > room_) shrink(row, keep);
  }

  // Infinities behind the last score, up to whole registers; their number together.
  int64_t pad(int64_t row) {
    const int64_t padded = round_up(numbers_[row], kLanes);
    for (int64_t i = numbers_[row]; i < padded; ++i) scores_[row * stride_ + i] = INFINITY;
    return padded;
  }

  static int64_t count_below(const float* scores, int64_t number, float bound) {
    int32_t count = 0;
    for (int64_t i = 0; i < number; ++i) count += scores[i] < bound;
    return count;
  }

  static float least(const float* scores, int64_t padded) {
    Floats smallest = INFINITY - Floats{};
    for (int64_t i = 0; i < padded; i += kLanes) {
      const Floats values = *reinterpret_cast<const Floats*>(scores + i);
      smallest = values < smallest ? values : smallest;
    }
    float result = INFINITY;
    for (int64_t lane = 0; lane < kLanes; ++lane) result = smallest[lane] < result ? smallest[lane] : result;
    return result;
  }

  int64_t rows_, room_, stride_;
  float *scores_, *bounds_;
  int32_t *codes_, *numbers_;
};

// Adds codes [first, last) to the lists of packed rows. Returns the length of the longest code.
template <class MakeRoom>
double collect(
    const Book& book, int64_t first, int64_t last, const float* packed_rows, int64_t padded, Lists& lists,
    MakeRoom make_room) {
  const int64_t depth = book.depth;
  return for_packed_codes(book, first, last, [&](const float* panels, const float* bias, int64_t start, int64_t number) {
    for (int64_t row = 0; row < padded; row += kRows) {
      const float* bounds = lists.bounds() + row;
      for (int64_t p = 0; p < number; ++p) {
        tile(packed_rows + row / kRows * block_floats(depth), panels + p * panel_floats(depth), bias + p * kPanel, depth,
             [=, &lists](int64_t r, Floats low, Floats high) {
               const Floats least = low < high ? low : high;
               if (lanes_below(least, bounds[r]) != 0) lists.add(row + r, low, high, start + p * kPanel, make_room);
             });
      }
    }
  });
}

}  // namespace
}  // namespace vqkit
