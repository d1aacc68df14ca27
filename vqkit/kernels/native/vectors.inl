// Vectors of one row or code: memory, sums in double precision, and the lanes of a register that pass a comparison.

#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <new>

namespace vqkit {
namespace {

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

// ---------------------------------------------------------------------------------------------------------------- lanes

// Bit i: whether lane i is below the bound. What is not a number is not.
inline uint32_t lanes_below(Floats values, float bound) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(values), _mm512_set1_ps(bound), _CMP_LT_OQ);
#elif defined(__AVX2__) && VQKIT_LANES == 8
  return _mm256_movemask_ps(_mm256_cmp_ps(reinterpret_cast<__m256>(values), _mm256_set1_ps(bound), _CMP_LT_OQ));
#else
  uint32_t mask = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) mask |= static_cast<uint32_t>(values[lane] < bound) << lane;
  return mask;
#endif
}

// Writes the lanes of the mask one behind the other and returns their number; kLanes places have to be there.
inline int64_t compress(Floats values, Ints numbers, uint32_t mask, float* to_values, int32_t* to_numbers) {
#if defined(__AVX512F__)
  _mm512_storeu_ps(to_values, _mm512_maskz_compress_ps(mask, reinterpret_cast<__m512>(values)));
  _mm512_storeu_si512(to_numbers, _mm512_maskz_compress_epi32(mask, reinterpret_cast<__m512i>(numbers)));
  return __builtin_popcount(mask);
#else
  float own_values[kLanes];
  int32_t own_numbers[kLanes];
  memcpy(own_values, &values, sizeof(values));
  memcpy(own_numbers, &numbers, sizeof(numbers));
  int64_t number = 0;
  for (; mask != 0; mask &= mask - 1, ++number) {
    to_values[number] = own_values[__builtin_ctz(mask)];
    to_numbers[number] = own_numbers[__builtin_ctz(mask)];
  }
  return number;
#endif
}

// first, first + 1, and so on.
inline Ints count_from(int32_t first) {
  alignas(64) static constexpr int32_t kCount[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return *reinterpret_cast<const Ints*>(kCount) + first;
}

}  // namespace
}  // namespace vqkit
