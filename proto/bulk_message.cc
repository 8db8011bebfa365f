#include "proto/bulk_message.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

namespace sketchkv {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;
using google::protobuf::io::CodedOutputStream;

constexpr int kBulkField = 15;
constexpr uint32_t kBulkTag =
    WireFormatLite::MakeTag(kBulkField, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);

// The bytes [begin, end) of `buffer`.
std::vector<grpc::Slice> SlicesOf(const grpc::ByteBuffer& buffer, size_t begin, size_t end) {
  std::vector<grpc::Slice> all, some;
  if (!buffer.Dump(&all).ok()) return some;
  size_t at = 0;
  for (const grpc::Slice& slice : all) {
    const size_t from = std::max(begin, at), to = std::min(end, at + slice.size());
    if (from < to) some.push_back(slice.sub(from - at, to - at));
    at += slice.size();
  }
  return some;
}

}  // namespace

bool SplitMessage(const grpc::ByteBuffer& buffer, google::protobuf::MessageLite* message,
                  std::vector<grpc::Slice>* bulk) {
  bulk->clear();
  grpc::ByteBuffer read = buffer;  // the reader wants its own reference
  grpc::ProtoBufferReader reader(&read);
  if (!reader.status().ok()) return false;
  CodedInputStream input(&reader);
  std::string rest;
  size_t begin = 0, end = 0;  // of the last bulk field: it is the one that counts
  {
    google::protobuf::io::StringOutputStream rest_stream(&rest);
    CodedOutputStream output(&rest_stream);
    while (const uint32_t tag = input.ReadTag()) {
      if (tag != kBulkTag) {
        if (!WireFormatLite::SkipField(&input, tag, &output)) return false;
        continue;
      }
      uint64_t size = 0;
      if (!input.ReadVarint64(&size)) return false;
      begin = input.CurrentPosition();
      if (size > buffer.Length() - begin || !input.Skip(static_cast<int>(size))) return false;
      end = begin + size;
    }
  }
  // Once: a message of nothing but such fields must not cost its slices for each of them.
  if (begin < end) *bulk = SlicesOf(buffer, begin, end);
  return input.ConsumedEntireMessage() && message->ParseFromString(rest);
}

grpc::ByteBuffer JoinMessage(const google::protobuf::MessageLite& message,
                             std::vector<grpc::Slice> bulk) {
  size_t size = 0;
  for (const grpc::Slice& slice : bulk) size += slice.size();
  std::string head = message.SerializeAsString();
  if (size > 0) {
    uint8_t prefix[16];
    uint8_t* end = CodedOutputStream::WriteTagToArray(kBulkTag, prefix);
    end = CodedOutputStream::WriteVarint32ToArray(static_cast<uint32_t>(size), end);
    head.append(reinterpret_cast<const char*>(prefix), end - prefix);
  }
  bulk.insert(bulk.begin(), grpc::Slice(head));
  return grpc::ByteBuffer(bulk.data(), bulk.size());
}

}  // namespace sketchkv
