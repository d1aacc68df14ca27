// Tiles of the matrix unit AMX: 32 rows and 32 codes, sums in float32 of products of bfloat16. A number is split into a high
// and a low half of 8 bits each, and three of the four products are formed (high high, high low, low high), so a score has
// about 16 bits; the bound in bounds.inl decides which rows that is enough for. Source: the split is that of Henry, Tang and Heinecke
// 2019 (arXiv:1904.06376); rounding as in the description of TDPBF16PS in Intel's Architectures Software Developer's Manual.

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "bounds.inl"

namespace vqkit {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kRows = 32;
constexpr int64_t kPanel = 32;
constexpr int64_t kLeastDepth = 64;        // below it, the unit waits for what surrounds it
constexpr int64_t kDepth = 32;             // bfloat16 numbers in a row of a tile register
constexpr int64_t kTileFloats = 16 * 16;   // a tile register: 16 rows of 64 bytes
constexpr int64_t kStepFloats = 4 * kTileFloats;  // kDepth dimensions: high and low halves, 2 x 16 rows or codes

typedef float Floats __attribute__((vector_size(kLanes * 4), may_alias));

struct Session {  // the unit has to be told the shape of its registers, in each thread
  Session() {
    struct {
      uint8_t palette, start_row, reserved[14];
      uint16_t bytes_of_row[16];
      uint8_t rows[16];
    } shape;
    static_assert(sizeof(shape) == 64, "what LDTILECFG reads");
    memset(&shape, 0, sizeof(shape));
    shape.palette = 1;
    for (int64_t t = 0; t < 8; ++t) {
      shape.bytes_of_row[t] = 64;
      shape.rows[t] = 16;
    }
    _tile_loadconfig(&shape);
  }
  ~Session() { _tile_release(); }
};

// The unit treats subnormal numbers as zero.
inline Rounding rounding_of_tiles(int64_t depth) {
  return rounding_of_halves(3.0 * (depth + 2 * ((depth + kDepth - 1) / kDepth)));
}

inline int64_t panel_floats(int64_t depth) { return (depth + kDepth - 1) / kDepth * kStepFloats; }
inline int64_t block_floats(int64_t depth) { return panel_floats(depth); }

// Round to nearest, ties to even. Numbers so large that they would become infinite are never searched this way.
inline uint16_t to_bfloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float from_bfloat16(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// 32 vectors (32, depth) as tile registers: for each step of the depth, the high halves of 16 vectors, of the other 16, then
// their low halves. `place(vector, d)` is where in a register's 512 halves dimension d of a vector goes.
template <class Place>
inline void pack(const float* vectors, int64_t depth, float* target, Place place) {
  uint16_t* halves = reinterpret_cast<uint16_t*>(target);
  memset(target, 0, panel_floats(depth) * sizeof(float));
  for (int64_t v = 0; v < 32; ++v) {
    for (int64_t d = 0; d < depth; ++d) {
      const float value = vectors[v * depth + d];
      const uint16_t high = to_bfloat16(value);
      uint16_t* step = halves + 2 * (d / kDepth * kStepFloats + v / 16 * kTileFloats) + place(v % 16, d % kDepth);
      step[0] = high;
      step[2 * 2 * kTileFloats] = to_bfloat16(value - from_bfloat16(high));
    }
  }
}

// Codes: a row of a register holds two dimensions of all 16 codes.
inline void pack_panel(const float* codes, int64_t depth, float* panel) {
  pack(codes, depth, panel, [](int64_t code, int64_t d) { return d / 2 * 32 + 2 * code + d % 2; });
}

// Rows: a row of a register holds 32 dimensions of one.
inline void pack_block(const float* rows, int64_t depth, float* block) {
  pack(rows, depth, block, [](int64_t row, int64_t d) { return row * 32 + d; });
}

// Registers 0 to 3 hold the sums, 4 and 5 rows, 6 and 7 codes.
inline void add_products() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// See float_tiles.inl.
template <class Use>
inline void tile(const float* block, const float* panel, const float* bias, int64_t depth, Use use) {
  _tile_loadd(0, bias, 0);  // the same 16 numbers in each row
  _tile_loadd(1, bias + kLanes, 0);
  _tile_loadd(2, bias, 0);
  _tile_loadd(3, bias + kLanes, 0);
  for (int64_t d = 0; d < depth; d += kDepth, block += kStepFloats, panel += kStepFloats) {
    _tile_loadd(4, block, 64);
    _tile_loadd(5, block + kTileFloats, 64);
    _tile_loadd(6, panel + 2 * kTileFloats, 64);
    _tile_loadd(7, panel + 3 * kTileFloats, 64);
    add_products();
    _tile_loadd(6, panel, 64);
    _tile_loadd(7, panel + kTileFloats, 64);
    add_products();
    _tile_loadd(4, block + 2 * kTileFloats, 64);
    _tile_loadd(5, block + 3 * kTileFloats, 64);
    add_products();
  }
  alignas(64) float scores[kRows * kPanel];
  _tile_stored(0, scores, 4 * kPanel);
  _tile_stored(1, scores + kLanes, 4 * kPanel);
  _tile_stored(2, scores + 16 * kPanel, 4 * kPanel);
  _tile_stored(3, scores + 16 * kPanel + kLanes, 4 * kPanel);
  for (int64_t r = 0; r < kRows; ++r) {
    const Floats* row = reinterpret_cast<const Floats*>(scores + r * kPanel);
    use(r, row[0], row[1]);
  }
}

}  // namespace
}  // namespace vqkit
