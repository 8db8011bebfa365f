#include "absl/strings/str_format.h"
#include "client/cpp/cli/command.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::cli {
namespace {

nlohmann::ordered_json TierJson(const ServerStats::Tier& tier) {
  return {{"name", tier.name},
          {"capacity_bytes", tier.capacity_bytes},
          {"page_bytes", tier.page_bytes},
          {"used_bytes", tier.used_bytes},
          {"pinned_bytes", tier.pinned_bytes},
          {"leased_bytes", tier.leased_bytes},
          {"blocks", tier.blocks},
          {"sealed_blocks", tier.sealed_blocks}};
}

nlohmann::ordered_json GpuJson(const ServerStats::Gpu& gpu) {
  return {{"name", gpu.name},
          {"failure", gpu.failure},
          {"stale_blocks", gpu.stale_blocks},
          {"promoted_total", gpu.promoted_total},
          {"demoted_total", gpu.demoted_total},
          {"fallback_total", gpu.fallback_total},
          {"lost_total", gpu.lost_total},
          {"attention_calls_total", gpu.attention_calls_total},
          {"attention_batches_total", gpu.attention_batches_total},
          {"attention_microseconds_total", gpu.attention_microseconds_total}};
}

absl::StatusOr<CommandOutput> RunStat(const CommandRunner& runner) {
  SKETCHKV_ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, runner.Connect());
  SKETCHKV_ASSIGN_OR_RETURN(const ServerStats stats, client->GetStats());
  CommandOutput output;
  output.json = {{"version", stats.version},
                 {"isa", stats.isa},
                 {"models", stats.models},
                 {"leases", stats.leases},
                 {"tiers", nlohmann::ordered_json::array()},
                 {"evicted_total", stats.evicted_total},
                 {"expired_total", stats.expired_total},
                 {"deleted_total", stats.deleted_total},
                 {"integrity_failures_total", stats.integrity_failures_total},
                 {"put_raw_bytes_total", stats.put_raw_bytes_total},
                 {"put_stored_bytes_total", stats.put_stored_bytes_total}};
  output.text = absl::StrFormat("sketchkvd %s, %s kernels, %d models, %d leases\n", stats.version,
                                stats.isa, stats.models, stats.leases);
  for (const ServerStats::Tier& tier : stats.tiers) {
    output.json["tiers"].push_back(TierJson(tier));
    absl::StrAppendFormat(&output.text,
                          "tier %s: %d of %d bytes used, %d pinned, %d leased; %d blocks, %d of "
                          "them sealed\n",
                          tier.name, tier.used_bytes, tier.capacity_bytes, tier.pinned_bytes,
                          tier.leased_bytes, tier.blocks, tier.sealed_blocks);
  }
  if (stats.gpu.has_value()) {
    const ServerStats::Gpu& gpu = *stats.gpu;
    output.json["gpu"] = GpuJson(gpu);
    absl::StrAppendFormat(
        &output.text,
        "gpu %s: %s; %d blocks to write back, %d promoted, %d demoted, %d found no room, %d lost; "
        "attention: %d calls in %d batches, %d us\n",
        gpu.name, gpu.failure.empty() ? "works" : "failed: " + gpu.failure, gpu.stale_blocks,
        gpu.promoted_total, gpu.demoted_total, gpu.fallback_total, gpu.lost_total,
        gpu.attention_calls_total, gpu.attention_batches_total, gpu.attention_microseconds_total);
  }
  absl::StrAppendFormat(
      &output.text,
      "put: %d raw bytes stored as %d; %d blocks evicted, %d expired, %d deleted, "
      "%d damaged\n",
      stats.put_raw_bytes_total, stats.put_stored_bytes_total, stats.evicted_total,
      stats.expired_total, stats.deleted_total, stats.integrity_failures_total);
  return output;
}

}  // namespace

void AddStatCommand(CLI::App& app, CommandRunner* runner) {
  CLI::App* command = app.add_subcommand("stat", "What the server holds and has done.");
  command->callback([runner] { runner->Run([&] { return RunStat(*runner); }); });
}

}  // namespace sketchkv::cli
