#include <algorithm>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/demo/progress.h"
#include "client/cpp/demo/workers.h"
#include "client/cpp/examples/stored_prefix.h"
#include "client/cpp/examples/tiny_lm.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::demo {
namespace {

// Passes everything on and adds up the time it takes.
class TimedPast final : public example::PastKv {
 public:
  explicit TimedPast(PastKv* past) : past_(past) {}

  [[nodiscard]] uint32_t num_tokens() const override { return past_->num_tokens(); }
  [[nodiscard]] absl::Status Attend(uint32_t layer, std::span<const float> queries,
                                    std::span<float> out, std::span<float> lse) override {
    const Stopwatch stopwatch;
    const absl::Status status = past_->Attend(layer, queries, out, lse);
    milliseconds_ += stopwatch.Milliseconds();
    return status;
  }
  double TakeMilliseconds() { return std::exchange(milliseconds_, 0.0); }

 private:
  PastKv* const past_;
  double milliseconds_ = 0.0;
};

// Continues a text greedily. `rest` are the prompt's tokens after the past.
// *attend_ms_per_token: of the generated tokens alone.
absl::StatusOr<std::string> Generate(const example::TinyLm& model, std::span<const uint8_t> rest,
                                     example::PastKv* past, double* attend_ms_per_token) {
  const size_t vocab = model.config().vocab;
  TimedPast timed(past);
  example::LocalKv recent(model.config().kv_shape(), model.config().context,
                          example::CacheRounding::kBf16);
  std::vector<float> logits;
  SKETCHKV_RETURN_IF_ERROR(model.Forward(rest, &timed, &recent, &logits));
  timed.TakeMilliseconds();
  std::string text;
  double total_ms = 0.0;
  for (;;) {
    const auto last = logits.end() - static_cast<ptrdiff_t>(vocab);
    const auto token = static_cast<uint8_t>(std::max_element(last, logits.end()) - last);
    text.push_back(static_cast<char>(token));
    if (text.size() == kGeneratedBytes) break;
    SKETCHKV_RETURN_IF_ERROR(model.Forward({&token, 1}, &timed, &recent, &logits));
    total_ms += timed.TakeMilliseconds();
  }
  *attend_ms_per_token = total_ms / (kGeneratedBytes - 1);
  return text;
}

absl::StatusOr<DecodeResult::Profile> DecodeProfile(const example::TinyLm& model, Client* client,
                                                    const WorkerOptions& options,
                                                    const std::string& profile,
                                                    std::span<const uint8_t> prompt,
                                                    Progress* progress) {
  DecodeResult::Profile result;
  const example::KvShape shape = model.config().kv_shape();
  SKETCHKV_ASSIGN_OR_RETURN(const ModelInfo info,
                            client->GetModel(ModelName(options.model_dir, profile)));
  const std::vector<BlockId> chain = example::HashChain(prompt, kBlockTokens, options.salt);
  const Stopwatch lookup_watch;
  SKETCHKV_ASSIGN_OR_RETURN(const auto prefix, example::StoredPrefix::Find(client, info, chain));
  result.lookup_ms = lookup_watch.Milliseconds();
  if (prefix->num_tokens() != kStoredTokens) {
    return absl::FailedPreconditionError(absl::StrCat(
        profile, ": num_tokens: ", prefix->num_tokens(), " stored, ", kStoredTokens, " were put"));
  }
  const std::span<const uint8_t> rest = prompt.subspan(kStoredTokens);

  progress->Step(profile + ", blocks fetched and decoded");
  example::LocalKv decoded(shape, kStoredTokens, example::CacheRounding::kBf16);
  const Stopwatch get_watch;
  SKETCHKV_RETURN_IF_ERROR(prefix->Fetch(&decoded));
  result.get_ms = get_watch.Milliseconds();
  double local_ms = 0.0;
  SKETCHKV_ASSIGN_OR_RETURN(result.decoded_text, Generate(model, rest, &decoded, &local_ms));

  progress->Step(profile + ", attended remotely");
  example::RemotePast remote(shape, prefix.get());
  SKETCHKV_ASSIGN_OR_RETURN(result.attended_text,
                            Generate(model, rest, &remote, &result.attend_ms_per_token));
  SKETCHKV_RETURN_IF_ERROR(prefix->Release());
  return result;
}

}  // namespace

absl::StatusOr<DecodeResult> RunDecode(const WorkerOptions& options) {
  Progress progress("decode worker", static_cast<uint32_t>(2 * options.profiles.size()));
  SKETCHKV_ASSIGN_OR_RETURN(const auto model, example::TinyLm::Load(options.model_dir));
  SKETCHKV_ASSIGN_OR_RETURN(const std::vector<uint8_t> prompt,
                            ReadText(options.prompt_file, kStoredTokens + 1));
  SKETCHKV_ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, Connect(options.server));
  DecodeResult result;
  for (const std::string& profile : options.profiles) {
    SKETCHKV_ASSIGN_OR_RETURN(
        result.profiles.emplace_back(),
        DecodeProfile(*model, client.get(), options, profile, prompt, &progress));
  }
  return result;
}

}  // namespace sketchkv::demo
