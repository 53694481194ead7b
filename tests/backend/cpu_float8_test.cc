// Products of E4M3 weights with E4M3 inputs: to the bit what the definition says, and the same bits at every level,
// since each product is exact; close to the reference; the same whatever the batch and the threads.

#include "backend/cpu_test_util.h"
#include "backend/reference/reference_backend.h"
#include "quant/codes.h"

namespace millrace {
namespace {

constexpr LinearFormat kFormat{.codes = CodeFormat{.kind = CodeKind::e4m3}};

struct Weight {
  std::int64_t rows, cols;
  std::vector<float> values;

  [[nodiscard]] MatrixSource source() const { return source_of(values, rows, cols); }
  [[nodiscard]] std::unique_ptr<PackedMatrix> pack(Backend& backend) const {
    auto matrix = backend.pack(source(), kFormat);
    MILLRACE_CHECK(matrix.ok(), "{}", matrix.ok() ? "" : matrix.error().message);
    EXPECT_EQ((*matrix)->bytes(), backend.packed_bytes(source(), kFormat));
    return std::move(*matrix);
  }
};

/// What the definition in kernel_table.h says.
std::vector<float> expected(IsaLevel level, const Weight& w, const std::vector<float>& x, const float* bias) {
  std::vector<std::int8_t> codes(static_cast<std::size_t>(w.cols));
  std::vector<float> inputs(codes.size()), steps(codes.size()), out;
  for (std::int64_t r = 0; r < static_cast<std::int64_t>(x.size()) / w.cols; ++r) {
    float x_scale = 0.0f;
    round_inputs_to_e4m3(x.data() + r * w.cols, w.cols, inputs.data(), &x_scale);
    for (std::int64_t o = 0; o < w.rows; ++o) {
      float scale = 0.0f, total = 0.0f;
      std::uint8_t zero = 0;
      quantize_row(*kFormat.codes, w.values.data() + o * w.cols, w.cols, {codes.data(), &scale, &zero});
      for (std::size_t k = 0; k < codes.size(); ++k) {
        steps[k] = step_of_code(CodeKind::e4m3, codes[k], 0);
        total += inputs[k] * steps[k];
      }
      if (level == IsaLevel::amx) total = sum_of_pairs(inputs.data(), steps.data(), w.cols);
      const float product = total * (scale * x_scale);
      out.push_back(bias != nullptr ? product + bias[o] : product);
    }
  }
  return out;
}

const std::vector<std::pair<std::int64_t, std::int64_t>> kShapes = {
    {1, 1}, {16, 32}, {17, 31}, {33, 100}, {48, 65}, {15, 257}, {64, 384}, {130, 192}, {20, 1030}};

class CpuFloat8 : public CpuLevelTest {
 protected:
  static bool as_expected(const std::vector<float>& values, const Weight& w, const std::vector<float>& x,
                          const float* bias) {
    const std::vector<float> wanted = expected(GetParam(), w, x, bias);
    return agree_for(GetParam(), values, wanted, w.cols) || static_cast<bool>(identical(values, wanted));
  }
};
MILLRACE_ON_EACH_LEVEL(CpuFloat8);

TEST_P(CpuFloat8, AreWhatTheDefinitionSaysToTheBit) {
  const auto backend = cpu_backend(GetParam());
  Random random(5);
  for (const auto& [rows, cols] : kShapes) {
    const Weight weight{rows, cols, random.normals(rows * cols, 0.1f)};
    const std::vector<float> bias = random.normals(rows);
    const auto matrix = weight.pack(*backend);
    for (const std::int64_t batch : {1, 2, 5, 6, 7, 13, 100}) {
      const std::vector<float> x = random.normals(batch * cols, 3.0f);
      const float* b = batch % 2 == 0 ? bias.data() : nullptr;
      EXPECT_TRUE(as_expected(multiply(*backend, *matrix, x, b), weight, x, b))
          << rows << " x " << cols << ", batch " << batch;
    }
  }
}

/// Inputs whose sizes lie far apart: subnormal codes, zeros, ties, and the largest.
TEST_P(CpuFloat8, EveryInputIsRoundedAsTheCodecDoes) {
  const auto backend = cpu_backend(GetParam());
  Random random(6);
  const std::int64_t cols = 512;
  // The identity shows the inputs themselves: 448 times a code, over 448.
  Weight weight{cols, cols, std::vector<float>(static_cast<std::size_t>(cols * cols))};
  for (std::int64_t k = 0; k < cols; ++k) weight.values[static_cast<std::size_t>(k * cols + k)] = 1.0f;
  const auto matrix = weight.pack(*backend);
  for (int round = 0; round < 20; ++round) {
    std::vector<float> x = random.normals(cols);
    for (std::size_t k = 0; k < x.size(); ++k) x[k] = std::ldexp(x[k], -static_cast<int>(k % 24));
    for (std::size_t k = 0; k < 128; ++k) x[k] = static_cast<float>(k) * 0x1p-10f;  // ties where the scale is 1
    if (round % 2 == 0) x[200] = 448.0f;
    EXPECT_TRUE(as_expected(multiply(*backend, *matrix, x), weight, x, nullptr)) << round;
  }
}

TEST_P(CpuFloat8, AreCloseToTheReference) {
  const auto backend = cpu_backend(GetParam());
  const auto reference = make_reference_backend();
  Random random(7);
  for (const auto& [rows, cols] : kShapes) {
    const Weight weight{rows, cols, random.normals(rows * cols, 0.1f)};
    const std::vector<float> x = random.normals(3 * cols);
    // The same codes on both sides: what differs is where scales are multiplied and how sums round.
    EXPECT_TRUE(
        close(multiply(*backend, *weight.pack(*backend), x), multiply(*reference, *weight.pack(*reference), x), 3e-5f))
        << rows << " x " << cols;
  }
}

TEST_P(CpuFloat8, BatchAndThreadsDoNotShow) {
  const auto one = cpu_backend(GetParam(), 1), three = cpu_backend(GetParam(), 3);
  Random random(8);
  const Weight weight{1100, 512, random.normals(std::int64_t{1100} * 512, 0.1f)};
  const std::vector<float> x = random.normals(std::int64_t{133} * 512);
  const auto a = weight.pack(*one), b = weight.pack(*three);
  const std::vector<float> all = multiply(*one, *a, x);
  EXPECT_TRUE(identical(multiply(*three, *b, x), all));
  std::vector<float> each;
  for (std::int64_t r = 0; r < 133; ++r) {
    const std::vector<float> row = multiply(*three, *b, {x.begin() + r * 512, x.begin() + (r + 1) * 512});
    each.insert(each.end(), row.begin(), row.end());
  }
  EXPECT_TRUE(identical(each, all));
}

TEST_P(CpuFloat8, RowsAreDecodedForEmbeddings) {
  const auto backend = cpu_backend(GetParam());
  const auto reference = make_reference_backend();
  Random random(9);
  const Weight weight{35, 70, random.normals(std::int64_t{35} * 70)};
  ForwardBatch batch;
  for (std::int32_t r = 0; r < 35; ++r) batch.token_ids.push_back(r);
  std::vector<float> a(weight.values.size()), b(a.size());
  backend->embed(batch, *weight.pack(*backend), 1.0f, a.data());
  reference->embed(batch, *weight.pack(*reference), 1.0f, b.data());
  EXPECT_TRUE(identical(a, b));
}

TEST_P(CpuFloat8, WhatIsNotFiniteShows) {
  const auto backend = cpu_backend(GetParam());
  Random random(10);
  Weight weight{20, 70, random.normals(std::int64_t{20} * 70)};
  std::vector<float> x = random.normals(140);
  x[69] = std::numeric_limits<float>::infinity();
  const std::vector<float> out = multiply(*backend, *weight.pack(*backend), x);
  for (std::size_t o = 0; o < 20; ++o) {
    EXPECT_FALSE(std::isfinite(out[o]));
    EXPECT_TRUE(std::isfinite(out[20 + o]));
  }
  weight.values[5 * 70 + 3] = std::numeric_limits<float>::quiet_NaN();
  const auto failed = backend->pack(weight.source(), kFormat);
  ASSERT_FALSE(failed.ok());
  EXPECT_NE(failed.error().message.find("not finite (output 5): it cannot be rounded to fp8_e4m3"), std::string::npos)
      << failed.error().message;
}

}  // namespace
}  // namespace millrace
