#include "kernels/cuda/general/general.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "kernels/base/checked_math.h"
#include "kernels/code_book.h"
#include "kernels/format.h"

namespace sketchkv::cuda {
namespace {

// Constants one behind the other, and where each will stand. What several heads share is kept once.
class Constants {
 public:
  explicit Constants(const void* address) : address_(static_cast<const std::byte*>(address)) {}

  // Room at the start, filled at the end.
  void Reserve(size_t bytes) { bytes_.resize(RoundUp(bytes, kLineBytes)); }
  // Where a copy of data[size] will stand; null for none. Data at one address are the same data.
  template <typename T>
  const T* Add(const T* data, size_t size) {
    if (size == 0) return nullptr;
    const auto [known, is_new] = known_.try_emplace(data, bytes_.size());
    if (is_new) Append(data, size * sizeof(T));
    return reinterpret_cast<const T*>(address_ + known->second);
  }
  // Of data that will not stay where they are.
  template <typename T>
  const T* AddCopy(const std::vector<T>& data) {
    if (data.empty()) return nullptr;
    const size_t at = bytes_.size();
    Append(data.data(), data.size() * sizeof(T));
    return reinterpret_cast<const T*>(address_ + at);
  }
  std::vector<std::byte> Take() { return std::move(bytes_); }
  std::byte* data() { return bytes_.data(); }

 private:
  void Append(const void* data, size_t size) {
    const size_t at = bytes_.size();
    bytes_.resize(RoundUp(at + size, kLineBytes));
    std::memcpy(bytes_.data() + at, data, size);
  }

