// What the test calls: the AMX variant on plain memory, once whole and once with the codes in two parts.
#include <stdlib.h>

#include "search.h"

extern "C" __attribute__((visibility("default"))) void emulated_search(
    const float* x, int64_t rows, int64_t depth, const float* codes, int64_t size, int64_t metric, int64_t parts,
    int64_t* indices) {
  using namespace vqkit;
  const Codebook book{codes, nullptr, size};
  const Problem problem{x, rows, depth, &book, 1, static_cast<Metric>(metric), indices};
  if (parts == 1) return amx_variant.search_rows(problem, 0, rows);
  const int64_t bytes = amx_variant.found_bytes(problem), middle = size / 2 / amx_variant.code_block * amx_variant.code_block;
  char* found = static_cast<char*>(aligned_alloc(64, 2 * bytes));
  amx_variant.scan_codes(problem, 0, middle, found);
  amx_variant.scan_codes(problem, middle, size, found + bytes);
  amx_variant.resolve_rows(problem, 2, found);
  free(found);
}
