// The operators of vqkit_native: checks, the choice of a variant of the search, and its one parallel region; the coder of
// indices. Stable ABI of PyTorch 2.10.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "mixing.h"
#include "search.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace vqkit {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr double kProductsOfAThread = 1 << 18;  // fewer multiplications are not worth another thread
constexpr int64_t kFewRows = 4096;              // each thread packs all rows where the codes are dealt out,
constexpr int64_t kFoundBytes = 1 << 20;        // and leaves so much of what it found

#if defined(__x86_64__) && defined(__linux__)
bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned tile = 1u << 24, bfloat16 = 1u << 22;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (tile | bfloat16)) != (tile | bfloat16)) return false;
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}
#else
bool has_amx() { return false; }
#endif

// The fastest first.
std::vector<const Variant*> find_variants() {
  std::vector<const Variant*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (has_amx() && __builtin_cpu_supports("avx512f")) found.push_back(&amx_variant);
  if (__builtin_cpu_supports("avx512f")) found.push_back(&avx512_variant);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2_variant);
#endif
  found.push_back(&portable_variant);
  return found;
}

const std::vector<const Variant*>& supported_variants() {
  static const std::vector<const Variant*> found = find_variants();
  return found;
}

const Variant& variant_of(const std::string& name, int64_t depth) {
  for (const Variant* variant : supported_variants()) {
    const bool fits = variant->least_depth <= depth;
    if (name.empty() ? fits : name == variant->name) return *variant;
  }
  STD_TORCH_CHECK(false, "variant is '", name, "', which this processor does not have");
}

std::string variants() {
  std::string names;
  for (const Variant* variant : supported_variants()) names += (names.empty() ? "" : " ") + std::string(variant->name);
  return names;
}

void check(const Tensor& tensor, const char* name, int64_t dimensions, ScalarType type) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.is_contiguous(), name, " has to be contiguous and on the CPU");
  STD_TORCH_CHECK(tensor.dim() == dimensions, name, " has ", tensor.dim(), " dimensions, expected ", dimensions);
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " has another dtype than expected");
}

// One problem of few rows and many codes: the codes are dealt out to the threads.
void search_by_codes(const Problem& problem, const Variant& variant, int64_t threads) {
  const int64_t blocks = (problem.codebooks[0].size + variant.code_block - 1) / variant.code_block;
  const int64_t bytes = variant.found_bytes(problem), share = (blocks + threads - 1) / threads;
  const int64_t parts = (blocks + share - 1) / share;
  std::unique_ptr<void, decltype(&std::free)> found(std::aligned_alloc(64, parts * bytes), &std::free);
  STD_TORCH_CHECK(found != nullptr, "out of memory");
  char* memory = static_cast<char*>(found.get());
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = part * share * variant.code_block, last = first + share * variant.code_block;
      variant.scan_codes(problem, first, std::min(last, problem.codebooks[0].size), memory + part * bytes);
    }
  });
  variant.resolve_rows(problem, parts, memory);
}

// x (G, N, D) float32; codes: S codebooks (G, K, D) float32, K may differ; valid (G, K) bool for S = 1 -> (G, N, S) int64;
// or (G, N, k) for S = 1.
Tensor search(
    Tensor x, std::vector<Tensor> codes, std::optional<Tensor> valid, int64_t metric, int64_t k,
    std::string variant_name) {
  check(x, "x", 3, ScalarType::Float);
  const Variant& variant = variant_of(variant_name, x.size(2));
  STD_TORCH_CHECK(!codes.empty() && (!valid || codes.size() == 1), "expected codebooks, and one of them where valid is given");
  STD_TORCH_CHECK(metric >= 0 && metric <= 2, "metric is ", metric, ", expected 0, 1 or 2");
  STD_TORCH_CHECK(k >= 1 && k <= kMostCodes, "k is ", k, ", expected 1 to ", kMostCodes);
  STD_TORCH_CHECK(k == 1 || codes.size() == 1, "k is ", k, ", expected 1 where there are several codebooks");
  const int64_t groups = x.size(0), rows = x.size(1), depth = x.size(2), levels = codes.size();
  double products = 0;
  for (const Tensor& book : codes) {
    check(book, "codes", 3, ScalarType::Float);
    STD_TORCH_CHECK(book.size(0) == groups && book.size(1) > 0 && book.size(2) == depth, "codes and x do not match");
    STD_TORCH_CHECK(depth > 0 && book.size(1) < INT32_MAX, "codes need a depth, and fewer than 2^31 of them");
    products += static_cast<double>(rows) * book.size(1) * depth;
  }
  if (valid) {
    check(*valid, "valid", 2, ScalarType::Bool);
    STD_TORCH_CHECK(valid->size(0) == groups && valid->size(1) == codes[0].size(1), "valid and codes do not match");
  }
  Tensor indices = torch::stable::empty({groups, rows, levels * k}, ScalarType::Long);
  if (groups * rows == 0) return indices;

  std::vector<Codebook> books(groups * levels);
  std::vector<Problem> problems(groups);
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t s = 0; s < levels; ++s) {
      const int64_t size = codes[s].size(1);
      const uint8_t* mask = valid ? reinterpret_cast<const uint8_t*>(valid->const_data_ptr()) + g * size : nullptr;
      books[g * levels + s] = {static_cast<const float*>(codes[s].const_data_ptr()) + g * size * depth, mask, size};
    }
    problems[g] = {
        static_cast<const float*>(x.const_data_ptr()) + g * rows * depth, rows, depth, &books[g * levels], levels, k,
        static_cast<Metric>(metric), static_cast<int64_t*>(indices.mutable_data_ptr()) + g * rows * levels * k};
  }

  const int64_t threads = torch::stable::get_num_threads();
  const int64_t blocks = (rows + variant.row_block - 1) / variant.row_block;
  const int64_t code_blocks = (codes[0].size(1) + variant.code_block - 1) / variant.code_block;
  const bool few_rows = blocks < 8 * threads && blocks < code_blocks && rows <= kFewRows &&
                        variant.found_bytes(problems[0]) <= kFoundBytes;
  if (groups == 1 && levels == 1 && threads > 1 && few_rows && products > 2 * kProductsOfAThread) {
    search_by_codes(problems[0], variant, threads);
    return indices;
  }
  const int64_t grain = std::max<int64_t>(1, kProductsOfAThread / (products / blocks));
  torch::stable::parallel_for(0, groups * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin / blocks; g * blocks < end; ++g) {
      const int64_t first = std::max<int64_t>(begin - g * blocks, 0), last = std::min<int64_t>(end - g * blocks, blocks);
      variant.search_rows(problems[g], first * variant.row_block, std::min(last * variant.row_block, rows));
    }
  });
  return indices;
}

