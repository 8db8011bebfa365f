#include "service/engine/payload.h"

#include <gtest/gtest.h>

#include <memory>
#include <numeric>

#include "service/engine/cell_source.h"
#include "tests/testing/engine_fixture.h"

namespace sketchkv {
namespace {

// `text` cut into fragments of these sizes, over and over, each in memory of its own (so that a
// read past its end is seen).
Payload Cut(const std::string& text, const std::vector<size_t>& sizes) {
  Payload payload;
  size_t at = 0;
  for (size_t i = 0; at < text.size(); ++i) {
    const size_t size = std::min(sizes[i % sizes.size()], text.size() - at);
    std::shared_ptr<std::byte[]> piece(new std::byte[size]);
    std::memcpy(piece.get(), text.data() + at, size);
    payload.Append({piece.get(), size}, piece);
    at += size;
  }
  return payload;
}

std::string Numbered(size_t size) {
  std::string text(size, '\0');
  std::iota(text.begin(), text.end(), '\0');
  return text;
}

TEST(PayloadTest, FragmentsReadAsOnePieceWhereverTheyAreCut) {
  const std::string text = Numbered(200);
  for (const auto& sizes : std::vector<std::vector<size_t>>{{200}, {1}, {7}, {3, 50, 1}}) {
    const Payload payload = Cut(text, sizes);
    EXPECT_EQ(payload.size(), 200);
    EXPECT_EQ(payload, text);
    EXPECT_EQ(PayloadChecksum(payload), PayloadChecksum(Bytes(text)));
    for (const size_t begin : {0, 1, 53, 199}) {
      for (const size_t end : {1, 54, 60, 200}) {
        if (end < begin) continue;
        EXPECT_EQ(payload.Sub(begin, end), text.substr(begin, end - begin));
        std::string copy(end - begin, 'x');
        payload.CopyTo(begin, {reinterpret_cast<std::byte*>(copy.data()), copy.size()});
        EXPECT_EQ(copy, text.substr(begin, end - begin));
      }
    }
  }
}

TEST(PayloadTest, TheChecksumIsTheSameInWhateverSteps) {
  const std::string text = Numbered(2000);
  const Payload payload = Cut(text, {300, 7});
  for (const std::vector<uint64_t>& ends : std::vector<std::vector<uint64_t>>{
           {}, {2000}, {1, 299, 300, 301, 1999}, {500, 400, 500, 1500}}) {
    SteppedChecksum checksum(payload);
    for (const uint64_t end : ends) checksum.AddUpTo(end);
    EXPECT_EQ(checksum.Finish(), PayloadChecksum(Bytes(text)));
  }
}

TEST(PayloadTest, RowsAreViewedInPlaceInsideAFragmentAndGatheredAcross) {
  const std::string text = Numbered(200);
  const Payload payload = Cut(text, {90, 200});
  std::vector<std::byte> scratch(3 * 10);
  // Rows at 30, 50, 70: inside the first fragment.
  const RowsView inside = payload.Rows(30, 20, 10, 3, scratch.data());
  EXPECT_EQ(inside.data, payload.fragments()[0].bytes.data() + 30);
  EXPECT_EQ(inside.stride_bytes, 20);
  // Rows at 65, 85, 105: the second is cut at 90.
  const RowsView across = payload.Rows(65, 20, 10, 3, scratch.data());
  EXPECT_EQ(across.data, scratch.data());
  EXPECT_EQ(across.stride_bytes, 10);
  for (size_t row = 0; row < 3; ++row) {
    EXPECT_EQ(std::memcmp(scratch.data() + row * 10, text.data() + 65 + row * 20, 10), 0) << row;
  }
}

TEST(PayloadTest, AFragmentLivesAsLongAsSomethingRefersToIt) {
  auto owned = std::make_shared<std::string>(Numbered(100));
  const std::weak_ptr<std::string> watch = owned;
  Payload sub;
  {
    Payload payload;
    payload.Append(Bytes(*owned), owned);
    owned = nullptr;
    sub = payload.Sub(10, 20);
  }
  EXPECT_FALSE(watch.expired());
  EXPECT_EQ(sub, Numbered(100).substr(10, 10));
  sub = Payload();
  EXPECT_TRUE(watch.expired());
}

// The stored bytes do not depend on how a payload was cut on its way.
TEST(PayloadTest, CellsOfACutPayloadAreThoseOfAWholeOne) {
  EngineFixture f;
  for (const std::string profile : {"raw", "qjl3p"}) {
    const auto model = f.Register(profile,
                                  {.num_layers = 2,
                                   .num_kv_heads = 3,
                                   .head_dim = 32,
                                   .value_dim = 24,
                                   .block_tokens = 16,
                                   .key_dtype = DType::kFp32,
                                   .value_dtype = DType::kFp32},
                                  profile);
    for (const RawOrder order : {RawOrder::kNhd, RawOrder::kHnd}) {
      const RawPart part = RandomPart(*model, {}, 13, 1, order);
      SKETCHKV_ASSERT_OK_AND_ASSIGN(const Part whole,
                                    EncodePart(f.engine, *model, part.layout, Bytes(part.payload)));
      for (const size_t size : {1, 100, 129, 5000}) {
        SKETCHKV_ASSERT_OK_AND_ASSIGN(const Part cut, EncodePart(f.engine, *model, part.layout,
                                                                 Cut(part.payload, {size, 3})));
        EXPECT_EQ(cut.payload, whole.payload) << profile << " in pieces of " << size;
        SKETCHKV_ASSERT_OK_AND_ASSIGN(
            const Part back,
            DecodePart(f.engine, *model, whole.layout, Cut(whole.payload.ToString(), {size, 3}),
                       DType::kFp32, order));
        SKETCHKV_ASSERT_OK_AND_ASSIGN(
            const Part want,
            DecodePart(f.engine, *model, whole.layout, whole.payload, DType::kFp32, order));
        EXPECT_EQ(back.payload, want.payload) << profile << " in pieces of " << size;
      }
    }
  }
}

}  // namespace
}  // namespace sketchkv
