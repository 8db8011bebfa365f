#include "client/cpp/files/tensor.h"

#include <array>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cpp/files/float_formats.h"
#include "kernels/base/checked_math.h"

namespace sketchkv {
namespace {

struct DtypeRow {
  absl::string_view name;
  size_t bytes;
};
constexpr std::array<DtypeRow, 15> kDtypes = {{{"F64", 8},
                                               {"F32", 4},
                                               {"F16", 2},
                                               {"BF16", 2},
                                               {"F8_E4M3", 1},
                                               {"F8_E5M2", 1},
                                               {"I64", 8},
                                               {"I32", 4},
                                               {"I16", 2},
                                               {"I8", 1},
                                               {"U64", 8},
                                               {"U32", 4},
                                               {"U16", 2},
                                               {"U8", 1},
                                               {"BOOL", 1}}};

template <typename T>
T Load(const std::byte* data, uint64_t index) {
  T value;
  std::memcpy(&value, data + index * sizeof(T), sizeof(T));
  return value;
}

// Calls visit(load) with a function that reads element i of the tensor in its own type; false when
// the dtype is no integer type.
template <typename Visit>
bool VisitIntegers(const NamedTensor& tensor, const Visit& visit) {
  const std::byte* data = tensor.data.data();
  const auto with = [&](auto zero) {
    visit([data](uint64_t i) { return Load<decltype(zero)>(data, i); });
    return true;
  };
  if (tensor.dtype == "I64") return with(int64_t{});
  if (tensor.dtype == "I32") return with(int32_t{});
  if (tensor.dtype == "I16") return with(int16_t{});
  if (tensor.dtype == "I8") return with(int8_t{});
  if (tensor.dtype == "U64") return with(uint64_t{});
  if (tensor.dtype == "U32") return with(uint32_t{});
  if (tensor.dtype == "U16") return with(uint16_t{});
  if (tensor.dtype == "U8" || tensor.dtype == "BOOL") return with(uint8_t{});
  return false;
}

// The same for every number type; floats narrower than 32 bits come as float.
template <typename Visit>
bool VisitNumbers(const NamedTensor& tensor, const Visit& visit) {
  const std::byte* data = tensor.data.data();
  const auto with = [&](const auto& load) {
    visit(load);
    return true;
  };
  if (tensor.dtype == "F32") return with([=](uint64_t i) { return Load<float>(data, i); });
  if (tensor.dtype == "F64") return with([=](uint64_t i) { return Load<double>(data, i); });
  if (tensor.dtype == "F16") {
    return with([=](uint64_t i) { return Fp16ToFloat(Load<uint16_t>(data, i)); });
  }
  if (tensor.dtype == "BF16") {
    return with([=](uint64_t i) { return Bf16ToFloat(Load<uint16_t>(data, i)); });
  }
  if (tensor.dtype == "F8_E4M3") {
    return with([=](uint64_t i) { return Fp8E4M3ToFloat(Load<uint8_t>(data, i)); });
  }
  if (tensor.dtype == "F8_E5M2") {
    return with([=](uint64_t i) { return Fp8E5M2ToFloat(Load<uint8_t>(data, i)); });
  }
  return VisitIntegers(tensor, visit);
}

}  // namespace

uint64_t NamedTensor::num_elements() const {
  const size_t bytes = TensorDtypeBytes(dtype);
  return bytes == 0 ? 0 : data.size() / bytes;
}

size_t TensorDtypeBytes(absl::string_view dtype) {
  for (const DtypeRow& row : kDtypes) {
    if (row.name == dtype) return row.bytes;
  }
  return 0;
}

std::optional<uint64_t> TensorBytes(std::span<const uint64_t> shape, size_t element_bytes) {
  std::optional<uint64_t> bytes = element_bytes;
  for (const uint64_t extent : shape) {
    bytes = CheckedMul(*bytes, extent);
    if (!bytes) return std::nullopt;
  }
  return bytes;
}

std::string ShapeString(std::span<const uint64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

absl::Status ReadFloats(const NamedTensor& tensor, uint64_t begin, std::span<float> out) {
  const uint64_t count = tensor.num_elements();
  if (begin > count || out.size() > count - begin) {
    return absl::InvalidArgumentError(absl::StrCat("elements ", begin, " to ", begin + out.size(),
                                                   " of \"", tensor.name, "\", which has ", count));
  }
  const bool numbers = VisitNumbers(tensor, [&](const auto& load) {
    for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(load(begin + i));
  });
  if (numbers) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("\"", tensor.name, "\" has dtype ", tensor.dtype, ", which holds no numbers"));
}

absl::StatusOr<std::vector<int64_t>> ReadIntegers(const NamedTensor& tensor) {
  std::vector<int64_t> out(tensor.num_elements());
  const bool integers = VisitIntegers(tensor, [&](const auto& load) {
    for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<int64_t>(load(i));
  });
  if (!integers) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", tensor.name, "\" has dtype ", tensor.dtype, ", want whole numbers"));
  }
  if (tensor.dtype == "U64") {
    for (size_t i = 0; i < out.size(); ++i) {
      if (out[i] >= 0) continue;
      return absl::InvalidArgumentError(absl::StrCat("\"", tensor.name, "\" element ", i, " is ",
                                                     static_cast<uint64_t>(out[i]),
                                                     ", over 2^63 - 1"));
    }
  }
  return out;
}

}  // namespace sketchkv
