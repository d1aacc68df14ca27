// The search. One source file per variant names it (VQKIT_VARIANT, VQKIT_NAME), includes the tiles that it is made of
// (float_tiles.inl or amx_tiles.inl), then this file.
//
// Scores are bias - x . e (docs/search.md), formed in tiles of kRows rows and kPanel codes that never leave the core. Three
// steps:
//   scan      keeps the smallest scores of each row (nearest_one.inl for one code, nearest_many.inl for several);
//   decide    rows whose best codes lead by more than the rounding error;
//   look twice at the rows that are left: every code within the rounding error of the best, in double precision.
// A row alone, as a stream has it, is compared with every code in double precision at once: packing them would take longer.

#include "nearest_many.inl"
#include "nearest_one.inl"

namespace vqkit {
namespace {

constexpr int64_t kCandidates = 15;  // for each code that is asked for and one more: with more ties, all codes are compared

// Rows that were not decided: lists the codes whose float32 score is within the limit, and decides among those.
void look_twice(
    const Book& book, const float* x, const double* norms, const double* limits, const int64_t* undecided,
    int64_t number, int64_t k, Scratch& scratch, int64_t* indices, int64_t stride) {
  const int64_t depth = book.depth, padded = round_up(number, kRows), room = round_up(kCandidates * (k + 1), kLanes);
  Array<char> memory(Lists::bytes(padded, room));
  Array<double> own_norms(number);
  Array<float> rows(number * depth), packed(padded / kRows * block_floats(depth));
  Lists lists(memory, padded, room);
  for (int64_t i = 0; i < padded; ++i) {
    lists.clear(i, -INFINITY);
    if (i >= number) continue;
    const double limit = limits[undecided[i]];
    if (isfinite(limit)) {
      lists.clear(i, nextafterf(static_cast<float>(limit + fabs(limit) * 0x1p-23), INFINITY));
    } else {
      lists.close(i);
    }
    memcpy(rows + i * depth, x + undecided[i] * depth, depth * sizeof(float));
  }
  pack_rows(book, rows, number, packed, own_norms);
  collect(book, 0, book.size, packed, padded, lists, [&lists](int64_t row) { lists.close(row); });
  for (int64_t i = 0; i < number; ++i) {
    const int64_t r = undecided[i];
    const int32_t* codes = lists.is_full(i) ? nullptr : lists.codes(i);
    const int64_t candidates = lists.is_full(i) ? book.size : lists.number(i);
    best_of(book, x + r * depth, norms[r], codes, candidates, k, scratch, indices + r * stride);
  }
}

// The indices of each row, from what the scan found.
template <class Nearest>
void resolve(
    const Book& book, const float* x, int64_t rows, const double* norms, Nearest& nearest, int64_t k, int64_t* indices,
    int64_t stride) {
  Array<int64_t> undecided(rows);
  Array<double> limits(rows);
  int64_t number = 0, fallback[kMostCodes] = {-1};
  for (int64_t r = 0; r < rows; ++r) {
    const bool ties_with_all = book.metric != Metric::euclidean && norms[r] == 0;
    if (isfinite(norms[r]) && !ties_with_all) {
      const float* row = x + r * book.depth;
      if (!nearest.decide(book, row, norms[r], r, indices + r * stride, &limits[r])) undecided[number++] = r;
    } else {
      if (fallback[0] < 0) lowest_usable(book, k, fallback);
      memcpy(indices + r * stride, fallback, k * sizeof(int64_t));
    }
  }
  if (number == 0) return;
  Scratch scratch(book.size);
  if (number >= kRows) return look_twice(book, x, norms, limits, undecided, number, k, scratch, indices, stride);
  for (int64_t i = 0; i < number; ++i) {  // packing the codes again would cost more
    const int64_t r = undecided[i];
    best_of(book, x + r * book.depth, norms[r], nullptr, book.size, k, scratch, indices + r * stride);
  }
}

// In the place of a scan, for a row alone: leaves it undecided.
struct NoScan {
  static int64_t bytes(int64_t, int64_t) { return 0; }
  NoScan(void*, int64_t, int64_t) {}
  void clear(int64_t) {}
  double scan(const Book& book, int64_t, int64_t, const float*) { return length_of_longest(book); }
  bool decide(const Book&, const float*, double, int64_t, int64_t*, double*) { return false; }
};

// Rows [first, last) of the problem in every level, at most `rows_at_once` of them.
template <class Nearest>
void search_levels(const Problem& problem, int64_t first, int64_t last) {
  const int64_t depth = problem.depth, rows = last - first, padded = round_up(rows, kRows);
  const int64_t left_over = problem.levels > 1 ? rows * depth : 0, stride = problem.levels * problem.k;
  Array<float> center(depth), packed(padded / kRows * block_floats(depth)), total(left_over), left(left_over);
  Array<double> norms(rows);
  Array<char> memory(Nearest::bytes(padded, problem.k));
  Nearest nearest(memory, padded, problem.k);
  const float* x = problem.x + first * depth;
  for (int64_t level = 0; level < problem.levels; ++level) {
    int64_t* indices = problem.indices + first * stride + level;
    find_center(problem.codebooks[level], depth, problem.metric, center);
    Book book{problem.codebooks[level], depth, problem.metric, center, 0};
    pack_rows(book, x, rows, packed, norms);
    nearest.clear(rows);
    book.largest = nearest.scan(book, 0, book.size, packed);
    resolve(book, x, rows, norms, nearest, problem.k, indices, stride);
    if (level + 1 == problem.levels) break;
    // The sum of the codes first, then the difference: what is left is rounded as in a loop over the levels.
    for (int64_t r = 0; r < rows; ++r) {
      const float* code = book.codes + indices[r * stride] * depth;
      for (int64_t d = 0; d < depth; ++d) {
        total[r * depth + d] = level == 0 ? code[d] : total[r * depth + d] + code[d];
        left[r * depth + d] = problem.x[(first + r) * depth + d] - total[r * depth + d];
      }
    }
    x = left;
  }
}

template <class Nearest>
void search_blocks(const Problem& problem, int64_t first, int64_t last) {
  const int64_t rows = Nearest::rows_at_once(problem.k);
  for (; first < last; first += rows) search_levels<Nearest>(problem, first, smaller(first + rows, last));
}

// What the scan of a part of the codes leaves: the length of the longest code, then what is known of each row.
constexpr int64_t kHead = 64;

template <class Nearest>
int64_t part_bytes(const Problem& problem) {
  return kHead + round_up(Nearest::bytes(round_up(problem.rows, kRows), problem.k), 64);
}

template <class Nearest>
void scan_part(const Problem& problem, int64_t first, int64_t last, char* part) {
  const int64_t depth = problem.depth, padded = round_up(problem.rows, kRows);
  Array<float> center(depth), packed(padded / kRows * block_floats(depth));
  Array<double> norms(problem.rows);
  find_center(problem.codebooks[0], depth, problem.metric, center);
  const Book book{problem.codebooks[0], depth, problem.metric, center, 0};
  pack_rows(book, problem.x, problem.rows, packed, norms);
  Nearest nearest(part + kHead, padded, problem.k);
  nearest.clear(problem.rows);
  *reinterpret_cast<double*>(part) = nearest.scan(book, first, last, packed);
}

template <class Nearest>
void resolve_parts(const Problem& problem, int64_t parts, char* found) {
  const int64_t depth = problem.depth, rows = problem.rows, padded = round_up(rows, kRows);
  Array<float> center(depth), packed(padded / kRows * block_floats(depth));
  Array<double> norms(rows);
  find_center(problem.codebooks[0], depth, problem.metric, center);
  Book book{problem.codebooks[0], depth, problem.metric, center, *reinterpret_cast<const double*>(found)};
  pack_rows(book, problem.x, rows, packed, norms);
  Nearest nearest(found + kHead, padded, problem.k);
  for (int64_t part = 1; part < parts; ++part) {
    char* own = found + part * part_bytes<Nearest>(problem);
    nearest.merge(Nearest(own + kHead, padded, problem.k));
    book.largest = larger(book.largest, *reinterpret_cast<const double*>(own));
  }
  resolve(book, problem.x, rows, norms, nearest, problem.k, problem.indices, problem.k);
}

// --------------------------------------------------------------------------------------------------------- the variant

void search_rows(const Problem& problem, int64_t first, int64_t last) {
  const Session session;
  if (last - first == 1) return search_levels<NoScan>(problem, first, last);
  problem.k == 1 ? search_blocks<NearestOne>(problem, first, last) : search_blocks<NearestMany>(problem, first, last);
}

int64_t found_bytes(const Problem& problem) {
  return problem.k == 1 ? part_bytes<NearestOne>(problem) : part_bytes<NearestMany>(problem);
}

void scan_codes(const Problem& problem, int64_t first, int64_t last, char* found) {
  const Session session;
  problem.k == 1 ? scan_part<NearestOne>(problem, first, last, found)
                 : scan_part<NearestMany>(problem, first, last, found);
}

void resolve_rows(const Problem& problem, int64_t parts, char* found) {
  const Session session;
  problem.k == 1 ? resolve_parts<NearestOne>(problem, parts, found)
                 : resolve_parts<NearestMany>(problem, parts, found);
}

}  // namespace

extern const Variant VQKIT_VARIANT = {
    VQKIT_NAME, kRows, kPanel * kPanels, kLeastDepth, search_rows, found_bytes, scan_codes, resolve_rows};

}  // namespace vqkit
