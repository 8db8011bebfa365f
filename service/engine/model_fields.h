#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "kernels/codec.h"
#include "service/engine/digest.h"
#include "service/pool/block.h"

namespace sketchkv {

// One name-value pair a field that stored bytes depend on. The list is what the fingerprint digests
// and what a difference is named after, so the two cannot drift apart.
using ModelFields = std::vector<std::pair<std::string, std::string>>;

// One resolved profile a layer. `tables_digest` counts only where a profile uses tables.
[[nodiscard]] ModelFields DescribeModel(const std::string& name, const KvLayout& layout,
                                        const std::vector<CodecProfile>& profiles,
                                        const std::optional<Digest128>& tables_digest);

[[nodiscard]] Fingerprint FingerprintOf(const ModelFields& fields);

// ALREADY_EXISTS naming the first field in which `asked` differs from `registered`, and both
// values.
[[nodiscard]] absl::Status NameDifference(const ModelFields& registered, const ModelFields& asked);

}  // namespace sketchkv
