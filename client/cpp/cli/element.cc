#include "client/cpp/cli/element.h"

#include <array>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "client/cpp/files/float_formats.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::cli {
namespace {

struct ElementRow {
  ElementType type;
  const char* name;
  const char* dtype;
};
constexpr std::array<ElementRow, 5> kElements = {{{ElementType::kBf16, "bf16", "BF16"},
                                                  {ElementType::kFp16, "fp16", "F16"},
                                                  {ElementType::kFp32, "fp32", "F32"},
                                                  {ElementType::kFp8E4M3, "fp8_e4m3", "F8_E4M3"},
                                                  {ElementType::kFp8E5M2, "fp8_e5m2", "F8_E5M2"}}};

const ElementRow& RowOf(ElementType type) { return kElements[static_cast<size_t>(type) - 1]; }

// Writes value i of `values` as out[i], a number of type Out.
template <typename Out, typename Convert>
void Store(std::span<const float> values, std::byte* out, const Convert& convert) {
  for (size_t i = 0; i < values.size(); ++i) {
    const Out number = convert(values[i]);
    std::memcpy(out + i * sizeof(Out), &number, sizeof(Out));
  }
}

}  // namespace

std::string ElementName(ElementType type) { return RowOf(type).name; }
std::string TensorDtype(ElementType type) { return RowOf(type).dtype; }

absl::StatusOr<ElementType> ParseElement(const std::string& name) {
  for (const ElementRow& row : kElements) {
    if (row.name == name) return row.type;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("dtype \"", name, "\" is none of bf16, fp16, fp32, fp8_e4m3, fp8_e5m2"));
}

absl::Status AppendAs(const NamedTensor& tensor, uint64_t begin, uint64_t count, ElementType type,
                      float scale, std::vector<std::byte>* out) {
  const size_t bytes = count * ElementBytes(type);
  const size_t old_size = out->size();
  if (tensor.dtype == TensorDtype(type)) {
    const auto source = tensor.data.subspan(begin * ElementBytes(type), bytes);
    out->insert(out->end(), source.begin(), source.end());
    return absl::OkStatus();
  }
  if (tensor.dtype.find('F') == std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", tensor.name, "\" has dtype ", tensor.dtype, ", want floats"));
  }
  std::vector<float> values(count);
  SKETCHKV_RETURN_IF_ERROR(ReadFloats(tensor, begin, values));
  out->resize(old_size + bytes);
  std::byte* to = out->data() + old_size;
  switch (type) {
    case ElementType::kFp32:
      std::memcpy(to, values.data(), bytes);
      break;
    case ElementType::kBf16:
      Store<uint16_t>(values, to, FloatToBf16);
      break;
    case ElementType::kFp16:
      Store<uint16_t>(values, to, FloatToFp16);
      break;
    case ElementType::kFp8E4M3:
      Store<uint8_t>(values, to, [scale](float value) { return FloatToFp8E4M3(value / scale); });
      break;
    case ElementType::kFp8E5M2:
      Store<uint8_t>(values, to, [scale](float value) { return FloatToFp8E5M2(value / scale); });
      break;
  }
  return absl::OkStatus();
}

}  // namespace sketchkv::cli
