#include "client/cpp/examples/matrix.h"

#include <algorithm>
#include <thread>
#include <vector>

namespace sketchkv::example {
namespace {

// Eight rows of B stay in the first-level cache while every row of A passes over them.
constexpr size_t kPanel = 8;

// The two innermost loops are most of the model's time, and many times slower when each access is
// checked; who calls them is checked.
#define EXAMPLE_UNCHECKED __attribute__((no_sanitize("address", "undefined")))

// c[j] += sum over 8 rows of a[i] * b[i][j], added in the order of i for each j.
EXAMPLE_UNCHECKED void AddPanel(const float* __restrict a, const float* __restrict b,
                                size_t b_stride, float* __restrict c, size_t columns) {
  const float a0 = a[0], a1 = a[1], a2 = a[2], a3 = a[3];
  const float a4 = a[4], a5 = a[5], a6 = a[6], a7 = a[7];
  const float* __restrict b1 = b + b_stride;
  const float* __restrict b2 = b1 + b_stride;
  const float* __restrict b3 = b2 + b_stride;
  const float* __restrict b4 = b3 + b_stride;
  const float* __restrict b5 = b4 + b_stride;
  const float* __restrict b6 = b5 + b_stride;
  const float* __restrict b7 = b6 + b_stride;
  for (size_t j = 0; j < columns; ++j) {
    c[j] = c[j] + a0 * b[j] + a1 * b1[j] + a2 * b2[j] + a3 * b3[j] + a4 * b4[j] + a5 * b5[j] +
           a6 * b6[j] + a7 * b7[j];
  }
}

EXAMPLE_UNCHECKED void AddRow(float a, const float* __restrict b, float* __restrict c,
                              size_t columns) {
  for (size_t j = 0; j < columns; ++j) c[j] += a * b[j];
}

}  // namespace

void MultiplyAdd(const float* a, size_t a_stride, const float* b, size_t b_stride, float* c,
                 size_t c_stride, size_t rows, size_t inner, size_t columns) {
  size_t i = 0;
  for (; i + kPanel <= inner; i += kPanel) {
    for (size_t row = 0; row < rows; ++row) {
      AddPanel(a + row * a_stride + i, b + i * b_stride, b_stride, c + row * c_stride, columns);
    }
  }
  for (; i < inner; ++i) {
    for (size_t row = 0; row < rows; ++row) {
      AddRow(a[row * a_stride + i], b + i * b_stride, c + row * c_stride, columns);
    }
  }
}

void ParallelFor(size_t count, size_t grain, size_t num_threads,
                 const std::function<void(size_t begin, size_t end)>& body) {
  const size_t grains = (count + grain - 1) / grain;
  const size_t workers = std::max<size_t>(1, std::min(grains, num_threads));
  const auto boundary = [&](size_t worker) {
    return std::min(count, grains * worker / workers * grain);
  };
  std::vector<std::thread> threads;
  for (size_t worker = 1; worker < workers; ++worker) {
    threads.emplace_back(
        [&body, begin = boundary(worker), end = boundary(worker + 1)] { body(begin, end); });
  }
  body(0, boundary(1));
  for (std::thread& thread : threads) thread.join();
}

}  // namespace sketchkv::example
