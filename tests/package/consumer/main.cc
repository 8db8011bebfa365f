#include <sketchkv/client.h>

#include <iostream>
#include <vector>

int main() {
  std::vector<float> out = {1.0f}, lse = {0.0f};
  const std::vector<float> other_out = {3.0f}, other_lse = {0.0f};
  if (!sketchkv::MergeAttention(out, lse, other_out, other_lse, 1) || out[0] != 2.0f) return 1;

  const sketchkv::BlockId root = sketchkv::ChainHash("", std::as_bytes(std::span(out)), "salt");
  if (root.size() != 32) return 2;

  // Nothing listens there: the call ends with a status, in time.
  sketchkv::ClientOptions options;
  options.target = "127.0.0.1:1";
  options.timeout = std::chrono::milliseconds(200);
  auto client = sketchkv::Client::Create(options);
  if (!client.ok()) return 3;
  const absl::Status status = (*client)->GetStats().status();
  std::cout << status << "\n";
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ? 0 : 4;
}
