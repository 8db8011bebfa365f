// The use cases that move parts: Put, Get, Encode, Decode.

#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "service/engine/cell_source.h"
#include "service/engine/checksum.h"
#include "service/engine/engine.h"
#include "service/engine/parallel.h"
#include "service/engine/raw_answer.h"

namespace sketchkv {
namespace {

using Cell = WriteHandle::Cell;

absl::Status CheckSize(const Model& model, const PartLayout& part, bool encoded, uint64_t bytes) {
  SKETCHKV_ASSIGN_OR_RETURN(const uint64_t expected, ExpectedPayloadBytes(model, part, encoded));
  if (bytes == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("payload has ", bytes, " bytes; the part needs ", expected));
}

// fill(i) for each of `cells`, which stand layer by layer, and the payload's checksum: a layer is
// added just before its first cell is filled, so that its bytes come from memory once.
absl::Status FillAndCheckSum(Executor* executor, const PartLayout& part, const Payload& payload,
                             const CellSource& source, std::span<const Cell> cells,
                             const std::function<absl::Status(size_t)>& fill) {
  SteppedChecksum checksum(payload);
  const absl::Status filled = ParallelForStatus(executor, cells.size(), [&](size_t i) {
    if (i == 0 || cells[i].layer != cells[i - 1].layer) {
      checksum.AddUpTo(source.LayerEnd(cells[i].layer));
    }
    return fill(i);
  });
  // Of two errors it is the one that is told: bytes that are not what was sent have others.
  SKETCHKV_RETURN_IF_ERROR(CheckPayload(part.checksum, checksum.Finish()));
  return filled;
}

absl::Status ValidateOutput(const Model& model, const CellRange& range, DType dtype) {
  const KvLayout& layout = model.layout();
  if (dtype == DType::kBf16 || dtype == DType::kFp16 || dtype == DType::kFp32) {
    return absl::OkStatus();
  }
  for (uint32_t l = 0; l < range.layer_count; ++l) {
    const CodecProfile& profile = model.codec->profiles()[range.layer_begin + l];
    const bool own = dtype == layout.key_dtype && dtype == layout.value_dtype &&
                     profile.key_codec == KeyCodec::kRaw && profile.value_codec == ValueCodec::kRaw;
    if (own) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("format.dtype is ", static_cast<int>(dtype), " (", DTypeName(dtype),
                     "); layer ", range.layer_begin + l, " (profile ", profile.name, ", ",
                     DTypeName(layout.key_dtype), " keys) decodes to bf16, fp16 or fp32"));
  }
  return absl::OkStatus();
}

PartLayout EncodedLayout(const Model& model, const CellRange& range, uint32_t num_tokens) {
  PartLayout layout;
  layout.range = range;
  layout.num_tokens = num_tokens;
  layout.fingerprint.assign(model.fingerprint.begin(), model.fingerprint.end());
  layout.format_version = kFormatVersion;
  return layout;
}

// The cells of a range as they lie in a slot: one fragment where all heads of the layers are asked
// for.
Payload CellsInPlace(const BlockCodec& codec, const CellRange& range,
                     std::span<const std::byte> slot, const std::shared_ptr<const void>& owner) {
  Payload cells;
  size_t begin = 0, end = 0;  // of the slot, not appended yet
  for (uint32_t layer = range.layer_begin; layer < range.layer_begin + range.layer_count; ++layer) {
    const size_t next = codec.cell_offset(layer, range.head_begin);
    if (next != end) {
      cells.Append(slot.subspan(begin, end - begin), owner);
      begin = next;
    }
    end = next + codec.cell_bytes(layer) * range.head_count;
  }
  cells.Append(slot.subspan(begin, end - begin), owner);
  return cells;
}

}  // namespace

absl::StatusOr<Engine::PutResult> Engine::Put(uint32_t tenant, const PutRequest& request) {
  if (request.gpu_payload.has_value()) {
    const PutRequest* const one[] = {&request};
    return std::move(PutFromGpu(tenant, one)[0]);
  }
  {
    SKETCHKV_ASSIGN_OR_RETURN(PendingPut put,
                              BeginPut(tenant, request, /*want_gpu=*/CodesOnGpu(request.model)));
    SKETCHKV_ASSIGN_OR_RETURN(const HostBytes written, EncodeFromHost(&put));
    absl::StatusOr<PutResult> result = EndPut(&put, written);
    if (written == HostBytes::kWritten || !absl::IsUnavailable(result.status())) return result;
  }
  // The card failed when it alone had the cells. The payload is still here.
  return Put(tenant, request);
}

