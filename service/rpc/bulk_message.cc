#include "service/rpc/bulk_message.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpcpp/support/proto_buffer_reader.h>
#include <grpcpp/support/slice.h>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace sketchkv {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;
using google::protobuf::io::CodedOutputStream;

constexpr int kBulkField = 15;
constexpr uint32_t kBulkTag =
    WireFormatLite::MakeTag(kBulkField, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);

Payload SlicesOf(const grpc::ByteBuffer& buffer) {
  auto slices = std::make_shared<std::vector<grpc::Slice>>();
  Payload payload;
  if (!buffer.Dump(slices.get()).ok()) return payload;
  for (const grpc::Slice& slice : *slices) {
    payload.Append({reinterpret_cast<const std::byte*>(slice.begin()), slice.size()}, slices);
  }
  return payload;
}

// What a slice keeps alive.
struct Kept {
  std::shared_ptr<const void> owner;
  std::shared_ptr<void> hold;
};

grpc::Slice SliceOf(const Payload::Fragment& fragment, const std::shared_ptr<void>& hold) {
  return grpc::Slice(
      const_cast<std::byte*>(fragment.bytes.data()), fragment.bytes.size(),
      [](void* kept) { delete static_cast<Kept*>(kept); }, new Kept{fragment.owner, hold});
}

}  // namespace

bool SplitMessage(const grpc::ByteBuffer& buffer, google::protobuf::MessageLite* message,
                  Payload* bulk) {
  grpc::ByteBuffer read = buffer;  // the reader wants its own reference
  grpc::ProtoBufferReader reader(&read);
  if (!reader.status().ok()) return false;
  CodedInputStream input(&reader);
  std::string rest;
  {
    google::protobuf::io::StringOutputStream rest_stream(&rest);
    CodedOutputStream output(&rest_stream);
    while (const uint32_t tag = input.ReadTag()) {
      if (tag != kBulkTag) {
        if (!WireFormatLite::SkipField(&input, tag, &output)) return false;
        continue;
      }
      uint32_t size = 0;
      if (!input.ReadVarint32(&size)) return false;
      const uint64_t begin = input.CurrentPosition();
      if (begin + size > buffer.Length() || !input.Skip(static_cast<int>(size))) return false;
      *bulk = SlicesOf(buffer).Sub(begin, begin + size);
    }
  }
  return input.ConsumedEntireMessage() && message->ParseFromString(rest);
}

grpc::ByteBuffer JoinMessage(const google::protobuf::MessageLite& message, const Payload& bulk,
                             std::shared_ptr<void> hold) {
  std::string head = message.SerializeAsString();
  if (bulk.size() > 0) {
    uint8_t prefix[16];
    uint8_t* end = CodedOutputStream::WriteTagToArray(kBulkTag, prefix);
    end = CodedOutputStream::WriteVarint32ToArray(static_cast<uint32_t>(bulk.size()), end);
    head.append(reinterpret_cast<const char*>(prefix), end - prefix);
  }
  std::vector<grpc::Slice> slices;
  slices.reserve(bulk.fragments().size() + 1);
  slices.emplace_back(head);
  for (const Payload::Fragment& fragment : bulk.fragments()) {
    slices.push_back(SliceOf(fragment, hold));
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

}  // namespace sketchkv
