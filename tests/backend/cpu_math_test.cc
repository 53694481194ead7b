// The elementary functions of the CPU kernels against double precision.

#include <limits>

#include "backend/cpu/kernel_table.h"
#include "backend/cpu_test_util.h"

namespace millrace {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class CpuMath : public CpuLevelTest {
 protected:
  [[nodiscard]] std::vector<float> evaluate(MathFunction function, const std::vector<float>& x) const {
    std::vector<float> out(x.size());
    kernel_table(GetParam()).evaluate(function, x.data(), out.data(), static_cast<std::int64_t>(x.size()));
    return out;
  }
  [[nodiscard]] float evaluate(MathFunction function, float x) const {
    return evaluate(function, std::vector<float>{x}).front();
  }

  /// The largest error over `x`, in units of the last place of the exact result.
  template <typename Exact>
  float worst_ulp(MathFunction function, const std::vector<float>& x, Exact exact) const {
    const std::vector<float> values = evaluate(function, x);
    double worst = 0.0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double expected = exact(static_cast<double>(x[i]));
      const float rounded = std::fabs(static_cast<float>(expected));
      const double ulp = std::max(std::nextafter(rounded, kInfinity) - rounded, 0x1p-149f);
      const double error = std::fabs(static_cast<double>(values[i]) - expected) / ulp;
      if (!(error <= worst)) worst = error;
    }
    return static_cast<float>(worst);
  }

  /// A dense sweep of [low, high] with some values near zero.
  static std::vector<float> sweep(float low, float high) {
    std::vector<float> x;
    constexpr int kSteps = 400000;
    for (int i = 0; i <= kSteps; ++i) x.push_back(low + (high - low) * static_cast<float>(i) / kSteps);
    for (float tiny = 0x1p-1f; tiny > 0x1p-140f; tiny *= 0.37f) {
      if (low < 0.0f) x.push_back(-tiny);
      if (high > 0.0f) x.push_back(tiny);
    }
    return x;
  }
};

TEST_P(CpuMath, ExpIsAccurate) {
  EXPECT_LE(worst_ulp(MathFunction::exp, sweep(-87.3f, 88.72f), [](double x) { return std::exp(x); }), 2.0f);
}

TEST_P(CpuMath, ExpUnderflowsGradually) {
  EXPECT_LE(worst_ulp(MathFunction::exp, sweep(-110.0f, -87.3f), [](double x) { return std::exp(x); }), 2.0f);
}

TEST_P(CpuMath, ExpAtTheEnds) {
  EXPECT_EQ(evaluate(MathFunction::exp, 0.0f), 1.0f);
  EXPECT_EQ(evaluate(MathFunction::exp, -0.0f), 1.0f);
  EXPECT_EQ(evaluate(MathFunction::exp, -kInfinity), 0.0f);
  EXPECT_EQ(evaluate(MathFunction::exp, -1e30f), 0.0f);
  EXPECT_EQ(evaluate(MathFunction::exp, kInfinity), kInfinity);
  EXPECT_EQ(evaluate(MathFunction::exp, 1e30f), kInfinity);
  EXPECT_EQ(evaluate(MathFunction::exp, 88.73f), kInfinity);
  EXPECT_TRUE(std::isfinite(evaluate(MathFunction::exp, 88.72f)));
  EXPECT_TRUE(std::isnan(evaluate(MathFunction::exp, kNan)));
}

TEST_P(CpuMath, TanhIsAccurate) {
  EXPECT_LE(worst_ulp(MathFunction::tanh, sweep(-10.0f, 10.0f), [](double x) { return std::tanh(x); }), 3.0f);
}

TEST_P(CpuMath, TanhAtTheEnds) {
  EXPECT_EQ(evaluate(MathFunction::tanh, kInfinity), 1.0f);
  EXPECT_EQ(evaluate(MathFunction::tanh, -kInfinity), -1.0f);
  EXPECT_EQ(evaluate(MathFunction::tanh, 88.0f), 1.0f);
  EXPECT_EQ(evaluate(MathFunction::tanh, -1e30f), -1.0f);
  EXPECT_TRUE(same_bits(evaluate(MathFunction::tanh, 0.0f), 0.0f));
  EXPECT_TRUE(same_bits(evaluate(MathFunction::tanh, -0.0f), -0.0f));
  EXPECT_TRUE(std::isnan(evaluate(MathFunction::tanh, kNan)));
}

TEST_P(CpuMath, SigmoidIsAccurate) {
  EXPECT_LE(worst_ulp(MathFunction::sigmoid, sweep(-86.0f, 30.0f), [](double x) { return 1.0 / (1.0 + std::exp(-x)); }),
            2.5f);
  EXPECT_EQ(evaluate(MathFunction::sigmoid, kInfinity), 1.0f);
  EXPECT_EQ(evaluate(MathFunction::sigmoid, -kInfinity), 0.0f);
  EXPECT_EQ(evaluate(MathFunction::sigmoid, 0.0f), 0.5f);
  EXPECT_TRUE(std::isnan(evaluate(MathFunction::sigmoid, kNan)));
}

TEST_P(CpuMath, ErfIsAccurate) {
  EXPECT_LE(worst_ulp(MathFunction::erf, sweep(-5.0f, 5.0f), [](double x) { return std::erf(x); }), 2.0f);
  EXPECT_EQ(evaluate(MathFunction::erf, kInfinity), 1.0f);
  EXPECT_EQ(evaluate(MathFunction::erf, -kInfinity), -1.0f);
  EXPECT_TRUE(same_bits(evaluate(MathFunction::erf, -0.0f), -0.0f));
  EXPECT_TRUE(std::isnan(evaluate(MathFunction::erf, kNan)));
}

TEST_P(CpuMath, AValueDoesNotDependOnItsLane) {
  Random random(7);
  const std::vector<float> x = random.normals(97, 5.0f);
  for (const MathFunction function :
       {MathFunction::exp, MathFunction::tanh, MathFunction::sigmoid, MathFunction::erf}) {
    const std::vector<float> together = evaluate(function, x);
    for (std::size_t i = 0; i < x.size(); ++i) EXPECT_TRUE(same_bits(together[i], evaluate(function, x[i])));
  }
}

MILLRACE_ON_EACH_LEVEL(CpuMath);

}  // namespace
}  // namespace millrace
