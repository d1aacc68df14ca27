// What one variant of the search (portable, AVX2, AVX-512, AMX) offers to the operator.
#pragma once

#include <stdint.h>

namespace vqkit {

constexpr int64_t kMostCodes = 128;  // that are found for a row

enum class Metric { euclidean = 0, dot = 1, cosine = 2 };

struct Codebook {
  const float* codes;    // (size, depth)
  const uint8_t* valid;  // (size) or null: codes that may win
  int64_t size;
};

// The k best codes of each row; or rows are searched in `levels` codebooks one after another, for one code each time, for
// what the levels before left over. One of k and levels is 1.
struct Problem {
  const float* x;  // (rows, depth)
  int64_t rows, depth;
  const Codebook* codebooks;
  int64_t levels;
  int64_t k;  // from 1 to kMostCodes
  Metric metric;
  int64_t* indices;  // (rows, levels) or (rows, k); -1 where fewer than k codes are usable
};

struct Variant {
  const char* name;
  int64_t row_block;   // rows that are searched at once
  int64_t code_block;  // codes of a range must start at a multiple of it
  int64_t least_depth;  // below it another variant is faster
  // Searches rows [first, last) in all levels.
  void (*search_rows)(const Problem&, int64_t first, int64_t last);
  // The same for a problem of one level, with the codes dealt out: `scan_codes` looks at codes [first, last) and leaves what it
  // found in `found` (`found_bytes` of memory, aligned to 64); `resolve_rows` takes what the parts found, one behind the
  // other, and joins it in the first.
  int64_t (*found_bytes)(const Problem&);
  void (*scan_codes)(const Problem&, int64_t first, int64_t last, char* found);
  void (*resolve_rows)(const Problem&, int64_t parts, char* found);
};

extern const Variant portable_variant;
#if defined(__x86_64__)
extern const Variant avx2_variant;
extern const Variant avx512_variant;
extern const Variant amx_variant;
#endif

}  // namespace vqkit
