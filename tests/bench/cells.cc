#include "tests/bench/cells.h"

#include <utility>

#include "kernels/base/status_macros.h"
#include "tests/bench/isa_levels.h"

namespace sketchkv::bench {

absl::StatusOr<std::unique_ptr<BlockCodec>> MakeCodec(const Options& options, uint32_t block_tokens,
                                                      uint32_t head_count) {
  const KvLayout layout = {.num_layers = 1,
                           .num_kv_heads = head_count,
                           .head_dim = kDim,
                           .value_dim = kDim,
                           .block_tokens = block_tokens};
  ProfileRequest request;
  request.name = options.Text("profile", std::string(kDefaultProfile));
  if (options.Text("projection", "") == "orthogonal") request.projection = Projection::kOrthogonal;
  SKETCHKV_ASSIGN_OR_RETURN(CodecProfile profile, ResolveProfile(request, layout, 0));
  SKETCHKV_ASSIGN_OR_RETURN(const Isa isa, ChooseIsa(options.Text("isa", "auto")));
  return BlockCodec::Create(layout, {std::move(profile)}, isa);
}

absl::StatusOr<std::vector<std::byte>> EncodeCells(const BlockCodec& codec,
                                                   const Numbers& numbers) {
  const uint32_t tokens = codec.layout().block_tokens;
  const CellCodec& cell = codec.cell(0, 0);
  const Buffer keys = Bf16Rows(numbers.keys, numbers.tokens());
  const Buffer values = Bf16Rows(numbers.values, numbers.tokens());
  constexpr size_t kRow = kDim * sizeof(uint16_t);
  std::vector<std::byte> cells(numbers.tokens() / tokens * cell.cell_bytes());
  for (size_t block = 0; block < numbers.tokens() / tokens; ++block) {
    const size_t row = block * tokens * kRow;
    SKETCHKV_RETURN_IF_ERROR(
        cell.Encode({keys.data() + row, kRow}, {values.data() + row, kRow}, tokens,
                    std::span(cells).subspan(block * cell.cell_bytes(), cell.cell_bytes())));
  }
  return cells;
}

}  // namespace sketchkv::bench
