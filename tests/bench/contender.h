#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace sketchkv::bench {

// What a contender was asked for: NAME=VALUE words of a `prepare` line.
class Options {
 public:
  explicit Options(std::map<std::string, std::string> values) : values_(std::move(values)) {}

  [[nodiscard]] std::string Text(const std::string& name, const std::string& otherwise) const;
  // `otherwise` too for what is no number.
  [[nodiscard]] uint64_t Number(const std::string& name, uint64_t otherwise) const;

 private:
  const std::map<std::string, std::string> values_;
};

// One timed repetition.
struct Repetition {
  double nanoseconds = 0;
  double units = 0;  // of work done in them: keys, bytes, calls
};

// Something that is measured. The driver interleaves repetitions of contenders, of several
// processes, so a contender keeps its data and costs nothing between its turns.
class Contender {
 public:
  virtual ~Contender() = default;
  [[nodiscard]] virtual absl::StatusOr<Repetition> Run() = 0;
  // Memory that one unit of work must read (encode and decode: raw bytes); 0: not defined.
  [[nodiscard]] virtual double bytes_per_unit() const { return 0; }
};

// A contender that goes over its data as often as it takes for a clock to be exact.
class PassContender : public Contender {
 public:
  [[nodiscard]] absl::StatusOr<Repetition> Run() final;

 protected:
  // Option min_ms: how long a repetition lasts at least.
  explicit PassContender(const Options& options) : min_ns_(1e6 * options.Number("min_ms", 15)) {}
  virtual void Pass() = 0;
  [[nodiscard]] virtual double units_per_pass() const = 0;

 private:
  const double min_ns_;
};

using Made = absl::StatusOr<std::unique_ptr<Contender>>;

// What this program can measure, by name. UNAVAILABLE from a factory: not on this machine; the
// message is the reason the driver shows.
class Registry {
 public:
  using Factory = std::function<Made(const Options&)>;
  using Fact = absl::StatusOr<std::string>;
  void Add(const std::string& name, Factory factory) { factories_[name] = std::move(factory); }
  void AddAbsent(const std::string& name, const std::string& reason);
  // What the program answers to a line of this one word.
  void AddFact(const std::string& word, Fact fact) { facts_.emplace(word, std::move(fact)); }
  // INVALID_ARGUMENT for a name that is not known.
  [[nodiscard]] Made Make(const std::string& name, const Options& options) const;
  // Null for a word that is not known.
  [[nodiscard]] const Fact* FindFact(const std::string& word) const;

 private:
  std::map<std::string, Factory> factories_;
  std::map<std::string, Fact> facts_;
};

// Pauses before repetitions, which do not count. Option idle_ms: their lengths, by turns, separated
// by commas; none by default.
class Pauses {
 public:
  explicit Pauses(const Options& options);
  void Next();

 private:
  std::vector<uint64_t> milliseconds_;
  size_t next_ = 0;
};

// Nanoseconds of a steady clock.
[[nodiscard]] double Now();

// Keeps the compiler from leaving out what made `value`.
template <typename T>
void Keep(const T& value) {
  asm volatile("" : : "g"(&value) : "memory");
}

// Serves the driver's lines on stdin until it ends; answers on stdout, one line each:
//   FACT                             ok TEXT | absent REASON
//   prepare ID NAME [OPTION=VALUE]   ok BYTES_PER_UNIT | absent REASON | error MESSAGE
//   run ID                           ok NANOSECONDS UNITS | error MESSAGE
//   drop ID                          ok
void Serve(const Registry& registry);

}  // namespace sketchkv::bench
