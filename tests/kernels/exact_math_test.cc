#include "kernels/exact_math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/projection.h"
#include "tests/kernels/codec_testing.h"

namespace sketchkv::testing {
namespace {

TEST(ExactMathTest, LogIsCloseToLibm) {
  for (double x : {5e-324, 1e-310, 1e-300, 0.1, 0.5, 0.7071, 1.0, 1.5, 2.0, 3.0, 1e10, 1e308}) {
    EXPECT_NEAR(ExactLog(x), std::log(x), 4e-16 * std::fabs(std::log(x)) + 1e-16) << x;
  }
}

TEST(ExactMathTest, CosineIsCloseToLibmAndExactOnTheAxes) {
  for (uint64_t b : {1, 3, 5, 9, 71}) {
    for (uint64_t n = 0; n <= 8 * b; ++n) {
      EXPECT_NEAR(ExactCosPi(n, 2 * b), std::cos(M_PI * n / (2.0 * b)), 3e-15) << n << "/" << 2 * b;
    }
  }
  EXPECT_EQ(ExactCosPi(0, 4), 1.0);
  EXPECT_EQ(ExactCosPi(2, 4), 0.0);
  EXPECT_EQ(ExactCosPi(4, 4), -1.0);
}

TEST(ExactMathTest, PowersOfTwoGoBothWaysThroughTheWholeRange) {
  for (int e = -149; e <= 127; ++e) {
    EXPECT_EQ(PowerOfTwo(e), std::ldexp(1.0f, e)) << e;
    EXPECT_EQ(FloorLog2(PowerOfTwo(e)), e);
  }
  EXPECT_EQ(PowerOfTwo(-150), 0.0f);
  EXPECT_EQ(PowerOfTwo(128), std::numeric_limits<float>::infinity());
  EXPECT_EQ(FloorLog2(std::numeric_limits<float>::max()), 127);
}

// S S^T = d I within a block, for the dense rows and for what the seed gives.
TEST(ProjectionTest, BlocksAreOrthogonalWithRowsOfNormSqrtD) {
  for (Projection kind : {Projection::kHadamard, Projection::kOrthogonal}) {
    for (uint32_t d : {16u, 24u, 80u, 96u, 128u}) {
      ProfileRequest request = Named("qjl");
      request.projection = kind;
      const KvLayout layout = Layout(d, d, 16);
      const CodecProfile profile = Resolve(request, layout);
      const auto codec = MakeCodec(layout, profile, Isa::kScalar);
      EXPECT_EQ(codec->dense_projection(0).size(),
                kind == Projection::kHadamard ? 0u : size_t{profile.sign_bits} * d);
      const Matrix s = ReferenceProjection(profile, d, codec->dense_projection(0), {});
      for (uint32_t i = 0; i < s.size(); ++i) {
        for (uint32_t j = i / d * d; j <= i; ++j) {
          ASSERT_NEAR(ReferenceDot(s[i], s[j]), i == j ? d : 0.0, 2e-5)
              << d << " " << i << " " << j;
        }
      }
    }
  }
}

TEST(ProjectionTest, GaussianRowsHaveUnitVariance) {
  const ProjectionMatrix matrix(Projection::kGaussian, 128, 512, 1);
  double sum = 0, squares = 0, fourths = 0;
  for (float x : matrix.dense()) {
    sum += x;
    squares += double{x} * x;
    fourths += double{x} * x * x * x;
  }
  const double n = static_cast<double>(matrix.dense().size());
  EXPECT_NEAR(sum / n, 0.0, 0.02);
  EXPECT_NEAR(squares / n, 1.0, 0.02);
  EXPECT_NEAR(fourths / n, 3.0, 0.15);
}

TEST(ProjectionTest, SeedsDiffer) {
  const ProjectionMatrix a(Projection::kOrthogonal, 32, 64, 1);
  const ProjectionMatrix b(Projection::kOrthogonal, 32, 64, 2);
  EXPECT_NE(std::vector<float>(a.dense().begin(), a.dense().end()),
            std::vector<float>(b.dense().begin(), b.dense().end()));
}

}  // namespace
}  // namespace sketchkv::testing
