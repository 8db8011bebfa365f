// sketchkv_roundtrip: keys and values through the real codec and back, for instruments that judge
// what it loses. Arrays are npy, float32, [segments, layers, kv_heads, tokens, dim]; each segment
// is cut into blocks of --block-tokens tokens, the last may be short. Prints one line of JSON with
// exact effective bits. Exit codes: 0 done, 1 an error, 2 wrong usage.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cpp/files/npy.h"
#include "client/cpp/files/tables_file.h"
#include "client/cpp/tune/parallel.h"
#include "client/cpp/tune/profile_request.h"
#include "client/cpp/tune/samples.h"
#include "kernels/base/status_macros.h"
#include "kernels/codec.h"

namespace sketchkv {
namespace {

struct Options {
  std::vector<std::string> profiles;
  std::string tables, dtype = "bf16", keys, values, out_keys, out_values;
  uint32_t block_tokens = 64;
};

struct Array {
  std::vector<uint64_t> shape;  // [segments, layers, kv_heads, tokens, dim]
  std::vector<float> numbers;

  // Rows [tokens, dim] of one (segment, layer, head).
  [[nodiscard]] std::span<float> Head(size_t index) {
    const size_t size = shape[3] * shape[4];
    return std::span(numbers).subspan(index * size, size);
  }
};

absl::StatusOr<Array> ReadArray(const std::string& path) {
  SKETCHKV_ASSIGN_OR_RETURN(const NpyFile file, NpyFile::Open(path));
  const NamedTensor& tensor = file.tensor();
  if (tensor.dtype != "F32" || tensor.shape.size() != 5 || tensor.num_elements() == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": is ", tensor.dtype, " ", ShapeString(tensor.shape),
                     ", want F32 [segments, layers, kv_heads, tokens, dim], none 0"));
  }
  Array array = {tensor.shape, std::vector<float>(tensor.num_elements())};
  SKETCHKV_RETURN_IF_ERROR(ReadFloats(tensor, 0, array.numbers));
  return array;
}

absl::Status WriteArray(const std::string& path, const Array& array) {
  return WriteNpy(path, {"", "F32", array.shape, std::as_bytes(std::span(array.numbers))});
}

absl::StatusOr<std::unique_ptr<BlockCodec>> MakeCodec(const Options& options, const Array& keys,
                                                      const Array& values) {
  KvLayout layout;
  layout.num_layers = static_cast<uint32_t>(keys.shape[1]);
  layout.num_kv_heads = static_cast<uint32_t>(keys.shape[2]);
  layout.head_dim = static_cast<uint32_t>(keys.shape[4]);
  layout.value_dim = static_cast<uint32_t>(values.shape[4]);
  layout.block_tokens = options.block_tokens;
  SKETCHKV_ASSIGN_OR_RETURN(layout.key_dtype, ParseDType(options.dtype));
  layout.value_dtype = layout.key_dtype;
  SKETCHKV_RETURN_IF_ERROR(layout.Validate());
  std::vector<std::string> profiles = options.profiles;
  std::shared_ptr<const ModelTables> tables;
  if (!options.tables.empty()) {
    SKETCHKV_ASSIGN_OR_RETURN(TablesFile file, ReadTablesFile(options.tables));
    if (file.num_layers != layout.num_layers || file.num_kv_heads != layout.num_kv_heads) {
      return absl::InvalidArgumentError(absl::StrCat(
          options.tables, ": is for ", file.num_layers, " layers of ", file.num_kv_heads,
          " heads, the keys have ", layout.num_layers, " of ", layout.num_kv_heads));
    }
    SKETCHKV_ASSIGN_OR_RETURN(ModelTables made, ModelTables::Create(layout, std::move(file.heads)));
    tables = std::make_shared<const ModelTables>(std::move(made));
    if (profiles.empty()) profiles = file.profiles;
  }
  SKETCHKV_ASSIGN_OR_RETURN(std::vector<CodecProfile> resolved,
                            tune::ResolveTexts(profiles, layout, tables.get()));
  SKETCHKV_ASSIGN_OR_RETURN(const Isa isa, ChooseIsa("auto"));
  return BlockCodec::Create(layout, std::move(resolved), isa, std::move(tables));
}

