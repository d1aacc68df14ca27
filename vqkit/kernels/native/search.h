// What one variant of the search (portable, AVX2, AVX-512, AMX) offers to the operator.
#pragma once

#include <stdint.h>

namespace vqkit {

enum class Metric { euclidean = 0, dot = 1, cosine = 2 };

struct Codebook {
  const float* codes;    // (size, depth)
  const uint8_t* valid;  // (size) or null: codes that may win
  int64_t size;
};

// Rows are searched in `levels` codebooks one after another, each time for what the levels before left over.
struct Problem {
  const float* x;  // (rows, depth)
  int64_t rows, depth;
  const Codebook* codebooks;
  int64_t levels;
  Metric metric;
  int64_t* indices;  // (rows, levels)
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
  // other.
  int64_t (*found_bytes)(const Problem&);
  void (*scan_codes)(const Problem&, int64_t first, int64_t last, void* found);
  void (*resolve_rows)(const Problem&, int64_t parts, const void* found);
};

extern const Variant portable_variant;
#if defined(__x86_64__)
extern const Variant avx2_variant;
extern const Variant avx512_variant;
extern const Variant amx_variant;
#endif

}  // namespace vqkit
