// Tiles of float32 sums in vector registers of any width: VQKIT_LANES floats in a register, VQKIT_ROWS rows of a tile, so
// that 2 x VQKIT_ROWS registers of sums, and three more, fit. No templates of the C++ library in any file of a variant: an
// inline function that is compiled for AVX-512 could be the copy that the linker keeps for all.

#include <stdint.h>

#include "bounds.inl"

namespace vqkit {
namespace {

constexpr int64_t kLanes = VQKIT_LANES;
constexpr int64_t kRows = VQKIT_ROWS;
constexpr int64_t kPanel = 2 * kLanes;  // codes of a tile
constexpr int64_t kLeastDepth = 1;

typedef float Floats __attribute__((vector_size(kLanes * 4), may_alias));

struct Session {  // what a thread needs while it forms tiles
  Session() {}
};

inline Rounding rounding_of_tiles(int64_t depth) { return rounding_of_floats(depth); }

inline int64_t panel_floats(int64_t depth) { return kPanel * depth; }
inline int64_t block_floats(int64_t depth) { return kRows * depth; }

// (width, depth) -> (depth, width), four by four: compilers would gather the numbers one by one.
template <int64_t width>
inline void transpose(const float* source, int64_t depth, float* target) {
  typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
  const int64_t fours = depth / 4 * 4;
  for (int64_t j = 0; j + 4 <= width; j += 4) {
    for (int64_t d = 0; d < fours; d += 4) {
      const float* from = source + j * depth + d;
      const Four a = *reinterpret_cast<const Four*>(from), b = *reinterpret_cast<const Four*>(from + depth);
      const Four c = *reinterpret_cast<const Four*>(from + 2 * depth), e = *reinterpret_cast<const Four*>(from + 3 * depth);
      const Four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), ce = __builtin_shufflevector(c, e, 0, 4, 1, 5);
      const Four high_ab = __builtin_shufflevector(a, b, 2, 6, 3, 7), high_ce = __builtin_shufflevector(c, e, 2, 6, 3, 7);
      float* to = target + d * width + j;
      *reinterpret_cast<Four*>(to) = __builtin_shufflevector(ab, ce, 0, 1, 4, 5);
      *reinterpret_cast<Four*>(to + width) = __builtin_shufflevector(ab, ce, 2, 3, 6, 7);
      *reinterpret_cast<Four*>(to + 2 * width) = __builtin_shufflevector(high_ab, high_ce, 0, 1, 4, 5);
      *reinterpret_cast<Four*>(to + 3 * width) = __builtin_shufflevector(high_ab, high_ce, 2, 3, 6, 7);
    }
  }
  for (int64_t j = 0; j < width; ++j) {
    for (int64_t d = j < width / 4 * 4 ? fours : 0; d < depth; ++d) target[d * width + j] = source[j * depth + d];
  }
}

// kPanel codes or kRows rows, (kPanel, depth) or (kRows, depth), in the order in which `tile` reads them.
inline void pack_panel(const float* codes, int64_t depth, float* panel) { transpose<kPanel>(codes, depth, panel); }
inline void pack_block(const float* rows, int64_t depth, float* block) { transpose<kRows>(rows, depth, block); }

// Hands the scores of kRows rows and one panel, bias + row . code, to `use(row, those of the first kLanes codes, of the
// others)`.
template <class Use>
inline void tile(const float* block, const float* panel, const float* bias, int64_t depth, Use use) {
  Floats sums[kRows][2];
  const Floats* biases = reinterpret_cast<const Floats*>(bias);
  for (int64_t r = 0; r < kRows; ++r) {
    sums[r][0] = biases[0];
    sums[r][1] = biases[1];
  }
  for (int64_t d = 0; d < depth; ++d) {
    const Floats* codes = reinterpret_cast<const Floats*>(panel + d * kPanel);
    const Floats low = codes[0], high = codes[1];
    for (int64_t r = 0; r < kRows; ++r) {
      const float value = block[d * kRows + r];
      sums[r][0] += value * low;
      sums[r][1] += value * high;
    }
  }
  for (int64_t r = 0; r < kRows; ++r) use(r, sums[r][0], sums[r][1]);
}

}  // namespace
}  // namespace vqkit
