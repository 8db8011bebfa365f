#pragma once

#include <memory>

#include "client/cpp/src/core.h"
#include "client/cpp/src/model_cache.h"
#include "client/cpp/src/segment_source.h"
#include "sketchkv/client.h"

namespace sketchkv::client {

// After Client is gone its calls answer CANCELLED: it shares what it needs.
[[nodiscard]] std::unique_ptr<Client::AttendSession> MakeAttendSession(
    std::shared_ptr<ClientCore> core, std::shared_ptr<ModelCache> models,
    std::shared_ptr<SegmentSource> segments);

}  // namespace sketchkv::client
