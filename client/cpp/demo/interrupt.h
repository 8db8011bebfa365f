#pragma once

namespace sketchkv::demo {

// From now on the first SIGINT, SIGTERM or SIGHUP only makes Interrupted() true, so that what was
// started is stopped in order; a second one ends the process as usual.
void CatchInterrupts();
[[nodiscard]] bool Interrupted();

}  // namespace sketchkv::demo
