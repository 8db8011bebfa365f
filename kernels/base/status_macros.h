#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Returns from the enclosing function when `expr` (an absl::Status) is not OK.
#define SKETCHKV_RETURN_IF_ERROR(expr)                  \
  do {                                                  \
    absl::Status sketchkv_status_ = (expr);             \
    if (!sketchkv_status_.ok()) return sketchkv_status_; \
  } while (false)

#define SKETCHKV_CONCAT_INNER_(a, b) a##b
#define SKETCHKV_CONCAT_(a, b) SKETCHKV_CONCAT_INNER_(a, b)

// Evaluates `expr` (an absl::StatusOr<T>), returns its status when not OK, else assigns the value.
#define SKETCHKV_ASSIGN_OR_RETURN(lhs, expr) \
  SKETCHKV_ASSIGN_OR_RETURN_IMPL_(SKETCHKV_CONCAT_(sketchkv_or_, __LINE__), lhs, expr)
#define SKETCHKV_ASSIGN_OR_RETURN_IMPL_(tmp, lhs, expr) \
  auto tmp = (expr);                                    \
  if (!tmp.ok()) return std::move(tmp).status();        \
  lhs = std::move(tmp).value()
