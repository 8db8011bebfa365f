// Parts encoded and decoded on a card, against the host.
#include <cstring>
#include <thread>
#include <vector>

#include "service/engine/cell_source.h"
#include "service/engine/raw_answer.h"
#include "tests/gpu/gpu_engine_fixture.h"

namespace sketchkv {
namespace {

class GpuEnginePartsTest : public GpuEngineFixture {};

absl::Status EncodeOne(Gpu* gpu, const GpuPart& part, const std::byte* payload) {
  GpuEncoding one{.part = part, .payload = payload};
  const absl::Status status = gpu->Encode({&one, 1});
  return status.ok() ? one.refused : status;
}

// A part of a block, as the host stored it, and its rows in memory of the card.
struct PartOnCard {
  PartOnCard(const std::shared_ptr<const Model>& model, const RawPart& raw, const BlockKey& key)
      : rows(std::span<const std::byte>(Bytes(raw.payload))),
        slot(model->shape.slot_bytes),
        cells(CellsOf(raw.layout.range)),
        seeds(cells.size()),
        checksums(cells.size()) {
    const CellChecksummer checksummer(key, raw.layout.num_tokens);
    for (size_t i = 0; i < cells.size(); ++i) {
      seeds[i] = checksummer.SeedOf(cells[i].layer, cells[i].head);
    }
    slot.Fill(0xA5);
    part = {.model = model,
            .layout = raw.layout,
            .cells = cells,
            .slot = slot.data(),
            .seeds = seeds,
            .checksums = checksums};
  }

  testing::DeviceArray<std::byte> rows, slot;
  std::vector<WriteHandle::Cell> cells;
  std::vector<uint64_t> seeds;
  std::vector<uint32_t> checksums;
  GpuPart part;
};

TEST_P(GpuEnginePartsTest, RowsOnTheCardBecomeTheSameBytesAndChecksums) {
  for (const RawOrder order : {RawOrder::kNhd, RawOrder::kHnd}) {
    const uint32_t tokens = GetParam().block_tokens - 3;
    const RawPart raw = RandomPart(*model_, {}, tokens, 7, order);
    const uint64_t id = 70 + static_cast<uint64_t>(order);
    Engine::PutRequest put{
        .model = model_, .hash = TestHash(id), .part = raw.layout, .payload = Bytes(raw.payload)};
    ASSERT_THAT(host_->Put(0, put), IsOk());
    const BlockKey key{.fingerprint = model_->fingerprint, .hash = TestHash(id)};
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const ReadPins pins, host_pool_->Pin(key));
    PartOnCard card(model_, raw, key);
    ASSERT_THAT(EncodeOne(gpu_.get(), card.part, card.rows.data()), IsOk());
    const std::vector<std::byte> slot = card.slot.ToHost();
    EXPECT_EQ(std::memcmp(slot.data(), pins[0].bytes.data(), slot.size()), 0);
    for (size_t i = 0; i < card.cells.size(); ++i) {
      EXPECT_EQ(card.checksums[i], pins[0].cell_checksums[i]) << i;
    }
    // And back.
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto decoded, GetPart(*host_, {.model = model_,
                                                                       .hash = TestHash(id),
                                                                       .dtype = DType::kBf16,
                                                                       .raw_order = order}));
    const std::string expected = decoded.payload.ToString();
    testing::DeviceArray<std::byte> out(expected.size());
    out.Fill(0xA5);
    std::fill(card.checksums.begin(), card.checksums.end(), 0);
    ASSERT_THAT(gpu_->Decode(card.part, DType::kBf16, out.data()), IsOk());
    EXPECT_EQ(std::memcmp(out.ToHost().data(), expected.data(), expected.size()), 0);
    EXPECT_EQ(card.checksums[0], pins[0].cell_checksums[0]);
  }
}

