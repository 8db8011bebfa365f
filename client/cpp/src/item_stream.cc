#include "client/cpp/src/item_stream.h"

#include <grpcpp/impl/rpc_method.h>

namespace sketchkv::client {

// As the generated stub does it, but for the type of the messages.
std::unique_ptr<RawStream> OpenStream(ClientCore* core, const char* method,
                                      grpc::ClientContext* context) {
  using Factory = grpc::internal::ClientReaderWriterFactory<grpc::ByteBuffer, grpc::ByteBuffer>;
  const grpc::internal::RpcMethod rpc(method, grpc::internal::RpcMethod::BIDI_STREAMING);
  return std::unique_ptr<RawStream>(Factory::Create(core->channel().get(), rpc, context));
}

}  // namespace sketchkv::client
