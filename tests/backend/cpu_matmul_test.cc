// Matrix products of the CPU backend. The order of summation is part of the contract, so results are compared to the
// bit with a loop that sums in that order: one accumulator an output, k ascending, fused multiply-add where the level
// has it.

#include <cstring>

#include "backend/cpu_test_util.h"
#include "core/float16.h"
#include "quant/codec.h"

namespace millrace {
namespace {

/// Random stored bytes of a matrix: every bit pattern of a plain format is fair game except infinities and NaN; of
/// block formats all bytes, but with scales that are finite.
std::vector<std::byte> random_weights(Random& random, QuantFormat format, std::int64_t elements) {
  std::vector<std::byte> bytes(format_bytes(format, static_cast<std::size_t>(elements)));
  if (is_plain(format)) {
    for (std::int64_t i = 0; i < elements; ++i) {
      const float value = random.normal(0.1f);
      const std::uint16_t bf16 = float_to_bf16(value);
      // A half of about that size: sign, exponent 8 to 13, any mantissa; now and then a subnormal.
      const auto exponent = static_cast<std::uint16_t>(random.below(16) == 0 ? 0 : 8 + random.below(6));
      const auto half = static_cast<std::uint16_t>((random.below(2) << 15) | (exponent << 10) | random.below(1024));
      if (format == QuantFormat::f32) std::memcpy(bytes.data() + 4 * i, &value, 4);
      if (format == QuantFormat::bf16) std::memcpy(bytes.data() + 2 * i, &bf16, 2);
      if (format == QuantFormat::f16) std::memcpy(bytes.data() + 2 * i, &half, 2);
    }
    return bytes;
  }
  // Draw blocks until they decode to moderate numbers: independent of where a format keeps its scales.
  const QuantFormatInfo& info = format_info(format);
  std::vector<float> decoded(info.block_elements);
  for (std::size_t block = 0; block < bytes.size(); block += info.block_bytes) {
    bool moderate = false;
    while (!moderate) {
      for (std::size_t i = 0; i < info.block_bytes; ++i) bytes[block + i] = random.byte();
      dequantize(format, bytes.data() + block, decoded.data(), info.block_elements);
      moderate = true;
      for (const float value : decoded) moderate = moderate && std::fabs(value) < 1e3f;
    }
  }
  return bytes;
}

struct Weights {
  QuantFormat format;
  std::int64_t rows, cols;
  std::vector<std::byte> stored;
  std::vector<float> values;  // decoded

