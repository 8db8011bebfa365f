#include "service/engine/engine.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/mutex.h"
#include "kernels/base/status_macros.h"
#include "service/engine/checksum.h"

namespace sketchkv {
namespace {

// The most logits one Score answers, in bytes: they are all in memory at once.
constexpr uint64_t kMaxScoreBytes = uint64_t{256} << 20;

// Of all different targets of one request together: their tables are in memory too.
constexpr uint64_t kMaxTargetBlocks = uint64_t{1} << 20;
// Of one target: token numbers are 32 bits, with room for a split beyond the last.
constexpr uint64_t kMaxTargetTokens = uint64_t{1} << 31;

std::span<const std::byte> AsBytes(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}
std::byte* MutableBytes(std::string* text) { return reinterpret_cast<std::byte*>(text->data()); }

MutableRowsView Mutable(RowsView rows) {
  return {.data = const_cast<std::byte*>(rows.data), .stride_bytes = rows.stride_bytes};
}

absl::Status CheckPayload(const Model& model, const PartLayout& part, bool encoded,
                          std::span<const std::byte> payload) {
  SKETCHKV_ASSIGN_OR_RETURN(const uint64_t expected, ExpectedPayloadBytes(model, part, encoded));
  if (payload.size() != expected) {
    return absl::InvalidArgumentError(
        absl::StrCat("payload has ", payload.size(), " bytes; the part needs ", expected));
  }
  const uint64_t checksum = PayloadChecksum(payload);
  if (checksum != part.checksum) {
    return absl::DataLossError(absl::StrCat("payload has checksum 0x", absl::Hex(checksum),
                                            "; the header says 0x", absl::Hex(part.checksum)));
  }
  return absl::OkStatus();
}

absl::Status AtCell(uint32_t layer, uint32_t head, const absl::Status& status) {
  return absl::Status(status.code(),
                      absl::StrCat("layer ", layer, ", head ", head, ": ", status.message()));
}

// The first failure of a parallel loop, by index, so that the same input gives the same message.
class FirstError {
 public:
  void Note(size_t index, absl::Status status) {
    MutexLock lock(&mu_);
    if (status_.ok() || index < index_) {
      index_ = index;
      status_ = std::move(status);
    }
  }
  [[nodiscard]] absl::Status status() {
    MutexLock lock(&mu_);
    return status_;
  }

 private:
  Mutex mu_;
  size_t index_ SKETCHKV_GUARDED_BY(mu_) = 0;
  absl::Status status_ SKETCHKV_GUARDED_BY(mu_);
};

// Makes one encoded cell from a checked payload, raw or encoded.
class CellSource {
 public:
  CellSource(const Model& model, const PartLayout& part, const CellRange& range, bool encoded,
             std::span<const std::byte> payload)
      : codec_(*model.codec),
        num_tokens_(part.num_tokens),
        range_(range),
        raw_(model.layout(), range, part.num_tokens, part.raw_order),
        encoded_(encoded),
        payload_(payload) {}

  absl::Status Fill(uint32_t layer, uint32_t head, std::span<std::byte> cell) const {
    const CellCodec& codec = codec_.cell(layer, head);
    if (!encoded_) {
      absl::Status status =
          codec.Encode(raw_.Keys(payload_.data(), layer, head),
                       raw_.Values(payload_.data(), layer, head), num_tokens_, cell);
      return status.ok() ? status : AtCell(layer, head, status);
    }
    const auto from = payload_.subspan(EncodedCellOffset(codec_, range_, layer, head), cell.size());
    absl::Status status = codec.Validate(from, num_tokens_);
    if (!status.ok()) return AtCell(layer, head, status);
    std::memcpy(cell.data(), from.data(), from.size());
    return absl::OkStatus();
  }

