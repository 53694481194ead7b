// Products of weights that are stored in blocks of integer codes: to the bit what the definition says, at every level;
// close to the reference; the same whatever the batch and the threads.

#include <cstring>

#include "backend/cpu_test_util.h"
#include "backend/reference/reference_backend.h"
#include "core/float16.h"
#include "quant/codec.h"
#include "quant/codes.h"
#include "quant/integer_blocks.h"

namespace millrace {
namespace {

constexpr LinearFormat kBlocks{.integer_blocks = true};

constexpr QuantFormat kFormats[] = {QuantFormat::q8_0, QuantFormat::q4_0,   QuantFormat::q4_1,   QuantFormat::q5_0,
                                    QuantFormat::q5_1, QuantFormat::q3_k,   QuantFormat::q4_k,   QuantFormat::q5_k,
                                    QuantFormat::q6_k, QuantFormat::iq4_nl, QuantFormat::iq4_xs, QuantFormat::mxfp4};

/// A weight in blocks of random codes, with scales near 0.01.
struct Stored {
  QuantFormat format;
  std::int64_t rows, cols;
  std::vector<std::byte> bytes;

  Stored(QuantFormat f, std::int64_t r, std::int64_t c, Random& random)
      : format(f), rows(r), cols(c), bytes(format_bytes(f, static_cast<std::size_t>(r * c))) {
    const QuantFormatInfo& info = format_info(f);
    for (std::byte& byte : bytes) byte = random.byte();
    for (std::size_t block = 0; block < bytes.size(); block += info.block_bytes) {
      if (f == QuantFormat::mxfp4) {
        bytes[block] = std::byte{110} | (random.byte() & std::byte{15});  // 2^-17 to 2^0
        continue;
      }
      for (const std::size_t offset : scale_offsets()) {
        const std::uint16_t half = float_to_f16(random.normal(0.01f));
        std::memcpy(bytes.data() + block + offset, &half, sizeof half);
      }
    }
  }

