// Tables by the command line and the library, against a real sketchkvd.
#include <algorithm>

#include "client/cpp/files/tables_file.h"
#include "sketchkv/client.h"
#include "tests/client/cli_fixture.h"
#include "tests/testing/random_tables.h"

namespace sketchkv {
namespace {

constexpr uint32_t kLayers = 2, kHeads = 2, kDim = 32, kTokens = 16;

class TablesCliTest : public CliTest {
 protected:
  static TablesFile WriteTables(const std::string& name, std::vector<std::string> profiles,
                                uint32_t layers = kLayers) {
    const KvLayout layout{.num_layers = layers,
                          .num_kv_heads = kHeads,
                          .head_dim = kDim,
                          .value_dim = kDim,
                          .block_tokens = kTokens};
    const auto tables = testing::RandomTables(layout, 3);
    TablesFile file{.num_layers = layers,
                    .num_kv_heads = kHeads,
                    .head_dim = kDim,
                    .value_dim = kDim,
                    .profiles = std::move(profiles)};
    for (uint32_t i = 0; i < layers * kHeads; ++i) {
      file.heads.push_back(tables->at(i / kHeads, i % kHeads));
    }
    SKETCHKV_EXPECT_OK(WriteTablesFile(File(name), file));
    auto read = ReadTablesFile(File(name));  // bases rounded
    SKETCHKV_EXPECT_OK(read);
    return *std::move(read);
  }
  static std::unique_ptr<Client> Connect(bool encode_locally = false) {
    ClientOptions options;
    options.target = server_->address();
    options.encode_locally = encode_locally;
    return std::move(Client::Create(options)).value();
  }
};

TEST_F(TablesCliTest, RegisterUploadsTheFilesTablesAndTakesItsProfiles) {
  const TablesFile file =
      WriteTables("t.safetensors", {"qjl3p:layers=0+1,center=table", "klt:layers=1+1"});
  const std::string with_tables = " --tables " + File("t.safetensors");
  const json model = RunJson(RegisterCommand("tabled") + with_tables);
  EXPECT_EQ(model["tables_digest"].get<std::string>().size(), 32u);
  ASSERT_EQ(model["profiles"].size(), 2u);
  EXPECT_EQ(model["profiles"][0]["name"], "qjl3p");
  EXPECT_EQ(model["profiles"][0]["center"], "table");
  EXPECT_EQ(model["profiles"][1]["name"], "klt");
  EXPECT_EQ(model["profiles"][1]["projection"], "basis");
  EXPECT_EQ(model["profiles"][1]["key_row_bits"], KeyRowBits(file.heads[0].key_basis, kDim));
  EXPECT_EQ(RunJson(RegisterCommand("tabled") + with_tables), model) << "again is no error";
  const Ran listed = Run("models list");
  for (const char* text :
       {"qjl3p; keys: 3-bit codes, centered by the table; values: rotated, 2 bits",
        "klt; keys: codes of 128 bits a key, centered by the table; values: basis", "  tables "}) {
    EXPECT_NE(listed.out.find(text), std::string::npos) << text << "\n" << listed.out;
  }

  SKETCHKV_ASSERT_OK_AND_ASSIGN(const std::vector<HeadTableSpec> got,
                                Connect()->GetTables("tabled"));
  ASSERT_EQ(got.size(), file.heads.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].key_basis.rows, file.heads[i].key_basis.rows);
    EXPECT_EQ(got[i].value_mean, file.heads[i].value_mean);
  }
  // --profile stands instead of the file's, and may leave the tables unused.
  const json plain = RunJson(RegisterCommand("plain") + with_tables + " --profile qjl2p");
  EXPECT_EQ(plain["profiles"][0]["name"], "qjl2p");
  EXPECT_TRUE(plain["tables_digest"].is_null());
}

TEST_F(TablesCliTest, WhatIsWrongIsNamed) {
  WriteTables("t.safetensors", {"klt"});
  WriteTables("deep.safetensors", {"klt"}, 3);
  WriteTables("bad.safetensors", {"klt:centre=table"});
  const auto expect = [](const std::string& arguments, int exit_code,
                         const std::vector<std::string>& words) {
    EXPECT_EQ(Run(RegisterCommand("wrong") + arguments).exit_code, exit_code) << arguments;
    for (const std::string& word : words) {
      EXPECT_NE(Stderr().find(word), std::string::npos) << word << "\n" << Stderr();
    }
  };
  expect(" --tables /nonexistent", 1, {"FAILED_PRECONDITION", "/nonexistent"});
  expect(" --tables " + File("deep.safetensors"), 1, {"layer 2 head 0", "2 layers of 2"});
  expect(" --tables " + File("bad.safetensors"), 1, {"centre=table"});
  expect(" --profile klt", 1, {"INVALID_ARGUMENT", "tables"});
  expect(" --profile qjl3p:center=middle", 2, {"center=middle"});
  expect(" --profile qjl3p:values=minmax,value_bits=3", 1, {"value_bits is 3"});
  EXPECT_EQ(Run("models unregister wrong").exit_code, 3);
}

// The client rebuilds each profile exactly from what the server says of it: the same bytes.
TEST_F(TablesCliTest, EncodedHereAndThereAreTheSameBytesInEveryProfile) {
  const TablesFile file = WriteTables("t.safetensors", {"klt"});
  const std::vector<std::string> profiles = {
      "raw",
      "qjl:outliers=2,center=block",
      "qjl:projection=orthogonal,center=table,values=rotated,value_bits=3",
      "qjl-paper",
      "qjl2p:outliers=3,outlier_source=table,scale=least_squares",
      "qjl3p",
      "qjl4p:projection=orthogonal,seed=5",
      "klt",
      "klt:values=raw,center=none"};
  const auto client = Connect(), local = Connect(/*encode_locally=*/true);
  const std::vector<float> numbers = WriteArray("n.npy", 9, {kLayers, 2, kTokens, kHeads, kDim});
  std::vector<uint16_t> halves;
  for (const float x : numbers) halves.push_back(FloatToFp16(x));
  PutPart part;
  part.block_hash = ChainHash("", {});
  part.num_tokens = kTokens;
  part.payload = std::as_bytes(std::span(halves));
  for (size_t i = 0; i < profiles.size(); ++i) {
    part.model = absl::StrCat("same-", i);
    RunJson(absl::StrCat(RegisterCommand(part.model), " --tables ", File("t.safetensors"),
                         " --profile ", profiles[i]));
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const std::vector<std::byte> cells, client->Encode(part));
    const absl::StatusOr<std::vector<std::byte>> own_cells = local->Encode(part);
    SKETCHKV_ASSERT_OK(own_cells);
    EXPECT_EQ(cells, *own_cells) << profiles[i];
    SKETCHKV_EXPECT_OK(local->Put(part));
  }
}

}  // namespace
}  // namespace sketchkv