TEST_P(GpuEnginePartsTest, CellsOfASlotOnTheHostGoThroughTheCardToo) {
  const uint32_t tokens = GetParam().block_tokens - 3;
  const RawPart raw = RandomPart(*model_, {.layer_begin = 1}, tokens, 7);
  const BlockKey key{.fingerprint = model_->fingerprint, .hash = TestHash(1)};
  PartOnCard card(model_, raw, key);
  ASSERT_THAT(EncodeOne(gpu_.get(), card.part, card.rows.data()), IsOk());
  const std::vector<uint32_t> checksums = card.checksums;
  std::vector<std::byte> slot(model_->shape.slot_bytes, std::byte{0xA5});
  card.part.slot = nullptr;
  card.part.host_slot = slot.data();
  std::fill(card.checksums.begin(), card.checksums.end(), 0);
  ASSERT_THAT(EncodeOne(gpu_.get(), card.part, card.rows.data()), IsOk());
  EXPECT_EQ(slot, card.slot.ToHost());
  EXPECT_EQ(card.checksums, checksums);
  // And back: the same rows from either slot.
  const size_t bytes = RawPartFormat(model_->layout(), raw.layout.range, tokens, RawOrder::kNhd,
                                     DType::kBf16, DType::kBf16)
                           .total_bytes();
  testing::DeviceArray<std::byte> from_host(bytes), from_card(bytes);
  from_host.Fill(0x5A);
  from_card.Fill(0xA5);
  std::fill(card.checksums.begin(), card.checksums.end(), 0);
  ASSERT_THAT(gpu_->Decode(card.part, DType::kBf16, from_host.data()), IsOk());
  EXPECT_EQ(card.checksums, checksums);
  card.part.slot = card.slot.data();
  ASSERT_THAT(gpu_->Decode(card.part, DType::kBf16, from_card.data()), IsOk());
  EXPECT_EQ(from_host.ToHost(), from_card.ToHost());
}

TEST_P(GpuEnginePartsTest, RowsOnTheCardThatAreNotFiniteAreNamed) {
  const RawPart good = RandomPart(*model_, {}, 12, 7);
  RawPart raw = good;
  const RawPartFormat format(model_->layout(), raw.layout.range, 12, RawOrder::kNhd);
  const float nan = std::nanf("");
  const auto at = format.ValuesAt(1, 2);
  std::memcpy(raw.payload.data() + at.offset + 5 * at.stride_bytes + 17 * sizeof(nan), &nan,
              sizeof(nan));
  PartOnCard card(model_, raw, {.fingerprint = model_->fingerprint, .hash = TestHash(1)});
  EXPECT_THAT(EncodeOne(gpu_.get(), card.part, card.rows.data()),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       {"layer 1, head 2: values: token 5 channel 17"}));
}

