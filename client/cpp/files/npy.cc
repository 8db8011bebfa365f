#include "client/cpp/files/npy.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "kernels/base/status_macros.h"

namespace sketchkv {
namespace {

constexpr char kMagic[] = "\x93NUMPY";
constexpr size_t kMagicBytes = 6;
constexpr size_t kMaxHeaderBytes = 65536;
constexpr size_t kMaxRank = 32;

struct DescrRow {
  absl::string_view descr;
  absl::string_view dtype;
};
constexpr std::array<DescrRow, 14> kDescrs = {{{"<f4", "F32"},
                                               {"<f2", "F16"},
                                               {"<f8", "F64"},
                                               {"|i1", "I8"},
                                               {"<i1", "I8"},
                                               {"<i2", "I16"},
                                               {"<i4", "I32"},
                                               {"<i8", "I64"},
                                               {"|u1", "U8"},
                                               {"<u2", "U16"},
                                               {"<u4", "U32"},
                                               {"<u8", "U64"},
                                               {"|b1", "BOOL"},
                                               {"<u1", "U8"}}};

// Reads the one Python dict literal NumPy writes:
// {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }. Keys in any order, each once.
class HeaderParser {
 public:
  explicit HeaderParser(absl::string_view text) : rest_(text) {}

  absl::Status Parse() {
    if (!Take("{")) return Bad("does not begin with {");
    while (!Take("}")) {
      SKETCHKV_ASSIGN_OR_RETURN(const std::string key, ReadString());
      if (!Take(":")) return Bad("has no : after a key");
      SKETCHKV_RETURN_IF_ERROR(ReadValue(key));
      if (!Take(",") && !absl::StartsWith(rest_, "}")) return Bad("has no , between entries");
      SkipSpace();
    }
    SkipSpace();
    if (!rest_.empty()) return Bad("has text after }");
    if (!descr_) return Bad("has no descr");
    if (!fortran_order_) return Bad("has no fortran_order");
    if (!shape_) return Bad("has no shape");
    return absl::OkStatus();
  }

  [[nodiscard]] const std::string& descr() const { return *descr_; }
  [[nodiscard]] bool fortran_order() const { return *fortran_order_; }
  [[nodiscard]] const std::vector<uint64_t>& shape() const { return *shape_; }

 private:
  static absl::Status Bad(absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("npy header ", what));
  }

  void SkipSpace() { rest_ = absl::StripLeadingAsciiWhitespace(rest_); }

  bool Take(absl::string_view token) {
    SkipSpace();
    if (!absl::ConsumePrefix(&rest_, token)) return false;
    SkipSpace();
    return true;
  }

  absl::StatusOr<std::string> ReadString() {
    SkipSpace();
    if (rest_.empty() || (rest_[0] != '\'' && rest_[0] != '"')) return Bad("wants a string");
    const size_t end = rest_.find(rest_[0], 1);
    if (end == absl::string_view::npos) return Bad("has a string without end");
    std::string out(rest_.substr(1, end - 1));
    rest_.remove_prefix(end + 1);
    return out;
  }

  absl::Status ReadValue(const std::string& key) {
    if (key == "descr" && !descr_) {
      if (absl::StartsWith(rest_, "["))
        return Bad("descr is a structured dtype, which is not supported");
      SKETCHKV_ASSIGN_OR_RETURN(descr_, ReadString());
      return absl::OkStatus();
    }
    if (key == "fortran_order" && !fortran_order_) {
      if (Take("True")) {
        fortran_order_ = true;
      } else if (Take("False")) {
        fortran_order_ = false;
      } else {
        return Bad("fortran_order is neither True nor False");
      }
      return absl::OkStatus();
    }
    if (key == "shape" && !shape_) return ReadShape();
    return Bad(absl::StrCat("has an unknown or repeated key \"", key, "\""));
  }

  absl::Status ReadShape() {
    if (!Take("(")) return Bad("shape is not a tuple");
    shape_.emplace();
    while (!Take(")")) {
      const size_t digits = rest_.find_first_not_of("0123456789");
      uint64_t extent = 0;
      if (digits == absl::string_view::npos ||
          !absl::SimpleAtoi(rest_.substr(0, digits), &extent)) {
        return Bad("shape holds no whole number");
      }
      rest_.remove_prefix(digits);
      shape_->push_back(extent);
      if (shape_->size() > kMaxRank)
        return Bad(absl::StrCat("shape has over ", kMaxRank, " entries"));
      if (!Take(",") && !absl::StartsWith(rest_, ")")) return Bad("shape has no , between entries");
    }
    return absl::OkStatus();
  }