absl::StatusOr<Engine::PendingPut> Engine::BeginPut(uint32_t tenant, const PutRequest& request,
                                                    bool want_gpu) {
  const Model& model = *request.model;
  SKETCHKV_RETURN_IF_ERROR(CheckSize(model, request.part, request.encoded,
                                     request.gpu_payload.has_value()
                                         ? request.gpu_payload->bytes.size()
                                         : request.payload.size()));
  SKETCHKV_ASSIGN_OR_RETURN(const CellRange range,
                            ResolveRange(request.part.range, model.layout()));
  const BlockKey key{.tenant = tenant, .fingerprint = model.fingerprint, .hash = request.hash};
  SKETCHKV_ASSIGN_OR_RETURN(WriteHandle handle,
                            pool_->Reserve({.key = key,
                                            .parent = request.parent,
                                            .num_tokens = request.part.num_tokens,
                                            .shape = model.shape,
                                            .range = range,
                                            .want_gpu = want_gpu}));
  std::vector<uint32_t> checksums(handle.claimed().size());
  return PendingPut{&request, range, key, std::move(handle), std::move(checksums)};
}

absl::StatusOr<Engine::PutResult> Engine::EndPut(PendingPut* put, HostBytes written) {
  const PutRequest& request = *put->request;
  const Model& model = *request.model;
  SKETCHKV_ASSIGN_OR_RETURN(const WriteHandle::CommitResult committed,
                            put->handle.Commit(put->checksums, written));
  // Unregistered while this put was encoding: what it dropped must not come back.
  const absl::StatusOr<std::shared_ptr<const Model>> still =
      models_->Get(put->key.tenant, model.name);
  if (!still.ok() || (*still)->fingerprint != model.fingerprint) {
    (void)pool_->Delete(put->key);
    return absl::NotFoundError(absl::StrCat("model '", model.name, "' was unregistered"));
  }
  put_raw_bytes_ +=
      RawPartFormat(model.layout(), put->range, request.part.num_tokens, RawOrder::kNhd)
          .total_bytes();
  for (const Cell& cell : put->handle.claimed()) {
    put_stored_bytes_ += model.codec->cell_bytes(cell.layer);
  }
  return PutResult{.already_present = put->checksums.empty(), .sealed = committed.sealed};
}

absl::StatusOr<HostBytes> Engine::EncodeFromHost(PendingPut* put) {
  SKETCHKV_ASSIGN_OR_RETURN(const bool on_gpu, EncodeHostRowsOnGpu(put));
  if (on_gpu) return HostBytes::kStale;
  SKETCHKV_RETURN_IF_ERROR(EncodeOnHost(put));
  return HostBytes::kWritten;
}

