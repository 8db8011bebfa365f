#include <span>

#include "client/cpp/demo/progress.h"
#include "client/cpp/demo/workers.h"
#include "client/cpp/examples/stored_prefix.h"
#include "client/cpp/examples/tiny_lm.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::demo {

absl::StatusOr<PrefillResult> RunPrefill(const WorkerOptions& options) {
  Progress progress("prefill worker", static_cast<uint32_t>(1 + options.profiles.size()));
  progress.Step("running the prompt");
  SKETCHKV_ASSIGN_OR_RETURN(const auto model, example::TinyLm::Load(options.model_dir));
  SKETCHKV_ASSIGN_OR_RETURN(const std::vector<uint8_t> prompt,
                            ReadText(options.prompt_file, kStoredTokens + 1));
  const example::KvShape shape = model->config().kv_shape();
  example::LocalKv kv(shape, model->config().context, example::CacheRounding::kBf16);
  std::vector<float> logits;
  SKETCHKV_RETURN_IF_ERROR(model->Forward(prompt, nullptr, &kv, &logits));

  SKETCHKV_ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, Connect(options.server));
  const std::vector<BlockId> chain = example::HashChain(prompt, kBlockTokens, options.salt);
  PrefillResult result;
  for (const std::string& profile : options.profiles) {
    progress.Step("putting blocks as " + profile);
    SKETCHKV_ASSIGN_OR_RETURN(const ModelInfo info,
                              Register(client.get(), options.model_dir, profile, shape));
    const Stopwatch stopwatch;
    SKETCHKV_RETURN_IF_ERROR(example::PutPrefix(client.get(), info, chain, kv));
    result.put_ms.push_back(stopwatch.Milliseconds());
  }
  return result;
}

}  // namespace sketchkv::demo
