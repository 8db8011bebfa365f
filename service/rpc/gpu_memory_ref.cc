#include "service/rpc/gpu_memory_ref.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace sketchkv {
namespace {

// What the card's kernels load at a time.
constexpr uint64_t kAlignment = 16;

}  // namespace

absl::Status CheckGpuMemoryRef(const ServiceContext& service, absl::string_view field,
                               const v1::GpuMemoryRef& ref) {
  if (service.gpu == nullptr) {
    return absl::UnavailableError(absl::StrCat(field, ": this server has no GPU"));
  }
  if (ref.ipc_handle().size() != sizeof(GpuIpcHandle)) {
    return absl::InvalidArgumentError(absl::StrCat(field, ".ipc_handle has ",
                                                   ref.ipc_handle().size(), " bytes; it needs ",
                                                   sizeof(GpuIpcHandle)));
  }
  if (ref.offset() % kAlignment != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".offset is ", ref.offset(), "; it needs a multiple of ", kAlignment));
  }
  if (ref.length() == 0) {
    return absl::InvalidArgumentError(absl::StrCat(field, ".length is 0; it needs at least 1"));
  }
  return absl::OkStatus();
}

absl::StatusOr<GpuBytes> OpenGpuMemory(const ServiceContext& service, absl::string_view field,
                                       const v1::GpuMemoryRef& ref) {
  SKETCHKV_RETURN_IF_ERROR(CheckGpuMemoryRef(service, field, ref));
  GpuIpcHandle handle;
  std::memcpy(handle.data(), ref.ipc_handle().data(), handle.size());
  absl::StatusOr<GpuBytes> opened = service.gpu->OpenShared(handle);
  if (!opened.ok()) {
    return absl::Status(opened.status().code(),
                        absl::StrCat(field, ".ipc_handle: ", opened.status().message()));
  }
  const uint64_t size = opened->bytes.size();
  if (ref.offset() > size || ref.length() > size - ref.offset()) {
    return absl::InvalidArgumentError(absl::StrCat(field, ".offset ", ref.offset(), " and length ",
                                                   ref.length(), " end outside the allocation of ",
                                                   size, " bytes"));
  }
  opened->bytes = opened->bytes.subspan(ref.offset(), ref.length());
  return opened;
}

}  // namespace sketchkv