  [[nodiscard]] std::vector<std::size_t> scale_offsets() const {
    if (format == QuantFormat::q2_k) return {80, 82};
    if (format == QuantFormat::q3_k) return {108};
    if (format == QuantFormat::q6_k) return {208};
    return integer_blocks(format)->minimums ? std::vector<std::size_t>{0, 2} : std::vector<std::size_t>{0};
  }
  [[nodiscard]] MatrixPiece piece() const {
    return {.format = format, .data = bytes.data(), .rows = rows, .cols = cols, .row_order = {}};
  }
  [[nodiscard]] const std::byte* row(std::int64_t r) const {
    return bytes.data() + static_cast<std::size_t>(r) * format_bytes(format, static_cast<std::size_t>(cols));
  }
};

std::unique_ptr<PackedMatrix> pack(Backend& backend, const MatrixSource& source) {
  auto matrix = backend.pack(source, kBlocks);
  MILLRACE_CHECK(matrix.ok(), "{}", matrix.ok() ? "" : matrix.error().message);
  EXPECT_EQ((*matrix)->bytes(), backend.packed_bytes(source, kBlocks));
  return std::move(*matrix);
}

/// What the definition in kernel_table.h says.
std::vector<float> expected(IsaLevel level, const Stored& w, const std::vector<float>& x, const float* bias) {
  const auto parts = *integer_blocks(w.format);
  const auto cols = static_cast<std::size_t>(w.cols);
  const auto groups = static_cast<std::size_t>(w.cols / parts.group),
             supers = static_cast<std::size_t>(w.cols / parts.super);
  const std::int64_t batch = static_cast<std::int64_t>(x.size()) / w.cols;
  std::vector<std::int8_t> codes(cols), input(cols), factors(groups), minimum_factors(groups);
  std::vector<std::uint16_t> scales(supers), minimums(supers);
  std::vector<float> x_scales(cols / kIntegerBlock), out;
  float row_scale = 1.0f;
  const auto fma = [&](float a, float b, float c) { return level == IsaLevel::scalar ? a * b + c : std::fma(a, b, c); };
  for (std::int64_t r = 0; r < batch; ++r) {
    quantize_inputs(x.data() + r * w.cols, w.cols, kIntegerBlock, input.data(), x_scales.data());
    for (std::int64_t o = 0; o < w.rows; ++o) {
      split_row(w.format, w.row(o), w.cols,
                {codes.data(), scales.data(), minimums.data(), factors.data(), minimum_factors.data(), &row_scale});
      float total = 0.0f;
      for (std::size_t g = 0; g < groups; ++g) {
        const std::size_t first = g * static_cast<std::size_t>(parts.group),
                          super = first / static_cast<std::size_t>(parts.super);
        std::int32_t sum = 0, inputs = 0;
        for (std::size_t k = first; k < first + static_cast<std::size_t>(parts.group); ++k) {
          sum += (parts.kind == CodeKind::e2m1 ? kE2m1Steps[codes[k]] : codes[k] - parts.zero) * input[k];
          inputs += input[k];
        }
        float scale = f16_to_float(scales[super]), minimum = f16_to_float(minimums[super]);
        if (parts.factors()) {
          scale *= factors[g];
          minimum *= minimum_factors[g];
        }
        const float x_scale = x_scales[first / kIntegerBlock];
        total = fma(static_cast<float>(sum), scale * x_scale, total);
        if (parts.minimums) total = fma(minimum, x_scale * static_cast<float>(inputs), total);
      }
      if (parts.kind == CodeKind::e2m1) total *= row_scale;
      out.push_back(bias != nullptr ? total + bias[o] : total);
    }
  }
  return out;
}

class CpuBlocks : public CpuLevelTest {};
MILLRACE_ON_EACH_LEVEL(CpuBlocks);

TEST_P(CpuBlocks, AreWhatTheDefinitionSaysToTheBit) {
  const auto backend = cpu_backend(GetParam());
  Random random(5);
  for (const QuantFormat format : kFormats) {
    for (const auto& [rows, cols] : {std::pair<std::int64_t, std::int64_t>{1, 256}, {17, 512}, {48, 1024}}) {
      const Stored weight(format, rows, cols, random);
      const std::vector<float> bias = random.normals(rows);
      const auto matrix = pack(*backend, {{weight.piece()}});
      for (const std::int64_t batch : {1, 2, 3, 4, 7, 100}) {
        const std::vector<float> x = random.normals(batch * cols, 3.0f);
        const float* b = batch % 2 == 0 ? bias.data() : nullptr;
        EXPECT_TRUE(identical(multiply(*backend, *matrix, x, b), expected(GetParam(), weight, x, b)))
            << format_info(format).name << ' ' << rows << " x " << cols << ", batch " << batch;
      }
    }
  }
}

TEST_P(CpuBlocks, AreCloseToTheReference) {
  const auto backend = cpu_backend(GetParam());
  const auto reference = make_reference_backend();
  Random random(6);
  for (const QuantFormat format : kFormats) {
    const Stored weight(format, 33, 512, random);
    const std::vector<float> x = random.normals(3 * 512);
    const auto ours = pack(*backend, {{weight.piece()}}), oracle = pack(*reference, {{weight.piece()}});
    // Sums of 512 products, and of minimums apart from what they are subtracted from: some 2^-24 of the largest each.
    EXPECT_TRUE(close(multiply(*backend, *ours, x), multiply(*reference, *oracle, x), 1e-4f))
        << format_info(format).name;
  }
}

TEST_P(CpuBlocks, TheLargestSumsDoNotOverflow) {
  const auto backend = cpu_backend(GetParam());
  Random random(7);
  for (const int byte : {0x80, 0x7f, 0xff}) {  // codes -128, 127 and 15
    for (const QuantFormat format : {QuantFormat::q8_0, QuantFormat::q4_0, QuantFormat::q4_k, QuantFormat::mxfp4}) {
      Stored weight(format, 16, 512, random);
      const QuantFormatInfo& info = format_info(format);
      const std::size_t codes = format == QuantFormat::q4_k ? 16 : format == QuantFormat::mxfp4 ? 1 : 2;
      for (std::size_t block = 0; block < weight.bytes.size(); block += info.block_bytes) {
        std::memset(weight.bytes.data() + block + codes, byte, info.block_bytes - codes);
      }
      const auto matrix = pack(*backend, {{weight.piece()}});
      for (const float sign : {1.0f, -1.0f}) {
        const std::vector<float> x(5 * 512, sign * 9.0f);
        EXPECT_TRUE(identical(multiply(*backend, *matrix, x), expected(GetParam(), weight, x, nullptr)));
      }
    }
  }
}

/// A fused weight as checkpoints mix them: each part is computed as it would be alone.
TEST_P(CpuBlocks, PiecesOfSeveralFormatsStandSideBySide) {
  const auto backend = cpu_backend(GetParam(), 2), reference = make_reference_backend();
  Random random(8);
  const Stored q(QuantFormat::q4_k, 40, 256, random), k(QuantFormat::q6_k, 24, 256, random),
      v(QuantFormat::q2_k, 16, 256, random);
  const std::vector<float> plain = random.normals(9 * 256), x = random.normals(6 * 256);
  const MatrixPiece floats{.format = QuantFormat::f32,
                           .data = reinterpret_cast<const std::byte*>(plain.data()),
                           .rows = 9,
                           .cols = 256,
                           .row_order = {}};
  const MatrixSource all{{q.piece(), k.piece(), v.piece(), floats}};
  const auto matrix = pack(*backend, all);
  EXPECT_EQ(matrix->arithmetic(), Arithmetic::int8);
  const std::vector<float> together = multiply(*backend, *matrix, x);
  std::int64_t first = 0;
  for (const MatrixPiece& piece : all.pieces) {
    const auto alone = pack(*backend, {{piece}});
    const std::vector<float> out = multiply(*backend, *alone, x);
    for (std::int64_t r = 0; r < 6; ++r) {
      for (std::int64_t o = 0; o < piece.rows; ++o) {
        EXPECT_TRUE(same_bits(together[static_cast<std::size_t>(r * 89 + first + o)],
                              out[static_cast<std::size_t>(r * piece.rows + o)]));
      }
    }
    first += piece.rows;
  }
  EXPECT_TRUE(close(together, multiply(*reference, *pack(*reference, all), x), 1e-4f));
}

TEST_P(CpuBlocks, InputsThatAnswersLeaveOutCountAsZeros) {
  const auto backend = cpu_backend(GetParam(), 2);
  Random random(9);
  for (const QuantFormat format : kFormats) {
    const Stored weight(format, 530, 512, random);
    LinearFormat skipping = kBlocks;
    skipping.skip.threshold = 0.8f;
    const auto dense = pack(*backend, {{weight.piece()}});
    auto matrix = backend->pack({{weight.piece()}}, skipping);
    ASSERT_TRUE(matrix.ok());
    EXPECT_EQ((*matrix)->bytes(), backend->packed_bytes({{weight.piece()}}, skipping));
    for (const std::int32_t rows : {1, 3, 4, 9}) {
      ForwardBatch batch;
      batch.token_ids.resize(static_cast<std::size_t>(rows));
      batch.sequences.push_back({.rows = rows, .answer_begin = 0});
      std::vector<float> x = random.normals(rows * 512);
      backend->begin(batch);
      const std::vector<float> left_out = multiply(*backend, **matrix, x);
      for (float& value : x) value = std::fabs(value) <= 0.8f ? 0.0f : value;
      EXPECT_TRUE(identical(left_out, multiply(*backend, *dense, x))) << format_info(format).name << ' ' << rows;
    }
  }
}

TEST_P(CpuBlocks, BatchAndThreadsDoNotShow) {
  const auto one = cpu_backend(GetParam(), 1), three = cpu_backend(GetParam(), 3);
  Random random(9);
  for (const QuantFormat format : {QuantFormat::q8_0, QuantFormat::q4_k, QuantFormat::q6_k}) {
    const Stored weight(format, 1100, 512, random);
    const std::vector<float> x = random.normals(133 * 512);
    const auto a = pack(*one, {{weight.piece()}}), b = pack(*three, {{weight.piece()}});
    const std::vector<float> all = multiply(*one, *a, x);
    EXPECT_TRUE(identical(multiply(*three, *b, x), all));
    std::vector<float> each;
    for (std::int64_t r = 0; r < 133; ++r) {
      const std::vector<float> row = multiply(*three, *b, {x.begin() + r * 512, x.begin() + (r + 1) * 512});
      each.insert(each.end(), row.begin(), row.end());
    }
    EXPECT_TRUE(identical(each, all));
  }
}

TEST_P(CpuBlocks, RowsAreDecodedForEmbeddings) {
  const auto backend = cpu_backend(GetParam());
  Random random(10);
  for (const QuantFormat format : kFormats) {
    const Stored weight(format, 19, 256, random);
    const auto matrix = pack(*backend, {{weight.piece()}});
    ForwardBatch batch;
    for (std::int32_t r = 0; r < 19; ++r) batch.token_ids.push_back(r);
    std::vector<float> out(19 * 256), decoded(out.size());
    backend->embed(batch, *matrix, 1.0f, out.data());
    dequantize(format, weight.bytes.data(), decoded.data(), decoded.size());
    EXPECT_TRUE(identical(out, decoded)) << format_info(format).name;
  }
}

}  // namespace
}  // namespace millrace
