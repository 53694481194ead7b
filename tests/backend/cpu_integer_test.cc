// Products of integer weights: to the bit what the definition says, at every level; close to the reference; the same
// whatever the batch and the threads.

#include <cstring>

#include "backend/cpu_test_util.h"
#include "backend/reference/reference_backend.h"
#include "core/float16.h"
#include "quant/codes.h"

namespace millrace {
namespace {

constexpr CodeFormat kNvfp4{.kind = CodeKind::e2m1, .group = 16}, kMxfp4{.kind = CodeKind::e2m1, .group = 32};

struct Case {
  CodeFormat format;
  std::int64_t rows, cols;
};

/// Shapes with every remainder that matters: of panels, of blocks, of groups.
std::vector<Case> cases() {
  std::vector<Case> all;
  const std::vector<std::pair<std::int64_t, std::int64_t>> shapes = {{1, 1},   {16, 32},  {17, 31},  {33, 100},
                                                                     {48, 65}, {15, 257}, {64, 384}, {130, 192}};
  for (const CodeFormat& format :
       {CodeFormat{}, CodeFormat{CodeKind::int4, 32, false}, CodeFormat{CodeKind::int4, 64, true},
        CodeFormat{CodeKind::int4, 128, false}, CodeFormat{CodeKind::int4, 128, true}, kNvfp4, kMxfp4}) {
    for (const auto& [rows, cols] : shapes) all.push_back({format, rows, cols});
  }
  // Long groups, of which kernels may not hold one at a time.
  all.push_back({CodeFormat{CodeKind::int4, 512, true}, 20, 1100});
  all.push_back({CodeFormat{CodeKind::int4, 1024, false}, 20, 2048});
  return all;
}

/// What the definition in kernel_table.h says.
std::vector<float> expected(IsaLevel level, const Case& c, const std::vector<float>& weights,
                            const std::vector<float>& x, const float* bias) {
  const auto batch = static_cast<std::int64_t>(x.size()) / c.cols;
  const std::int64_t groups = c.format.groups(c.cols), step = c.format.group == 0 ? c.cols : c.format.group;
  std::vector<std::int8_t> codes(static_cast<std::size_t>(c.cols)), input(static_cast<std::size_t>(c.cols));
  std::vector<float> scales(static_cast<std::size_t>(groups)), out(static_cast<std::size_t>(batch * c.rows));
  std::vector<std::uint8_t> zeros(static_cast<std::size_t>(groups));
  const std::int64_t input_step = c.format.input_group() == 0 ? c.cols : c.format.input_group();
  std::vector<float> x_scales(static_cast<std::size_t>(groups));
  float row_scale = 1.0f;
  for (std::int64_t r = 0; r < batch; ++r) {
    quantize_inputs(x.data() + r * c.cols, c.cols, c.format.input_group(), input.data(), x_scales.data());
    for (std::int64_t o = 0; o < c.rows; ++o) {
      quantize_row(c.format, weights.data() + o * c.cols, c.cols,
                   {codes.data(), scales.data(), zeros.data(), &row_scale});
      float total = 0.0f;
      for (std::int64_t g = 0; g < groups; ++g) {
        std::int64_t sum = 0;
        for (std::int64_t k = g * step; k < std::min(c.cols, (g + 1) * step); ++k) {
          const auto code = static_cast<std::size_t>(k);
          sum +=
              static_cast<std::int64_t>(step_of_code(c.format.kind, codes[code], zeros[static_cast<std::size_t>(g)])) *
              input[code];
        }
        const auto of_group = static_cast<float>(sum);
        float scale = scales[static_cast<std::size_t>(g)];
        if (c.format.group != 0) scale *= x_scales[static_cast<std::size_t>(g * step / input_step)];
        total = level == IsaLevel::scalar ? of_group * scale + total : std::fma(of_group, scale, total);
      }
      if (c.format.kind == CodeKind::e2m1) total *= row_scale;
      const float product = c.format.group == 0 ? total * x_scales.front() : total;
      out[static_cast<std::size_t>(r * c.rows + o)] = bias != nullptr ? product + bias[o] : product;
    }
  }
  return out;
}

std::unique_ptr<PackedMatrix> pack(Backend& backend, const Case& c, const std::vector<float>& weights) {
  auto matrix = backend.pack(source_of(weights, c.rows, c.cols), {.codes = c.format});
  MILLRACE_CHECK(matrix.ok(), "{}", matrix.ok() ? "" : matrix.error().message);
  EXPECT_EQ((*matrix)->bytes(), backend.packed_bytes(source_of(weights, c.rows, c.cols), {.codes = c.format}));
  return std::move(*matrix);
}

class CpuIntegers : public CpuLevelTest {};
MILLRACE_ON_EACH_LEVEL(CpuIntegers);

TEST_P(CpuIntegers, AreWhatTheDefinitionSaysToTheBit) {
  const auto backend = cpu_backend(GetParam());
  Random random(5);
  for (const Case& c : cases()) {
    const std::vector<float> weights = random.normals(c.rows * c.cols, 0.1f);
    const std::vector<float> bias = random.normals(c.rows);
    const auto matrix = pack(*backend, c, weights);
    for (const std::int64_t batch : {1, 2, 3, 4, 5, 7, 100}) {
      const std::vector<float> x = random.normals(batch * c.cols, 3.0f);
      const float* b = batch % 2 == 0 ? bias.data() : nullptr;
      EXPECT_TRUE(identical(multiply(*backend, *matrix, x, b), expected(GetParam(), c, weights, x, b)))
          << code_format_name(c.format) << ' ' << c.rows << " x " << c.cols << ", batch " << batch;
    }
  }
}

TEST_P(CpuIntegers, TheLargestSumsDoNotOverflow) {
  const auto backend = cpu_backend(GetParam());
  for (const CodeFormat& format :
       {CodeFormat{}, CodeFormat{CodeKind::int4, 128, false}, CodeFormat{CodeKind::int4, 128, true}, kNvfp4, kMxfp4}) {
    const Case c{format, 16, 4096};
    for (const float sign : {1.0f, -1.0f}) {
      const std::vector<float> weights(static_cast<std::size_t>(c.rows * c.cols), 0.5f),
          x(static_cast<std::size_t>(c.cols), sign * 9.0f);
      const auto matrix = pack(*backend, c, weights);
      EXPECT_TRUE(identical(multiply(*backend, *matrix, x), expected(GetParam(), c, weights, x, nullptr)));
    }
  }
}

TEST_P(CpuIntegers, AreCloseToTheReference) {
  const auto backend = cpu_backend(GetParam());
  const auto reference = make_reference_backend();
  Random random(6);
  for (const Case& c : cases()) {
    const std::vector<float> weights = random.normals(c.rows * c.cols, 0.1f), x = random.normals(3 * c.cols);
    const auto ours = pack(*backend, c, weights), oracle = pack(*reference, c, weights);
    // The oracle sums floats one by one: cols roundings of 2^-24 of the largest partial sum, and the codes' own.
    EXPECT_TRUE(close(multiply(*backend, *ours, x), multiply(*reference, *oracle, x), 3e-5f))
        << code_format_name(c.format) << ' ' << c.rows << " x " << c.cols;
  }
}

TEST_P(CpuIntegers, BatchAndThreadsDoNotShow) {
  const auto one = cpu_backend(GetParam(), 1), three = cpu_backend(GetParam(), 3);
  Random random(7);
  for (const CodeFormat& format :
       {CodeFormat{}, CodeFormat{CodeKind::int4, 32, false}, CodeFormat{CodeKind::int4, 128, false}, kNvfp4, kMxfp4}) {
    const Case c{format, 1100, 512};
    const std::vector<float> weights = random.normals(c.rows * c.cols, 0.1f), x = random.normals(133 * c.cols);
    const auto a = pack(*one, c, weights), b = pack(*three, c, weights);
    const std::vector<float> all = multiply(*one, *a, x);
    EXPECT_TRUE(identical(multiply(*three, *b, x), all));
    std::vector<float> each;
    for (std::int64_t r = 0; r < 133; ++r) {
      const std::vector<float> row = multiply(*three, *b, {x.begin() + r * c.cols, x.begin() + (r + 1) * c.cols});
      each.insert(each.end(), row.begin(), row.end());
    }
    EXPECT_TRUE(identical(each, all));
  }
}

// Sums of integers are exact and what is rounded has one order, so this holds beyond the levels of one numeric class.
TEST_P(CpuIntegers, GiveTheBitsOfAvx2) {
  if (GetParam() == IsaLevel::scalar) GTEST_SKIP() << "rounds products before it adds them";
  const auto narrow = cpu_backend(IsaLevel::avx2), wide = cpu_backend(GetParam());
  Random random(11);
  for (const CodeFormat& format :
       {CodeFormat{}, CodeFormat{CodeKind::int4, 32, false}, CodeFormat{CodeKind::int4, 128, false},
        CodeFormat{CodeKind::int4, 128, true}, kNvfp4, kMxfp4}) {
    const Case c{format, 72, 2080};  // an odd number of panels, more inputs than a kernel takes at a time
    const std::vector<float> weights = random.normals(c.rows * c.cols, 0.1f);
    const auto a = pack(*narrow, c, weights), b = pack(*wide, c, weights);
    for (const std::int64_t rows : {1, 3, 6, 20, 49, 100}) {
      const std::vector<float> x = random.normals(rows * c.cols);
      EXPECT_TRUE(identical(multiply(*narrow, *a, x), multiply(*wide, *b, x))) << code_format_name(format) << rows;
    }
  }
}

TEST_P(CpuIntegers, RowsAreDecodedForEmbeddings) {
  const auto backend = cpu_backend(GetParam());
  const auto reference = make_reference_backend();
  Random random(8);
  for (const Case& c : cases()) {
    const std::vector<float> weights = random.normals(c.rows * c.cols);
    const auto ours = pack(*backend, c, weights), oracle = pack(*reference, c, weights);
    ForwardBatch batch;
    for (std::int64_t r = 0; r < c.rows; ++r) batch.token_ids.push_back(static_cast<std::int32_t>(r));
    std::vector<float> a(weights.size()), b(weights.size());
    backend->embed(batch, *ours, 1.0f, a.data());
    reference->embed(batch, *oracle, 1.0f, b.data());
    EXPECT_TRUE(identical(a, b)) << code_format_name(c.format) << ' ' << c.rows << " x " << c.cols;
  }
}

TEST_P(CpuIntegers, AGatedFfnIsTheSumOfItsParts) {
  const auto backend = cpu_backend(GetParam(), 2);
  Random random(9);
  for (const std::int64_t width : {160, 72}) {  // whole panels in each half, and not
    const std::int64_t hidden = 96, rows = 21;
    const CodeFormat format{CodeKind::int4, 32, false};
    const std::vector<float> up = random.normals(2 * width * hidden, 0.1f), down = random.normals(hidden * width, 0.1f);
    const std::vector<float> x = random.normals(rows * hidden);
    const auto gate_up = pack(*backend, {format, 2 * width, hidden}, up),
               out = pack(*backend, {{}, hidden, width}, down);
    std::vector<float> scratch(static_cast<std::size_t>(rows * 2 * width)), result(x.size());
    backend->gated_ffn({.gate_up = {gate_up.get()}, .down = {out.get()}}, x.data(), rows, scratch.data(),
                       result.data());
    const std::vector<float> both = multiply(*backend, *gate_up, x);
    std::vector<float> inner(static_cast<std::size_t>(rows * width)), other(inner.size());
    for (std::int64_t r = 0; r < rows; ++r) {
      std::memcpy(inner.data() + r * width, both.data() + r * 2 * width,
                  sizeof(float) * static_cast<std::size_t>(width));
      std::memcpy(other.data() + r * width, both.data() + r * 2 * width + width,
                  sizeof(float) * static_cast<std::size_t>(width));
    }
    backend->activate_multiply(Activation::silu, inner.data(), other.data(), width, rows, width);
    EXPECT_TRUE(identical(result, multiply(*backend, *out, inner)));
  }
}

TEST_P(CpuIntegers, WhatIsNotFiniteShows) {
  const auto backend = cpu_backend(GetParam());
  const Case c{{CodeKind::int4, 32, false}, 20, 70};
  Random random(10);
  std::vector<float> weights = random.normals(c.rows * c.cols), x = random.normals(2 * c.cols);
  const auto matrix = pack(*backend, c, weights);
  x[69] = std::numeric_limits<float>::infinity();
  const std::vector<float> out = multiply(*backend, *matrix, x);
  for (std::int64_t o = 0; o < c.rows; ++o) {
    EXPECT_FALSE(std::isfinite(out[static_cast<std::size_t>(o)]));
    EXPECT_TRUE(std::isfinite(out[static_cast<std::size_t>(c.rows + o)]));
  }
  weights[5 * 70 + 3] = std::numeric_limits<float>::quiet_NaN();
  const auto failed = backend->pack(source_of(weights, c.rows, c.cols), {.codes = c.format});
  ASSERT_FALSE(failed.ok());
  EXPECT_NE(failed.error().message.find("not finite (output 5)"), std::string::npos) << failed.error().message;
}

}  // namespace
}  // namespace millrace
