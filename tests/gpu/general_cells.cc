#include "tests/gpu/general_cells.h"

#include <utility>

namespace sketchkv::testing {

GeneralSubject::GeneralSubject(KvLayout layout, const ProfileRequest& request, RunOn where)
    : layout_(std::move(layout)), runner_(MakeRunner(where)) {
  layout_.num_kv_heads = kHeads;
  const CodecProfile profile = Resolve(request, layout_);
  codec_ = MakeCodec(layout_, profile, BestIsa());
  std::vector<const HeadTable*> tables;
  const HeadTable none;
  for (uint32_t head = 0; head < kHeads; ++head) {
    const HeadTable& table = profile.uses_tables() ? codec_->tables()->at(0, head) : none;
    if (profile.uses_tables()) tables.push_back(&table);
    projections_.push_back(
        profile.key_codec == KeyCodec::kRaw
            ? Matrix()
            : ReferenceProjection(profile, layout_.head_dim, codec_->dense_projection(0), table));
  }
  const cuda::GeneralLayer layer(layout_, profile, std::move(tables));
  const std::vector<std::byte> room(layer.constant_bytes());
  // The address first: constants hold pointers.
  uint8_t* const address = runner_->Put(room.data(), room.size());
  const std::vector<std::byte> constants = layer.Constants(address);
  runner_->Set(address, constants.data(), constants.size());
  plan_ = layer.Plan(address);
}

ReferenceCell GeneralSubject::Parse(uint32_t head, std::span<const std::byte> cell,
                                    uint32_t num_tokens) const {
  const HeadTable none;
  return ReferenceParse(layout_, profile(),
                        profile().uses_tables() ? codec_->tables()->at(0, head) : none,
                        projections_[head], cell, num_tokens);
}

KvLayout LayoutOf(const GeneralShape& shape) {
  return Layout(shape.head_dim, shape.value_dim, shape.block_tokens, shape.dtype);
}

bool IsDense(const ProfileRequest& request) {
  return request.name == "qjl-paper" || request.name == "klt" || request.projection.has_value() ||
         request.value_codec == ValueCodec::kBasis;
}

std::vector<GeneralCase> GeneralCases(RunOn where) {
  std::vector<GeneralCase> cases;
  for (NamedRequest& profile : AllRequests()) cases.push_back({std::move(profile), where});
  return cases;
}

}  // namespace sketchkv::testing
