// Parts and attention in a GPU's memory: what the messages say. The client itself touches no GPU.
#include "tests/client/store_fixture.h"

namespace sketchkv {
namespace {

constexpr uint64_t kQueryBytes = 4 * 16 * sizeof(float);
constexpr uint64_t kOutputBytes = 4 * 17 * sizeof(float);

GpuMemory Memory(uint64_t length) {
  GpuMemory memory;
  for (size_t i = 0; i < memory.ipc_handle.size(); ++i) memory.ipc_handle[i] = std::byte(i + 1);
  memory.offset = 4096;
  memory.length = length;
  return memory;
}

void ExpectMemory(const v1::GpuMemoryRef& ref, uint64_t length) {
  ASSERT_EQ(ref.ipc_handle().size(), 64u);
  EXPECT_EQ(ref.ipc_handle()[0], 1);
  EXPECT_EQ(ref.ipc_handle()[63], 64);
  EXPECT_EQ(ref.offset(), 4096u);
  EXPECT_EQ(ref.length(), length);
}

// Refuses some items and knows some blocks already, by their numbers in the call.
v1::PutResponse AnswerTo(const v1::PutRequest& item) {
  const uint64_t id = item.request_id();
  EXPECT_GT(item.timeout_ms(), 0u) << id;
  EXPECT_EQ(item.header().block_hash(), BlockId(32, static_cast<char>('0' + id - 1)));
  v1::PutResponse answer = id % 10 == 4 ? PutAnswer(id, 5, std::to_string(id)) : PutAnswer(id);
  answer.set_already_present(id % 10 == 5);
  return answer;
}

class GpuMemoryTest : public StoreTest {
 protected:
  GpuMemoryTest() {
    put_ = SmallPart({});
    put_.gpu_payload = Memory(kSmallBlockBytes);
    get_ = SmallGet();
    get_.into_gpu = Memory(kSmallBlockBytes);
    call_.model = "small";
    call_.queries_per_kv_head = 2;
    call_.items.resize(1);
    call_.items[0].tip = BlockId(32, 't');
    call_.gpu_queries = Memory(kQueryBytes);
    call_.gpu_outputs = Memory(kOutputBytes);
  }

