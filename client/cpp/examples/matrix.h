#pragma once

#include <cstddef>
#include <functional>

// The two loops a small transformer needs: a matrix product and a parallel for. Plain C++ that a
// compiler turns into vector code at -O3; no intrinsics, no reassociation, so a row's result does
// not depend on how many other rows are computed with it.
namespace sketchkv::example {

// C += A B for row-major A [rows, inner] (row stride a_stride), B [inner, columns] (b_stride) and
// C [rows, columns] (c_stride). Strides count floats. C must not overlap A or B.
void MultiplyAdd(const float* a, size_t a_stride, const float* b, size_t b_stride, float* c,
                 size_t c_stride, size_t rows, size_t inner, size_t columns);

// Runs body(begin, end) over disjoint ranges that cover [0, count), on up to `num_threads` threads,
// and waits for them. Ranges start at multiples of `grain`; at most one range: on the calling
// thread.
void ParallelFor(size_t count, size_t grain, size_t num_threads,
                 const std::function<void(size_t begin, size_t end)>& body);

}  // namespace sketchkv::example
