// sketchkvd: reads the configuration, builds the parts bottom-up, serves, drains.

#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/cleanup/cleanup.h"
#include "kernels/isa.h"
#include "service/config.h"
#include "service/engine/engine.h"
#include "service/engine/executor.h"
#include "service/engine/gpu_tier.h"
#include "service/gpu/open_gpu.h"
#include "service/memory_limit.h"
#include "service/pool/arena_tier.h"
#include "service/pool/block_pool.h"
#include "service/rpc/server.h"
#include "service/shm/segment_listener.h"
#include "service/shm/segment_table.h"

namespace sketchkv {
namespace {

void AddFlags(CLI::App* app, Config* config) {
  app->option_defaults()->always_capture_default();
  app->add_option("--listen", config->listen, "HOST:PORT or unix:PATH; port 0: any free one");
  app->add_flag("--insecure", config->insecure, "serve without TLS where other machines reach it");
  app->add_option("--port-file", config->port_file, "write the port here once serving");
  app->add_option("--host-bytes", config->host_bytes,
                  "budget of the host tier, e.g. 4GiB; 0: a quarter of this process's memory limit")
      ->transform(CLI::AsSizeValue(false));
  app->add_option("--gpu", config->gpu,
                  "auto: the first card if there is one; none; or its number");
  app->add_option(
         "--gpu-bytes", config->gpu_bytes,
         "budget of the gpu tier, all of it taken at start; 0: three quarters of what is free")
      ->transform(CLI::AsSizeValue(false));
  app->add_option("--gpu-batch-us", config->gpu_batch_us,
                  "for which an attention call waits for others to go to the card with it");
  app->add_option("--gpu-failure", config->gpu_failure,
                  "when the card fails: continue from the host tier, or exit");
  app->add_option("--inflight-bytes", config->inflight_bytes,
                  "payload bytes under way at once; 0: an eighth of the limit, at most 1 GiB")
      ->transform(CLI::AsSizeValue(false));
  app->add_option(
      "--shm-socket", config->shm_socket,
      "Unix socket that hands out shared memory to clients on this machine; empty: none");
  app->add_option("--shm-bytes", config->shm_bytes,
                  "shared memory of all clients together; 0: as --inflight-bytes")
      ->transform(CLI::AsSizeValue(false));
  app->add_option("--shm-client-bytes", config->shm_client_bytes, "shared memory of one client")
      ->transform(CLI::AsSizeValue(false));
  app->add_option("--threads", config->threads, "threads that compute; 0: one a core");
  app->add_option(
      "--spin-us", config->spin_us,
      "for which one idle thread looks for work before it sleeps; it keeps a core busy");
  app->add_option("--max-queued", config->max_queued, "requests that may wait for a thread");
  app->add_option("--max-timeout-ms", config->max_timeout_ms, "of one request");
  app->add_option("--drain-ms", config->drain_ms, "for calls under way at SIGTERM");
  app->add_option("--scrub-seconds", config->scrub_seconds,
                  "every stored block is verified once in so long; 0: never");
  app->add_option("--isa", config->isa,
                  "CPU kernels: auto, scalar, avx2, avx512, avx512-vnni or neon");
  app->add_flag("--reflection", config->reflection, "serve gRPC reflection");
  app->add_option("--log-level", config->log_level, "trace, debug, info, warn or error");
}

void StartLog(const Config& config) {
  auto logger = spdlog::stderr_logger_mt("sketchkvd");
  logger->set_pattern(R"({"time":"%Y-%m-%dT%H:%M:%S.%e%z","level":"%l","message":"%v"})");
  logger->set_level(spdlog::level::from_str(config.log_level));
  spdlog::set_default_logger(logger);
}

// Whole or not at all: a reader never sees half a number.
bool WritePortFile(const std::string& path, int port) {
  const std::string temporary = path + ".tmp";
  std::ofstream file(temporary);
  file << port << '\n';
  file.close();
  return file.good() && std::rename(temporary.c_str(), path.c_str()) == 0;
}

// Payloads come and go by the megabyte. glibc would give each back to the system, and the next
// would fault its pages in again, which takes longer than encoding it. So up to as much as may be
// under way stays here, once: in one arena, for each would keep its own. Before any thread starts.
void KeepFreedMemory(uint64_t inflight_bytes) {
#ifdef __GLIBC__
  const int bytes = static_cast<int>(std::min<uint64_t>(inflight_bytes, INT_MAX));
  mallopt(M_ARENA_MAX, 1);
  mallopt(M_MMAP_THRESHOLD, bytes);
  mallopt(M_TRIM_THRESHOLD, bytes);
#endif
}

// How often copies between the tiers are made, and the card is asked how it is.
constexpr std::chrono::milliseconds kGpuPeriod{20};

int Fail(const absl::Status& status) {
  spdlog::error("{}", std::string(status.message()));
  return 1;
}

// Null: none is asked for, or none can be had and none is needed.
absl::StatusOr<std::unique_ptr<Gpu>> OpenCard(const Config& config) {
  if (config.gpu == "none") return nullptr;
  GpuOptions options{.tier_bytes = config.gpu_bytes,
                     .batch_delay = std::chrono::microseconds(config.gpu_batch_us)};
  if (config.gpu != "auto") options.device = std::stoi(config.gpu);
  absl::StatusOr<std::unique_ptr<Gpu>> gpu = OpenGpu(options);
  if (gpu.ok() || config.gpu != "auto") return gpu;
  spdlog::log(absl::IsNotFound(gpu.status()) ? spdlog::level::info : spdlog::level::warn,
              "no gpu tier: {}", std::string(gpu.status().message()));
  return nullptr;
}

// A card answers sooner than a thread wakes up, and a decode loop asks again within milliseconds;
// with few cores there is none to spare.
std::chrono::microseconds SpinTime(const Config& config, bool has_gpu, uint32_t threads) {
  constexpr uint32_t kDefaultUs = 2000, kManyThreads = 8;
  const uint32_t by_default = has_gpu && threads >= kManyThreads ? kDefaultUs : 0;
  return std::chrono::microseconds(config.spin_us.value_or(by_default));
}

std::unique_ptr<Tier> TierOf(const Gpu* gpu, uint64_t host_bytes) {
  if (gpu == nullptr) return nullptr;
  auto tier = std::make_unique<ArenaTier>(gpu->TierMemory());
  const size_t bytes = tier->GetStats().budget_bytes;
  spdlog::info("gpu tier on {}: {} bytes", gpu->name(), bytes);
  if (bytes > host_bytes) {
    spdlog::warn(
        "the gpu tier has {} bytes and the host tier {}: every block has a place in the host "
        "tier, so that the rest of the card's is never used",
        bytes, host_bytes);
  }
  return tier;
}

// Says once that the card has failed: to the log and to who asks for the health of "gpu".
class GpuWatch {
 public:
  GpuWatch(GpuTier* tier, bool exit) : tier_(tier), exit_(exit) {}

