#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "service/engine/attention_request.h"

namespace sketchkv {

// Where an item's rows lie in the request's queries and in its answer.
struct ItemShape {
  uint32_t rows_per_head = 0;  // num_query_tokens * queries_per_kv_head
  uint32_t query_heads = 0;
  size_t rows = 0;          // num_query_tokens * query_heads
  size_t query_offset = 0;  // floats
  size_t out_offset = 0;    // floats
  size_t lse_offset = 0;    // floats
};

inline std::vector<ItemShape> ShapeItems(const AttentionRequest& request) {
  const KvLayout& layout = request.model->layout();
  std::vector<ItemShape> shapes;
  size_t queries = 0, answer = 0;
  for (const AttentionItem& item : request.items) {
    const uint32_t query_heads = item.head_count * request.queries_per_kv_head;
    const size_t rows = size_t{item.num_query_tokens} * query_heads;
    shapes.push_back({.rows_per_head = item.num_query_tokens * request.queries_per_kv_head,
                      .query_heads = query_heads,
                      .rows = rows,
                      .query_offset = queries,
                      .out_offset = answer,
                      .lse_offset = answer + rows * layout.value_dim});
    queries += rows * layout.head_dim;
    answer += rows * (layout.value_dim + 1);
  }
  return shapes;
}

}  // namespace sketchkv