MixingPlan mixing_plan(const Tensor& plan, const Tensor& coarser) {
  check(plan, "plan", 1, ScalarType::Long);
  check(coarser, "coarser", 2, ScalarType::Long);
  MixingPlan read(static_cast<const int64_t*>(plan.const_data_ptr()), plan.size(0));
  STD_TORCH_CHECK(read.valid, "plan is none: expected Plan.numbers()");
  STD_TORCH_CHECK(coarser.size(0) == read.cells() && coarser.size(1) == 2, "coarser and plan do not match");
  return read;
}

// ranks (cells) int64, coarser (cells, 2) int64, plan (n) int64 -> (bytes) uint8.
Tensor mixing_encode(Tensor ranks, Tensor coarser, Tensor plan) {
  const MixingPlan read = mixing_plan(plan, coarser);
  check(ranks, "ranks", 1, ScalarType::Long);
  STD_TORCH_CHECK(ranks.size(0) == read.cells(), "ranks and plan do not match");
  const std::vector<uint8_t> written = vqkit::mixing_encode(
      static_cast<const int64_t*>(ranks.const_data_ptr()), static_cast<const int64_t*>(coarser.const_data_ptr()), read);
  Tensor data = torch::stable::empty({static_cast<int64_t>(written.size())}, ScalarType::Byte);
  std::copy(written.begin(), written.end(), static_cast<uint8_t*>(data.mutable_data_ptr()));
  return data;
}

// data (bytes) uint8, coarser, plan -> (cells + 1) int64: the ranks, and how many bytes they can take at most.
Tensor mixing_decode(Tensor data, Tensor coarser, Tensor plan) {
  const MixingPlan read = mixing_plan(plan, coarser);
  check(data, "data", 1, ScalarType::Byte);
  Tensor found = torch::stable::empty({read.cells() + 1}, ScalarType::Long);
  int64_t* ranks = static_cast<int64_t*>(found.mutable_data_ptr());
  ranks[read.cells()] = vqkit::mixing_decode(
      static_cast<const uint8_t*>(data.const_data_ptr()), data.size(0),
      static_cast<const int64_t*>(coarser.const_data_ptr()), read, ranks);
  return found;
}

STABLE_TORCH_LIBRARY(vqkit_native, library) {
  library.def("search(Tensor x, Tensor[] codes, Tensor? valid, int metric, int k, str variant) -> Tensor");
  library.def("variants() -> str");
  library.def("mixing_encode(Tensor ranks, Tensor coarser, Tensor plan) -> Tensor");
  library.def("mixing_decode(Tensor data, Tensor coarser, Tensor plan) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(vqkit_native, CompositeExplicitAutograd, library) {
  library.impl("search", TORCH_BOX(&search));
  library.impl("variants", TORCH_BOX(&variants));
  library.impl("mixing_encode", TORCH_BOX(&mixing_encode));
  library.impl("mixing_decode", TORCH_BOX(&mixing_decode));
}

}  // namespace
}  // namespace vqkit
