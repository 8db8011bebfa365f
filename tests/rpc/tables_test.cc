// Tables over a real connection: what goes up comes back, and each refusal with its reason.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "tests/rpc/tables_testing.h"

namespace sketchkv {
namespace {

std::vector<v1::HeadTable> GetOk(RpcFixture* f, const std::string& model) {
  grpc::ClientContext call;
  RpcFixture::SetDeadline(&call);
  v1::GetTablesRequest request;
  request.set_model(model);
  const auto reader = f->models->GetTables(&call, request);
  std::vector<v1::HeadTable> tables;
  for (v1::GetTablesResponse response; reader->Read(&response);) tables.push_back(response.table());
  const grpc::Status status = reader->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  return tables;
}

TEST(TablesRpcTest, TablesGoUpInAnyOrderAndComeBackInTheirs) {
  RpcFixture f;
  const std::vector<v1::UploadTablesRequest> sent = UploadMessages();
  std::vector<v1::UploadTablesRequest> reversed(sent.rbegin(), sent.rend());
  *reversed.front().mutable_layout() = sent.front().layout();
  reversed.back().clear_layout();
  v1::UploadTablesResponse response;
  const grpc::Status status = Upload(&f, reversed, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.tables_digest().size(), 16);
  EXPECT_EQ(response.size_bytes(),
            testing::RandomTables(RpcFixture::ModelLayout(), 4)->size_bytes());
  EXPECT_EQ(UploadOk(&f, sent), response.tables_digest()) << "the order is not part of it";
  EXPECT_NE(UploadOk(&f, UploadMessages(2)), response.tables_digest());
  f.ExpectNothingInFlight();

  v1::Model model;
  const auto request = RequestWithTables("m", "klt", response.tables_digest());
  ASSERT_TRUE(f.Register(request, &model).ok());
  EXPECT_EQ(model.tables_digest(), response.tables_digest());
  const std::vector<v1::HeadTable> got = GetOk(&f, "m");
  ASSERT_EQ(got.size(), sent.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].SerializeAsString(), sent[i].table().SerializeAsString());
  }
  f.ExpectNothingInFlight();
}

TEST(TablesRpcTest, EachBadUploadIsNamedAndNothingIsKept) {
  RpcFixture f;
  const auto expect = [&](const std::vector<std::string>& parts,
                          const std::function<void(std::vector<v1::UploadTablesRequest>*)>& spoil) {
    std::vector<v1::UploadTablesRequest> messages = UploadMessages();
    spoil(&messages);
    v1::UploadTablesResponse response;
    ExpectCall(Upload(&f, messages, &response), grpc::StatusCode::INVALID_ARGUMENT, parts);
  };
  const auto floats = [](std::vector<float> numbers) {
    return std::string(reinterpret_cast<const char*>(numbers.data()), numbers.size() * 4);
  };
  // What stands where.
  expect({"0 messages"}, [](auto* m) { m->clear(); });
  expect({"layout", "first"}, [](auto* m) { m->front().clear_layout(); });
  expect({"layout", "message 2"}, [](auto* m) { *(*m)[2].mutable_layout() = (*m)[0].layout(); });
  expect({"head_dim", "8"}, [](auto* m) { (*m)[0].mutable_layout()->set_head_dim(8); });
  expect({"table is not set in message 1"}, [](auto* m) { (*m)[1].clear_table(); });
  expect({"table.layer is 2", "has 2"}, [](auto* m) { (*m)[3].mutable_table()->set_layer(2); });
  expect({"table.head is 9", "has 2"}, [](auto* m) { (*m)[3].mutable_table()->set_head(9); });
  expect({"layer 0 head 1", "twice"}, [](auto* m) { (*m)[3] = (*m)[1]; });
  expect({"layer 1 head 0", "missing", "3 came", "4"}, [](auto* m) { m->erase(m->begin() + 2); });
  // Sizes.
  const std::string at = "layer 1 head 0";
  expect({at, "key_mean has 127 bytes"},
         [](auto* m) { (*m)[2].mutable_table()->mutable_key_mean()->pop_back(); });
  expect({at, "key_mean has 31", "32"},
         [](auto* m) { (*m)[2].mutable_table()->mutable_key_mean()->resize(31 * 4); });
  expect({at, "value_mean has 17", "16"},
         [](auto* m) { (*m)[2].mutable_table()->mutable_value_mean()->resize(17 * 4); });
  expect({at, "key_basis has 8 numbers", "32"},
         [](auto* m) { (*m)[2].mutable_table()->mutable_key_basis()->mutable_rows()->resize(32); });
  expect({at, "key_basis has 2 group_bits", "1"}, [](auto* m) {
    (*m)[2].mutable_table()->mutable_key_basis()->mutable_group_bits()->push_back('\x01');
  });
  // Numbers.
  expect({at, "group_bits[0] is 5", "1-4"},
         [](auto* m) { (*m)[2].mutable_table()->mutable_value_basis()->set_group_bits("\x05"); });
  expect({at, "group_rms[0] is 0"}, [&](auto* m) {
    (*m)[2].mutable_table()->mutable_value_basis()->set_group_rms(floats({0.0f}));
  });
  expect({at, "key_mean[3] is nan"}, [&](auto* m) {
    const std::string nan = floats({std::numeric_limits<float>::quiet_NaN()});
    (*m)[2].mutable_table()->mutable_key_mean()->replace(3 * 4, 4, nan);
  });
  expect({at, "key_basis", "rows 1 and 0"}, [&](auto* m) {
    std::string* rows = (*m)[2].mutable_table()->mutable_key_basis()->mutable_rows();
    rows->replace(32 * 4, 32 * 4, rows->substr(0, 32 * 4));
  });
  expect({at, "outlier_channels[1]", "ascending"}, [](auto* m) {
    v1::HeadTable* table = (*m)[2].mutable_table();
    table->set_outlier_channels(1, table->outlier_channels(0));
  });
  expect({at, "outlier_channels[3] is 32", "below 32"},
         [](auto* m) { (*m)[2].mutable_table()->set_outlier_channels(3, 32); });
  EXPECT_EQ(f.registry.tables().GetStats().count, 0);
  f.ExpectNothingInFlight();
}

