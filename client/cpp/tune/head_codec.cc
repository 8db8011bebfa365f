#include "client/cpp/tune/head_codec.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "client/cpp/tune/basis_maker.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::tune {
namespace {

// Of the rotations that mix axes. Another one does as well; this one makes runs repeatable.
constexpr uint64_t kKeySeed = 0x6B6579;
constexpr uint64_t kValueSeed = 0x76616C;

}  // namespace

absl::StatusOr<HeadTable> MakeHeadTable(const HeadSpectra& spectra, const Encoding& encoding) {
  HeadTable table;
  table.key_mean = spectra.keys.mean;
  uint32_t outliers = kDefaultOutliers;
  if (encoding.request.outlier_source == OutlierSource::kTable) {
    outliers = encoding.request.num_outliers.value_or(outliers);
  }
  const bool own_channels = encoding.request.outlier_source == OutlierSource::kTable;
  const bool about_mean =
      !own_channels || encoding.request.centering.value_or(Centering::kNone) == Centering::kTable;
  table.outlier_channels =
      OutlierChannels(spectra.keys, std::min(outliers, spectra.keys.dim - 1), about_mean);
  if (encoding.key_row_bits != 0) {
    SKETCHKV_ASSIGN_OR_RETURN(
        table.key_basis, MakeBasis(spectra.keys, RowKind::kKeys, encoding.key_row_bits, kKeySeed));
  }
  if (encoding.value_row_bits != 0) {
    table.value_mean = spectra.values.mean;
    SKETCHKV_ASSIGN_OR_RETURN(table.value_basis, MakeBasis(spectra.values, RowKind::kValues,
                                                           encoding.value_row_bits, kValueSeed));
  }
  return table;
}

absl::StatusOr<std::unique_ptr<BlockCodec>> OneHeadCodec(const KvLayout& model, uint32_t layer,
                                                         const Encoding& encoding,
                                                         HeadTable table) {
  // Resolved where it stands in the model, since some profiles go by the layer.
  KvLayout layout = model;
  layout.num_kv_heads = 1;
  std::vector<HeadTable> heads(layout.num_layers);
  heads[layer] = table;
  SKETCHKV_ASSIGN_OR_RETURN(const ModelTables by_layer,
                            ModelTables::Create(layout, std::move(heads)));
  SKETCHKV_ASSIGN_OR_RETURN(CodecProfile profile,
                            ResolveProfile(encoding.request, layout, layer, &by_layer));
  layout.num_layers = 1;
  heads.clear();
  heads.push_back(std::move(table));
  SKETCHKV_ASSIGN_OR_RETURN(ModelTables tables, ModelTables::Create(layout, std::move(heads)));
  SKETCHKV_ASSIGN_OR_RETURN(const Isa isa, ChooseIsa("auto"));
  return BlockCodec::Create(layout, {std::move(profile)}, isa,
                            std::make_shared<const ModelTables>(std::move(tables)));
}

}  // namespace sketchkv::tune
