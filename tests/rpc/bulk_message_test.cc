#include "proto/bulk_message.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "service/rpc/payload_slices.h"
#include "sketchkv/v1/cache.pb.h"
#include "tests/testing/engine_fixture.h"

namespace sketchkv {
namespace {

// `text` in slices of `size` bytes.
grpc::ByteBuffer Sliced(const std::string& text, size_t size) {
  std::vector<grpc::Slice> slices;
  for (size_t at = 0; at < text.size(); at += size) {
    slices.emplace_back(text.substr(at, size));
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

v1::PutRequest Example(const std::string& payload) {
  v1::PutRequest message;
  message.set_request_id(300);
  message.mutable_header()->set_model("m");
  message.set_checksum(~uint64_t{0});
  message.set_payload(payload);
  return message;
}

TEST(BulkMessageTest, SplittingGivesTheFieldsAndTheBulkWhereverSlicesCut) {
  const v1::PutRequest example = Example(std::string(1000, 'p') + "end");
  v1::PutRequest without = example;
  without.clear_payload();
  for (const size_t size : {1, 2, 7, 100, 5000}) {
    v1::PutRequest message;
    std::vector<grpc::Slice> bulk;
    ASSERT_TRUE(SplitMessage(Sliced(example.SerializeAsString(), size), &message, &bulk)) << size;
    EXPECT_EQ(message.SerializeAsString(), without.SerializeAsString());
    EXPECT_EQ(PayloadOf(bulk), example.payload());
  }
}

TEST(BulkMessageTest, BulkMayComeFirstOrTwiceAndUnknownFieldsAreKept) {
  v1::PutRequest first, second;
  first.set_payload("overwritten");
  second.set_payload("last");
  v1::PutRequest header = Example("");
  const std::string unknown = "\x98\x06\x05";  // field 99
  const std::string wire =
      first.SerializeAsString() + header.SerializeAsString() + second.SerializeAsString() + unknown;
  v1::PutRequest want, message;
  ASSERT_TRUE(want.ParseFromString(wire));
  std::vector<grpc::Slice> bulk;
  ASSERT_TRUE(SplitMessage(Sliced(wire, 5), &message, &bulk));
  EXPECT_EQ(PayloadOf(bulk), want.payload());
  message.set_payload(PayloadOf(bulk).ToString());
  EXPECT_EQ(message.SerializeAsString(), want.SerializeAsString());
}

TEST(BulkMessageTest, WhatIsNoMessageIsRefused) {
  const std::string whole = Example(std::string(100, 'p')).SerializeAsString();
  v1::PutRequest message;
  std::vector<grpc::Slice> bulk;
  for (size_t size = 1; size < whole.size(); ++size) {
    v1::PutRequest parsed;
    const std::string cut = whole.substr(0, size);
    const bool valid = v1::PutRequest().ParseFromString(cut);
    EXPECT_EQ(SplitMessage(Sliced(cut, 9), &parsed, &bulk), valid) << size;
  }
  EXPECT_FALSE(SplitMessage(Sliced("\x7a\xff\xff\xff\xff\x07short", 4), &message, &bulk));
  EXPECT_FALSE(SplitMessage(Sliced(std::string(64, '\xff'), 64), &message, &bulk));
}

// Looking at all slices for each of the fields took minutes.
TEST(BulkMessageTest, AMessageOfNothingButBulkFieldsTakesNoLongerThanItsBytes) {
  const std::string pair("\x7A\x00", 2);  // field 15, no bytes
  std::string piece;
  for (int i = 0; i < 512; ++i) piece += pair;
  std::vector<grpc::Slice> slices(4096, grpc::Slice(piece));
  slices.emplace_back(std::string("\x7A\x01!", 3));
  v1::PutRequest message;
  std::vector<grpc::Slice> bulk;
  ASSERT_TRUE(SplitMessage(grpc::ByteBuffer(slices.data(), slices.size()), &message, &bulk));
  ASSERT_EQ(bulk.size(), 1);
  EXPECT_EQ(bulk[0].size(), 1);
}

TEST(BulkMessageTest, JoiningRefersToTheBulkAndLetsGoOfItWithTheBuffer) {
  const v1::PutRequest example = Example(std::string(5000, 'p'));
  v1::PutRequest header = example;
  header.clear_payload();
  auto owner = std::make_shared<const std::string>(example.payload());
  const std::weak_ptr<const std::string> watch = owner;
  auto hold = std::make_shared<int>(1);
  const std::weak_ptr<int> hold_watch = hold;
  const char* const data = owner->data();
  Payload bulk;
  bulk.Append(Bytes(*owner).subspan(0, 2000), owner);
  bulk.Append(Bytes(*owner).subspan(2000), owner);
  grpc::ByteBuffer joined = JoinMessage(header, SlicesOf(bulk, hold));
  hold = nullptr;
  bulk = Payload();
  owner = nullptr;
  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(joined.Dump(&slices).ok());
  std::string wire;
  bool in_place = false;
  for (const grpc::Slice& slice : slices) {
    wire.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    in_place |= reinterpret_cast<const char*>(slice.begin()) == data;
  }
  EXPECT_TRUE(in_place) << "the bulk was copied";
  v1::PutRequest parsed;
  ASSERT_TRUE(parsed.ParseFromString(wire));
  EXPECT_EQ(parsed.SerializeAsString(), example.SerializeAsString());
  EXPECT_FALSE(watch.expired());
  slices.clear();
  joined.Clear();
  EXPECT_TRUE(watch.expired());
  EXPECT_TRUE(hold_watch.expired());
}

}  // namespace
}  // namespace sketchkv
