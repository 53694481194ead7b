// The CUDA backend against the reference backend, and the same bits whatever the batch. Needs a device; skipped without
// one, and says so.

#include <algorithm>
#include <numeric>

#include "backend/attend_world.h"
#include "backend/cuda/cuda_backend.h"
#include "backend/reference/reference_backend.h"
#include "backend/rows_world.h"
#include "backend/staged_backend.h"
#include "backend/stored_codes.h"

namespace millrace {
namespace {

class Cuda : public testing::Test {
 protected:
  void SetUp() override {
    if (!cuda_available()) GTEST_SKIP() << "no CUDA device, or a build without CUDA: nothing of the backend is tested";
    auto backend = make_cuda_backend({.threads = 2});
    ASSERT_TRUE(backend.ok()) << backend.error().message;
    cuda_ = std::make_unique<StagedBackend>(std::move(*backend));
  }

  std::unique_ptr<PackedMatrix> pack(Backend& backend, const MatrixSource& source, LinearFormat format = {}) {
    auto matrix = backend.pack(source, format);
    MILLRACE_CHECK(matrix.ok(), "{}", matrix.ok() ? "" : matrix.error().message);
    EXPECT_EQ((*matrix)->bytes(), backend.packed_bytes(source, format));
    return std::move(*matrix);
  }

  std::vector<float> decoded(Backend& backend, const PackedMatrix& weight) {
    ForwardBatch batch;
    batch.token_ids.resize(static_cast<std::size_t>(weight.rows()));
    std::iota(batch.token_ids.begin(), batch.token_ids.end(), 0);
    batch.sequences.push_back({.rows = static_cast<std::int32_t>(weight.rows())});
    std::vector<float> values(static_cast<std::size_t>(weight.rows() * weight.cols()), -7e33f);
    backend.embed(batch, weight, 1.0f, values.data());
    return values;
  }

  /// Against the reference, and batches cut otherwise to the bit.
  void check_products(const MatrixSource& source, LinearFormat format, float tolerance, const std::string& name) {
    const auto ours = pack(*cuda_, source, format), oracle = pack(*reference_, source, format);
    EXPECT_TRUE(close(decoded(*cuda_, *ours), decoded(*reference_, *oracle), 1e-6f)) << name;
    const std::int64_t cols = source.cols();
    const std::vector<float> x = random_.normals(133 * cols), bias = random_.normals(source.rows());
    const std::vector<float> all = multiply(*cuda_, *ours, x, bias.data());
    EXPECT_TRUE(close(all, multiply(*reference_, *oracle, x, bias.data()), tolerance))
        << name << ' ' << source.rows() << " x " << cols;
    std::vector<float> each;
    constexpr std::int64_t kCuts[] = {1, 8, 3, 16, 9, 31, 33, 2, 30};
    for (std::int64_t r = 0, cut = 0; r < 133; ++cut) {
      const std::int64_t end = std::min<std::int64_t>(133, r + kCuts[cut % std::ssize(kCuts)]);
      const std::vector<float> rows =
          multiply(*cuda_, *ours, {x.begin() + r * cols, x.begin() + end * cols}, bias.data());
      each.insert(each.end(), rows.begin(), rows.end());
      r = end;
    }
    EXPECT_TRUE(identical(each, all)) << name << ' ' << source.rows() << " x " << cols;
  }

