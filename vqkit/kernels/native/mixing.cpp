// Every constant and every rounding is that of plain_mixing.py, and in the format of the files.

#include "mixing.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <new>

namespace vqkit {
namespace {

constexpr int kLimit = 2047, kLargestTable = 22, kNeighbours = 4, kAgreements = 81, kNodeDepth = 8, kHistory = 15;
constexpr int kMostContexts = 16, kInputs = 2 * kMostContexts + 2, kLargestWeight = 1 << 20, kLargestWidth = 20;
constexpr uint64_t kMultiplier = 0x9E3779B97F4A7C15u, kNodeMultiplier = 0xD6E8FEB86659FD93u;

struct Tables {
  std::array<int32_t, 2 * kLimit + 1> squash;
  std::array<int32_t, 4096> stretch;
  std::array<int32_t, 31> slots;
  std::array<int32_t, 256> histories, agreements, weights;

  Tables() {
    int64_t power = int64_t{1} << 31;
    for (int x = 0; x <= kLimit; ++x) {
      squash[kLimit + x] = static_cast<int32_t>((int64_t{1} << 47) / ((int64_t{1} << 31) + power));
      squash[kLimit - x] = 65536 - squash[kLimit + x];
      power = power * 2139111402 >> 31;  // exp(-1/256)
    }
    int logit = -kLimit;
    for (int place = 0; place < 4096; ++place) {
      while (logit < kLimit && squash[logit + kLimit] < 16 * place + 8) ++logit;
      stretch[place] = logit;
    }
    for (int seen = 0; seen < 31; ++seen) slots[seen] = 131072 / (2 * seen + 3);
    for (int seen = 0; seen < 256; ++seen) {
      histories[seen] = 65536 / (seen + 5);
      agreements[seen] = 131072 / (2 * seen + 3);
      weights[seen] = 80 + 48000 / (100 + 3 * seen);
    }
  }
};

const Tables& tables() {
  static const Tables made;
  return made;
}

struct Slot {  // 8 bytes; all zero where nothing was seen yet
  uint16_t tag, probability;
  uint8_t seen, zeros, ones, last;
};

struct Learned {
  int32_t probability;
  int32_t seen;
};

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

class Model {
 public:
  Model(const MixingPlan& plan, const int64_t* coarser)
      : plan_(plan), coarser_(coarser), count_(static_cast<int>(plan.contexts.size())), inputs_count_(2 * count_ + 2) {
    const uint64_t touched = static_cast<uint64_t>(plan.cells()) * plan.width * count_;
    table_bits_ = 10;
    while (table_bits_ < kLargestTable && (uint64_t{1} << table_bits_) < touched) ++table_bits_;
    slots_.reset(static_cast<Slot*>(std::calloc(size_t{1} << table_bits_, sizeof(Slot))));
    if (!slots_) throw std::bad_alloc();
    std::array<Learned, 256> first;
    for (int zeros = 0; zeros <= kHistory; ++zeros)
      for (int ones = 0; ones <= kHistory; ++ones)
        first[16 * zeros + ones] = {((5 * ones + 2) << 22) / (5 * (zeros + ones) + 4), 0};
    histories_.resize(static_cast<size_t>(count_) * 2 * plan.width * 256);
    for (size_t start = 0; start < histories_.size(); start += 256)
      std::copy(first.begin(), first.end(), histories_.begin() + start);
    agreements_.assign(plan.width * kAgreements, {1 << 21, 0});
    const size_t sets = plan.width * kAgreements + (1 << kNodeDepth) + kLargestWidth + 1;
    weights_.assign(sets * inputs_count_, 49152 / count_);
    for (size_t set = 0; set < sets; ++set) {
      weights_[set * inputs_count_ + 2 * count_] = 6554;
      weights_[set * inputs_count_ + 2 * count_ + 1] = 0;
    }
    weights_seen_.assign(sets, 0);
  }

  void enter(const int64_t* ranks, int64_t cell) {
    const int64_t column = cell % plan_.columns, row = cell / plan_.columns % plan_.rows;
    const int64_t step = cell / plan_.columns / plan_.rows;
    const int given = static_cast<int>(plan_.neighbours.size() / 3);
    int64_t nearest = -1;
    for (int k = 0; k < kNeighbours; ++k) {
      around_[k] = -1;
      if (k >= given) continue;
      const int64_t* back = &plan_.neighbours[3 * k];
      const bool inside = step + back[0] >= 0 && row + back[1] >= 0 && column + back[2] >= 0 &&
                          column + back[2] < plan_.columns;
      if (inside) around_[k] = ranks[cell + (back[0] * plan_.rows + back[1]) * plan_.columns + back[2]];
      if (nearest < 0) nearest = around_[k];
    }
    for (int k = 0; k < kNeighbours; ++k) {
      if (k < given && around_[k] < 0) around_[k] = nearest;
      agree_[k] = around_[k] >= 0;
    }
    for (int c = 0; c < count_; ++c) {
      uint64_t key = (c + 1) * kMultiplier;
      for (const auto& source : plan_.contexts[c]) {
        const int64_t value = source.number < kNeighbours ? around_[source.number] >> source.shift
                                                          : coarser_[2 * cell + source.number - kNeighbours];
        key = (key + static_cast<uint64_t>(value) + 1) * kMultiplier;
        key ^= key >> 29;
      }
      keys_[c] = key;
    }
    node_ = 1;
    depth_ = 0;
  }

