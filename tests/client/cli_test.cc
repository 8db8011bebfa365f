// The command line as its user runs it: processes, files, exit codes, against a real sketchkvd.
#include <cmath>
#include <fstream>
#include <limits>

#include "client/cpp/files/safetensors.h"
#include "sketchkv/client.h"
#include "tests/client/cli_fixture.h"

namespace sketchkv {
namespace {

constexpr uint64_t kLayers = 2, kTokens = 40, kHeads = 2, kDim = 32;  // blocks of 16: 16, 16, 8
constexpr uint64_t kNumbers = kLayers * kTokens * kHeads * kDim;

TEST_F(CliTest, PutLookupGetAttendScore) {
  Register("raw-model", "raw");
  const auto keys = WriteArray("k.npy", 1, {kLayers, kTokens, kHeads, kDim});
  const auto values = WriteArray("v.npy", 2, {kLayers, kTokens, kHeads, kDim});
  std::ofstream(File("text")) << "forty bytes that stand for forty tokens.";
  const std::string tokens = absl::StrCat(" --model raw-model --salt s --tokens ", File("text"));

  const json put = RunJson(absl::StrCat("put", tokens, " --keys ", File("k.npy"), " --values ",
                                        File("v.npy"), " --chain-out ", File("chain")));
  ASSERT_EQ(put["blocks"].size(), 3u);
  EXPECT_EQ(put["blocks"][2]["num_tokens"], 8);
  EXPECT_EQ(put["raw_bytes"], 2 * kNumbers * 2);
  EXPECT_TRUE(put["blocks"][2]["sealed"].get<bool>());
  const json again = RunJson(absl::StrCat("put", tokens, " --keys ", File("k.npy"), " --values ",
                                          File("v.npy"), " --encode-locally"));
  EXPECT_EQ(again["tip"], put["tip"]);
  EXPECT_TRUE(again["blocks"][0]["already_present"].get<bool>());

  const json found = RunJson("lookup --lease 5" + tokens);
  EXPECT_EQ(found["num_tokens"], 40);
  EXPECT_GT(found["lease_id"].get<uint64_t>(), 0u);

  RunJson(absl::StrCat("get --model raw-model --chain ", File("chain"), " --keys-out ",
                       File("k2.npy"), " --values-out ", File("v2.npy")));
  EXPECT_EQ(ReadArray("k2.npy", {kLayers, kTokens, kHeads, kDim}), keys);
  EXPECT_EQ(ReadArray("v2.npy", {kLayers, kTokens, kHeads, kDim}), values);

  // Layer 1, 4 query heads over 2 kv heads, against the formula.
  const auto queries = WriteArray("q.npy", 3, {1, 4, kDim});
  const std::string query = absl::StrCat(" --model raw-model --layer 1 --queries ", File("q.npy"));
  RunJson(absl::StrCat("score", query, " --tip ", put["tip"].get<std::string>(), " --out ",
                       File("logits.npy")));
  RunJson(absl::StrCat("attend", query, " --lease ", found["lease_id"].dump(), " --out ",
                       File("out.npy"), " --lse-out ", File("lse.npy")));
  const auto logits = ReadArray("logits.npy", {1, 4, kTokens});
  const auto out = ReadArray("out.npy", {1, 4, kDim});
  const auto lse = ReadArray("lse.npy", {1, 4});
  for (uint64_t head = 0; head < 4; ++head) {
    const auto row = [&](const std::vector<float>& array, uint64_t token) {
      return array.data() + ((kTokens + token) * kHeads + head / 2) * kDim;
    };
    double sum = 0, first_channel = 0;
    for (uint64_t token = 0; token < kTokens; ++token) {
      double dot = 0;
      for (uint64_t i = 0; i < kDim; ++i) dot += queries[head * kDim + i] * row(keys, token)[i];
      dot /= std::sqrt(double{kDim});
      EXPECT_NEAR(logits[head * kTokens + token], dot, 1e-4);
      sum += std::exp(dot);
      first_channel += std::exp(dot) * row(values, token)[0];
    }
    EXPECT_NEAR(lse[head], std::log(sum), 1e-4);
    EXPECT_NEAR(out[head * kDim], first_channel / sum, 1e-4);
  }
}

TEST_F(CliTest, EncodedHereAndThereAreTheSameBytes) {
  Register("sketch-a", "qjl:outliers=2");
  Register("sketch-b", "qjl:outliers=2");
  WriteArray("sk.npy", 4, {kLayers, 16, kHeads, kDim});
  WriteArray("sv.npy", 5, {kLayers, 16, kHeads, kDim});
  const std::string files =
      absl::StrCat(" --keys ", File("sk.npy"), " --values ", File("sv.npy"), " --chain-out ");
  RunJson("put --model sketch-a" + files + File("a"));
  RunJson("put --model sketch-b --encode-locally" + files + File("b"));
  RunJson(absl::StrCat("get --model sketch-a --chain ", File("a"), " --keys-out ", File("ka.npy")));
  RunJson(absl::StrCat("get --model sketch-b --chain ", File("b"), " --keys-out ", File("kb.npy")));
  EXPECT_EQ(ReadArray("ka.npy", {kLayers, 16, kHeads, kDim}),
            ReadArray("kb.npy", {kLayers, 16, kHeads, kDim}));
}

TEST_F(CliTest, ModelsAndStat) {
  Register("listed", "qjl2p:value_bits=4,scale=least_squares,center=block,outliers=2");
  const json models = RunJson("models list")["models"];
  const auto listed = std::find_if(models.begin(), models.end(),
                                   [](const json& model) { return model["name"] == "listed"; });
  ASSERT_NE(listed, models.end());
  const json& profile = (*listed)["profiles"][0];
  EXPECT_EQ(profile["value_bits"], 4);
  EXPECT_EQ(profile["keys"], "codes");
  EXPECT_EQ(profile["scale"], "least_squares");
  EXPECT_EQ(profile["center"], "block");
  EXPECT_EQ(profile["outlier_source"], "block");
  EXPECT_EQ(profile["values"], "rotated");
  EXPECT_TRUE((*listed)["tables_digest"].is_null());
  EXPECT_EQ((*listed)["layout"]["key_dtype"], "fp16");
  EXPECT_GE(RunJson("stat")["models"], 1);
  RunJson("models unregister listed");
  EXPECT_EQ(Run("models unregister listed").exit_code, 3);
}

TEST_F(CliTest, ExitCodes) {
  Register("codes", "raw");
  const std::string block = " --block " + std::string(32, 'a');
  EXPECT_EQ(Run("--help").exit_code, 0);
  EXPECT_EQ(Run("stat").exit_code, 0);
  EXPECT_EQ(Run("").exit_code, 2);
  EXPECT_EQ(Run("lookup --model codes").exit_code, 2) << "no block named";
  EXPECT_EQ(Run("lookup --model codes --block xyz").exit_code, 2);
  EXPECT_EQ(Run("stat --timeout -1").exit_code, 2);
  EXPECT_EQ(Run("models register x --layers 1 --kv-heads 1 --head-dim 32 --dtype int3").exit_code,
            2);
  EXPECT_EQ(Run("lookup --model codes" + block).exit_code, 3);
  EXPECT_EQ(Run("lookup --model none" + block).exit_code, 3);
  EXPECT_EQ(Run("get --model codes" + block).exit_code, 3);
  EXPECT_EQ(Run("models register codes --layers 3 --kv-heads 1 --head-dim 32").exit_code, 1);
  EXPECT_NE(Stderr().find("ALREADY_EXISTS"), std::string::npos) << Stderr();
  EXPECT_EQ(Run("put --model codes --keys /nonexistent.npy --values /nonexistent.npy").exit_code,
            1);
  EXPECT_EQ(Run("inspect /nonexistent.npy").exit_code, 1);
  EXPECT_EQ(Run("stat --server 127.0.0.1:1").exit_code, 4);
  EXPECT_EQ(Run("stat --server 127.0.0.1:1 --timeout 0.1").exit_code, 4);
}

TEST_F(CliTest, ErrorsAreJsonToo) {
  const Ran ran = Run("get --json --model none --block " + std::string(32, 'a'));
  EXPECT_EQ(ran.exit_code, 3);
  const json error = json::parse(ran.out, nullptr, false);
  ASSERT_TRUE(error.is_object()) << ran.out;
  EXPECT_EQ(error["error"]["code"], "NOT_FOUND");
  EXPECT_NE(error["error"]["message"].get<std::string>().find("none"), std::string::npos);
}

TEST_F(CliTest, WrongArraysAreNamed) {
  Register("shapes", "raw");
  WriteArray("short.npy", 1, {kLayers, 4, kHeads, kDim});
  WriteArray("wide.npy", 1, {kLayers, 4, kHeads, 2 * kDim});
  WriteArray("longer.npy", 1, {kLayers, 5, kHeads, kDim});
  const auto put = [](const std::string& keys, const std::string& values) {
    return Run(absl::StrCat("put --model shapes --keys ", File(keys), " --values ", File(values)));
  };
  EXPECT_EQ(put("short.npy", "wide.npy").exit_code, 1);
  EXPECT_NE(Stderr().find("values have shape [2, 4, 2, 64], the model wants [2, tokens, 2, 32]"),
            std::string::npos)
      << Stderr();
  EXPECT_EQ(put("short.npy", "longer.npy").exit_code, 1);
  EXPECT_NE(Stderr().find("values have 5 tokens, keys 4"), std::string::npos) << Stderr();
}

// What the command line does not reach of the library.
TEST_F(CliTest, TransformWatchAndSessionOfTheLibrary) {
  ClientOptions options;
  options.target = server_->address();
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto client, Client::Create(options));
  options.encode_locally = true;
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto local, Client::Create(options));
  CacheLayout layout{.num_layers = 2, .num_kv_heads = 2, .head_dim = 32, .value_dim = 32};
  layout.block_tokens = 16;
  layout.key_type = layout.value_type = ElementType::kFp32;
  SKETCHKV_ASSERT_OK(client->RegisterModel("library", layout, {{.num_outliers = 2}}));
  const std::vector<float> numbers = WriteArray("n.npy", 9, {2, 2, 16, 2, 32});
  PutPart part;
  part.model = "library";
  part.block_hash = ChainHash("", {});
  part.num_tokens = 16;
  part.payload = std::as_bytes(std::span(numbers));

