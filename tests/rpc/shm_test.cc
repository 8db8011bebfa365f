// Puts from and gets into shared memory, without the SDK.

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "tests/rpc/rpc_fixture.h"

namespace sketchkv {
namespace {

constexpr uint64_t kSegmentBytes = uint64_t{1} << 20;
constexpr uint64_t kPayloadAt = 4096;

struct ShmFixture : RpcFixture {
  ShmFixture() : segments({.client_bytes = kSegmentBytes, .total_bytes = 2 * kSegmentBytes}) {
    context.segments = &segments;
    const auto added = segments.Add(kSegmentBytes);
    token.assign(added->token.begin(), added->token.end());
    segment = added->segment;
  }
  void SetGuard(uint64_t guard) { std::memcpy(segment->View(0, 8)->data(), &guard, sizeof(guard)); }
  v1::SegmentRef Ref(uint64_t offset, uint64_t length) const {
    v1::SegmentRef ref;
    ref.set_token(token);
    ref.set_offset(offset);
    ref.set_length(length);
    ref.set_guard_offset(0);
    ref.set_guard(7);
    return ref;
  }
  // A put of `part`, whose payload is copied to kPayloadAt. Its checksum is wrong on purpose:
  // nobody looks at it.
  v1::PutRequest Shared(uint64_t id, uint64_t hash, const RawPart& part) {
    SetGuard(7);
    std::memcpy(segment->View(kPayloadAt, part.payload.size())->data(), part.payload.data(),
                part.payload.size());
    v1::PutRequest request = PutMessages(id, "m", hash, 0, part, part.payload.size())[0];
    request.clear_payload();
    request.set_checksum(1);
    *request.mutable_header()->mutable_segment() = Ref(kPayloadAt, part.payload.size());
    return request;
  }
  v1::PutResponse PutOne(const v1::PutRequest& request) {
    const auto responses = Put({request});
    EXPECT_EQ(responses.size(), 1);
    return responses.empty() ? v1::PutResponse() : responses[0];
  }

  SegmentTable segments;
  std::string token;
  std::shared_ptr<Segment> segment;
};

TEST(ShmRpcTest, PutsFromSharedMemoryStoreWhatPutsOverGrpcStore) {
  ShmFixture f;
  const auto model = f.Register("m", "qjl3p");
  const RawPart part = RandomPart(*model, {}, 16, 1);
  f.PutOk("m", 1, 0, part);
  const v1::PutResponse raw = f.PutOne(f.Shared(1, 2, part));
  EXPECT_EQ(raw.status().code(), 0) << raw.status().message();
  EXPECT_TRUE(raw.sealed());
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const Part want,
                                GetPart(f.engine, {.model = model, .hash = TestHash(1)}));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const Part got,
                                GetPart(f.engine, {.model = model, .hash = TestHash(2)}));
  EXPECT_EQ(got.payload, want.payload);
  // And encoded ones.
  const RawPart encoded{.layout = want.layout, .payload = want.payload.ToString()};
  const v1::PutResponse copied = f.PutOne(f.Shared(1, 3, encoded));
  EXPECT_EQ(copied.status().code(), 0) << copied.status().message();
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const Part copy,
                                GetPart(f.engine, {.model = model, .hash = TestHash(3)}));
  EXPECT_EQ(copy.payload, want.payload);
  f.ExpectNothingInFlight();
}

TEST(ShmRpcTest, GetsIntoSharedMemoryWriteWhatWouldTravel) {
  ShmFixture f;
  f.Register("m", "qjl3p");
  f.PutOk("m", 1, 0, RandomPart(**f.registry.Get(0, "m"), {}, 16, 1));
  for (const bool decoded : {false, true}) {
    v1::GetRequest request = RpcFixture::GetRequestFor(1, "m", 1);
    if (decoded) {
      request.mutable_format()->set_dtype(v1::DTYPE_BF16);
      request.mutable_format()->set_raw_order(v1::RAW_ORDER_HND);
    }
    const std::string want = f.Get({request})[0].payload();
    *request.mutable_segment() = f.Ref(kPayloadAt, want.size() + 100);
    std::memset(f.segment->View(0, kSegmentBytes)->data(), 0x5a, kSegmentBytes);
    const auto responses = f.Get({request});
    ASSERT_EQ(responses.size(), 1);
    EXPECT_EQ(responses[0].status().code(), 0) << responses[0].status().message();
    EXPECT_EQ(responses[0].part().num_tokens(), 16);
    EXPECT_TRUE(responses[0].payload().empty());
    const auto all = *f.segment->View(0, kSegmentBytes);
    EXPECT_EQ(std::memcmp(all.data() + kPayloadAt, want.data(), want.size()), 0);
    EXPECT_EQ(all[kPayloadAt - 1], std::byte{0x5a});
    EXPECT_EQ(all[kPayloadAt + want.size()], std::byte{0x5a}) << "nothing beyond it is written";

    *request.mutable_segment() = f.Ref(kPayloadAt, want.size() - 1);
    ExpectItem(f.Get({request})[0].status(), grpc::StatusCode::INVALID_ARGUMENT,
               {"segment.length", std::to_string(want.size() - 1), std::to_string(want.size())});
  }
}

