// Products of weights in codes with inputs that stay floats: to the bit what the definition says, at every level; close
// to the reference; the same whatever the batch and the threads. And weights in the layouts of checkpoints that others
// have quantised.

#include <algorithm>
#include <cstring>
#include <numeric>

#include "backend/cpu_test_util.h"
#include "backend/reference/reference_backend.h"
#include "backend/stored_codes.h"
#include "core/float16.h"
#include "quant/coded_matrix.h"
#include "quant/codes.h"

namespace millrace {
namespace {

std::unique_ptr<PackedMatrix> pack(Backend& backend, const MatrixSource& source, LinearFormat format = {}) {
  auto matrix = backend.pack(source, format);
  MILLRACE_CHECK(matrix.ok(), "{}", matrix.ok() ? "" : matrix.error().message);
  EXPECT_EQ((*matrix)->bytes(), backend.packed_bytes(source, format));
  return std::move(*matrix);
}

std::vector<float> decoded(Backend& backend, const PackedMatrix& weight) {
  ForwardBatch batch;
  for (std::int64_t r = 0; r < weight.rows(); ++r) batch.token_ids.push_back(static_cast<std::int32_t>(r));
  std::vector<float> values(static_cast<std::size_t>(weight.rows() * weight.cols()));
  backend.embed(batch, weight, 1.0f, values.data());
  return values;
}

/// Batch 1 to 133, one thread and three: the same bits.
void expect_identity(IsaLevel level, const MatrixSource& source, const LinearFormat& format, Random& random) {
  const auto one = cpu_backend(level, 1), three = cpu_backend(level, 3);
  const std::int64_t cols = source.cols();
  const std::vector<float> x = random.normals(133 * cols);
  const auto a = pack(*one, source, format), b = pack(*three, source, format);
  const std::vector<float> all = multiply(*one, *a, x);
  EXPECT_TRUE(identical(multiply(*three, *b, x), all));
  std::vector<float> each;
  for (std::int64_t r = 0; r < 133;) {
    const std::int64_t end = std::min<std::int64_t>(133, r + 1 + r % 7);
    const std::vector<float> rows = multiply(*three, *b, {x.begin() + r * cols, x.begin() + end * cols});
    each.insert(each.end(), rows.begin(), rows.end());
    r = end;
  }
  EXPECT_TRUE(identical(each, all));
}

class CpuCoded : public CpuLevelTest {};
MILLRACE_ON_EACH_LEVEL(CpuCoded);

constexpr CodeFormat kRounded[] = {
    {.float_inputs = true},           {CodeKind::int4, 32, false, true}, {CodeKind::int4, 128, true, true},
    {CodeKind::e2m1, 16, true, true}, {CodeKind::e2m1, 32, true, true},  {CodeKind::e4m3, 0, true, true}};

const std::vector<std::pair<std::int64_t, std::int64_t>> kShapes = {
    {1, 1}, {16, 32}, {17, 31}, {33, 100}, {48, 65}, {15, 257}, {64, 384}, {130, 192}, {20, 1030}};

/// What the definition in kernel_table.h says: products in ascending order of inputs in one accumulator, then the
/// output's scale.
std::vector<float> expected(IsaLevel level, const CodeFormat& format, std::int64_t rows, std::int64_t cols,
                            const std::vector<float>& weights, const std::vector<float>& x, const float* bias) {
  std::vector<std::int8_t> codes(static_cast<std::size_t>(cols));
  std::vector<float> scales(static_cast<std::size_t>(format.groups(cols))), out;
  std::vector<std::uint8_t> zeros(scales.size());
  for (std::int64_t r = 0; r < static_cast<std::int64_t>(x.size()) / cols; ++r) {
    for (std::int64_t o = 0; o < rows; ++o) {
      float row_scale = 1.0f, total = 0.0f;
      quantize_row(format, weights.data() + o * cols, cols, {codes.data(), scales.data(), zeros.data(), &row_scale});
      for (std::int64_t k = 0; k < cols; ++k) {
        const auto g = static_cast<std::size_t>(format.group == 0 ? 0 : k / format.group);
        float weight = step_of_code(format.kind, codes[static_cast<std::size_t>(k)], zeros[g]);
        if (format.group != 0) weight *= scales[g];
        const float input = x[static_cast<std::size_t>(r * cols + k)];
        total = level == IsaLevel::scalar ? input * weight + total : std::fma(input, weight, total);
      }
      if (format.group == 0) total *= scales.front();
      if (format.kind == CodeKind::e2m1) total *= row_scale;
      out.push_back(bias != nullptr ? total + bias[o] : total);
    }
  }
  return out;
}

TEST_P(CpuCoded, RoundedWeightsAreWhatTheDefinitionSaysToTheBit) {
  const auto backend = cpu_backend(GetParam());
  Random random(5);
  for (const CodeFormat& format : kRounded) {
    for (const auto& [rows, cols] : kShapes) {
      const std::vector<float> weights = random.normals(rows * cols, 0.1f), bias = random.normals(rows);
      const auto matrix = pack(*backend, source_of(weights, rows, cols), {.codes = format});
      for (const std::int64_t batch : {1, 2, 5, 6, 7, 13, 100}) {
        const std::vector<float> x = random.normals(batch * cols, 3.0f);
        const float* b = batch % 2 == 0 ? bias.data() : nullptr;
        EXPECT_TRUE(
            identical(multiply(*backend, *matrix, x, b), expected(GetParam(), format, rows, cols, weights, x, b)))
            << code_format_name(format) << ' ' << rows << " x " << cols << ", batch " << batch;
      }
    }
  }
}

TEST_P(CpuCoded, InputsAreRoundedToBfloat16WhereTheComputationIs) {
  const auto backend = cpu_backend(GetParam());
  Random random(6);
  for (const CodeFormat& format : kRounded) {
    const std::vector<float> weights = random.normals(std::int64_t{33} * 100, 0.1f);
    std::vector<float> x = random.normals(std::int64_t{9} * 100);
    const auto matrix = pack(*backend, source_of(weights, 33, 100), {.input = DType::bf16, .codes = format});
    const std::vector<float> result = multiply(*backend, *matrix, x);
    for (float& value : x) value = round_to_bf16(value);
    EXPECT_TRUE(identical(result, expected(GetParam(), format, 33, 100, weights, x, nullptr)))
        << code_format_name(format);
  }
}

TEST_P(CpuCoded, BatchAndThreadsDoNotShow) {
  Random random(7);
  for (const CodeFormat& format : kRounded) {
    const std::vector<float> weights = random.normals(std::int64_t{1100} * 512, 0.1f);
    SCOPED_TRACE(code_format_name(format));
    expect_identity(GetParam(), source_of(weights, 1100, 512), {.codes = format}, random);
  }
  for (const Kind& kind : kKinds) {
    const Stored weight = stored(kind, 1100, 384, random);
    SCOPED_TRACE(kind.name);
    expect_identity(GetParam(), {{weight.piece()}}, {}, random);
  }
}

TEST_P(CpuCoded, InputsThatAnswersLeaveOutCountAsZeros) {
  const auto backend = cpu_backend(GetParam());
  Random random(9);
  for (const Kind& kind : kKinds) {
    for (const bool byte_inputs : {false, true}) {
      for (const std::int64_t cols : {std::int64_t{96}, std::int64_t{384}}) {
        const Stored weight = stored(kind, 530, cols, random);
        LinearFormat format{.byte_inputs = byte_inputs};
        const auto dense = pack(*backend, {{weight.piece()}}, format);
        format.skip.threshold = 0.8f;
        const auto skipping = pack(*backend, {{weight.piece()}}, format);
        for (const std::int32_t rows : {1, 2, 9}) {
          ForwardBatch batch;
          batch.token_ids.resize(static_cast<std::size_t>(rows));
          batch.sequences.push_back({.rows = rows, .answer_begin = 0});
          std::vector<float> x = random.normals(rows * cols);
          backend->begin(batch);
          const std::vector<float> left_out = multiply(*backend, *skipping, x);
          for (float& value : x) value = std::fabs(value) <= 0.8f ? 0.0f : value;
          EXPECT_TRUE(identical(left_out, multiply(*backend, *dense, x))) << kind.name << ' ' << cols << ' ' << rows;
        }
      }
    }
  }
}

TEST_P(CpuCoded, StoredCodesAreCloseToTheReference) {
  const auto backend = cpu_backend(GetParam());
  const auto reference = make_reference_backend();
  Random random(8);
  for (const Kind& kind : kKinds) {
    for (const auto& [rows, cols] : kShapes) {
      const Stored weight = stored(kind, rows, cols, random);
      for (const LinearFormat& format : {LinearFormat{}, LinearFormat{.input = DType::bf16}}) {
        const auto ours = pack(*backend, {{weight.piece()}}, format),
                   oracle = pack(*reference, {{weight.piece()}}, format);
        EXPECT_TRUE(close(decoded(*backend, *ours), decoded(*reference, *oracle), 1e-6f)) << kind.name;
        for (const std::int64_t batch : {1, 4, 17}) {
          const std::vector<float> x = random.normals(batch * cols);
          // Both sum floats one by one: about cols roundings of 2^-24 of the largest partial sum.
          EXPECT_TRUE(close(multiply(*backend, *ours, x), multiply(*reference, *oracle, x), 3e-5f))
              << kind.name << ' ' << rows << " x " << cols << ", batch " << batch;
        }
      }
    }
  }
}

TEST_P(CpuCoded, ByteInputsWhereTheCheckpointWantsThem) {
  const auto backend = cpu_backend(GetParam());
  const auto reference = make_reference_backend();
  Random random(9);
  for (const Kind& kind : {Kind{"outputs", CodeKind::int8, 0, false, QuantFormat::bf16},
                           Kind{"groups", CodeKind::int8, 128, false, QuantFormat::f16}}) {
    const Stored weight = stored(kind, 49, 300, random);
    weight.matrix->byte_inputs = true;
    const auto ours = pack(*backend, {{weight.piece()}}, {.integer_blocks = true}),
               oracle = pack(*reference, {{weight.piece()}}, {.integer_blocks = true});
    EXPECT_EQ(ours->arithmetic(), Arithmetic::int8);
    const std::vector<float> x = random.normals(std::int64_t{5} * 300);
    EXPECT_TRUE(close(multiply(*backend, *ours, x), multiply(*reference, *oracle, x), 3e-5f)) << kind.name;
    // Without leave the inputs stay floats, which is nearer to the weights as they are.
    EXPECT_EQ(pack(*backend, {{weight.piece()}})->arithmetic(), Arithmetic::f32);
    expect_identity(GetParam(), {{weight.piece()}}, {.integer_blocks = true}, random);
  }
}

TEST_P(CpuCoded, ByteInputsWhereTheRecipeWantsThem) {
  const auto backend = cpu_backend(GetParam());
  const auto reference = make_reference_backend();
  Random random(13);
  constexpr LinearFormat kByteInputs{.integer_blocks = true, .byte_inputs = true};
  for (const Kind& kind : kKinds) {
    const Stored weight = stored(kind, 49, 320, random);
    const auto ours = pack(*backend, {{weight.piece()}}, kByteInputs),
               oracle = pack(*reference, {{weight.piece()}}, kByteInputs);
    const bool integers = weight.matrix->byte_input_group().has_value();
    EXPECT_EQ(ours->arithmetic(), integers ? Arithmetic::int8 : Arithmetic::f32) << kind.name;
    const std::vector<float> x = random.normals(std::int64_t{5} * 320);
    EXPECT_TRUE(close(multiply(*backend, *ours, x), multiply(*reference, *oracle, x), 3e-5f)) << kind.name;
    SCOPED_TRACE(kind.name);
    if (integers) expect_identity(GetParam(), {{weight.piece()}}, kByteInputs, random);
  }
}

/// q, k and v as checkpoints have them: of one kind, of several, with plain ones among them, in another order of rows.
TEST_P(CpuCoded, PiecesOfSeveralKinds) {
  const auto backend = cpu_backend(GetParam());
  const auto reference = make_reference_backend();
  Random random(10);
  const std::vector<float> plain = random.normals(std::int64_t{20} * 96);
  for (const Kind& first : kKinds) {
    const Stored a = stored(first, 32, 96, random), b = stored(kKinds[5], 19, 96, random),
                 c = stored(first, 16, 96, random);
    MatrixSource source{{a.piece(), source_of(plain, 20, 96).pieces.front(), b.piece(), c.piece()}};
    source.pieces[0].row_order.resize(32);
    for (std::int32_t r = 0; r < 32; ++r) source.pieces[0].row_order[static_cast<std::size_t>(r)] = (r * 5 + 3) % 32;
    for (const LinearFormat& format :
         {LinearFormat{}, LinearFormat{.codes = CodeFormat{}}, LinearFormat{.integer_blocks = true}}) {
      const std::vector<float> x = random.normals(std::int64_t{9} * 96);
      EXPECT_TRUE(close(multiply(*backend, *pack(*backend, source, format), x),
                        multiply(*reference, *pack(*reference, source, format), x), 3e-5f))
          << first.name;
    }
  }
}

TEST_P(CpuCoded, OneOrderOfInputsIsKeptAndSeveralAreWidened) {
  const auto backend = cpu_backend(GetParam());
  const auto reference = make_reference_backend();
  Random random(11);
  const Stored a = stored(kKinds[5], 32, 96, random), b = stored(kKinds[5], 32, 96, random);
  const std::vector<float> x = random.normals(std::int64_t{7} * 96);
  for (const bool shared : {true, false}) {
    if (shared) b.matrix->input_order = a.matrix->input_order;
    if (!shared) std::swap(b.matrix->input_order[0], b.matrix->input_order[95]);
    const MatrixSource source{{a.piece(), b.piece()}};
    const auto ours = pack(*backend, source), oracle = pack(*reference, source);
    EXPECT_EQ(ours->bytes() < std::size_t{64} * 96, shared);  // codes, or floats
    EXPECT_TRUE(close(multiply(*backend, *ours, x), multiply(*reference, *oracle, x), 3e-5f));
    EXPECT_TRUE(close(decoded(*backend, *ours), decoded(*reference, *oracle), 1e-6f));
  }
}

TEST_P(CpuCoded, DamagedScalesAndCodesAreRefused) {
  const auto backend = cpu_backend(GetParam());
  Random random(12);
  for (const Kind& kind : kKinds) {
    if (kind.scales != QuantFormat::f32 && kind.scales != QuantFormat::u8) continue;
    Stored weight = stored(kind, 20, 96, random);
    std::fill(weight.scales.end() - (kind.scales == QuantFormat::u8 ? 1 : 4), weight.scales.end(), std::uint8_t{255});
    const auto failed = backend->pack({{weight.piece()}}, {});
    ASSERT_FALSE(failed.ok()) << kind.name;
    EXPECT_NE(failed.error().message.find("output 19"), std::string::npos) << failed.error().message;
  }
  Stored weight = stored(kKinds[10], 20, 96, random);
  weight.codes[96 * 3 + 5] = 0xff;
  const auto failed = backend->pack({{weight.piece()}}, {});
  ASSERT_FALSE(failed.ok());
  EXPECT_EQ(failed.error().message, "weight 5 of output 3 is not a number: the weights are damaged");
}

}  // namespace
}  // namespace millrace
