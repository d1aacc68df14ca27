// The context-mixing coder of vqkit/bitstream/mixing.py; vqkit/bitstream/plain_mixing.py is its plain form.
#pragma once

#include <cstdint>
#include <vector>

namespace vqkit {

// Plan.numbers() of the plain form; `valid` is false where the numbers make none.
struct MixingPlan {
  struct Source {
    int number, shift;
  };
  int64_t size = 0, steps = 0, rows = 0, columns = 0;
  int width = 0;
  std::vector<int64_t> neighbours;
  std::vector<std::vector<Source>> contexts;
  bool valid = false;

  MixingPlan(const int64_t* numbers, int64_t count);
  int64_t cells() const { return steps * rows * columns; }
};

// ranks (cells), coarser (cells, 2).
std::vector<uint8_t> mixing_encode(const int64_t* ranks, const int64_t* coarser, const MixingPlan& plan);

// Fills ranks (cells); returns how many bytes they can take at most.
int64_t mixing_decode(const uint8_t* data, int64_t length, const int64_t* coarser, const MixingPlan& plan, int64_t* ranks);

}  // namespace vqkit
