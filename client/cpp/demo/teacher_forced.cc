#include "client/cpp/demo/teacher_forced.h"

#include "absl/strings/str_cat.h"
#include "client/cpp/demo/setting.h"
#include "client/cpp/examples/stored_prefix.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::demo {

using example::CacheRounding;
using example::LocalKv;

absl::Status TeacherForced::Run(std::span<const uint8_t> segment, const std::string& salt,
                                std::span<ProfileTrial> trials,
                                const std::function<void(const std::string&)>& on_step) {
  on_step("exact");
  LocalKv exact_past(model_->config().kv_shape(), kStoredTokens, CacheRounding::kBf16);
  std::vector<float> logits;
  SKETCHKV_RETURN_IF_ERROR(
      model_->Forward(segment.first(kStoredTokens), nullptr, &exact_past, &logits));
  // The exact model reads its past in the same two pieces as the others do.
  SKETCHKV_RETURN_IF_ERROR(Window(segment, &exact_past, &logits));
  AddWindow(segment, logits, logits, &exact_);
  for (ProfileTrial& trial : trials) {
    on_step(trial.model.name);
    SKETCHKV_RETURN_IF_ERROR(RunProfile(segment, salt, exact_past, logits, &trial));
  }
  return absl::OkStatus();
}

absl::Status TeacherForced::RunProfile(std::span<const uint8_t> segment, const std::string& salt,
                                       const LocalKv& exact_past,
                                       std::span<const float> exact_logits,
                                       ProfileTrial* trial) const {
  const std::vector<BlockId> chain =
      example::HashChain(segment.first(kStoredTokens), kBlockTokens, salt);
  const Stopwatch put_watch;
  SKETCHKV_RETURN_IF_ERROR(example::PutPrefix(client_, trial->model, chain, exact_past));
  trial->put_ms.push_back(put_watch.Milliseconds());
  trial->blocks_put += chain.size();

  const Stopwatch lookup_watch;
  SKETCHKV_ASSIGN_OR_RETURN(const auto prefix,
                            example::StoredPrefix::Find(client_, trial->model, chain));
  trial->lookup_ms.push_back(lookup_watch.Milliseconds());
  if (prefix->num_tokens() != kStoredTokens) {
    return absl::FailedPreconditionError(absl::StrCat(trial->model.name,
                                                      ": num_tokens: ", prefix->num_tokens(),
                                                      " stored, ", kStoredTokens, " were put"));
  }
  LocalKv decoded(model_->config().kv_shape(), kStoredTokens, CacheRounding::kBf16);
  const Stopwatch get_watch;
  SKETCHKV_RETURN_IF_ERROR(prefix->Fetch(&decoded));
  trial->get_ms.push_back(get_watch.Milliseconds());

  std::vector<float> logits;
  SKETCHKV_RETURN_IF_ERROR(Window(segment, &decoded, &logits));
  AddWindow(segment, exact_logits, logits, &trial->decoded);
  example::RemotePast remote(model_->config().kv_shape(), prefix.get());
  SKETCHKV_RETURN_IF_ERROR(Window(segment, &remote, &logits));
  AddWindow(segment, exact_logits, logits, &trial->attended);
  return prefix->Release();
}

absl::Status TeacherForced::Window(std::span<const uint8_t> segment, example::PastKv* past,
                                   std::vector<float>* logits) const {
  LocalKv recent(model_->config().kv_shape(), kSegmentBytes - kStoredTokens, CacheRounding::kBf16);
  return model_->Forward(segment.subspan(kStoredTokens), past, &recent, logits);
}

void TeacherForced::AddWindow(std::span<const uint8_t> segment, std::span<const float> exact_logits,
                              std::span<const float> logits, Accuracy* accuracy) const {
  const size_t vocab = model_->config().vocab;
  for (size_t row = 0; kStoredTokens + row + 1 < segment.size(); ++row) {
    accuracy->Add(exact_logits.subspan(row * vocab, vocab), logits.subspan(row * vocab, vocab),
                  segment[kStoredTokens + row + 1]);
  }
}

}  // namespace sketchkv::demo
