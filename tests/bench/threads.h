#pragma once

#include <functional>

namespace sketchkv::bench {

// Calls work(i) for i in [0, count), each on a thread of its own that is pinned to the i-th CPU
// this process may use; on the calling thread alone, unpinned, for a count of 1.
void OnThreads(int count, const std::function<void(int)>& work);

}  // namespace sketchkv::bench
