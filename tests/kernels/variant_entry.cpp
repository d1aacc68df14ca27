// What tests call: one variant of the compiled search (VARIANT) on plain memory, whole or with the codes in two parts.
#include <stdlib.h>

#include "search.h"

extern "C" __attribute__((visibility("default"))) void variant_search(
    const float* x, int64_t rows, int64_t depth, const float* codes, int64_t size, int64_t metric, int64_t parts, int64_t k,
    int64_t* indices) {
  using namespace vqkit;
  const Codebook book{codes, nullptr, size};
  const Problem problem{x, rows, depth, &book, 1, k, static_cast<Metric>(metric), indices};
  if (parts == 1) return VARIANT.search_rows(problem, 0, rows);
  const int64_t bytes = VARIANT.found_bytes(problem), middle = size / 2 / VARIANT.code_block * VARIANT.code_block;
  char* found = static_cast<char*>(aligned_alloc(64, 2 * bytes));
  VARIANT.scan_codes(problem, 0, middle, found);
  VARIANT.scan_codes(problem, middle, size, found + bytes);
  VARIANT.resolve_rows(problem, 2, found);
  free(found);
}
