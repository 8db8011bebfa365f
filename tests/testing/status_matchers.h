#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace sketchkv {

inline const absl::Status& StatusOf(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& StatusOf(const absl::StatusOr<T>& status_or) {
  return status_or.status();
}

MATCHER(IsOk, "is OK") {
  *result_listener << StatusOf(arg).ToString();
  return StatusOf(arg).ok();
}

MATCHER_P2(HasCodeAndParts, code, parts, "") {
  const absl::Status& status = StatusOf(arg);
  *result_listener << status.ToString();
  if (status.code() != code) return false;
  for (const std::string& part : parts) {
    if (std::string(status.message()).find(part) == std::string::npos) return false;
  }
  return true;
}

// The code, and every one of `parts` somewhere in the message.
inline auto StatusIs(absl::StatusCode code, std::vector<std::string> parts = {}) {
  return HasCodeAndParts(code, std::move(parts));
}

}  // namespace sketchkv

#define SKETCHKV_ASSERT_OK(expr) ASSERT_THAT((expr), ::sketchkv::IsOk())
#define SKETCHKV_EXPECT_OK(expr) EXPECT_THAT((expr), ::sketchkv::IsOk())
// Declares `lhs` from an absl::StatusOr, failing the test when it is not OK.
#define SKETCHKV_ASSERT_OK_AND_ASSIGN(lhs, expr) \
  SKETCHKV_ASSERT_OK_AND_ASSIGN_IMPL_(SKETCHKV_TEST_CONCAT_(status_or_, __LINE__), lhs, expr)
#define SKETCHKV_ASSERT_OK_AND_ASSIGN_IMPL_(tmp, lhs, expr) \
  auto tmp = (expr);                                        \
  ASSERT_THAT(tmp, ::sketchkv::IsOk());                     \
  lhs = std::move(tmp).value()
#define SKETCHKV_TEST_CONCAT_(a, b) SKETCHKV_TEST_CONCAT_INNER_(a, b)
#define SKETCHKV_TEST_CONCAT_INNER_(a, b) a##b