  // In 1/65536.
  int32_t predict(int64_t middle) {
    const Tables& t = tables();
    place_ = 0;
    for (int k = kNeighbours - 1; k >= 0; --k) {
      expected_[k] = agree_[k] ? 1 + (around_[k] >= middle) : 0;
      place_ = 3 * place_ + expected_[k];
    }
    place_ += depth_ * kAgreements;
    for (int c = 0; c < count_; ++c) {
      const uint64_t found = (keys_[c] + node_) * kNodeMultiplier;
      Slot& slot = slots_.get()[found >> (64 - table_bits_)];
      const uint16_t tag = static_cast<uint16_t>(found >> 20);
      if (slot.tag != tag || slot.seen == 0) slot = {tag, 32768, 0, 0, 0, 0};
      chosen_[c] = &slot;
    }
    for (int c = 0; c < count_; ++c) {
      const Slot& slot = *chosen_[c];
      const int32_t known = slot.seen ? history(c, slot).probability : 1 << 21;
      inputs_[c] = t.stretch[known >> 10];
      inputs_[count_ + c] = t.stretch[slot.probability >> 4];
    }
    inputs_[2 * count_] = t.stretch[agreements_[place_].probability >> 10];
    inputs_[2 * count_ + 1] = 256;
    sets_[0] = place_;
    sets_[1] = plan_.width * kAgreements + (depth_ < kNodeDepth ? static_cast<int>(node_) : (1 << kNodeDepth) + depth_);
    for (int s = 0; s < 2; ++s) {
      const int32_t* weights = &weights_[static_cast<size_t>(sets_[s]) * inputs_count_];
      int64_t total = 0;
      for (int i = 0; i < inputs_count_; ++i) total += static_cast<int64_t>(weights[i]) * inputs_[i];
      mixed_[s] = static_cast<int>(std::min<int64_t>(std::max<int64_t>(total >> 16, -kLimit), kLimit));
    }
    return t.squash[((mixed_[0] + mixed_[1]) >> 1) + kLimit];
  }

  void learn(int bit) {
    const Tables& t = tables();
    for (int s = 0; s < 2; ++s) {
      uint8_t& seen = weights_seen_[sets_[s]];
      const int32_t step = static_cast<int32_t>(
          (static_cast<int64_t>((bit << 16) - t.squash[mixed_[s] + kLimit]) * t.weights[seen]) >> 10);
      if (seen < 255) ++seen;
      int32_t* weights = &weights_[static_cast<size_t>(sets_[s]) * inputs_count_];
      for (int i = 0; i < inputs_count_; ++i) {
        const int32_t moved = weights[i] + ((inputs_[i] * step + 2048) >> 12);
        weights[i] = std::min(std::max(moved, -kLargestWeight), kLargestWeight);
      }
    }
    const int64_t target = bit ? (1 << 22) - 1 : 0;
    move(agreements_[place_], target, t.agreements);
    for (int c = 0; c < count_; ++c) {
      Slot& slot = *chosen_[c];
      if (slot.seen) move(history(c, slot), target, t.histories);
      const int64_t goal = bit ? 65535 : 0, now = slot.probability;
      const int64_t next = now + ((goal - now) * t.slots[slot.seen] >> 16);
      slot.probability = static_cast<uint16_t>(std::min<int64_t>(std::max<int64_t>(next, 32), 65503));
      if (slot.seen < 30) ++slot.seen;
      uint8_t& more = bit ? slot.ones : slot.zeros;
      uint8_t& less = bit ? slot.zeros : slot.ones;
      if (more < kHistory) ++more;
      if (less > 2) less = (less + 2) / 2;
      slot.last = static_cast<uint8_t>(bit);
    }
    for (int k = 0; k < kNeighbours; ++k) agree_[k] = expected_[k] == 1 + bit;
    node_ = 2 * node_ + bit;
    ++depth_;
  }

 private:
  Learned& history(int context, const Slot& slot) {
    const size_t row = (static_cast<size_t>(context) * plan_.width + depth_) * 2 + slot.last;
    return histories_[row * 256 + 16 * slot.zeros + slot.ones];
  }

  static void move(Learned& known, int64_t target, const std::array<int32_t, 256>& steps) {
    known.probability += static_cast<int32_t>((target - known.probability) * steps[known.seen] >> 16);
    if (known.seen < 255) ++known.seen;
  }

  const MixingPlan& plan_;
  const int64_t* coarser_;
  const int count_, inputs_count_;
  int table_bits_;
  std::unique_ptr<Slot, Free> slots_;
  std::vector<Learned> histories_, agreements_;
  std::vector<int32_t> weights_;
  std::vector<uint8_t> weights_seen_;