TEST(ShmRpcTest, BytesOutsideTheSegmentAndUnknownSegmentsAreRefused) {
  ShmFixture f;
  const auto model = f.Register("m", "qjl");
  const RawPart part = RandomPart(*model, {}, 16, 1);
  const std::string size = std::to_string(kSegmentBytes);
  v1::PutRequest put = f.Shared(1, 1, part);
  put.mutable_header()->mutable_segment()->set_offset(kSegmentBytes - part.payload.size() + 1);
  ExpectItem(f.PutOne(put).status(), grpc::StatusCode::INVALID_ARGUMENT,
             {std::to_string(part.payload.size()), size});
  put.mutable_header()->mutable_segment()->set_offset(~uint64_t{0});
  ExpectItem(f.PutOne(put).status(), grpc::StatusCode::INVALID_ARGUMENT, {size});
  put = f.Shared(1, 1, part);
  put.mutable_header()->mutable_segment()->set_length(part.payload.size() - 4);
  ExpectItem(f.PutOne(put).status(), grpc::StatusCode::INVALID_ARGUMENT,
             {std::to_string(part.payload.size() - 4), std::to_string(part.payload.size())});
  put = f.Shared(1, 1, part);
  put.mutable_header()->mutable_segment()->set_guard_offset(kSegmentBytes - 4);
  ExpectItem(f.PutOne(put).status(), grpc::StatusCode::INVALID_ARGUMENT, {"guard_offset", size});
  put = f.Shared(1, 1, part);
  put.set_payload("x");
  ExpectItem(f.PutOne(put).status(), grpc::StatusCode::INVALID_ARGUMENT, {"payload has"});
  put = f.Shared(1, 1, part);
  (*put.mutable_header()->mutable_segment()->mutable_token())[0] ^= 1;
  ExpectItem(f.PutOne(put).status(), grpc::StatusCode::UNAVAILABLE, {"segment"});
  v1::GetRequest get = RpcFixture::GetRequestFor(1, "m", 1);
  *get.mutable_segment() = f.Ref(kSegmentBytes, 1);
  ExpectItem(f.Get({get})[0].status(), grpc::StatusCode::INVALID_ARGUMENT, {size});
  get.mutable_segment()->set_token(std::string(16, 'x'));
  ExpectItem(f.Get({get})[0].status(), grpc::StatusCode::UNAVAILABLE, {"segment"});
  EXPECT_EQ(f.pool.GetStats().blocks, 0);
  f.context.segments = nullptr;
  ExpectItem(f.PutOne(f.Shared(1, 1, part)).status(), grpc::StatusCode::UNAVAILABLE,
             {"shares no memory"});
}

TEST(ShmRpcTest, APutWhoseBytesWereTakenBackStoresNothing) {
  ShmFixture f;
  const auto model = f.Register("m", "qjl");
  const RawPart part = RandomPart(*model, {}, 16, 1);
  // The guard changes while the server reads: asked for in the engine, after all cells are read.
  Engine::PutRequest request{.model = model, .hash = TestHash(1), .part = part.layout};
  request.payload = Bytes(part.payload);
  request.still_valid = [] { return absl::CancelledError("taken back"); };
  EXPECT_THAT(f.engine.Put(0, request), StatusIs(absl::StatusCode::kCancelled, {"taken back"}));
  EXPECT_EQ(f.pool.GetStats().blocks, 0);
  // And over the wire, where it has changed before.
  const v1::PutRequest put = f.Shared(1, 1, part);
  f.SetGuard(8);
  ExpectItem(f.PutOne(put).status(), grpc::StatusCode::CANCELLED, {"7", "8"});
  EXPECT_EQ(f.pool.GetStats().blocks, 0);
}

// A client may write while the server encodes: what is stored then is of no use, but it is a cell
// that passes validation, or the put was refused.
TEST(ShmRpcTest, AWriterThatRacesTheEncoderNeverMakesAnInvalidCell) {
  for (const std::string profile : {"raw", "qjl", "qjl-paper", "qjl2p", "qjl3p", "qjl4p", "klt"}) {
    ShmFixture f;
    const auto model = f.Register("m", profile);
    const RawPart part = RandomPart(*model, {}, 16, 1);
    const float bad[] = {std::numeric_limits<float>::quiet_NaN(),
                         std::numeric_limits<float>::infinity(), 1e30f, -1e-30f};
    const v1::PutRequest put = f.Shared(1, 1, part);
    std::byte* const shared = f.segment->View(kPayloadAt, part.payload.size())->data();
    std::atomic<bool> stop{false};
    std::thread writer([&] {
      // One number at a time is another for a moment, so that some puts succeed.
      for (size_t i = 0; !stop; i = (i + 4 * 31) % part.payload.size()) {
        std::memcpy(shared + i, &bad[i / 4 % 4], 4);
        std::memcpy(shared + i, part.payload.data() + i, 4);
      }
    });
    int stored = 0;
    for (uint64_t hash = 1; hash <= 200; ++hash) {
      v1::PutRequest request = put;
      request.mutable_header()->set_block_hash(HashBytes(hash));
      const v1::PutResponse response = f.PutOne(request);
      if (response.status().code() != 0) {
        EXPECT_EQ(response.status().code(), grpc::StatusCode::INVALID_ARGUMENT);
        continue;
      }
      ++stored;
      SKETCHKV_ASSERT_OK_AND_ASSIGN(const Part cells,
                                    GetPart(f.engine, {.model = model, .hash = TestHash(hash)}));
      // Decode validates each cell.
      SKETCHKV_ASSERT_OK(
          DecodePart(f.engine, *model, cells.layout, cells.payload, DType::kFp32, RawOrder::kNhd))
          << profile;
    }
    stop = true;
    writer.join();
    EXPECT_GT(stored, 0) << profile;
  }
}

}  // namespace
}  // namespace sketchkv
