// The tile instructions that vqkit/kernels/native/amx_tiles.inl uses, in plain C++ after the pseudocode of Intel's manual, so
// that its search can be tested on a processor without the unit. Included before everything else.
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

namespace amx {

struct Shape {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes_of_row[16];
  uint8_t rows[16];
};

inline thread_local Shape shape;  // palette 0: not configured
inline thread_local uint8_t tiles[8][16][64];

inline void load_config(const void* memory) {
  memcpy(&shape, memory, sizeof(shape));
  if (shape.palette != 1 || shape.start_row != 0) __builtin_trap();
  for (int t = 0; t < 8; ++t) {
    if (shape.bytes_of_row[t] > 64 || shape.rows[t] > 16) __builtin_trap();
  }
  memset(tiles, 0, sizeof(tiles));
}

inline void release() { memset(&shape, 0, sizeof(shape)); }

inline void need(int t) {
  if (shape.palette != 1 || shape.rows[t] == 0 || shape.bytes_of_row[t] == 0) __builtin_trap();
}

inline void load(int t, const void* base, int64_t stride) {
  need(t);
  memset(tiles[t], 0, sizeof(tiles[t]));
  for (int r = 0; r < shape.rows[t]; ++r) {
    memcpy(tiles[t][r], static_cast<const uint8_t*>(base) + r * stride, shape.bytes_of_row[t]);
  }
}

inline void store(int t, void* base, int64_t stride) {
  need(t);
  for (int r = 0; r < shape.rows[t]; ++r) {
    memcpy(static_cast<uint8_t*>(base) + r * stride, tiles[t][r], shape.bytes_of_row[t]);
  }
}

inline float flushed(float value) { return fabsf(value) < 0x1p-126f ? copysignf(0.0f, value) : value; }

inline float widened(const uint8_t* row, int element) {
  uint16_t half;
  memcpy(&half, row + 2 * element, sizeof(half));
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  memcpy(&value, &bits, sizeof(value));
  return flushed(value);
}

// Even and odd elements are summed apart, by fused multiply-add, then added to each other and to the destination.
inline void multiply(int target, int a, int b) {
  need(target), need(a), need(b);
  if (shape.bytes_of_row[a] / 4 != shape.rows[b] || target == a || target == b || a == b) __builtin_trap();
  for (int m = 0; m < shape.rows[target]; ++m) {
    float sums[16][2] = {};
    for (int k = 0; k < shape.bytes_of_row[a] / 4; ++k) {
      for (int n = 0; n < shape.bytes_of_row[b] / 4; ++n) {
        for (int odd = 0; odd < 2; ++odd) {
          const float left = widened(tiles[a][m], 2 * k + odd), right = widened(tiles[b][k], 2 * n + odd);
          sums[n][odd] = flushed(fmaf(left, right, sums[n][odd]));
        }
      }
    }
    for (int n = 0; n < shape.bytes_of_row[b] / 4; ++n) {
      float value;
      memcpy(&value, &tiles[target][m][4 * n], sizeof(value));
      value = flushed(flushed(value) + flushed(sums[n][0] + sums[n][1]));
      memcpy(&tiles[target][m][4 * n], &value, sizeof(value));
    }
  }
}

}  // namespace amx

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig amx::load_config
#define _tile_release amx::release
#define _tile_loadd amx::load
#define _tile_stored amx::store
#define _tile_dpbf16ps amx::multiply
