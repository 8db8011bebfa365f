#include "tests/bench/data.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::bench {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

absl::StatusOr<std::vector<float>> ReadFloats(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  std::vector<float> numbers(static_cast<size_t>(file.tellg()) / sizeof(float));
  file.seekg(0);
  file.read(reinterpret_cast<char*>(numbers.data()),
            static_cast<std::streamsize>(numbers.size() * sizeof(float)));
  if (!file || numbers.empty()) return absl::NotFoundError(absl::StrCat(path, ": cut short"));
  return numbers;
}

}  // namespace

Buffer::Buffer(size_t size) : size_((size + kHugePage - 1) / kHugePage * kHugePage) {
  void* const memory = std::aligned_alloc(kHugePage, size_);
  if (memory == nullptr) {
    std::fprintf(stderr, "bench: no memory for %zu bytes\n", size_);
    std::abort();
  }
  madvise(memory, size_, MADV_HUGEPAGE);
  std::memset(memory, 0, size_);
  data_ = static_cast<std::byte*>(memory);
}

Buffer::~Buffer() { std::free(data_); }

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(other.size_) {}

absl::StatusOr<Numbers> ReadNumbers(const Options& options) {
  const std::string folder = options.Text("data", ".");
  Numbers numbers;
  SKETCHKV_ASSIGN_OR_RETURN(numbers.keys, ReadFloats(folder + "/keys.f32"));
  SKETCHKV_ASSIGN_OR_RETURN(numbers.values, ReadFloats(folder + "/values.f32"));
  SKETCHKV_ASSIGN_OR_RETURN(numbers.queries, ReadFloats(folder + "/queries.f32"));
  return numbers;
}

uint16_t ToBf16(float exact) {
  uint32_t bits = 0;
  std::memcpy(&bits, &exact, sizeof(bits));
  return static_cast<uint16_t>(bits >> 16);
}

Buffer Bf16Rows(const std::vector<float>& rows, size_t tokens) {
  Buffer buffer(tokens * kDim * sizeof(uint16_t));
  uint16_t* const out = buffer.as<uint16_t>();
  const size_t distinct = std::min(rows.size(), tokens * kDim);
  for (size_t i = 0; i < distinct; ++i) out[i] = ToBf16(rows[i]);
  for (size_t begin = distinct; begin < tokens * kDim; begin += distinct) {
    std::memcpy(out + begin, out, std::min(distinct, tokens * kDim - begin) * sizeof(uint16_t));
  }
  return buffer;
}

size_t TokensIn(const Options& options, double bytes_per_token, size_t granule) {
  const double bytes = static_cast<double>(options.Number("bytes", size_t{1} << 20));
  const size_t granules =
      static_cast<size_t>(bytes / bytes_per_token / static_cast<double>(granule));
  return std::max<size_t>(granules, 1) * granule;
}

}  // namespace sketchkv::bench
