#include "tests/bench/contender.h"

#include <chrono>
#include <iostream>
#include <sstream>
#include <thread>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

namespace sketchkv::bench {
namespace {

std::string Line(const absl::Status& status) {
  const char* const word = absl::IsUnavailable(status) ? "absent " : "error ";
  return absl::StrCat(word, absl::StrReplaceAll(status.message(), {{"\n", "; "}}));
}

class Session {
 public:
  explicit Session(const Registry* registry) : registry_(*registry) {}

  std::string Answer(const std::string& line) {
    std::istringstream words(line);
    std::string command, id;
    words >> command >> id;
    if (const Registry::Fact* const fact = registry_.FindFact(command); fact != nullptr) {
      return fact->ok() ? absl::StrCat("ok ", **fact) : Line(fact->status());
    }
    if (command == "prepare") return Prepare(id, &words);
    const auto found = contenders_.find(id);
    if (found == contenders_.end()) return absl::StrCat("error no contender '", id, "'");
    if (command == "run") return RunOnce(found->second.get());
    if (command != "drop") return absl::StrCat("error no command '", command, "'");
    contenders_.erase(found);
    return "ok";
  }

 private:
  std::string Prepare(const std::string& id, std::istringstream* words) {
    std::string name, word;
    *words >> name;
    std::map<std::string, std::string> values;
    while (*words >> word) {
      const size_t equals = word.find('=');
      if (equals == std::string::npos) return absl::StrCat("error not NAME=VALUE: ", word);
      values[word.substr(0, equals)] = word.substr(equals + 1);
    }
    Made made = registry_.Make(name, Options(std::move(values)));
    if (!made.ok()) return Line(made.status());
    std::unique_ptr<Contender>& contender = contenders_[id];
    contender = *std::move(made);
    // Touches its pages and warms what it calls.
    const absl::StatusOr<Repetition> first = contender->Run();
    if (!first.ok()) return Line(first.status());
    return absl::StrCat("ok ", contender->bytes_per_unit());
  }

  static std::string RunOnce(Contender* contender) {
    const absl::StatusOr<Repetition> run = contender->Run();
    if (!run.ok()) return Line(run.status());
    return absl::StrCat("ok ", run->nanoseconds, " ", run->units);
  }

  const Registry& registry_;
  std::map<std::string, std::unique_ptr<Contender>> contenders_;
};

}  // namespace

std::string Options::Text(const std::string& name, const std::string& otherwise) const {
  const auto found = values_.find(name);
  return found == values_.end() ? otherwise : found->second;
}

uint64_t Options::Number(const std::string& name, uint64_t otherwise) const {
  uint64_t number = 0;
  return absl::SimpleAtoi(Text(name, ""), &number) ? number : otherwise;
}

absl::StatusOr<Repetition> PassContender::Run() {
  Repetition run;
  const double begin = Now();
  do {
    Pass();
    run.units += units_per_pass();
    run.nanoseconds = Now() - begin;
  } while (run.nanoseconds < min_ns_);
  return run;
}

void Registry::AddAbsent(const std::string& name, const std::string& reason) {
  Add(name, [reason](const Options&) -> Made { return absl::UnavailableError(reason); });
}

Made Registry::Make(const std::string& name, const Options& options) const {
  const auto found = factories_.find(name);
  if (found == factories_.end()) {
    return absl::InvalidArgumentError(absl::StrCat("no contender is called '", name, "'"));
  }
  return found->second(options);
}

const Registry::Fact* Registry::FindFact(const std::string& word) const {
  const auto found = facts_.find(word);
  return found == facts_.end() ? nullptr : &found->second;
}

Pauses::Pauses(const Options& options) {
  for (const auto& text : absl::StrSplit(options.Text("idle_ms", ""), ',', absl::SkipEmpty())) {
    uint64_t milliseconds = 0;
    if (absl::SimpleAtoi(text, &milliseconds)) milliseconds_.push_back(milliseconds);
  }
}

void Pauses::Next() {
  if (milliseconds_.empty()) return;
  std::this_thread::sleep_for(
      std::chrono::milliseconds(milliseconds_[next_++ % milliseconds_.size()]));
}

double Now() {
  return std::chrono::duration<double, std::nano>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void Serve(const Registry& registry) {
  Session session(&registry);
  for (std::string line; std::getline(std::cin, line);) {
    std::cout << session.Answer(line) << std::endl;
  }
}

}  // namespace sketchkv::bench