  absl::string_view rest_;
  std::optional<std::string> descr_;
  std::optional<bool> fortran_order_;
  std::optional<std::vector<uint64_t>> shape_;
};

absl::StatusOr<std::string> DtypeOf(const std::string& descr) {
  for (const DescrRow& row : kDescrs) {
    if (row.descr == descr) return std::string(row.dtype);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("npy descr \"", descr, "\" is not a plain little-endian dtype"));
}

}  // namespace

absl::StatusOr<NpyFile> NpyFile::Open(const std::string& path) {
  SKETCHKV_ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::Open(path));
  NpyFile file(std::move(mapped));
  const absl::Status status = file.Parse();
  if (!status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", status.message()));
  }
  return file;
}

absl::Status NpyFile::Parse() {
  const std::span<const std::byte> bytes = file_.bytes();
  const auto* text = reinterpret_cast<const char*>(bytes.data());
  if (bytes.size() < kMagicBytes + 4 || std::memcmp(text, kMagic, kMagicBytes) != 0) {
    return absl::InvalidArgumentError("not an npy file");
  }
  const int version = std::to_integer<int>(bytes[kMagicBytes]);
  if (version < 1 || version > 3) {
    return absl::InvalidArgumentError(absl::StrCat("npy version ", version, ", want 1 to 3"));
  }
  const size_t length_bytes = version == 1 ? 2 : 4;
  const size_t prefix = kMagicBytes + 2 + length_bytes;
  uint32_t header_bytes = 0;
  if (bytes.size() < prefix) return absl::InvalidArgumentError("file ends inside the npy header");
  std::memcpy(&header_bytes, text + kMagicBytes + 2, length_bytes);
  if (header_bytes > kMaxHeaderBytes || header_bytes > bytes.size() - prefix) {
    return absl::InvalidArgumentError(
        absl::StrCat("npy header length ", header_bytes, " is over ",
                     std::min<size_t>(kMaxHeaderBytes, bytes.size() - prefix)));
  }
  header_.assign(text + prefix, header_bytes);
  HeaderParser parser(header_);
  SKETCHKV_RETURN_IF_ERROR(parser.Parse());
  SKETCHKV_ASSIGN_OR_RETURN(tensor_.dtype, DtypeOf(parser.descr()));
  tensor_.shape = parser.shape();
  // One dimension or none has no order.
  if (parser.fortran_order() && tensor_.shape.size() > 1) {
    return absl::InvalidArgumentError("npy fortran_order is True, want C order");
  }
  tensor_.data = bytes.subspan(prefix + header_bytes);
  const auto want = TensorBytes(tensor_.shape, TensorDtypeBytes(tensor_.dtype));
  if (!want || *want != tensor_.data.size()) {
    return absl::InvalidArgumentError(absl::StrCat("npy shape ", ShapeString(tensor_.shape), " of ",
                                                   tensor_.dtype, " takes ",
                                                   want ? absl::StrCat(*want) : "more than 2^64",
                                                   " bytes, the file has ", tensor_.data.size()));
  }
  return absl::OkStatus();
}

absl::Status WriteNpy(const std::string& path, const NamedTensor& tensor) {
  const DescrRow* found = nullptr;
  for (const DescrRow& row : kDescrs) {
    if (found == nullptr && row.dtype == tensor.dtype) found = &row;
  }
  if (found == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("npy has no dtype ", tensor.dtype, ": write safetensors instead"));
  }
  const auto want = TensorBytes(tensor.shape, TensorDtypeBytes(tensor.dtype));
  if (!want || *want != tensor.data.size()) {
    return absl::InvalidArgumentError(absl::StrCat("data has ", tensor.data.size(),
                                                   " bytes, shape ", ShapeString(tensor.shape),
                                                   " takes ", want.value_or(0)));
  }
  std::string header =
      absl::StrCat("{'descr': '", found->descr, "', 'fortran_order': False, 'shape': (",
                   absl::StrJoin(tensor.shape, ", "), tensor.shape.size() == 1 ? ",), }" : "), }");
  const size_t prefix = kMagicBytes + 4;
  const size_t total = (prefix + header.size() + 1 + 63) / 64 * 64;  // NumPy aligns data to 64
  header.resize(total - prefix - 1, ' ');
  header.push_back('\n');
  std::string front(kMagic, kMagicBytes);
  front.append({'\x01', '\x00', static_cast<char>(header.size() & 0xFF),
                static_cast<char>(header.size() >> 8)});
  front += header;
  const std::span<const std::byte> pieces[] = {std::as_bytes(std::span(front)), tensor.data};
  return WriteFileAtomically(path, pieces);
}

}  // namespace sketchkv