  std::unique_ptr<StagedBackend> cuda_;
  const std::unique_ptr<Backend> reference_ = make_reference_backend();
  Random random_{static_cast<std::uint32_t>(testing::UnitTest::GetInstance()->random_seed())};
};

constexpr std::pair<std::int64_t, std::int64_t> kShapes[] = {{1, 1},    {17, 31},   {33, 100},  {48, 65},
                                                             {15, 257}, {130, 192}, {20, 1030}, {100, 2304}};

// Sums of floats one by one are off by about the square root of their number times 2^-24 of the largest; a matrix
// instruction cuts what it aligns instead of rounding it, which adds up one way. That for E4M3 of compute
// capability 9.0 keeps some 13 bits of what it aligns: an eighth of 2,304 inputs is 9 instructions, each of which may
// cut 2^-13.
constexpr float kSums = 3e-5f, kMatrixSums = 1e-4f, kE4m3Sums = 1.1e-3f;

float sums_of(const std::optional<CodeFormat>& codes) {
  return codes && codes->kind == CodeKind::e4m3 && !codes->float_inputs ? kE4m3Sums : kMatrixSums;
}

TEST_F(Cuda, PlainProducts) {
  for (const auto& [rows, cols] : kShapes) {
    const std::vector<float> weights = random_.normals(rows * cols, 0.1f);
    check_products(source_of(weights, rows, cols), {}, kSums, "f32");
    check_products(source_of(weights, rows, cols), {.input = DType::bf16}, kMatrixSums, "bf16");
    std::vector<std::uint16_t> halves, brains;
    for (const float w : weights) halves.push_back(float_to_f16(w)), brains.push_back(float_to_bf16(w));
    for (const bool half : {true, false}) {
      const MatrixSource stored{{{.format = half ? QuantFormat::f16 : QuantFormat::bf16,
                                  .data = reinterpret_cast<const std::byte*>(half ? halves.data() : brains.data()),
                                  .rows = rows,
                                  .cols = cols}}};
      check_products(stored, {}, kSums, half ? "f16 in f32" : "bf16 in f32");
      check_products(stored, {.input = DType::bf16}, kMatrixSums, half ? "f16 in bf16" : "bf16 in bf16");
    }
  }
}

TEST_F(Cuda, RoundedWeights) {
  for (const char* name : {"int8", "int4.g32", "int4.g64.sym", "int4", "nvfp4", "mxfp4", "fp8_e4m3"}) {
    CodeFormat format = *code_format_from_name(name);
    for (const auto& [rows, cols] : kShapes) {
      const std::vector<float> weights = random_.normals(rows * cols, 0.1f);
      format.float_inputs = false;
      check_products(source_of(weights, rows, cols), {.codes = format}, sums_of(format), name);
      format.float_inputs = true;
      check_products(source_of(weights, rows, cols), {.codes = format}, kSums, std::string(name) + ".a16 in f32");
      check_products(source_of(weights, rows, cols), {.input = DType::bf16, .codes = format}, kMatrixSums,
                     std::string(name) + ".a16 in bf16");
    }
  }
}

/// Enough rows and outputs for the kernels that multiply from shared memory, whose bits are those of the others.
TEST_F(Cuda, ManyRows) {
  constexpr std::int64_t kRows = 200, kOutputs = 4300;
  for (const char* name : {"bf16", "int8", "int8.a16", "fp8_e4m3", "fp8_e4m3.a16", "int4.g32", "int4", "int4.a16",
                           "nvfp4", "nvfp4.a16", "mxfp4"}) {
    const LinearFormat format{.input = DType::bf16, .codes = code_format_from_name(name)};
    for (const std::int64_t cols : {64, 192, 520, 1100}) {
      const std::vector<float> weights = random_.normals(kOutputs * cols, 0.1f), bias = random_.normals(kOutputs),
                               x = random_.normals(kRows * cols);
      const auto ours = pack(*cuda_, source_of(weights, kOutputs, cols), format),
                 oracle = pack(*reference_, source_of(weights, kOutputs, cols), format);
      const std::vector<float> all = multiply(*cuda_, *ours, x, bias.data());
      EXPECT_TRUE(close(part(all, 77 * kOutputs, 9 * kOutputs),
                        multiply(*reference_, *oracle, part(x, 77 * cols, 9 * cols), bias.data()),
                        sums_of(format.codes)))
          << name << ' ' << cols;
      std::vector<float> each;
      for (std::int64_t r = 0; r < kRows; r += 40) {
        const std::vector<float> rows = multiply(*cuda_, *ours, part(x, r * cols, 40 * cols), bias.data());
        each.insert(each.end(), rows.begin(), rows.end());
      }
      EXPECT_TRUE(identical(each, all)) << name << ' ' << cols;
    }
  }
}

TEST_F(Cuda, StoredCodes) {
  for (const Kind& kind : kKinds) {
    for (const auto& [rows, cols] : kShapes) {
      const Stored weight = stored(kind, rows, cols, random_);
      for (const LinearFormat& format : {LinearFormat{}, LinearFormat{.input = DType::bf16},
                                         LinearFormat{.integer_blocks = true, .byte_inputs = true}}) {
        const bool e4m3 = kind.kind == CodeKind::e4m3 && format.byte_inputs;
        check_products({{weight.piece()}}, format, e4m3 ? kE4m3Sums : kMatrixSums, kind.name);
      }
    }
  }
}

TEST_F(Cuda, PiecesOfSeveralKinds) {
  const std::vector<float> plain = random_.normals(std::int64_t{20} * 96);
  for (const Kind& first : kKinds) {
    const Stored a = stored(first, 32, 96, random_), b = stored(kKinds[5], 19, 96, random_),
                 c = stored(first, 16, 96, random_);
    MatrixSource source{{a.piece(), source_of(plain, 20, 96).pieces.front(), b.piece(), c.piece()}};
    source.pieces[0].row_order.resize(32);
    for (std::int32_t r = 0; r < 32; ++r) source.pieces[0].row_order[static_cast<std::size_t>(r)] = (r * 5 + 3) % 32;
    const auto ours = pack(*cuda_, source), oracle = pack(*reference_, source);
    const std::vector<float> x = random_.normals(std::int64_t{9} * 96);
    EXPECT_TRUE(close(multiply(*cuda_, *ours, x), multiply(*reference_, *oracle, x), kSums)) << first.name;
  }
}

TEST_F(Cuda, DamagedWeightsAreRefused) {
  std::vector<float> weights = random_.normals(std::int64_t{20} * 96);
  weights[96 * 7 + 3] = std::numeric_limits<float>::infinity();
  const auto failed = cuda_->pack(source_of(weights, 20, 96), {.codes = CodeFormat{}});
  ASSERT_FALSE(failed.ok());
  EXPECT_NE(failed.error().message.find("output 7"), std::string::npos) << failed.error().message;
}

TEST_F(Cuda, ResidualNorm) {
  for (const std::int64_t width : {1, 17, 64, 576, 1030}) {
    for (const std::int64_t rows : {1, 9, 33}) {
      for (int variant = 0; variant < 16; ++variant) {
        const std::vector<float> h = random_.normals(rows * width), delta = random_.normals(rows * width),
                                 norm = random_.normals(width), delta_norm = random_.normals(width);
        const auto run = [&](Backend& backend, std::int64_t first, std::int64_t count) {
          std::vector<float> state = part(h, first * width, count * width), out(state.size());
          ResidualNormArgs args{.rows = count, .width = width, .h = state.data(), .eps = 1e-5f};
          if ((variant & 1) != 0) args.delta = delta.data() + first * width;
          if ((variant & 3) == 3) args.delta_norm = delta_norm.data();
          if ((variant & 4) != 0) args.h_scale = 0.7f;
          args.delta_scale = (variant & 8) != 0 ? 1.3f : 1.0f;
          args.norm = (variant & 2) != 0 ? norm.data() : nullptr;
          args.out = variant == 15 ? state.data() : out.data();
          backend.residual_norm(args);
          out.insert(out.end(), state.begin(), state.end());
          return out;
        };
        const std::vector<float> together = run(*cuda_, 0, rows);
        EXPECT_TRUE(close(together, run(*reference_, 0, rows), 2e-6f)) << width << " " << rows << " " << variant;
        const std::vector<float> last = run(*cuda_, rows - 1, 1);
        EXPECT_TRUE(identical(part(last, 0, width), part(together, (rows - 1) * width, width)));
      }
    }
  }
}

TEST_F(Cuda, RopeStore) {
  std::vector<RopeCase> cases(11);
  cases[1] = {.head_dim = 64, .rotary_dim = 64, .norm = NormScope::per_head, .format = KvFormat::bf16};
  cases[2] = {.head_dim = 20, .rotary_dim = 20, .page_tokens = 3, .norm = NormScope::all_heads};
  cases[3] = {.head_dim = 80, .rotary_dim = 32, .value_norm = true, .format = KvFormat::bf16};
  cases[4] = {.value_is_key = true, .norm = NormScope::per_head};
  cases[5] = {.value_is_key = true, .value_norm = true, .norm = NormScope::per_head};
  cases[6] = {.store = false, .norm = NormScope::per_head};
  cases[7] = {.head_dim = 6, .rotary_dim = 2, .q_scale = true, .format = KvFormat::bf16};
  cases[8] = {.heads = 12, .kv_heads = 3, .rotate = false, .norm = NormScope::all_heads};
  cases[9] = {.heads = 3, .kv_heads = 1, .head_dim = 128, .rotary_dim = 96};
  cases[10] = {.heads = 8, .kv_heads = 8, .head_dim = 64, .rotary_dim = 64, .q_scale = true};
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const auto seed = static_cast<std::uint32_t>(random_.below(1 << 20));
    const auto expected = run_rope(*reference_, cases[i], seed), actual = run_rope(*cuda_, cases[i], seed);
    EXPECT_TRUE(close(actual.first, expected.first, 2e-6f)) << i;
    // A bfloat16 may round to the other neighbour where the float before it is off by one.
    const float tolerance = cases[i].format == KvFormat::f32 ? 2e-6f : 4e-3f;
    EXPECT_TRUE(
        close(kv_floats(actual.second, cases[i].format), kv_floats(expected.second, cases[i].format), tolerance))
        << i;
  }
}

TEST_F(Cuda, RopeStoreInCodes) {
  for (const KvFormat format : {KvFormat::int8, KvFormat::fp8_e4m3}) {
    for (const auto& [head_dim, page_tokens] : {std::pair{16, 16}, {64, 4}, {20, 3}, {6, 16}, {128, 32}}) {
      // Nothing is turned or normalised, so that both have the same numbers to round.
      const RopeCase c{
          .head_dim = head_dim, .rotary_dim = 2, .page_tokens = page_tokens, .rotate = false, .format = format};
      EXPECT_EQ(run_rope(*cuda_, c, 33).second, run_rope(*reference_, c, 33).second)
          << kv_format_name(format) << ' ' << head_dim << ' ' << page_tokens;
    }
  }
}

std::vector<AttendShape> shapes_of(const Backend& backend) {
  std::vector<AttendShape> all = attend_shapes();
  // Longer than a span of positions, and than what the copies of a block hold at a time.
  all.push_back({.heads = 4, .kv_heads = 2, .head_dim = 128, .length = 1200, .format = KvFormat::bf16});
  all.push_back({.heads = 3,
                 .kv_heads = 3,
                 .head_dim = 64,
                 .length = 1200,
                 .window = 300,
                 .softcap = 20.0f,
                 .sinks = true,
                 .format = KvFormat::bf16});
  all.push_back({.heads = 5, .kv_heads = 1, .head_dim = 128, .length = 500, .window = 70, .format = KvFormat::bf16});
  std::erase_if(all, [&](const AttendShape& shape) {
    return std::ranges::find(backend.kv_formats(), shape.format) == backend.kv_formats().end();
  });
  return all;
}

/// Formats of codes and bfloat16 are read by matrix instructions, which round queries and weights to bfloat16.
float attend_tolerance(const AttendShape& shape) {
  return shape.format == KvFormat::f32 ? 3e-6f : 1e-2f;
}

TEST_F(Cuda, AttentionAgreesWithTheReference) {
  for (const AttendShape& shape : shapes_of(*cuda_)) {
    AttendWorld world(shape, 2, 21);
    world.store(0, 0, shape.length);
    world.store(1, 0, shape.length);
    const std::vector<AttendWorld::Step> steps = {{0, 0, shape.length}, {1, 0, shape.length}};
    EXPECT_TRUE(close(world.attend(*cuda_, steps), world.attend(*reference_, steps), attend_tolerance(shape)))
        << describe(shape);
  }
}

TEST_F(Cuda, AttentionIsIdenticalHoweverThePromptIsCut) {
  for (const AttendShape& shape : shapes_of(*cuda_)) {
    AttendWorld whole_world(shape, 1, 22);
    whole_world.store(0, 0, shape.length);
    const std::vector<float> whole = whole_world.attend(*cuda_, {{0, 0, shape.length}});
    for (const std::int64_t chunk : {1, 7, 64, 100}) {
      AttendWorld world(shape, 1, 22);  // what lies ahead of a step is not a number
      std::vector<float> pieces;
      for (std::int64_t begin = 0; begin < shape.length; begin += chunk) {
        const std::int64_t end = std::min(begin + chunk, shape.length);
        world.store(0, begin, end);
        const std::vector<float> out = world.attend(*cuda_, {{0, begin, end}});
        pieces.insert(pieces.end(), out.begin(), out.end());
      }
      EXPECT_TRUE(identical(pieces, whole)) << describe(shape) << ", steps of " << chunk;
    }
  }
}

TEST_F(Cuda, GatedFfn) {
  for (const std::int64_t intermediate : {48, 50, 144}) {
    Ffn weights(random_, 40, intermediate);
    for (const Activation activation : kActivations) {
      for (const bool bias : {false, true}) {
        const std::vector<float> x = random_.normals(33 * 40);
        const GatedFfn on_reference = weights.on(*reference_, activation, bias);
        const std::vector<float> expected = run_ffn(*reference_, on_reference, x, 33);
        const GatedFfn ffn = weights.on(*cuda_, activation, bias);
        const std::vector<float> together = run_ffn(*cuda_, ffn, x, 33);
        EXPECT_TRUE(close(together, expected, 5e-6f)) << intermediate << " " << static_cast<int>(activation);
        for (const std::int64_t rows : {1, 2, 7}) {
          EXPECT_TRUE(
              identical(run_ffn(*cuda_, ffn, part(x, 3 * 40, rows * 40), rows), part(together, 3 * 40, rows * 40)));
        }
      }
    }
  }
}

TEST_F(Cuda, GatedFfnWithInputsInAnotherOrder) {
  constexpr std::int64_t kWidth = 64, kInner = 96;
  const std::vector<float> gate_up = random_.normals(2 * kInner * kWidth, 0.1f), x = random_.normals(9 * kWidth);
  const Stored down = stored(kKinds[5], kWidth, kInner, random_);
  for (const LinearFormat& format : {LinearFormat{}, LinearFormat{.input = DType::bf16},
                                     LinearFormat{.integer_blocks = true, .byte_inputs = true}}) {
    const auto run = [&](Backend& backend) {
      const auto first = pack(backend, source_of(gate_up, 2 * kInner, kWidth), {.input = format.input}),
                 second = pack(backend, {{down.piece()}}, format);
      return run_ffn(backend, {{first.get(), nullptr}, {second.get(), nullptr}, Activation::silu, 0.0f}, x, 9);
    };
    // Where inputs are rounded, the second product's may round to the other neighbour.
    EXPECT_TRUE(
        close(run(*cuda_), run(*reference_), format.input == DType::f32 && !format.byte_inputs ? 1e-5f : 1e-2f));
  }
}

TEST_F(Cuda, Experts) {
  constexpr std::int64_t kWidth = 24;
  for (const char* name : {"", "int8", "int4.g32", "fp8_e4m3.a16"}) {
    const LinearFormat format{.codes = code_format_from_name(name)};
    for (const int experts : {1, 5, 20}) {
      std::vector<Ffn> weights;
      for (int e = 0; e < experts; ++e) weights.emplace_back(random_, kWidth, 34);
      std::vector<float> router = random_.normals(experts * kWidth), router_bias = random_.normals(experts);
      // Two experts with the same logits always: the lower one must win.
      if (experts > 2) std::copy_n(router.begin() + kWidth, kWidth, router.begin() + 2 * kWidth);
      if (experts > 2) router_bias[2] = router_bias[1];
      const std::vector<float> expert_scale = random_.normals(experts);
      const std::vector<float> x = random_.normals(40 * kWidth), router_x = random_.normals(40 * kWidth);
      for (const ExpertWeighting weighting :
           {ExpertWeighting::softmax_then_top_k, ExpertWeighting::softmax_then_top_k_normalized,
            ExpertWeighting::top_k_then_softmax}) {
        for (const int top_k : {1, 2, 4}) {
          if (top_k > experts) continue;
          MoeArgs args;
          args.expert_scale = top_k == 2 ? expert_scale.data() : nullptr;
          args.top_k = top_k;
          args.weighting = weighting;
          const auto on = [&](Backend& backend) {
            std::vector<GatedFfn> all;
            for (Ffn& ffn : weights) all.push_back(ffn.on(backend, Activation::silu, true, format));
            return all;
          };
          const std::vector<float> expected =
              run_moe(*reference_, args, router, router_bias, router_x, x, kWidth, on(*reference_));
          const std::vector<GatedFfn> all = on(*cuda_);
          const std::vector<float> together = run_moe(*cuda_, args, router, router_bias, router_x, x, kWidth, all);
          // Where inputs are rounded, the one of an expert's second product may round to the other neighbour.
          EXPECT_TRUE(close(together, expected, *name == '\0' ? 1e-5f : 2e-2f))
              << name << ' ' << experts << ", top " << top_k;
          for (const std::int64_t rows : {1, 17}) {
            EXPECT_TRUE(identical(run_moe(*cuda_, args, router, router_bias, part(router_x, 4 * kWidth, rows * kWidth),
                                          part(x, 4 * kWidth, rows * kWidth), kWidth, all),
                                  part(together, 4 * kWidth, rows * kWidth)));
          }
        }
      }
    }
  }
}

TEST_F(Cuda, Elementwise) {
  for (const std::int64_t count : {1, 31, 1000, 70001}) {
    const std::vector<float> x = random_.normals(count, 3.0f), y = random_.normals(count);
    for (const float cap : {0.0f, 4.0f}) {
      std::vector<float> ours = x, theirs = x;
      cuda_->scale_softcap(ours.data(), count, 2.5f, cap);
      reference_->scale_softcap(theirs.data(), count, 2.5f, cap);
      EXPECT_TRUE(close(ours, theirs, 1e-6f)) << count;
    }
    for (const float* second : {y.data(), static_cast<const float*>(nullptr)}) {
      std::vector<float> ours(x.size(), -7e33f), theirs(x.size());
      cuda_->combine(0.3f, x.data(), 1.7f, second, ours.data(), count);
      reference_->combine(0.3f, x.data(), 1.7f, second, theirs.data(), count);
      EXPECT_TRUE(close(ours, theirs, 1e-6f)) << count;
    }
  }
  for (const Activation activation : {Activation::silu, Activation::gelu_tanh, Activation::gelu_erf}) {
    for (const std::int64_t width : {3, 260}) {
      const std::int64_t rows = 40, stride = width + 5;
      const std::vector<float> gate = random_.normals(rows * width, 4.0f), other = random_.normals(rows * stride);
      std::vector<float> ours = gate, theirs = gate;
      cuda_->activate_multiply(activation, ours.data(), other.data(), stride, rows, width);
      reference_->activate_multiply(activation, theirs.data(), other.data(), stride, rows, width);
      EXPECT_TRUE(close(ours, theirs, 1e-6f)) << width;
    }
  }
  const std::vector<float> x = random_.normals(50 * 700);
  const std::vector<std::int32_t> indices = {49, 0, 7, 7, 30};
  std::vector<float> ours(indices.size() * 700, -7e33f), theirs(ours.size());
  cuda_->gather_rows(x.data(), indices, 700, ours.data());
  reference_->gather_rows(x.data(), indices, 700, theirs.data());
  EXPECT_EQ(ours, theirs);
}

TEST_F(Cuda, LimitsArePlausible) {
  const auto limits = cuda_->measure_limits();
  ASSERT_TRUE(limits.ok()) << limits.error().message;
  EXPECT_GT(limits->read_bytes_per_second, 1e10);
  EXPECT_GT(limits->operations_per_second[static_cast<std::size_t>(Arithmetic::f32)], 1e11);
}

}  // namespace
}  // namespace millrace