  void Attach(Server* server) {
    MutexLock lock(&mu_);
    server_ = server;
    if (server != nullptr) server->SetGpuServing(!tier_->failed());
  }
  void Look() {
    if (told_ || !tier_->failed()) return;
    told_ = true;
    const GpuTier::Stats stats = tier_->GetStats();
    spdlog::error("the GPU failed: {}; {} blocks that were there alone are lost{}",
                  std::string(stats.why.message()), stats.lost_blocks,
                  exit_ ? "; exiting" : ", the host tier goes on");
    // Nothing that other threads may still be doing with the card matters any more.
    if (exit_) std::quick_exit(kGpuFailedExit);
    MutexLock lock(&mu_);
    if (server_ != nullptr) server_->SetGpuServing(false);
  }

 private:
  static constexpr int kGpuFailedExit = 3;

  GpuTier* const tier_;
  const bool exit_;
  bool told_ = false;  // of the one thread that calls Look
  Mutex mu_;
  Server* server_ SKETCHKV_GUARDED_BY(mu_) = nullptr;
};

int Serve(const Config& config, const sigset_t& signals) {
  const absl::StatusOr<Isa> isa = ChooseIsa(config.isa);
  if (!isa.ok()) return Fail(isa.status());
  const uint64_t limit = MemoryLimitBytes("/");
  const uint64_t host_bytes = config.host_bytes != 0 ? config.host_bytes : limit / 4;
  const uint64_t inflight_bytes = config.inflight_bytes != 0
                                      ? config.inflight_bytes
                                      : std::min<uint64_t>(limit / 8, uint64_t{1} << 30);
  const uint32_t threads =
      config.threads != 0 ? config.threads : std::max(1u, std::thread::hardware_concurrency());
  KeepFreedMemory(inflight_bytes);

  const SteadyClock clock;
  const absl::StatusOr<std::unique_ptr<Gpu>> gpu = OpenCard(config);
  if (!gpu.ok()) return Fail(gpu.status());
  BlockPool pool({.budget_bytes = host_bytes}, &clock, TierOf(gpu->get(), host_bytes));
  ModelRegistry models(*isa);
  ThreadExecutor executor(threads, config.max_queued, &clock,
                          SpinTime(config, *gpu != nullptr, threads));
  std::optional<GpuTier> gpu_tier;
  if (*gpu != nullptr) gpu_tier.emplace(gpu->get(), &pool, &models);
  Engine engine(&models, &pool, &executor, gpu_tier ? &*gpu_tier : nullptr);
  InflightBytes inflight(inflight_bytes);
  WriteWatch writes;
  SegmentTable segments({.client_bytes = config.shm_client_bytes,
                         .total_bytes = config.shm_bytes != 0 ? config.shm_bytes : inflight_bytes});
  std::optional<GpuWatch> gpu_watch;
  // Whatever way this function ends: first the server goes, then the threads, then what they use.
  const absl::Cleanup stop_threads = [&executor] { executor.Stop(); };
  executor.RunEvery(std::chrono::seconds(1), [&, cursor = uint64_t{0}]() mutable {
    pool.Expire();
    models.tables().Trim();
    writes.Sweep(clock.Now());
    if (config.scrub_seconds == 0) return;
    // A second's share of the whole, rounded up.
    engine.Scrub(&cursor, pool.GetStats().sealed_blocks / config.scrub_seconds + 1);
  });
  if (gpu_tier) {
    gpu_watch.emplace(&*gpu_tier, config.gpu_failure == "exit");
    executor.RunEvery(kGpuPeriod, [&] {
      gpu_tier->Maintain();
      gpu_watch->Look();
    });
  }
  ServiceContext context{.engine = &engine,
                         .executor = &executor,
                         .inflight = &inflight,
                         .writes = &writes,
                         .segments = &segments,
                         .gpu = gpu->get(),
                         .clock = &clock,
                         .max_timeout = std::chrono::milliseconds(config.max_timeout_ms),
                         .isa = std::string(IsaName(*isa)),
                         .version = SKETCHKV_VERSION};
  std::unique_ptr<SegmentListener> listener;
  if (!config.shm_socket.empty()) {
    absl::StatusOr<std::unique_ptr<SegmentListener>> started =
        SegmentListener::Start(config.shm_socket, &segments);
    if (!started.ok()) return Fail(started.status());
    listener = *std::move(started);
    context.shm_socket = listener->path();
    context.shm_server.assign(listener->server().begin(), listener->server().end());
  }
  absl::StatusOr<std::unique_ptr<Server>> server =
      Server::Start({.listen = config.listen,
                     .reflection = config.reflection,
                     .resource_quota_bytes = inflight_bytes + (uint64_t{256} << 20)},
                    &context);
  if (!server.ok()) return Fail(server.status());
  if (gpu_watch) gpu_watch->Attach(server->get());
  const absl::Cleanup detach_watch = [&gpu_watch] {
    if (gpu_watch) gpu_watch->Attach(nullptr);
  };
  (*server)->SetServing(true);
  if (!config.port_file.empty() && !WritePortFile(config.port_file, (*server)->port())) {
    (*server)->Shutdown(std::chrono::milliseconds(0));
    return Fail(absl::UnknownError("cannot write --port-file " + config.port_file));
  }
  spdlog::info("serving on {} (port {}), {} threads, {} kernels, host tier {} bytes", config.listen,
               (*server)->port(), threads, context.isa, host_bytes);

  int signal = 0;
  sigwait(&signals, &signal);
  spdlog::info("signal {}: draining for at most {} ms", signal, config.drain_ms);
  (*server)->SetServing(false);
  // A handler that never ends would hold Shutdown for ever; the process must go all the same.
  alarm(config.drain_ms / 1000 + 10);
  // What has begun is finished; then only streams without work and answers still being written are
  // left, and those get a moment.
  executor.Drain(std::chrono::milliseconds(config.drain_ms));
  (*server)->Shutdown(std::chrono::milliseconds(std::min(config.drain_ms, 500u)));
  executor.Stop();
  spdlog::info("stopped");
  return 0;
}

}  // namespace
}  // namespace sketchkv

int main(int argc, char** argv) {
  sketchkv::Config config;
  CLI::App app("sketchkvd: stores LLM KV-cache blocks as sketches and answers attention over them");
  app.set_version_flag("--version", SKETCHKV_VERSION);
  sketchkv::AddFlags(&app, &config);
  CLI11_PARSE(app, argc, argv);
  sketchkv::StartLog(config);
  const absl::Status valid = config.Validate();
  if (!valid.ok()) {
    sketchkv::Fail(valid);
    return 2;
  }
  // Blocked before any thread starts, so that only sigwait takes them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return sketchkv::Serve(config, signals);
}