  std::array<int64_t, kNeighbours> around_;
  std::array<bool, kNeighbours> agree_;
  std::array<int, kNeighbours> expected_;
  std::array<uint64_t, kMostContexts> keys_;
  std::array<Slot*, kMostContexts> chosen_;
  std::array<int32_t, kInputs> inputs_;
  std::array<int, 2> sets_, mixed_;
  uint64_t node_ = 1;
  int depth_ = 0, place_ = 0;
};

struct Interval {
  uint32_t low = 0, high = 0xFFFFFFFFu;

  uint32_t middle(int32_t probability) const {
    return low + static_cast<uint32_t>((static_cast<uint64_t>(high - low) * probability) >> 16);
  }
  void take(int bit, uint32_t at) {
    if (bit) {
      high = at;
    } else {
      low = at + 1;
    }
  }
  bool settled() const { return (low ^ high) >> 24 == 0; }
  void shift() {
    low <<= 8;
    high = high << 8 | 255;
  }
};

}  // namespace

MixingPlan::MixingPlan(const int64_t* numbers, int64_t count) {
  int64_t next = 0;
  const auto take = [&](int64_t least, int64_t most) -> int64_t {
    if (next < 0 || next >= count || numbers[next] < least || numbers[next] > most) {
      next = -1;
      return least;
    }
    return numbers[next++];
  };
  constexpr int64_t large = int64_t{1} << 40;
  size = take(2, int64_t{1} << kLargestWidth);
  while ((int64_t{1} << width) < size) ++width;
  steps = take(1, large);
  rows = take(1, large);
  columns = take(1, large);
  const int64_t given = take(0, kNeighbours);
  for (int64_t k = 0; k < given; ++k) {
    const int64_t back[3] = {take(-large, 0), take(-large, 0), take(-large, large)};
    const bool before = back[0] < 0 || back[1] < 0 || back[2] < 0;
    if (!before) next = -1;
    neighbours.insert(neighbours.end(), back, back + 3);
  }
  const int64_t wanted = take(1, kMostContexts);
  for (int64_t c = 0; c < wanted; ++c) {
    contexts.emplace_back();
    const int64_t sources = take(0, kNeighbours + 2);
    for (int64_t k = 0; k < sources; ++k) {
      const int number = static_cast<int>(take(0, kNeighbours + 1)), kept = static_cast<int>(take(0, kLargestWidth));
      contexts.back().push_back({number, std::max(width - kept, 0)});
    }
  }
  valid = next == count && rows <= large / columns && steps <= large / (rows * columns);
}

std::vector<uint8_t> mixing_encode(const int64_t* ranks, const int64_t* coarser, const MixingPlan& plan) {
  Model model(plan, coarser);
  Interval interval;
  std::vector<uint8_t> written;
  for (int64_t cell = 0; cell < plan.cells(); ++cell) {
    model.enter(ranks, cell);
    for (int64_t low = 0, high = plan.size; high - low > 1;) {
      const int64_t middle = (low + high) / 2;
      const int bit = ranks[cell] >= middle;
      interval.take(bit, interval.middle(model.predict(middle)));
      for (; interval.settled(); interval.shift()) written.push_back(static_cast<uint8_t>(interval.high >> 24));
      model.learn(bit);
      (bit ? low : high) = middle;
    }
  }
  for (int bytes = 0; bytes < 5; ++bytes) {  // the fewest that lead there, where zeros follow
    const uint64_t unit = uint64_t{1} << (32 - 8 * bytes), number = (interval.low + unit - 1) / unit;
    if (number * unit > interval.high) continue;
    for (int k = bytes - 1; k >= 0; --k) written.push_back(static_cast<uint8_t>(number >> 8 * k));
    break;
  }
  while (!written.empty() && written.back() == 0) written.pop_back();
  return written;
}

int64_t mixing_decode(const uint8_t* data, int64_t length, const int64_t* coarser, const MixingPlan& plan, int64_t* ranks) {
  Model model(plan, coarser);
  Interval interval;
  int64_t position = 0;
  const auto next = [&]() -> uint32_t {
    const uint32_t byte = position < length ? data[position] : 0;
    ++position;
    return byte;
  };
  uint32_t number = 0;
  for (int k = 0; k < 4; ++k) number = number << 8 | next();
  for (int64_t cell = 0; cell < plan.cells(); ++cell) {
    model.enter(ranks, cell);
    int64_t low = 0;
    for (int64_t high = plan.size; high - low > 1;) {
      const int64_t middle = (low + high) / 2;
      const uint32_t at = interval.middle(model.predict(middle));
      const int bit = number <= at;
      interval.take(bit, at);
      for (; interval.settled(); interval.shift()) number = number << 8 | next();
      model.learn(bit);
      (bit ? low : high) = middle;
    }
    ranks[cell] = low;
  }
  return position;
}

}  // namespace vqkit