  PutPart put_;
  GetPart get_;
  AttentionCall call_;
};

TEST_F(GpuMemoryTest, APutNamesThePayloadAndSendsNone) {
  options_.encode_locally = true;  // which is the server's business here
  ArrivedPut arrived;
  server_.cache.on_put = [&](grpc::ServerContext*, PutStream* stream) {
    if (ReadPut(stream, 0, &arrived)) stream->Write(PutAnswer(arrived.first.request_id()));
    return grpc::Status::OK;
  };
  const absl::StatusOr<PutResult> result = server_.NewClient(options_)->Put(put_);
  SKETCHKV_ASSERT_OK(result);
  EXPECT_TRUE(result->sealed);
  ExpectMemory(arrived.first.header().gpu_memory(), kSmallBlockBytes);
  EXPECT_FALSE(arrived.first.header().encoded());
  EXPECT_FALSE(arrived.first.header().has_segment());
  EXPECT_TRUE(arrived.payload.empty());
}

// Parts that do not travel come several in a message, answers in any order and as many in one.
TEST_F(GpuMemoryTest, ManyPutsTravelTogetherAndHaveTheirOwnResults) {
  constexpr size_t kParts = 40, kMostTogether = 16, kTravels = 20;
  std::vector<size_t> items;  // of each message
  server_.cache.on_put = [&](grpc::ServerContext*, PutStream* stream) {
    std::vector<v1::PutResponse> answers;
    v1::PutRequest message;
    while (stream->Read(&message)) {
      items.push_back(1 + message.more_size());
      v1::PutResponse answer = AnswerTo(message);
      for (const v1::PutRequest& item : message.more()) *answer.add_more() = AnswerTo(item);
      answers.insert(answers.begin(), answer);
    }
    for (const v1::PutResponse& answer : answers) stream->Write(answer);
    return grpc::Status::OK;
  };
  std::vector<PutPart> puts(kParts, put_);
  for (size_t i = 0; i < kParts; ++i) puts[i].block_hash = BlockId(32, static_cast<char>('0' + i));
  puts[kTravels].gpu_payload = std::nullopt;
  puts[kTravels].payload = payload_;
  const auto results = server_.NewClient(options_)->PutAll(puts);
  ASSERT_EQ(results.size(), kParts);
  for (size_t i = 0; i < kParts; ++i) {
    if (i % 10 == 3) {
      EXPECT_THAT(results[i], StatusIs(absl::StatusCode::kNotFound, {std::to_string(i + 1)}));
      continue;
    }
    SKETCHKV_ASSERT_OK(results[i]);
    EXPECT_EQ(results[i]->already_present, i % 10 == 4) << i;
  }
  EXPECT_EQ(items, (std::vector<size_t>{kMostTogether, kTravels - kMostTogether, 1, kMostTogether,
                                        kParts - kTravels - 1 - kMostTogether}));
}

TEST_F(GpuMemoryTest, APutIsCheckedBeforeItIsSent) {
  const auto client = server_.NewClient();
  put_.gpu_payload->length = kSmallBlockBytes - 4;
  EXPECT_THAT(client->Put(put_),
              StatusIs(absl::StatusCode::kInvalidArgument, {"payload has 4092", "4096"}));
  put_.gpu_payload->length = kSmallBlockBytes;
  put_.encoded = true;
  EXPECT_THAT(client->Put(put_),
              StatusIs(absl::StatusCode::kInvalidArgument, {"gpu_payload", "encoded is true"}));
  put_.encoded = false;
  put_.payload = payload_;
  EXPECT_THAT(client->Put(put_),
              StatusIs(absl::StatusCode::kInvalidArgument, {"gpu_payload", "4096"}));
  put_.payload = {};
  EXPECT_THAT(client->Encode(put_),
              StatusIs(absl::StatusCode::kInvalidArgument, {"gpu_payload", "Encode"}));
  EXPECT_EQ(server_.cache.num_puts, 0);
}

TEST_F(GpuMemoryTest, AGetNamesWhereItsPayloadGoes) {
  v1::GetRequest request;
  server_.cache.on_get = [&](grpc::ServerContext*, GetStream* stream) {
    stream->Read(&request);
    v1::GetResponse response = GetAnswer(request.request_id(), payload_);
    response.clear_payload();
    response.clear_checksum();
    stream->Write(response);
    return grpc::Status::OK;
  };
  const auto client = server_.NewClient();
  const absl::StatusOr<GetResult> result = client->Get(get_);
  SKETCHKV_ASSERT_OK(result);
  EXPECT_EQ(result->num_tokens, 8u);
  EXPECT_EQ(result->payload_bytes, kSmallBlockBytes);
  EXPECT_TRUE(result->payload.empty());
  ExpectMemory(request.gpu_memory(), kSmallBlockBytes);
  EXPECT_FALSE(request.has_segment());

  std::vector<std::byte> host(kSmallBlockBytes);
  get_.into = host;
  EXPECT_THAT(client->Get(get_),
              StatusIs(absl::StatusCode::kInvalidArgument, {"into_gpu", "4096"}));
  get_.into = {};
  get_.type = std::nullopt;
  EXPECT_THAT(client->Get(get_),
              StatusIs(absl::StatusCode::kInvalidArgument, {"into_gpu", "type"}));
}

TEST_F(GpuMemoryTest, AGetTakesNoPayloadThatTravels) {
  server_.cache.on_get = [&](grpc::ServerContext*, GetStream* stream) {
    v1::GetRequest request;
    stream->Read(&request);
    stream->Write(GetAnswer(request.request_id(), payload_));
    return grpc::Status::OK;
  };
  EXPECT_THAT(server_.NewClient(options_)->Get(get_), StatusIs(absl::StatusCode::kInternal, {}));
}

TEST_F(GpuMemoryTest, AttentionNamesBothPlaces) {
  v1::AttentionRequest sent;
  server_.attention.on_attend = [&](auto, const v1::AttentionRequest* request,
                                    v1::AttendResponse* response) {
    sent = *request;
    response->mutable_status()->set_code(0);
    return grpc::Status::OK;
  };
  const auto client = server_.NewClient();
  const absl::StatusOr<std::vector<AttentionOutput>> outputs = client->Attend(call_);
  SKETCHKV_ASSERT_OK(outputs);
  ASSERT_EQ(outputs->size(), 1u);
  EXPECT_EQ((*outputs)[0].transport, Transport::kGpuMemory);
  EXPECT_TRUE((*outputs)[0].out.empty());
  EXPECT_TRUE(sent.queries().empty());
  ExpectMemory(sent.queries_gpu_memory(), kQueryBytes);
  ExpectMemory(sent.outputs_gpu_memory(), kOutputBytes);
}

TEST_F(GpuMemoryTest, QueriesAloneMayLieThere) {
  server_.attention.on_attend = [&](auto, const v1::AttentionRequest* request,
                                    v1::AttendResponse* response) {
    EXPECT_TRUE(request->has_queries_gpu_memory());
    EXPECT_FALSE(request->has_outputs_gpu_memory());
    response->mutable_status()->set_code(0);
    response->set_payload(std::string(kOutputBytes, '\0'));
    return grpc::Status::OK;
  };
  call_.gpu_outputs = std::nullopt;
  const absl::StatusOr<std::vector<AttentionOutput>> outputs = server_.NewClient()->Attend(call_);
  SKETCHKV_ASSERT_OK(outputs);
  EXPECT_EQ((*outputs)[0].transport, Transport::kGrpc);
  EXPECT_EQ((*outputs)[0].out.size(), 4u * 16);
}

TEST_F(GpuMemoryTest, AttentionIsCheckedBeforeItIsSent) {
  const auto client = server_.NewClient();
  AttentionCall call = call_;
  call.gpu_queries->length = kQueryBytes + 4;
  EXPECT_THAT(client->Attend(call),
              StatusIs(absl::StatusCode::kInvalidArgument, {"gpu_queries", "260", "256"}));
  call = call_;
  call.gpu_outputs->length = kOutputBytes - 1;
  EXPECT_THAT(client->Attend(call),
              StatusIs(absl::StatusCode::kInvalidArgument, {"gpu_outputs", "271", "272"}));
  call = call_;
  const std::vector<float> queries(4 * 16);
  call.queries = queries;
  EXPECT_THAT(client->Attend(call),
              StatusIs(absl::StatusCode::kInvalidArgument, {"gpu_queries", "64"}));
  EXPECT_THAT(client->Score(call_),
              StatusIs(absl::StatusCode::kInvalidArgument, {"gpu_outputs", "Score"}));
}

}  // namespace
}  // namespace sketchkv
