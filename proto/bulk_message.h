#pragma once

#include <google/protobuf/message_lite.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <vector>

// Messages whose bytes field 15 carries bulk (payload, queries): protobuf would copy it, so it is
// taken from gRPC's slices and given to them by reference. On the wire they are ordinary messages.
namespace sketchkv {

// Parses everything but field 15 into `message` and refers to the bytes of the last field 15 in
// `bulk`, in as many slices as they came in. False when it is no such message.
[[nodiscard]] bool SplitMessage(const grpc::ByteBuffer& buffer,
                                google::protobuf::MessageLite* message,
                                std::vector<grpc::Slice>* bulk);

// `message`, whose field 15 is not set, followed by `bulk`, which is not copied.
[[nodiscard]] grpc::ByteBuffer JoinMessage(const google::protobuf::MessageLite& message,
                                           std::vector<grpc::Slice> bulk);

}  // namespace sketchkv
