#pragma once

#include <string>
#include <vector>

#include "service/rpc/convert_tables.h"
#include "tests/rpc/rpc_fixture.h"

namespace sketchkv {

// The messages of an upload of `heads`, in their order.
inline std::vector<v1::UploadTablesRequest> UploadMessages(const v1::KvLayout& layout,
                                                           const std::vector<HeadTable>& heads) {
  std::vector<v1::UploadTablesRequest> messages(heads.size());
  for (uint32_t i = 0; i < heads.size(); ++i) {
    const uint32_t layer = i / layout.num_kv_heads(), head = i % layout.num_kv_heads();
    *messages[i].mutable_table() = ToProto(layer, head, heads[i]);
  }
  *messages[0].mutable_layout() = layout;
  return messages;
}

// Of the layout of RpcFixture::ModelRequest.
inline std::vector<v1::UploadTablesRequest> UploadMessages(uint64_t seed = 1) {
  return UploadMessages(RpcFixture::ModelRequest("", "").layout(),
                        RandomHeads(RpcFixture::ModelLayout(), 4, seed));
}

// Whether a refused call says when to try again.
inline bool HasRetryHint(const grpc::ClientContext& call) {
  return call.GetServerTrailingMetadata().count("grpc-retry-pushback-ms") > 0;
}

inline grpc::Status Upload(RpcFixture* f, const std::vector<v1::UploadTablesRequest>& messages,
                           v1::UploadTablesResponse* response, bool* retry_hint = nullptr) {
  grpc::ClientContext call;
  RpcFixture::SetDeadline(&call);
  const auto writer = f->models->UploadTables(&call, response);
  for (const v1::UploadTablesRequest& message : messages) {
    if (!writer->Write(message)) break;
  }
  writer->WritesDone();
  const grpc::Status status = writer->Finish();
  if (retry_hint != nullptr) *retry_hint = HasRetryHint(call);
  return status;
}

inline std::string UploadOk(RpcFixture* f, const std::vector<v1::UploadTablesRequest>& messages) {
  v1::UploadTablesResponse response;
  const grpc::Status status = Upload(f, messages, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response.tables_digest();
}

inline v1::RegisterModelRequest RequestWithTables(const std::string& name,
                                                  const std::string& profile,
                                                  const std::string& digest) {
  v1::RegisterModelRequest request = RpcFixture::ModelRequest(name, profile);
  request.set_tables_digest(digest);
  return request;
}

}  // namespace sketchkv