TEST(TablesRpcTest, TablesThatAreTooLargeAreRefusedAsTheyCome) {
  RpcFixture f({.tables = {.max_upload_bytes = 12000, .max_unused_bytes = 12000}});
  v1::UploadTablesResponse response;
  bool retry_hint = true;
  ExpectCall(Upload(&f, UploadMessages(), &response, &retry_hint),
             grpc::StatusCode::RESOURCE_EXHAUSTED, {"the tables have at least", "12000"});
  EXPECT_FALSE(retry_hint) << "trying again is in vain";
  EXPECT_EQ(f.registry.tables().GetStats().count, 0);
  f.ExpectNothingInFlight();
}

TEST(TablesRpcTest, UploadsAreAdmittedAndRefusedWithAHintWhenTheyDoNotFitNow) {
  RpcFixture f({.inflight_bytes = 60000});
  auto held = *f.inflight.Acquire(50000);
  v1::UploadTablesResponse response;
  bool retry_hint = false;
  ExpectCall(Upload(&f, UploadMessages(), &response, &retry_hint),
             grpc::StatusCode::RESOURCE_EXHAUSTED, {"of 60000 are in use"});
  EXPECT_TRUE(retry_hint);
  held = nullptr;
  const std::string digest = UploadOk(&f, UploadMessages());
  v1::Model model;
  ASSERT_TRUE(f.Register(RequestWithTables("m", "klt", digest), &model).ok());

  // The way back is admitted too.
  held = *f.inflight.Acquire(50000);
  grpc::ClientContext call;
  v1::GetTablesRequest get;
  get.set_model("m");
  const auto reader = f.models->GetTables(&call, get);
  v1::GetTablesResponse table;
  EXPECT_FALSE(reader->Read(&table));
  ExpectCall(reader->Finish(), grpc::StatusCode::RESOURCE_EXHAUSTED, {"of 60000 are in use"});
  EXPECT_TRUE(HasRetryHint(call));
  held = nullptr;

  RpcFixture small({.inflight_bytes = 20000});
  ExpectCall(Upload(&small, UploadMessages(), &response, &retry_hint),
             grpc::StatusCode::RESOURCE_EXHAUSTED, {"of at most 20000"});
  EXPECT_FALSE(retry_hint);
  small.ExpectNothingInFlight();
}

TEST(TablesRpcTest, AnUploadThatStallsIsEndedInItsTimeAndLetsGo) {
  RpcFixture f;
  std::vector<v1::UploadTablesRequest> messages = UploadMessages();
  messages[0].set_timeout_ms(50);
  grpc::ClientContext call;
  RpcFixture::SetDeadline(&call);
  v1::UploadTablesResponse response;
  const auto writer = f.models->UploadTables(&call, &response);
  ASSERT_TRUE(writer->Write(messages[0]));
  ASSERT_TRUE(writer->Write(messages[1]));
  // Without another message from us, nor the end of the stream.
  ExpectCall(writer->Finish(), grpc::StatusCode::DEADLINE_EXCEEDED, {"2 tables", "4"});
  f.ExpectNothingInFlight();
}

TEST(TablesRpcTest, AnUploadWhoseCallerLeavesLetsGo) {
  RpcFixture f;
  const std::vector<v1::UploadTablesRequest> messages = UploadMessages();
  grpc::ClientContext call;
  v1::UploadTablesResponse response;
  const auto writer = f.models->UploadTables(&call, &response);
  ASSERT_TRUE(writer->Write(messages[0]));
  ASSERT_TRUE(writer->Write(messages[1]));
  call.TryCancel();
  EXPECT_EQ(writer->Finish().error_code(), grpc::StatusCode::CANCELLED);
  f.ExpectNothingInFlight();
  EXPECT_EQ(f.registry.tables().GetStats().count, 0);
}

TEST(TablesRpcTest, ModelsWithoutTablesHaveNoneToGet) {
  RpcFixture f;
  f.Register("m", "qjl3p");
  v1::GetTablesRequest request;
  v1::GetTablesResponse table;
  grpc::ClientContext none_call, missing_call;
  request.set_model("m");
  const auto none = f.models->GetTables(&none_call, request);
  EXPECT_FALSE(none->Read(&table));
  ExpectCall(none->Finish(), grpc::StatusCode::FAILED_PRECONDITION, {"model m uses tables"});
  request.set_model("x");
  const auto missing = f.models->GetTables(&missing_call, request);
  EXPECT_FALSE(missing->Read(&table));
  ExpectCall(missing->Finish(), grpc::StatusCode::NOT_FOUND, {"'x'"});
}

}  // namespace
}  // namespace sketchkv
