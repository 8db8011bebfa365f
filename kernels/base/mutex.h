#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

// std::mutex with clang's thread-safety attributes. Debian's Abseil is not instrumented, so
// ThreadSanitizer reports absl::Mutex as a race; std::mutex it understands.
#if defined(__clang__)
#define SKETCHKV_TSA_(x) __attribute__((x))
#else
#define SKETCHKV_TSA_(x)
#endif
#define SKETCHKV_GUARDED_BY(x) SKETCHKV_TSA_(guarded_by(x))
#define SKETCHKV_REQUIRES(...) SKETCHKV_TSA_(requires_capability(__VA_ARGS__))
#define SKETCHKV_EXCLUDES(...) SKETCHKV_TSA_(locks_excluded(__VA_ARGS__))

namespace sketchkv {

class SKETCHKV_TSA_(capability("mutex")) Mutex {
 public:
  void Lock() SKETCHKV_TSA_(acquire_capability()) { mu_.lock(); }
  void Unlock() SKETCHKV_TSA_(release_capability()) { mu_.unlock(); }

 private:
  friend class CondVar;
  std::mutex mu_;
};

class SKETCHKV_TSA_(scoped_lockable) MutexLock {
 public:
  explicit MutexLock(Mutex* mu) SKETCHKV_TSA_(acquire_capability(mu)) : mu_(mu) { mu_->Lock(); }
  ~MutexLock() SKETCHKV_TSA_(release_capability()) { mu_->Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex* const mu_;
};

class CondVar {
 public:
  void Wait(Mutex* mu) SKETCHKV_REQUIRES(mu) {
    std::unique_lock<std::mutex> lock(mu->mu_, std::adopt_lock);
    cv_.wait(lock);
    lock.release();
  }
  // Returns false when `deadline` passed without a notification.
  bool WaitUntil(Mutex* mu, std::chrono::steady_clock::time_point deadline)
      SKETCHKV_REQUIRES(mu) {
    std::unique_lock<std::mutex> lock(mu->mu_, std::adopt_lock);
    const bool notified = cv_.wait_until(lock, deadline) == std::cv_status::no_timeout;
    lock.release();
    return notified;
  }
  void NotifyOne() { cv_.notify_one(); }
  void NotifyAll() { cv_.notify_all(); }

 private:
  std::condition_variable cv_;
};

}  // namespace sketchkv
