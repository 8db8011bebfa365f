#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/tables.h"

namespace sketchkv {

// Tables to register with a model, and the profiles chosen with them, as `sketchkv tune` writes
// them: a safetensors file. Of each head
//   layers.{l}.heads.{h}.key_mean          F32 [dim]
//   layers.{l}.heads.{h}.outlier_channels  I32 [n]
//   layers.{l}.heads.{h}.key_basis         F16 [rows, dim]
//   layers.{l}.heads.{h}.key_group_bits    U8  [groups], one for each 32 rows
//   layers.{l}.heads.{h}.key_group_rms     F32 [groups]
// and value_mean, value_basis, value_group_bits, value_group_rms; what a head lacks is left out.
// __metadata__ has "sketchkv.tables": "1" and "profiles": a JSON list of texts as --profile takes
// them. A basis is rounded to fp16; the widened numbers are the table.
struct TablesFile {
  std::vector<HeadTable> heads;  // [layers][kv_heads]
  uint32_t num_layers = 0;
  uint32_t num_kv_heads = 0;
  uint32_t head_dim = 0;   // of means and bases of keys; 0 where there are none
  uint32_t value_dim = 0;  // likewise of values
  std::vector<std::string> profiles;
};

// INVALID_ARGUMENT naming the tensor and both numbers for a damaged file, another format version,
// or a head of which nothing is there; otherwise as SafetensorsFile::Open. That the tables fit a
// layout is for ModelTables::Create to say.
[[nodiscard]] absl::StatusOr<TablesFile> ReadTablesFile(const std::string& path);

// Nobody sees half a file. INVALID_ARGUMENT naming the head for numbers that do not go together;
// INTERNAL with the path when it cannot be written.
[[nodiscard]] absl::Status WriteTablesFile(const std::string& path, const TablesFile& file);

// `value` as it comes back from a table's fp16 basis.
[[nodiscard]] float RoundToTable(float value);

}  // namespace sketchkv