// Calls that wait are done together; what is wrong with one of them is nothing to the others.
TEST_P(GpuEnginePartsTest, PartsOfManyThreadsAreEachDoneAsIfAlone) {
  constexpr uint64_t kThreads = 12;
  constexpr uint32_t kRounds = 8;
  const uint32_t tokens = GetParam().block_tokens;
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      // Some layers, tokens and orders, so that not all share a launch.
      RawPart raw = RandomPart(*model_, {.layer_begin = static_cast<uint32_t>(t % 3)},
                               tokens - static_cast<uint32_t>(t % 2), t,
                               t % 4 == 0 ? RawOrder::kHnd : RawOrder::kNhd);
      const bool bad = t % 5 == 4;
      if (bad) std::memset(raw.payload.data(), 0xFF, sizeof(float));
      const BlockKey key{.fingerprint = model_->fingerprint, .hash = TestHash(t)};
      PartOnCard card(model_, raw, key);
      std::vector<std::byte> host_slot(model_->shape.slot_bytes, std::byte{0xA5});
      for (uint32_t round = 0; round < kRounds; ++round) {
        const bool on_host = round % 2 == 1;
        card.part.slot = on_host ? nullptr : card.slot.data();
        card.part.host_slot = host_slot.data();
        std::fill(card.checksums.begin(), card.checksums.end(), 0);
        const absl::Status encoded = EncodeOne(gpu_.get(), card.part, card.rows.data());
        if (bad) {
          EXPECT_THAT(encoded, StatusIs(absl::StatusCode::kInvalidArgument,
                                        {"keys: token 0 channel 0 is not finite"}));
          continue;
        }
        ASSERT_THAT(encoded, IsOk());
        const std::vector<std::byte> slot = on_host ? host_slot : card.slot.ToHost();
        for (size_t i = 0; i < card.cells.size(); ++i) {
          const auto [layer, head] = card.cells[i];
          std::vector<std::byte> want(model_->codec->cell_bytes(layer));
          const RawPartFormat format(model_->layout(), raw.layout.range, raw.layout.num_tokens,
                                     raw.layout.raw_order);
          const auto* const rows = reinterpret_cast<const std::byte*>(raw.payload.data());
          ASSERT_THAT(model_->codec->cell(layer, head)
                          .Encode(format.Keys(rows, layer, head), format.Values(rows, layer, head),
                                  raw.layout.num_tokens, want),
                      IsOk());
          const std::byte* const got = slot.data() + model_->codec->cell_offset(layer, head);
          ASSERT_EQ(std::memcmp(got, want.data(), want.size()), 0) << t << " " << i;
          ASSERT_EQ(card.checksums[i],
                    CellChecksummer(key, raw.layout.num_tokens).Of(layer, head, want));
        }
        // And back, while others encode.
        const RawPartFormat format(model_->layout(), raw.layout.range, raw.layout.num_tokens,
                                   raw.layout.raw_order, DType::kBf16, DType::kBf16);
        testing::DeviceArray<std::byte> out(format.total_bytes());
        const std::vector<uint32_t> checksums = card.checksums;
        ASSERT_THAT(gpu_->Decode(card.part, DType::kBf16, out.data()), IsOk());
        EXPECT_EQ(card.checksums, checksums);
        std::vector<std::byte> want(format.total_bytes());
        const RawAnswer answer{*model_, raw.layout.range, raw.layout.num_tokens, DType::kBf16,
                               raw.layout.raw_order};
        for (const auto& cell : card.cells) {
          ASSERT_THAT(
              answer.DecodeCell(format, cell,
                                {slot.data() + model_->codec->cell_offset(cell.layer, cell.head),
                                 model_->codec->cell_bytes(cell.layer)},
                                want.data()),
              IsOk());
        }
        EXPECT_EQ(out.ToHost(), want) << t << " " << round;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// More than both halves of the staging area hold, and in fragments that end inside of rows.
TEST_P(GpuEnginePartsTest, RowsOfTheHostBecomeTheSameBytesOnTheCard) {
  constexpr size_t kLeastBytes = size_t{9} << 20;
  KvLayout layout = LayoutOf(GetParam().block_tokens);
  layout.num_layers = kLeastBytes / (2 * sizeof(float) * kDim * kHeads * layout.block_tokens) + 1;
  LayerProfileRequest profile;
  profile.profile.name = GetParam().profile;
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto model, models_.Register(0, "large", layout, {profile}));
  const auto put_both = [&](uint64_t hash, const RawPart& raw) {
    Payload payload;
    for (size_t begin = 0; begin < raw.payload.size(); begin += 1000003) {
      payload.Append(std::as_bytes(std::span(raw.payload))
                         .subspan(begin, std::min<size_t>(1000003, raw.payload.size() - begin)),
                     nullptr);
    }
    const Engine::PutRequest put{
        .model = model, .hash = TestHash(hash), .part = raw.layout, .payload = payload};
    const absl::Status theirs = host_->Put(0, put).status();
    EXPECT_EQ(engine_->Put(0, put).status(), theirs);
    return theirs;
  };
  const auto expect_same = [&](uint64_t hash) {
    const Engine::GetRequest get{.model = model, .hash = TestHash(hash)};
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto ours, GetPart(*engine_, get));
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto theirs, GetPart(*host_, get));
    EXPECT_EQ(ours.payload, theirs.payload) << hash;
  };
  for (const RawOrder order : {RawOrder::kNhd, RawOrder::kHnd}) {
    const uint64_t hash = 1 + static_cast<uint64_t>(order);
    RawPart raw = RandomPart(*model, {}, layout.block_tokens, hash, order);
    SKETCHKV_ASSERT_OK(put_both(hash, raw));
    EXPECT_EQ(pool_->GetStats().stale_blocks, 1) << "the host encoded it";
    expect_same(hash);
  }
  // Cells that somebody put before are left out.
  SKETCHKV_ASSERT_OK(put_both(5, RandomPart(*model,
                                            {.layer_begin = 2,
                                             .layer_count = layout.num_layers - 3,
                                             .head_begin = 1,
                                             .head_count = 2},
                                            layout.block_tokens, 6)));
  RawPart raw = RandomPart(*model, {}, layout.block_tokens, 5);
  SKETCHKV_ASSERT_OK(put_both(5, raw));
  expect_same(5);
  // What is not finite, in the first piece and in the last.
  std::memset(raw.payload.data() + raw.payload.size() - sizeof(float), 0xFF, sizeof(float));
  raw.layout.checksum = PayloadChecksum(Bytes(raw.payload));
  EXPECT_THAT(put_both(6, raw), StatusIs(absl::StatusCode::kInvalidArgument, {"values"}));
  std::memset(raw.payload.data(), 0xFF, sizeof(float));
  raw.layout.checksum = PayloadChecksum(Bytes(raw.payload));
  EXPECT_THAT(put_both(6, raw),
              StatusIs(absl::StatusCode::kInvalidArgument, {"layer 0, head 0: keys: token 0"}));
}

INSTANTIATE_TEST_SUITE_P(Tuned, GpuEnginePartsTest, kTuned, NameOf);
INSTANTIATE_TEST_SUITE_P(General, GpuEnginePartsTest, kGeneral, NameOf);

}  // namespace
}  // namespace sketchkv