 private:
  const BlockCodec& codec_;
  const uint32_t num_tokens_;
  const CellRange range_;
  const RawPartFormat raw_;
  const bool encoded_;
  const std::span<const std::byte> payload_;
};

// The cells of a range, flattened.
std::vector<WriteHandle::Cell> CellsOf(const CellRange& range) {
  std::vector<WriteHandle::Cell> cells;
  cells.reserve(size_t{range.layer_count} * range.head_count);
  for (uint32_t l = 0; l < range.layer_count; ++l) {
    for (uint32_t h = 0; h < range.head_count; ++h) {
      cells.push_back({.layer = range.layer_begin + l, .head = range.head_begin + h});
    }
  }
  return cells;
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

}  // namespace

Engine::Engine(ModelRegistry* models, BlockPool* pool, Executor* executor)
    : models_(models), pool_(pool), executor_(executor) {}

absl::StatusOr<Engine::PutResult> Engine::Put(uint32_t tenant, const PutRequest& request) {
  const Model& model = *request.model;
  SKETCHKV_RETURN_IF_ERROR(CheckPayload(model, request.part, request.encoded, request.payload));
  SKETCHKV_ASSIGN_OR_RETURN(const CellRange range,
                            ResolveRange(request.part.range, model.layout()));
  const BlockKey key{.tenant = tenant, .fingerprint = model.fingerprint, .hash = request.hash};
  SKETCHKV_ASSIGN_OR_RETURN(WriteHandle handle,
                            pool_->Reserve({.key = key,
                                            .parent = request.parent,
                                            .num_tokens = request.part.num_tokens,
                                            .shape = model.shape,
                                            .range = range}));
  const CellSource source(model, request.part, range, request.encoded, request.payload);
  const CellChecksummer checksummer(key, request.part.num_tokens);
  const std::span<const WriteHandle::Cell> cells = handle.claimed();
  const std::span<std::byte> slot = handle.slot();
  std::vector<uint32_t> checksums(cells.size());
  std::atomic<uint64_t> stored_bytes{0};
  FirstError error;
  executor_->ParallelFor(cells.size(), [&](size_t i) {
    const auto [layer, head] = cells[i];
    const auto cell =
        slot.subspan(model.codec->cell_offset(layer, head), model.codec->cell_bytes(layer));
    absl::Status status = source.Fill(layer, head, cell);
    if (!status.ok()) return error.Note(i, std::move(status));
    checksums[i] = checksummer.Of(layer, head, cell);
    stored_bytes += cell.size();
  });
  SKETCHKV_RETURN_IF_ERROR(error.status());
  SKETCHKV_ASSIGN_OR_RETURN(const WriteHandle::CommitResult committed, handle.Commit(checksums));
  // Unregistered while this put was encoding: what it dropped must not come back.
  const absl::StatusOr<std::shared_ptr<const Model>> still = models_->Get(tenant, model.name);
  if (!still.ok() || (*still)->fingerprint != model.fingerprint) {
    (void)pool_->Delete(key);
    return absl::NotFoundError(absl::StrCat("model '", model.name, "' was unregistered"));
  }
  put_raw_bytes_ +=
      RawPartFormat(model.layout(), range, request.part.num_tokens, RawOrder::kNhd).total_bytes();
  put_stored_bytes_ += stored_bytes;
  return PutResult{.already_present = cells.empty(), .sealed = committed.sealed};
}

absl::Status Engine::VerifyCells(const Model& model, const BlockView& block,
                                 const CellRange& range) const {
  const CellChecksummer checksummer(*block.key, block.num_tokens);
  const std::vector<WriteHandle::Cell> cells = CellsOf(range);
  FirstError error;
  executor_->ParallelFor(cells.size(), [&](size_t i) {
    const auto [layer, head] = cells[i];
    const auto cell =
        block.bytes.subspan(model.codec->cell_offset(layer, head), model.codec->cell_bytes(layer));
    const uint32_t actual = checksummer.Of(layer, head, cell);
    const uint32_t expected =
        block.cell_checksums[size_t{layer} * model.layout().num_kv_heads + head];
    if (actual == expected) return;
    error.Note(i, AtCell(layer, head,
                         absl::DataLossError(absl::StrCat(
                             "stored cell of block ", block.key->hash.ToHex(), " has checksum 0x",
                             absl::Hex(actual), "; it was stored with 0x", absl::Hex(expected)))));
  });
  return error.status();
}

absl::StatusOr<uint64_t> Engine::MaxGetBytes(const GetRequest& request) const {
  const Model& model = *request.model;
  SKETCHKV_ASSIGN_OR_RETURN(const CellRange range, ResolveRange(request.range, model.layout()));
  const uint64_t encoded_bytes = EncodedPartBytes(*model.codec, range);
  if (!request.dtype.has_value()) return encoded_bytes;
  SKETCHKV_RETURN_IF_ERROR(ValidateOutput(model, range, *request.dtype));
  return encoded_bytes + RawPartFormat(model.layout(), range, model.layout().block_tokens,
                                       request.raw_order, *request.dtype, *request.dtype)
                             .total_bytes();
}

absl::StatusOr<Part> Engine::Get(uint32_t tenant, const GetRequest& request) {
  const Model& model = *request.model;
  SKETCHKV_ASSIGN_OR_RETURN(const CellRange range, ResolveRange(request.range, model.layout()));
  if (request.dtype.has_value()) {
    SKETCHKV_RETURN_IF_ERROR(ValidateOutput(model, range, *request.dtype));
  }
  const BlockKey key{.tenant = tenant, .fingerprint = model.fingerprint, .hash = request.hash};
  SKETCHKV_ASSIGN_OR_RETURN(const ReadPins pins, pool_->Pin(key));
  const BlockView block = pins[0];
  absl::Status verified = VerifyCells(model, block, range);
  if (!verified.ok()) {
    pool_->Discard(key);
    return verified;
  }
  Part part;
  part.layout.range = range;
  part.layout.num_tokens = block.num_tokens;
  part.layout.fingerprint.assign(model.fingerprint.begin(), model.fingerprint.end());
  part.layout.format_version = kFormatVersion;
  part.payload.resize(EncodedPartBytes(*model.codec, range));
  for (const auto [layer, head] : CellsOf(range)) {
    const size_t bytes = model.codec->cell_bytes(layer);
    std::memcpy(part.payload.data() + EncodedCellOffset(*model.codec, range, layer, head),
                block.bytes.data() + model.codec->cell_offset(layer, head), bytes);
  }
  part.layout.checksum = PayloadChecksum(AsBytes(part.payload));
  if (!request.dtype.has_value()) return part;
  return Decode(model, part.layout, AsBytes(part.payload), *request.dtype, request.raw_order);
}

absl::StatusOr<Part> Engine::Encode(const Model& model, const PartLayout& part,
                                    std::span<const std::byte> payload) {
  SKETCHKV_RETURN_IF_ERROR(CheckPayload(model, part, /*encoded=*/false, payload));
  SKETCHKV_ASSIGN_OR_RETURN(const CellRange range, ResolveRange(part.range, model.layout()));
  Part encoded;
  encoded.payload.resize(EncodedPartBytes(*model.codec, range));
  const CellSource source(model, part, range, /*encoded=*/false, payload);
  const std::vector<WriteHandle::Cell> cells = CellsOf(range);
  FirstError error;
  executor_->ParallelFor(cells.size(), [&](size_t i) {
    const auto [layer, head] = cells[i];
    std::byte* cell =
        MutableBytes(&encoded.payload) + EncodedCellOffset(*model.codec, range, layer, head);
    absl::Status status = source.Fill(layer, head, {cell, model.codec->cell_bytes(layer)});
    if (!status.ok()) error.Note(i, std::move(status));
  });
  SKETCHKV_RETURN_IF_ERROR(error.status());
  encoded.layout.range = range;
  encoded.layout.num_tokens = part.num_tokens;
  encoded.layout.fingerprint.assign(model.fingerprint.begin(), model.fingerprint.end());
  encoded.layout.format_version = kFormatVersion;
  encoded.layout.checksum = PayloadChecksum(AsBytes(encoded.payload));
  return encoded;
}

absl::StatusOr<Part> Engine::Decode(const Model& model, const PartLayout& part,
                                    std::span<const std::byte> payload, DType dtype,
                                    RawOrder raw_order) {
  SKETCHKV_RETURN_IF_ERROR(CheckPayload(model, part, /*encoded=*/true, payload));
  SKETCHKV_ASSIGN_OR_RETURN(const CellRange range, ResolveRange(part.range, model.layout()));
  SKETCHKV_RETURN_IF_ERROR(ValidateOutput(model, range, dtype));
  const RawPartFormat format(model.layout(), range, part.num_tokens, raw_order, dtype, dtype);
  Part raw;
  raw.raw = format;
  raw.payload.resize(format.total_bytes());
  const std::vector<WriteHandle::Cell> cells = CellsOf(range);
  FirstError error;
  executor_->ParallelFor(cells.size(), [&](size_t i) {
    const auto [layer, head] = cells[i];
    const CellCodec& codec = model.codec->cell(layer, head);
    const auto cell =
        payload.subspan(EncodedCellOffset(*model.codec, range, layer, head), codec.cell_bytes());
    absl::Status status = codec.Validate(cell, part.num_tokens);
    MutableRowsView values = Mutable(format.Values(MutableBytes(&raw.payload), layer, head));
    if (format.value_row_bytes() == 0) values.data = nullptr;
    if (status.ok()) {
      status = codec.Decode(cell, part.num_tokens, dtype,
                            Mutable(format.Keys(MutableBytes(&raw.payload), layer, head)), dtype,
                            values);
    }
    if (!status.ok()) error.Note(i, AtCell(layer, head, status));
  });
  SKETCHKV_RETURN_IF_ERROR(error.status());
  raw.layout.range = range;
  raw.layout.num_tokens = part.num_tokens;
  raw.layout.raw_order = raw_order;
  raw.layout.checksum = PayloadChecksum(AsBytes(raw.payload));
  return raw;
}

absl::StatusOr<Engine::LookupResult> Engine::Lookup(uint32_t tenant, const Model& model,
                                                    std::span<const BlockHash> chain,
                                                    std::chrono::milliseconds lease_ttl) {
  LookupResult result;
  // A block may go between the look-up and the lease; the shorter prefix is looked up again then.
  while (true) {
    const size_t found = pool_->LookupPrefix(tenant, model.fingerprint, chain);
    if (found == 0) return LookupResult{};
    const BlockKey tip{
        .tenant = tenant, .fingerprint = model.fingerprint, .hash = chain[found - 1]};
    absl::StatusOr<ReadPins> pin = pool_->Pin(tip);
    if (!pin.ok()) continue;
    result.num_blocks = static_cast<uint32_t>(found);
    // Only the last block of a chain may be short.
    result.num_tokens =
        static_cast<uint32_t>((found - 1) * model.layout().block_tokens) + (*pin)[0].num_tokens;
    if (lease_ttl.count() == 0) return result;
    absl::StatusOr<BlockPool::Lease> lease = pool_->AcquireLease(tip, lease_ttl);
    if (lease.ok()) {
      result.lease = *lease;
      return result;
    }
    if (!absl::IsNotFound(lease.status())) return result;
  }
}

absl::StatusOr<std::shared_ptr<const AttentionTarget>> Engine::Resolve(
    uint32_t tenant, const AttentionRequest& request, const AttentionItem& item) {
  const Fingerprint& fingerprint = request.model->fingerprint;
  auto target = std::make_shared<AttentionTarget>();
  if (item.lease_id != 0) {
    SKETCHKV_ASSIGN_OR_RETURN(target->pins, pool_->LeasedChain(tenant, item.lease_id));
  } else if (item.tip.has_value()) {
    SKETCHKV_ASSIGN_OR_RETURN(
        ReadPins pins,
        pool_->PinChain({.tenant = tenant, .fingerprint = fingerprint, .hash = *item.tip}));
    target->pins = std::make_shared<const ReadPins>(std::move(pins));
  } else {
    std::vector<BlockKey> keys;
    for (const BlockHash& hash : item.blocks) {
      keys.push_back({.tenant = tenant, .fingerprint = fingerprint, .hash = hash});
    }
    SKETCHKV_ASSIGN_OR_RETURN(ReadPins pins, pool_->PinAll(keys));
    target->pins = std::make_shared<const ReadPins>(std::move(pins));
  }
  // A chain is of one model, and so are blocks that were named.
  if (target->pins->size() > 0 && (*target->pins)[0].key->fingerprint != fingerprint) {
    return absl::InvalidArgumentError(absl::StrCat(
        "lease_id ", item.lease_id, " is of another model than ", request.model->name));
  }
  const uint64_t tokens = target->pins->token_begin().back();
  if (tokens > kMaxTargetTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("the target has ", tokens, " tokens, of at most ", kMaxTargetTokens));
  }
  const auto all = static_cast<uint32_t>(tokens);
  target->token_end = std::min(item.token_end.value_or(all), all);
  target->token_begin = std::min(item.token_begin, target->token_end);
  return target;
}

absl::StatusOr<AttentionTargets> Engine::ResolveAll(uint32_t tenant,
                                                    const AttentionRequest& request) {
  AttentionTargets targets;
  uint64_t blocks = 0;
  for (size_t i = 0; i < request.items.size(); ++i) {
    const AttentionItem& item = request.items[i];
    // Batches repeat a target for many layers: its chain is walked once.
    if (i > 0) {
      const AttentionItem& last = request.items[i - 1];
      if (item.lease_id == last.lease_id && item.tip == last.tip && item.blocks == last.blocks &&
          item.token_begin == last.token_begin && item.token_end == last.token_end) {
        targets.push_back(targets.back());
        continue;
      }
    }
    SKETCHKV_RETURN_IF_ERROR(StillWanted(request));
    absl::StatusOr<std::shared_ptr<const AttentionTarget>> target = Resolve(tenant, request, item);
    if (!target.ok()) {
      return absl::Status(target.status().code(),
                          absl::StrCat("items[", i, "]: ", target.status().message()));
    }
    blocks += (*target)->pins->size();
    if (blocks > kMaxTargetBlocks) {
      return absl::InvalidArgumentError(absl::StrCat("items[0] to items[", i, "] name ", blocks,
                                                     " blocks, of at most ", kMaxTargetBlocks));
    }
    targets.push_back(*std::move(target));
  }
  return targets;
}

absl::StatusOr<std::vector<AttentionResult>> Engine::Attend(uint32_t tenant,
                                                            const AttentionRequest& request) {
  SKETCHKV_RETURN_IF_ERROR(ValidateAttention(request));
  SKETCHKV_ASSIGN_OR_RETURN(const AttentionTargets targets, ResolveAll(tenant, request));
  return ComputeAttention(request, targets, executor_);
}

absl::StatusOr<std::vector<ScoreResult>> Engine::Score(uint32_t tenant,
                                                       const AttentionRequest& request) {
  SKETCHKV_RETURN_IF_ERROR(ValidateAttention(request));
  SKETCHKV_ASSIGN_OR_RETURN(const AttentionTargets targets, ResolveAll(tenant, request));
  uint64_t bytes = 0;
  for (size_t i = 0; i < targets.size(); ++i) {
    const AttentionItem& item = request.items[i];
    bytes += uint64_t{item.num_query_tokens} * item.head_count * request.queries_per_kv_head *
             (targets[i]->token_end - targets[i]->token_begin) * sizeof(float);
  }
  if (bytes > kMaxScoreBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the logits asked for have ", bytes, " bytes, of at most ", kMaxScoreBytes));
  }
  return ComputeScores(request, targets, executor_);
}

uint64_t Engine::Delete(uint32_t tenant, const Model& model, std::span<const BlockHash> hashes) {
  uint64_t hidden = 0;
  for (const BlockHash& hash : hashes) {
    const absl::StatusOr<size_t> one =
        pool_->Delete({.tenant = tenant, .fingerprint = model.fingerprint, .hash = hash});
    if (one.ok()) hidden += *one;
  }
  return hidden;
}

absl::StatusOr<uint64_t> Engine::Unregister(uint32_t tenant, const std::string& name) {
  SKETCHKV_ASSIGN_OR_RETURN(const std::shared_ptr<const Model> model,
                            models_->Remove(tenant, name));
  return pool_->Clear(tenant, model->fingerprint);
}

size_t Engine::Scrub(uint64_t* cursor, size_t limit) {
  const ReadPins pins = pool_->PinNext(cursor, limit);
  for (size_t i = 0; i < pins.size(); ++i) {
    const BlockView block = pins[i];
    const std::shared_ptr<const Model> model =
        models_->Find(block.key->tenant, block.key->fingerprint);
    if (model == nullptr) continue;  // unregistered a moment ago: nobody can read it any more
    const CellRange whole = *ResolveRange({}, model->layout());
    if (!VerifyCells(*model, block, whole).ok()) pool_->Discard(*block.key);
  }
  return pins.size();
}

Engine::Stats Engine::GetStats() const {
  return {.put_raw_bytes_total = put_raw_bytes_, .put_stored_bytes_total = put_stored_bytes_};
}

}  // namespace sketchkv
