// What the tests of the CPU backend share: levels to run on, random numbers, comparisons.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/cpu_backend.h"
#include "core/check.h"

namespace millrace {

inline std::unique_ptr<Backend> cpu_backend(IsaLevel level, int threads = 1) {
  auto backend = make_cpu_backend({.threads = threads, .isa = level});
  MILLRACE_CHECK(backend.ok(), "{}", backend.ok() ? "" : backend.error().message);
  return std::move(*backend);
}

/// A test that runs once a level and is skipped where the processor lacks it.
class CpuLevelTest : public testing::TestWithParam<IsaLevel> {
 protected:
  void SetUp() override {
    if (!isa_available(GetParam())) GTEST_SKIP() << "this processor has no " << isa_level_name(GetParam());
  }
};

inline std::string level_name(const testing::TestParamInfo<IsaLevel>& info) {
  return std::string(isa_level_name(info.param));
}

#define MILLRACE_ON_EACH_LEVEL(suite) INSTANTIATE_TEST_SUITE_P(Levels, suite, testing::ValuesIn(kIsaLevels), level_name)

/// Products with tiles add what bf16 holds in an order of their own: of 32 inputs those with even and those with odd
/// indexes apart (products_amx.h).
inline float sum_of_pairs(const float* x, const float* w, std::int64_t cols) {
  float total = 0.0f;
  for (std::int64_t first = 0; first < cols; first += 32) {
    float parts[2] = {};
    for (std::int64_t k = first; k < std::min(first + 32, cols); ++k) {
      parts[k % 2] = std::fma(x[k], w[k], parts[k % 2]);
    }
    total += parts[0] + parts[1];
  }
  return total;
}

/// Of a product of bf16 or E4M3 that is paired: the order within a pair of avx512_bf16 is the processor's.
inline bool agree_for(IsaLevel level, const std::vector<float>& values, const std::vector<float>& expected,
                      std::int64_t cols) {
  if (level != IsaLevel::avx512_bf16) return false;
  if (values.size() != expected.size()) return false;
  float largest = 0.0f;
  for (const float value : expected) largest = std::max(largest, std::fabs(value));
  const float bound = 0x1p-24f * static_cast<float>(cols) * largest;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (!(std::fabs(values[i] - expected[i]) <= bound)) return false;
  }
  return true;
}

class Random {
 public:
  explicit Random(std::uint32_t seed) : engine_(seed) {}

  float normal(float deviation = 1.0f) { return std::normal_distribution<float>(0.0f, deviation)(engine_); }
  std::int64_t below(std::int64_t limit) { return std::uniform_int_distribution<std::int64_t>(0, limit - 1)(engine_); }
  std::byte byte() { return static_cast<std::byte>(below(256)); }

  std::vector<float> normals(std::int64_t count, float deviation = 1.0f) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = normal(deviation);
    return values;
  }

 private:
  std::mt19937 engine_;
};

/// Equal to the bit, or both NaN.
inline bool same_bits(float a, float b) {
  return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b) || (std::isnan(a) && std::isnan(b));
}

/// Where a and b first differ in a bit; -1 where they do not.
inline std::int64_t first_difference(const float* a, const float* b, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (!same_bits(a[i], b[i])) return i;
  }
  return -1;
}

inline testing::AssertionResult identical(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return testing::AssertionFailure() << a.size() << " and " << b.size() << " values";
  const std::int64_t i = first_difference(a.data(), b.data(), static_cast<std::int64_t>(a.size()));
  if (i < 0) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "at " << i << ": " << a[static_cast<std::size_t>(i)] << " and "
                                     << b[static_cast<std::size_t>(i)];
}

/// |a - b| <= bound, everywhere.
inline testing::AssertionResult within(const std::vector<float>& a, const std::vector<float>& b, float bound) {
  if (a.size() != b.size()) return testing::AssertionFailure() << a.size() << " and " << b.size() << " values";
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!(std::fabs(a[i] - b[i]) <= bound)) {
      return testing::AssertionFailure() << "at " << i << ": " << a[i] << ", expected " << b[i] << " within " << bound;
    }
  }
  return testing::AssertionSuccess();
}

/// |a - b| <= relative * the largest |b|, everywhere.
inline testing::AssertionResult close(const std::vector<float>& a, const std::vector<float>& b, float relative) {
  float largest = 0.0f;
  for (const float value : b) largest = std::fmax(largest, std::fabs(value));
  return within(a, b, relative * largest);
}

/// A weight of floats [rows, cols].
inline MatrixSource source_of(const std::vector<float>& values, std::int64_t rows, std::int64_t cols) {
  return {{{.format = QuantFormat::f32,
            .data = reinterpret_cast<const std::byte*>(values.data()),
            .rows = rows,
            .cols = cols,
            .row_order = {}}}};
}

/// The layer's outputs [rows of x, weight rows], written to poisoned rows with room behind each that must stay as it
/// is.
inline std::vector<float> multiply(Backend& backend, const PackedMatrix& weight, const std::vector<float>& x,
                                   const float* bias = nullptr) {
  const std::int64_t rows = static_cast<std::int64_t>(x.size()) / weight.cols(), stride = weight.rows() + 3;
  std::vector<float> out(static_cast<std::size_t>(rows * stride), -7e33f), result;
  backend.linear({&weight, bias}, x.data(), rows, out.data(), stride);
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* row = out.data() + r * stride;
    result.insert(result.end(), row, row + weight.rows());
    for (std::int64_t o = weight.rows(); o < stride; ++o) EXPECT_EQ(row[o], -7e33f);
  }
  return result;
}

}  // namespace millrace