  Weights(Random& random, QuantFormat f, std::int64_t r, std::int64_t c)
      : format(f), rows(r), cols(c), stored(random_weights(random, f, r * c)), values(static_cast<std::size_t>(r * c)) {
    dequantize(format, stored.data(), values.data(), values.size());
  }
  [[nodiscard]] MatrixSource source() const {
    return {{{.format = format, .data = stored.data(), .rows = rows, .cols = cols, .row_order = {}}}};
  }
};

/// One output as the level computes it.
float chain(IsaLevel level, const float* x, const float* w, std::int64_t count, bool round_x, bool round_w) {
  std::vector<float> a(x, x + count), b(w, w + count);
  if (round_x) std::ranges::transform(a, a.begin(), round_to_bf16);
  if (round_w) std::ranges::transform(b, b.begin(), round_to_bf16);
  if (level == IsaLevel::amx && round_x && round_w) return sum_of_pairs(a.data(), b.data(), count);
  float sum = 0.0f;
  for (std::size_t k = 0; k < a.size(); ++k) {
    sum = level == IsaLevel::scalar ? a[k] * b[k] + sum : std::fma(a[k], b[k], sum);
  }
  return sum;
}

std::vector<float> expected_product(IsaLevel level, const Weights& w, const std::vector<float>& x, const float* bias,
                                    DType input) {
  std::vector<float> out;
  const bool round = input == DType::bf16;
  for (std::size_t row = 0; row * static_cast<std::size_t>(w.cols) < x.size(); ++row) {
    for (std::int64_t o = 0; o < w.rows; ++o) {
      const float sum = chain(level, x.data() + static_cast<std::int64_t>(row) * w.cols, w.values.data() + o * w.cols,
                              w.cols, round, round && is_plain(w.format));
      out.push_back(bias != nullptr ? sum + bias[o] : sum);
    }
  }
  return out;
}

const std::vector<QuantFormat> kFormats = {
    QuantFormat::f32,  QuantFormat::f16,    QuantFormat::bf16,   QuantFormat::q8_0,
    QuantFormat::q4_0, QuantFormat::q4_1,   QuantFormat::q5_0,   QuantFormat::q5_1,
    QuantFormat::q2_k, QuantFormat::q3_k,   QuantFormat::q4_k,   QuantFormat::q5_k,
    QuantFormat::q6_k, QuantFormat::iq4_nl, QuantFormat::iq4_xs, QuantFormat::mxfp4};

class CpuMatmul : public CpuLevelTest {
 protected:
  static bool as_expected(const std::vector<float>& values, const Weights& w, const std::vector<float>& x,
                          const float* bias, DType input) {
    const std::vector<float> expected = expected_product(GetParam(), w, x, bias, input);
    const bool paired = input == DType::bf16 && is_plain(w.format);
    if (paired && agree_for(GetParam(), values, expected, w.cols)) return true;
    return static_cast<bool>(identical(values, expected));
  }
};

TEST_P(CpuMatmul, SumsInTheOrderItPromises) {
  const auto backend = cpu_backend(GetParam());
  Random random(1);
  for (const QuantFormat format : {QuantFormat::f32, QuantFormat::bf16, QuantFormat::f16}) {
    for (const DType input : {DType::f32, DType::bf16}) {
      for (const auto& [outputs, inputs] :
           {std::pair{1, 1}, {5, 3}, {16, 16}, {17, 31}, {48, 65}, {75, 257}, {130, 300}}) {
        const Weights w(random, format, outputs, inputs);
        auto packed = backend->pack(w.source(), {input});
        ASSERT_TRUE(packed.ok());
        const std::vector<float> bias = random.normals(outputs);
        for (std::int64_t rows = 1; rows <= 17; ++rows) {
          const std::vector<float> x = random.normals(rows * inputs);
          EXPECT_TRUE(as_expected(multiply(*backend, **packed, x, bias.data()), w, x, bias.data(), input))
              << format_info(format).name << " input " << dtype_name(input) << ", " << rows << " x " << outputs << " x "
              << inputs;
        }
      }
    }
  }
}

TEST_P(CpuMatmul, EveryFormat) {
  const auto backend = cpu_backend(GetParam());
  Random random(2);
  for (const QuantFormat format : kFormats) {
    for (const DType input : {DType::f32, DType::bf16}) {
      const Weights w(random, format, 37, 768);
      auto packed = backend->pack(w.source(), {input});
      ASSERT_TRUE(packed.ok());
      for (const std::int64_t rows : {1, 2, 5, 13}) {
        const std::vector<float> x = random.normals(rows * w.cols);
        EXPECT_TRUE(as_expected(multiply(*backend, **packed, x), w, x, nullptr, input))
            << format_info(format).name << " input " << dtype_name(input) << ", " << rows << " rows";
      }
    }
  }
}

TEST_P(CpuMatmul, LongInputsPassThroughSeveralBlocks) {
  const auto backend = cpu_backend(GetParam());
  Random random(3);
  for (const QuantFormat format : {QuantFormat::f32, QuantFormat::bf16}) {
    for (const DType input : {DType::f32, DType::bf16}) {
      const Weights w(random, format, 20, 9001);
      auto packed = backend->pack(w.source(), {input});
      ASSERT_TRUE(packed.ok());
      for (const std::int64_t rows : {1, 4, 7}) {
        const std::vector<float> x = random.normals(rows * w.cols);
        EXPECT_TRUE(as_expected(multiply(*backend, **packed, x), w, x, nullptr, input))
            << format_info(format).name << " input " << dtype_name(input) << ", " << rows << " rows";
      }
    }
  }
}

TEST_P(CpuMatmul, ARowAloneAndInABatch) {
  Random random(4);
  const auto one = cpu_backend(GetParam(), 1);
  const auto two = cpu_backend(GetParam(), 2);
  const auto three = cpu_backend(GetParam(), 3);
  for (const QuantFormat format : {QuantFormat::f32, QuantFormat::bf16, QuantFormat::f16, QuantFormat::q4_k}) {
    const Weights w(random, format, 333, 1280);  // more inputs than a kernel takes at a time
    auto packed = one->pack(w.source(), {DType::bf16});
    auto packed_by_two = two->pack(w.source(), {DType::bf16});
    auto packed_by_three = three->pack(w.source(), {DType::bf16});
    ASSERT_TRUE(packed.ok() && packed_by_two.ok() && packed_by_three.ok());
    const std::vector<float> x = random.normals(250 * w.cols);
    std::vector<float> alone;
    for (std::int64_t row = 0; row < 250; ++row) {
      const auto start = x.begin() + row * w.cols;
      const std::vector<float> out = multiply(*one, **packed, {start, start + w.cols});
      alone.insert(alone.end(), out.begin(), out.end());
    }
    for (const std::int64_t rows : {2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 17, 31, 33, 95, 96, 97, 193, 250}) {
      const std::vector<float> batch(x.begin(), x.begin() + rows * w.cols);
      const std::vector<float> expected(alone.begin(), alone.begin() + rows * w.rows);
      EXPECT_TRUE(identical(multiply(*one, **packed, batch), expected)) << format_info(format).name << rows;
      EXPECT_TRUE(identical(multiply(*two, **packed_by_two, batch), expected)) << format_info(format).name << rows;
      EXPECT_TRUE(identical(multiply(*three, **packed_by_three, batch), expected)) << format_info(format).name << rows;
    }
  }
}

TEST_P(CpuMatmul, WritesNothingBesideItsOutputs) {
  const auto backend = cpu_backend(GetParam(), 2);
  Random random(5);
  const Weights w(random, QuantFormat::bf16, 21, 40);
  auto packed = backend->pack(w.source(), {});
  ASSERT_TRUE(packed.ok());
  constexpr std::int64_t kStride = 30;
  for (const std::int64_t rows : {1, 2, 9}) {
    const std::vector<float> x = random.normals(rows * w.cols);
    std::vector<float> out(static_cast<std::size_t>(rows * kStride), 123.0f);
    backend->linear({packed->get(), nullptr}, x.data(), rows, out.data(), kStride);
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t o = w.rows; o < kStride; ++o)
        EXPECT_EQ(out[static_cast<std::size_t>(row * kStride + o)], 123.0f);
    }
  }
}