// Encodes, validates and decodes the rows of one head in place.
absl::Status RoundTripHead(const BlockCodec& block, const CellCodec& codec, std::span<float> keys,
                           std::span<float> values) {
  const KvLayout& layout = block.layout();
  const std::vector<std::byte> key_rows = tune::ToElements(keys, layout.key_dtype);
  const std::vector<std::byte> value_rows = tune::ToElements(values, layout.value_dtype);
  const size_t num_tokens = keys.size() / layout.head_dim;
  std::vector<std::byte> cell(codec.cell_bytes());
  for (size_t first = 0; first < num_tokens; first += layout.block_tokens) {
    const auto count =
        static_cast<uint32_t>(std::min<size_t>(layout.block_tokens, num_tokens - first));
    const auto in = [first](const std::vector<std::byte>& rows, size_t row_bytes) {
      return RowsView{rows.data() + first * row_bytes, row_bytes};
    };
    const auto out = [first](std::span<float> rows, size_t dim) {
      return MutableRowsView{reinterpret_cast<std::byte*>(rows.data() + first * dim),
                             dim * sizeof(float)};
    };
    SKETCHKV_RETURN_IF_ERROR(codec.Encode(in(key_rows, layout.key_row_bytes()),
                                          in(value_rows, layout.value_row_bytes()), count, cell));
    SKETCHKV_RETURN_IF_ERROR(codec.Validate(cell, count));
    SKETCHKV_RETURN_IF_ERROR(codec.Decode(cell, count, DType::kFp32, out(keys, layout.head_dim),
                                          DType::kFp32, out(values, layout.value_dim)));
  }
  return absl::OkStatus();
}

absl::Status Run(const Options& options) {
  SKETCHKV_ASSIGN_OR_RETURN(Array keys, ReadArray(options.keys));
  SKETCHKV_ASSIGN_OR_RETURN(Array values, ReadArray(options.values));
  if (!std::equal(keys.shape.begin(), keys.shape.end() - 1, values.shape.begin())) {
    return absl::InvalidArgumentError(absl::StrCat("keys are ", ShapeString(keys.shape),
                                                   ", values are ", ShapeString(values.shape)));
  }
  SKETCHKV_ASSIGN_OR_RETURN(const std::unique_ptr<BlockCodec> codec,
                            MakeCodec(options, keys, values));
  const size_t heads = keys.shape[2], layers = keys.shape[1];
  const uint32_t num_threads = std::max(1u, std::thread::hardware_concurrency());
  SKETCHKV_RETURN_IF_ERROR(
      tune::RunAll(keys.shape[0] * layers * heads, num_threads, {}, [&](size_t i) {
        const CellCodec& cell = codec->cell(static_cast<uint32_t>(i / heads % layers),
                                            static_cast<uint32_t>(i % heads));
        return RoundTripHead(*codec, cell, keys.Head(i), values.Head(i));
      }));
  SKETCHKV_RETURN_IF_ERROR(WriteArray(options.out_keys, keys));
  SKETCHKV_RETURN_IF_ERROR(WriteArray(options.out_values, values));
  const BitsPerNumber bits = codec->bits_per_number();
  nlohmann::ordered_json names = nlohmann::ordered_json::array();
  for (const CodecProfile& profile : codec->profiles()) names.push_back(profile.name);
  const nlohmann::ordered_json line = {{"key_bits", bits.keys},
                                       {"value_bits", bits.values},
                                       {"bits", bits.all},
                                       {"slot_bytes", codec->slot_bytes()},
                                       {"profiles", names}};
  std::cout << line.dump() << std::endl;
  return absl::OkStatus();
}

}  // namespace
}  // namespace sketchkv

int main(int argc, char** argv) {
  sketchkv::Options options;
  CLI::App app("Keys and values through the codec and back", "sketchkv_roundtrip");
  app.add_option("--profile", options.profiles,
                 "As `sketchkv models register` takes it; may be repeated for layer ranges; "
                 "default: what the tables file says");
  app.add_option("--tables", options.tables, "A file of `sketchkv tune`");
  app.add_option("--block-tokens", options.block_tokens, "1 to 1024")->capture_default_str();
  app.add_option("--dtype", options.dtype, "What keys and values are rounded to first")
      ->check(CLI::IsMember({"bf16", "fp16", "fp32"}))
      ->capture_default_str();
  app.add_option("--keys", options.keys, "FILE.npy")->required();
  app.add_option("--values", options.values, "FILE.npy")->required();
  app.add_option("--out-keys", options.out_keys, "FILE.npy to write")->required();
  app.add_option("--out-values", options.out_values, "FILE.npy to write")->required();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {  // CLI11's only way to report
    return app.exit(error) == 0 ? 0 : 2;
  }
  const absl::Status status = sketchkv::Run(options);
  if (status.ok()) return 0;
  std::cerr << "sketchkv_roundtrip: " << status.ToString() << std::endl;
  return 1;
}
