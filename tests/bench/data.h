#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tests/bench/contender.h"

namespace sketchkv::bench {

inline constexpr uint32_t kDim = 128;

// Zeroed memory, on huge pages where the system gives them, as numpy and the pool ask for
// too. Aborts when there is none: a benchmark cannot go on.
class Buffer {
 public:
  explicit Buffer(size_t size);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&&) = delete;

  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] size_t size() const { return size_; }
  template <typename T>
  [[nodiscard]] T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::byte* data_;
  const size_t size_;
};

// The numbers of this run, the same for all contenders of all processes: what the driver wrote.
struct Numbers {
  std::vector<float> keys;     // [kDistinctTokens][kDim], each exactly a bf16
  std::vector<float> values;   // likewise
  std::vector<float> queries;  // [8][kDim]
  [[nodiscard]] size_t tokens() const { return keys.size() / kDim; }
};

// Option data: the folder with keys.f32, values.f32 and queries.f32. NOT_FOUND names the file.
[[nodiscard]] absl::StatusOr<Numbers> ReadNumbers(const Options& options);

[[nodiscard]] uint16_t ToBf16(float exact);
// [tokens][kDim] of a whole number of times `rows`, one after another, as bf16.
[[nodiscard]] Buffer Bf16Rows(const std::vector<float>& rows, size_t tokens);

// Option bytes (the working set, of what is read), as tokens of bytes_per_token, a multiple of
// `granule`, at least one granule.
[[nodiscard]] size_t TokensIn(const Options& options, double bytes_per_token, size_t granule);

}  // namespace sketchkv::bench