TEST_P(CpuMatmul, InfinitiesAndNanStayInTheirRowsAndOutputs) {
  const auto backend = cpu_backend(GetParam());
  Random random(6);
  Weights w(random, QuantFormat::f32, 19, 33);
  const float nan = std::nanf("");
  std::memcpy(w.stored.data() + (5 * 33 + 2) * 4, &nan, 4);
  auto packed = backend->pack(w.source(), {});
  ASSERT_TRUE(packed.ok());
  std::vector<float> x = random.normals(8 * 33);
  x[3 * 33 + 7] = std::numeric_limits<float>::infinity();
  const std::vector<float> out = multiply(*backend, **packed, x);
  for (std::size_t row = 0; row < 8; ++row) {
    for (std::size_t o = 0; o < 19; ++o) {
      const float value = out[row * 19 + o];
      EXPECT_EQ(std::isnan(value), o == 5) << row << " " << o;
      if (o != 5) {
        EXPECT_EQ(std::isinf(value), row == 3) << row << " " << o;
      }
    }
  }
}

MILLRACE_ON_EACH_LEVEL(CpuMatmul);

TEST(CpuLevels, OfOneNumericClassGiveTheSameBits) {
  if (!isa_available(IsaLevel::avx2)) GTEST_SKIP() << "this processor has no AVX2";
  const auto narrow = cpu_backend(IsaLevel::avx2);
  for (const IsaLevel level : kIsaLevels) {
    if (!isa_available(level) || numeric_level(level) != IsaLevel::avx2) continue;
    const auto wide = cpu_backend(level);
    EXPECT_EQ(wide->numeric_class(), narrow->numeric_class());
    Random random(8);
    const Weights w(random, QuantFormat::bf16, 100, 333);
    auto a = narrow->pack(w.source(), {}), b = wide->pack(w.source(), {});
    ASSERT_TRUE(a.ok() && b.ok());
    for (const std::int64_t rows : {1, 3, 20}) {
      const std::vector<float> x = random.normals(rows * w.cols);
      EXPECT_TRUE(identical(multiply(*narrow, **a, x), multiply(*wide, **b, x))) << isa_level_name(level);
    }
  }
}

TEST(CpuLevels, AnUnavailableLevelIsRefused) {
  EXPECT_TRUE(isa_available(IsaLevel::scalar));
  EXPECT_TRUE(isa_available(best_isa_level()));
  for (const IsaLevel level : kIsaLevels) {
    const auto backend = make_cpu_backend({.threads = 1, .isa = level});
    EXPECT_EQ(backend.ok(), isa_available(level)) << isa_level_name(level);
    if (backend.ok()) {
      EXPECT_EQ((*backend)->numeric_class(), "cpu/" + numeric_level_name(level) + "/6");
    } else {
      EXPECT_NE(backend.error().message.find(isa_level_name(level)), std::string::npos);
    }
  }
  EXPECT_FALSE(make_cpu_backend({.threads = -1}).ok());
}

}  // namespace
}  // namespace millrace