  SKETCHKV_ASSERT_OK_AND_ASSIGN(const std::vector<std::byte> cells, client->Encode(part));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const std::vector<std::byte> own_cells, local->Encode(part));
  EXPECT_EQ(cells, own_cells);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(
      const std::vector<std::byte> decoded,
      client->Decode("library", {}, 16, cells, ElementType::kFp32, RawOrder::kNhd));

  SKETCHKV_ASSERT_OK(local->Put(part));
  GetPart get;
  get.model = "library";
  get.block_hash = part.block_hash;
  get.type = ElementType::kFp32;
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const GetResult got, client->Get(get));
  EXPECT_EQ(got.payload, decoded);
  get.type.reset();
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const GetResult stored, client->Get(get));
  EXPECT_EQ(stored.payload, cells);

  std::vector<CacheEvent::Type> events;
  SKETCHKV_EXPECT_OK(client->Watch("library", 1, [&](const CacheEvent& event) {
    EXPECT_EQ(event.block_hash, part.block_hash);
    events.push_back(event.type);
    return event.type != CacheEvent::Type::kSealed;
  }));
  EXPECT_EQ(events, (std::vector{CacheEvent::Type::kStored, CacheEvent::Type::kSealed}));

  const std::vector<float> queries(2 * 32, 0.25f);
  AttentionCall call;
  call.model = "library";
  call.items.resize(1);
  call.items[0].tip = part.block_hash;
  call.queries = queries;
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto once, client->Attend(call));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto streamed, client->NewAttendSession()->Attend(call));
  EXPECT_EQ(once[0].out, streamed[0].out);
  EXPECT_EQ(once[0].lse, streamed[0].lse);
}

TEST_F(CliTest, Inspect) {
  const std::vector<float> numbers = {1, -7.5f, std::numeric_limits<float>::quiet_NaN(), 3};
  const NamedTensor tensor = {"weights.0", "F32", {2, 2}, std::as_bytes(std::span(numbers))};
  SKETCHKV_ASSERT_OK(WriteSafetensors(File("w.safetensors"), std::span(&tensor, 1), {{"a", "b"}}));
  SKETCHKV_ASSERT_OK(WriteNpy(File("w.npy"), tensor));
  for (const std::string name : {"w.safetensors", "w.npy"}) {
    const json found = RunJson("inspect " + File(name))["tensors"][0];
    EXPECT_EQ(found["dtype"], "F32");
    EXPECT_EQ(found["shape"], json({2, 2}));
    EXPECT_EQ(found["bytes"], 16);
    EXPECT_EQ(found["min"], -7.5);
    EXPECT_EQ(found["max"], 3);
    EXPECT_EQ(found["num_nan"], 1);
  }
  EXPECT_EQ(RunJson("inspect " + File("w.safetensors"))["metadata"]["a"], "b");
}

}  // namespace
}  // namespace sketchkv