absl::Status Engine::EncodeOnHost(PendingPut* put) {
  const PutRequest& request = *put->request;
  const Model& model = *request.model;
  const CellSource source(model, request.part, put->range, request.encoded, request.payload);
  const CellChecksummer checksummer(put->key, request.part.num_tokens);
  const std::span<const Cell> cells = put->handle.claimed();
  const std::span<std::byte> slot = put->handle.slot();
  const auto fill = [&](size_t i) {
    const Cell& cell = cells[i];
    const auto out = slot.subspan(model.codec->cell_offset(cell.layer, cell.head),
                                  model.codec->cell_bytes(cell.layer));
    SKETCHKV_RETURN_IF_ERROR(source.Fill(cell, out));
    put->checksums[i] = checksummer.Of(cell.layer, cell.head, out);
    return absl::OkStatus();
  };
  if (request.still_valid) {
    SKETCHKV_RETURN_IF_ERROR(ParallelForStatus(executor_, cells.size(), fill));
    SKETCHKV_RETURN_IF_ERROR(request.still_valid());
  } else {
    SKETCHKV_RETURN_IF_ERROR(
        FillAndCheckSum(executor_, request.part, request.payload, source, cells, fill));
  }
  const std::span<std::byte> gpu_slot = put->handle.gpu_slot();
  if (!gpu_slot.empty()) gpu_->CopyUp(model, cells, slot, gpu_slot.data());
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> Engine::MaxGetBytes(const GetRequest& request) const {
  const Model& model = *request.model;
  SKETCHKV_ASSIGN_OR_RETURN(const CellRange range, ResolveRange(request.range, model.layout()));
  if (!request.dtype.has_value()) return EncodedPartBytes(*model.codec, range);
  SKETCHKV_RETURN_IF_ERROR(ValidateOutput(model, range, *request.dtype));
  return RawPartFormat(model.layout(), range, model.layout().block_tokens, request.raw_order,
                       *request.dtype, *request.dtype)
      .total_bytes();
}

absl::StatusOr<uint64_t> Engine::Get(uint32_t tenant, const GetRequest& request, PartSink* sink) {
  const Model& model = *request.model;
  SKETCHKV_ASSIGN_OR_RETURN(const CellRange range, ResolveRange(request.range, model.layout()));
  if (request.dtype.has_value()) {
    SKETCHKV_RETURN_IF_ERROR(ValidateOutput(model, range, *request.dtype));
  }
  const BlockKey key{.tenant = tenant, .fingerprint = model.fingerprint, .hash = request.hash};
  if (request.into_place == Place::kGpu) return GetToGpu(key, request, range, sink);
  SKETCHKV_ASSIGN_OR_RETURN(ReadPins pinned, PinForHost(key));
  const auto pins = std::make_shared<const ReadPins>(std::move(pinned));
  return request.dtype.has_value() ? GetDecoded(request, range, *pins, sink)
                                   : GetEncoded(request, range, pins, sink);
}

absl::StatusOr<uint64_t> Engine::GetEncoded(const GetRequest& request, const CellRange& range,
                                            const std::shared_ptr<const ReadPins>& pins,
                                            PartSink* sink) {
  const Model& model = *request.model;
  const BlockView block = (*pins)[0];
  const uint64_t bytes = EncodedPartBytes(*model.codec, range);
  const PartLayout layout = EncodedLayout(model, range, block.num_tokens);
  if (!request.into.empty()) {
    SKETCHKV_RETURN_IF_ERROR(CheckRoom(request, bytes));
    SKETCHKV_RETURN_IF_ERROR(VerifyOrDiscard(
        model, block, range, /*meanwhile=*/[] {},
        [&](const Cell& cell, std::span<const std::byte> from) {
          const uint64_t at = EncodedCellOffset(*model.codec, range, cell.layer, cell.head);
          std::memcpy(request.into.data() + at, from.data(), from.size());
          return absl::OkStatus();
        }));
    sink->Begin(layout, std::nullopt, 0);
    return 0;
  }
  const Payload cells = CellsInPlace(*model.codec, range, block.bytes, pins);
  uint64_t checksum = 0;
  SKETCHKV_RETURN_IF_ERROR(VerifyOrDiscard(
      model, block, range, [&] { checksum = PayloadChecksum(cells); }, /*use=*/nullptr));
  sink->Begin(layout, std::nullopt, bytes);
  sink->Append(cells);
  return checksum;
}

absl::StatusOr<uint64_t> Engine::GetDecoded(const GetRequest& request, const CellRange& range,
                                            const ReadPins& pins, PartSink* sink) {
  const Model& model = *request.model;
  const BlockView block = pins[0];
  const RawAnswer answer{model, range, block.num_tokens, *request.dtype, request.raw_order};
  // Each cell is decoded while its verified bytes are still in the cache.
  const DecodeLayers decode = [&](const CellRange& layers, const RawPartFormat& format,
                                  std::byte* out, const std::function<void()>& meanwhile) {
    return VerifyOrDiscard(model, block, layers, meanwhile,
                           [&](const Cell& cell, std::span<const std::byte> from) {
                             return answer.DecodeCell(format, cell, from, out);
                           });
  };
  if (request.into.empty()) return DecodeInSteps(answer, decode, sink);
  const RawPartFormat format = answer.Format(range);
  SKETCHKV_RETURN_IF_ERROR(CheckRoom(request, format.total_bytes()));
  SKETCHKV_RETURN_IF_ERROR(decode(range, format, request.into.data(), /*meanwhile=*/[] {}));
  sink->Begin(answer.Layout(), format, 0);
  return 0;
}

absl::Status Engine::CheckRoom(const GetRequest& request, uint64_t bytes) {
  if (request.into.size() >= bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(request.into_place == Place::kGpu ? "gpu_memory" : "segment", ".length is ",
                   request.into.size(), "; the answer has ", bytes, " bytes"));
}

absl::Status Engine::CheckCell(const Model& model, const BlockView& block, const Cell& cell,
                               uint32_t checksum) {
  const uint32_t expected =
      block.cell_checksums[size_t{cell.layer} * model.layout().num_kv_heads + cell.head];
  if (checksum == expected) return absl::OkStatus();
  return AtCell(cell, absl::DataLossError(absl::StrCat(
                          "stored cell of block ", block.key->hash.ToHex(), " has checksum 0x",
                          absl::Hex(checksum), "; it was stored with 0x", absl::Hex(expected))));
}

absl::Status Engine::VerifyOrDiscard(const Model& model, const BlockView& block,
                                     const CellRange& range, const std::function<void()>& meanwhile,
                                     const UseCell& use) {
  const CellChecksummer checksummer(*block.key, block.num_tokens);
  const std::vector<Cell> cells = CellsOf(range);
  absl::Status status = ParallelForStatus(executor_, cells.size() + 1, [&](size_t i) {
    if (i == 0) {
      meanwhile();
      return absl::OkStatus();
    }
    const auto [layer, head] = cells[i - 1];
    const auto cell =
        block.bytes.subspan(model.codec->cell_offset(layer, head), model.codec->cell_bytes(layer));
    SKETCHKV_RETURN_IF_ERROR(
        CheckCell(model, block, cells[i - 1], checksummer.Of(layer, head, cell)));
    return use ? AtCell(cells[i - 1], use(cells[i - 1], cell)) : absl::OkStatus();
  });
  if (absl::IsDataLoss(status)) pool_->Discard(*block.key);
  return status;
}

absl::StatusOr<uint64_t> Engine::Encode(const Model& model, const PartLayout& part,
                                        const Payload& payload, PartSink* sink) {
  SKETCHKV_RETURN_IF_ERROR(CheckSize(model, part, /*encoded=*/false, payload.size()));
  SKETCHKV_ASSIGN_OR_RETURN(const CellRange range, ResolveRange(part.range, model.layout()));
  const uint64_t bytes = EncodedPartBytes(*model.codec, range);
  const std::shared_ptr<std::byte> output = NewBytes(bytes);
  const CellSource source(model, part, range, /*encoded=*/false, payload);
  const std::vector<Cell> cells = CellsOf(range);
  SKETCHKV_RETURN_IF_ERROR(FillAndCheckSum(executor_, part, payload, source, cells, [&](size_t i) {
    const Cell& cell = cells[i];
    return source.Fill(
        cell, {output.get() + EncodedCellOffset(*model.codec, range, cell.layer, cell.head),
               model.codec->cell_bytes(cell.layer)});
  }));
  Payload encoded;
  encoded.Append({output.get(), bytes}, output);
  sink->Begin(EncodedLayout(model, range, part.num_tokens), std::nullopt, bytes);
  sink->Append(encoded);
  return PayloadChecksum(encoded);
}

absl::StatusOr<uint64_t> Engine::Decode(const Model& model, const PartLayout& part,
                                        const Payload& payload, DType dtype, RawOrder raw_order,
                                        PartSink* sink) {
  SKETCHKV_RETURN_IF_ERROR(CheckSize(model, part, /*encoded=*/true, payload.size()));
  SKETCHKV_RETURN_IF_ERROR(CheckPayload(part.checksum, PayloadChecksum(payload)));
  SKETCHKV_ASSIGN_OR_RETURN(const CellRange range, ResolveRange(part.range, model.layout()));
  SKETCHKV_RETURN_IF_ERROR(ValidateOutput(model, range, dtype));
  const RawAnswer answer{model, range, part.num_tokens, dtype, raw_order};
  const auto decode_cell = [&](const Cell& cell, const RawPartFormat& format, std::byte* out) {
    const CellCodec& codec = model.codec->cell(cell.layer, cell.head);
    // Copied, for it may be cut, or not be aligned, as it came.
    const std::shared_ptr<std::byte> copy = NewBytes(codec.cell_bytes());
    const std::span<std::byte> from(copy.get(), codec.cell_bytes());
    payload.CopyTo(EncodedCellOffset(*model.codec, range, cell.layer, cell.head), from);
    SKETCHKV_RETURN_IF_ERROR(codec.Validate(from, part.num_tokens));
    return answer.DecodeCell(format, cell, from, out);
  };
  return DecodeInSteps(
      answer,
      [&](const CellRange& layers, const RawPartFormat& format, std::byte* out,
          const std::function<void()>& meanwhile) {
        const std::vector<Cell> cells = CellsOf(layers);
        return ParallelForStatus(executor_, cells.size() + 1, [&](size_t i) {
          if (i > 0) return AtCell(cells[i - 1], decode_cell(cells[i - 1], format, out));
          meanwhile();
          return absl::OkStatus();
        });
      },
      sink);
}

}  // namespace sketchkv