  const std::byte* address_;
  std::vector<std::byte> bytes_;
  std::map<const void*, size_t> known_;
};

ProjectionArgs Add(const ProjectionMatrix* matrix, Constants* constants) {
  if (matrix == nullptr) return {};
  ProjectionArgs args = matrix->Args();
  if (args.dense != nullptr) {
    args.dense = constants->Add(args.dense, matrix->dense().size());
    args.dct = nullptr;
    return args;
  }
  args.signs = constants->Add(args.signs, RoundUp(args.rows, args.dim));
  args.dct = constants->Add(args.dct, size_t{args.odd_part} * args.odd_part);
  return args;
}

const CodeGroup* Add(std::vector<CodeGroup> groups, Constants* constants) {
  for (CodeGroup& group : groups) {
    if (group.search_levels == nullptr) continue;
    group.search_levels = constants->Add(group.search_levels, size_t{kUnitTrials} * 64);
  }
  return constants->AddCopy(groups);
}

GeneralKeys KindOf(KeyCodec codec) {
  if (codec == KeyCodec::kRaw) return GeneralKeys::kRaw;
  return codec == KeyCodec::kSketch ? GeneralKeys::kSketch : GeneralKeys::kCodes;
}
GeneralOutliers KindOf(OutlierMethod method) {
  if (method == OutlierMethod::kNone) return GeneralOutliers::kNone;
  return method == OutlierMethod::kSketch ? GeneralOutliers::kSketch : GeneralOutliers::kResidual;
}
GeneralValues KindOf(ValueCodec codec) {
  if (codec == ValueCodec::kRaw) return GeneralValues::kRaw;
  return codec == ValueCodec::kMinMax ? GeneralValues::kMinMax : GeneralValues::kRotated;
}

void PlaceSections(const CellFormat& format, GeneralPlan* plan) {
  plan->num_tiles = format.num_tiles;
  plan->outlier_groups = format.outlier_groups;
  plan->value_groups = format.value_groups;
  plan->key_words = format.key_words;
  plan->outlier_words = format.outlier_words;
  plan->value_lines = format.value_lines;
  plan->scale_rows = format.scale_rows;
  plan->key_scale_row = format.key_scale_row;
  plan->outlier_scale_row = format.outlier_scale_row;
  plan->value_scale_row = format.value_scale_row;
  plan->scales_at = format.scales;
  plan->mean_at = format.mean;
  plan->planes_at = format.planes;
  plan->outlier_planes_at = format.outlier_planes;
  plan->channels_at = format.outlier_channels;
  plan->residual_scales_at = format.residual_scales;
  plan->residuals_at = format.residuals;
  plan->raw_keys_at = format.raw_keys;
  plan->values_at = format.values;
  plan->ranges_at = format.ranges;
  plan->cell_bytes = format.cell_bytes;
}

// Rows of sixteen floats, as SKETCHKV_LANE_ROWS takes them, so that two workers of a warp use
// different banks.
uint32_t BytesOfRows(uint32_t rows) { return static_cast<uint32_t>(kLineBytes) * (rows | 1); }

// Room for what the deepest calls hold at a time: a tile, its projection or reconstruction, the
// outlier channels, some rows of sums; and what is smaller than a tile: the searched magnitudes,
// codes, or one column of a transform.
uint32_t WorkerBytes(const GeneralPlan& plan) {
  const uint32_t dim = std::max(plan.head_dim, plan.value_dim);
  const uint32_t odd_part = dim / (dim & (0u - dim));
  constexpr uint32_t kFew = 16;
  return BytesOfRows(2 * dim + kMaxOutlierChannels + kFew + std::max(odd_part, dim / 4 + dim / 16));
}

// The accumulators of four queries, their weights, and a tile of raw keys or the two projections
// that a query is split into.
uint32_t AttendBytes(const GeneralPlan& plan) {
  constexpr uint32_t kQueries = 4;
  const uint32_t accumulators = kQueries * (plan.value_rows / kLanes + 2);
  const uint32_t tile = plan.keys == GeneralKeys::kRaw ? plan.head_dim : 0;
  const uint32_t split =
      plan.outliers == GeneralOutliers::kSketch ? 2 * (plan.sign_bits / kLanes) : 0;
  return BytesOfRows(accumulators + tile + split);
}

GeneralPlan PlanOf(const KvLayout& layout, const CodecProfile& profile, const HeadTable* table) {
  GeneralPlan plan{};
  plan.head_dim = layout.head_dim;
  plan.value_dim = layout.value_dim;
  plan.block_tokens = layout.block_tokens;
  plan.key_type = static_cast<uint32_t>(layout.key_dtype);
  plan.value_type = static_cast<uint32_t>(layout.value_dtype);
  plan.key_row_bytes = static_cast<uint32_t>(layout.key_row_bytes());
  plan.value_row_bytes = static_cast<uint32_t>(layout.value_row_bytes());
  plan.key_prefix = layout.value_source == ValueSource::kKeyPrefix;
  plan.keys = KindOf(profile.key_codec);
  plan.exact_key_scale = profile.scale_rule == ScaleRule::kExact;
  plan.key_basis = profile.projection == Projection::kBasis;
  plan.block_mean = profile.centering == Centering::kBlock;
  plan.sign_bits = profile.sign_bits;
  plan.outlier_sign_bits = profile.outlier_sign_bits;
  plan.outliers = KindOf(profile.outlier_method);
  plan.num_outliers = profile.num_outliers;
  plan.outlier_group_tokens = profile.outlier_group_tokens;
  plan.values = KindOf(profile.value_codec);
  plan.exact_value_scale = profile.value_scale_rule == ScaleRule::kExact;
  plan.value_basis = profile.value_codec == ValueCodec::kBasis;
  plan.value_group_size = profile.value_group_size;
  PlaceSections(CellFormat::Make(layout, profile), &plan);

  const auto rows_of = [](const Basis& basis, uint32_t dim) {
    return static_cast<uint32_t>(basis.rows.size() / dim);
  };
  plan.value_rows =
      plan.value_basis ? rows_of(table->value_basis, layout.value_dim) : layout.value_dim;
  uint32_t key_rows = 0;  // of the projection
  if (plan.keys == GeneralKeys::kSketch) {
    key_rows = profile.sign_bits;
  } else if (plan.keys == GeneralKeys::kCodes) {
    key_rows = plan.key_basis ? rows_of(table->key_basis, layout.head_dim) : layout.head_dim;
  }
  plan.worker_bytes = WorkerBytes(plan);
  plan.attend_bytes = AttendBytes(plan);
  plan.query_floats =
      static_cast<uint32_t>(RoundUp(layout.head_dim, kLanes) + RoundUp(key_rows, kLanes) + kLanes);
  plan.partial_floats = static_cast<uint32_t>(kLanes + RoundUp(plan.value_rows, kLanes));
  return plan;
}

size_t QueryRows(const ChainArgs& chain, uint32_t num_queries) {
  return size_t{chain.num_sequences} * chain.num_kv_heads * num_queries;
}

}  // namespace

GeneralLayer::GeneralLayer(const KvLayout& layout, const CodecProfile& profile,
                           std::vector<const HeadTable*> tables)
    : layout_(layout),
      profile_(profile),
      tables_(std::move(tables)),
      projections_(MakeProjections(layout, profile)),
      key_fp8_(Fp8Values(layout.key_dtype, layout.key_scale)),
      value_fp8_(Fp8Values(layout.value_dtype, layout.value_scale)) {
  if (!profile.uses_tables()) tables_ = {nullptr};
  if (profile.outlier_method == OutlierMethod::kSketch) {
    columns_ = ProjectionColumns(*projections_.keys, profile.sign_bits, KernelsOf(Isa::kScalar));
  }
  plan_ = PlanOf(layout, profile, tables_[0]);
  plan_.num_heads = static_cast<uint32_t>(tables_.size());
  constant_bytes_ = Constants(nullptr).size();
}

std::vector<std::byte> GeneralLayer::Constants(const void* address) const {
  cuda::Constants constants(address);
  std::vector<GeneralHead> heads;
  constants.Reserve(tables_.size() * sizeof(GeneralHead));
  for (const HeadTable* table : tables_) {
    GeneralHead head{};
    const std::vector<CodeGroup> keys = KeyGroups(profile_, layout_, table);
    const std::vector<CodeGroup> outliers = SecondSketchGroups(profile_);
    const std::vector<CodeGroup> values = ValueGroups(profile_, layout_, table);
    head.key_projection = Add(projections_.keys.get(), &constants);
    head.value_projection = Add(projections_.values.get(), &constants);
    if (plan_.key_basis) {
      const ProjectionMatrix basis(layout_.head_dim, table->key_basis.rows);
      head.key_projection = Add(&basis, &constants);
    }
    if (plan_.value_basis) {
      const ProjectionMatrix basis(layout_.value_dim, table->value_basis.rows);
      head.value_projection = Add(&basis, &constants);
    }
    head.outlier_projection = head.key_projection;
    head.outlier_projection.rows = profile_.outlier_sign_bits;
    head.key_groups = Add(keys, &constants);
    head.outlier_groups = Add(outliers, &constants);
    head.value_groups = Add(values, &constants);
    head.num_key_groups = static_cast<uint32_t>(keys.size());
    head.num_outlier_groups = static_cast<uint32_t>(outliers.size());
    head.num_value_groups = static_cast<uint32_t>(values.size());
    head.key_unit_energy = UnitEnergy(keys);
    head.value_unit_energy = UnitEnergy(values);
    if (profile_.centering == Centering::kTable) {
      head.key_mean = constants.Add(table->key_mean.data(), table->key_mean.size());
    }
    if (plan_.value_basis) {
      head.value_mean = constants.Add(table->value_mean.data(), table->value_mean.size());
    }
    if (profile_.outlier_source == OutlierSource::kTable) {
      const std::vector<uint16_t> channels(table->outlier_channels.begin(),
                                           table->outlier_channels.end());
      head.channels = reinterpret_cast<const uint8_t*>(constants.AddCopy(channels));
    }
    head.columns = constants.Add(columns_.data(), columns_.size());
    head.key_fp8 = constants.Add(key_fp8_.data(), key_fp8_.size());
    head.value_fp8 = constants.Add(value_fp8_.data(), value_fp8_.size());
    heads.push_back(head);
  }
  std::memcpy(constants.data(), heads.data(), heads.size() * sizeof(GeneralHead));
  return constants.Take();
}

GeneralPlan GeneralLayer::Plan(const void* address) const {
  GeneralPlan plan = plan_;
  plan.heads = static_cast<const GeneralHead*>(address);
  return plan;
}

size_t PreparedFloats(const GeneralPlan& plan, const ChainArgs& chain, uint32_t num_queries) {
  return QueryRows(chain, num_queries) * plan.query_floats;
}

size_t PartialFloats(const GeneralPlan& plan, const ChainArgs& chain, uint32_t num_queries) {
  const size_t shares = chain.num_thread_blocks + size_t{chain.num_sequences} * chain.num_kv_heads;
  return shares * num_queries * plan.partial_floats;
}

size_t TurnedFloats(const GeneralPlan& plan, const ChainArgs& chain, uint32_t num_queries) {
  if (plan.values != GeneralValues::kRotated) return 0;
  return QueryRows(chain, num_queries) * plan.value_rows;
}

}  // namespace sketchkv::cuda
