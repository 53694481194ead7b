// Everything of the CPU backend that is neither attention nor a plain matrix product: against the reference backend,
// and identical for a row alone and in a batch, with one thread and with several.

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>

#include "backend/cpu_test_util.h"
#include "backend/reference/reference_backend.h"
#include "backend/rows_world.h"
#include "core/float16.h"

namespace millrace {
namespace {

class CpuRows : public CpuLevelTest {
 protected:
  const std::unique_ptr<Backend> reference_ = make_reference_backend();
};

TEST_P(CpuRows, ResidualNorm) {
  Random random(31);
  for (const std::int64_t width : {1, 15, 16, 17, 64, 100, 576, 1030}) {
    for (const std::int64_t rows : {1, 2, 9, 33}) {
      for (int variant = 0; variant < 16; ++variant) {
        const std::vector<float> h = random.normals(rows * width), delta = random.normals(rows * width),
                                 norm = random.normals(width), delta_norm = random.normals(width);
        const auto run = [&](Backend& backend, std::int64_t first, std::int64_t count) {
          std::vector<float> state = part(h, first * width, count * width), out(state.size());
          ResidualNormArgs args{.rows = count, .width = width, .h = state.data(), .eps = 1e-5f};
          const bool in_place = variant == 15;
          if ((variant & 1) != 0) args.delta = delta.data() + first * width;
          if ((variant & 3) == 3) args.delta_norm = delta_norm.data();
          if ((variant & 4) != 0) args.h_scale = 0.7f;
          args.delta_scale = (variant & 8) != 0 ? 1.3f : 1.0f;
          args.norm = (variant & 2) != 0 ? norm.data() : nullptr;
          args.out = in_place ? state.data() : out.data();
          backend.residual_norm(args);
          out.insert(out.end(), state.begin(), state.end());
          return out;
        };
        const auto one = cpu_backend(GetParam(), 1);
        const std::vector<float> together = run(*one, 0, rows);
        EXPECT_TRUE(close(together, run(*reference_, 0, rows), 2e-6f)) << width << " " << rows << " " << variant;
        if (rows == 33) {
          EXPECT_TRUE(identical(run(*cpu_backend(GetParam(), 2), 0, rows), together));
        }
        const std::vector<float> last = run(*one, rows - 1, 1);
        EXPECT_TRUE(identical(part(last, 0, width), part(together, (rows - 1) * width, width)));
        EXPECT_TRUE(identical(part(last, width, width), part(together, (2 * rows - 1) * width, width)));
      }
    }
  }
}

/// Codes are those of the codec for the keys and values that the row of qkv holds after the call: the same at every
/// level and from the reference, where the numbers before are.
TEST_P(CpuRows, RopeStoreInCodes) {
  for (const KvFormat format : kKvFormats) {
    if (kv_element_bytes(format) > 1) continue;
    for (const auto& [head_dim, page_tokens] : {std::pair{16, 16}, {64, 4}, {20, 3}, {6, 16}, {128, 32}, {11, 16}}) {
      // Nothing is turned or normalised, so that all levels have the same numbers to round.
      const RopeCase c{
          .head_dim = head_dim, .rotary_dim = 2, .page_tokens = page_tokens, .rotate = false, .format = format};
      const auto expected = run_rope(*reference_, c, 33), actual = run_rope(*cpu_backend(GetParam(), 1), c, 33);
      EXPECT_EQ(actual.second, expected.second) << kv_format_name(format) << ' ' << head_dim << ' ' << page_tokens;
      EXPECT_EQ(run_rope(*cpu_backend(GetParam(), 2), c, 33).second, actual.second);
    }
  }
}

/// Where a page has become full its keys have bounds, in both backends the same: page 6 (positions 0 to 3) and page 1
/// (4 to 7, of which an earlier step stored two), and no other.
TEST_P(CpuRows, RopeStoreKeepsBounds) {
  for (const KvFormat format : kKvFormats) {
    for (const std::int32_t head_dim : {16, 64, 20, 11}) {
      const RopeCase c{.head_dim = head_dim,
                       .rotary_dim = 2,
                       .page_tokens = 4,
                       .rotate = false,
                       .key_bounds = true,
                       .format = format};
      RopeCase without = c;
      without.key_bounds = false;
      const std::vector<std::byte> expected = run_rope(*reference_, c, 35).second,
                                   actual = run_rope(*cpu_backend(GetParam(), 1), c, 35).second;
      EXPECT_EQ(actual, expected) << kv_format_name(format) << ' ' << head_dim;
      EXPECT_EQ(run_rope(*cpu_backend(GetParam(), 2), c, 35).second, actual);
      const std::size_t pages = run_rope(*reference_, without, 35).second.size(), bytes = (actual.size() - pages) / 8;
      for (std::size_t page = 0; page < 8; ++page) {
        const std::byte* bounds = actual.data() + pages + page * bytes;
        const bool kept = std::any_of(bounds, bounds + bytes, [](std::byte b) { return b != std::byte{0x3a}; });
        EXPECT_EQ(kept, page == 6 || page == 1) << kv_format_name(format) << ", page " << page;
      }
    }
  }
}

/// Numbers near the least and the largest code, and beyond.
TEST_P(CpuRows, RopeStoreOfAnySize) {
  for (const KvFormat format : kKvFormats) {
    if (kv_element_bytes(format) > 1) continue;
    for (const float deviation : {1e-5f, 0.01f, 200.0f, 4e4f, 1e30f}) {
      RopeCase c{.kv_heads = 4, .rotary_dim = 2, .rotate = false, .format = format, .deviation = deviation};
      if (kv_scales(format) == 0) {  // the queries, and then keys of three heads
        constexpr float kInfinity = std::numeric_limits<float>::infinity();
        constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
        c.first.assign(64, 0.0f);
        for (const float number :
             {kInfinity, kNan, 448.0f, 464.0f, 465.0f, 480.0f, 57344.0f, 61439.0f, 61440.0f, 65536.0f, 3e38f, 0x1p-9f,
              0x1p-10f, 0x1.8p-10f, 0x1p-16f, 0x1p-17f, 0x1.8p-17f, 1e-45f, 0.0f}) {
          c.first.push_back(number);
          c.first.push_back(-number);
        }
      }
      EXPECT_EQ(run_rope(*cpu_backend(GetParam(), 1), c, 34).second, run_rope(*reference_, c, 34).second)
          << kv_format_name(format) << ' ' << deviation;
    }
  }
}

TEST_P(CpuRows, RopeStore) {
  std::vector<RopeCase> cases(11);
  cases[1] = {.head_dim = 64, .rotary_dim = 64, .norm = NormScope::per_head, .format = KvFormat::bf16};
  cases[2] = {.head_dim = 20, .rotary_dim = 20, .page_tokens = 3, .norm = NormScope::all_heads};
  cases[3] = {.head_dim = 80, .rotary_dim = 32, .value_norm = true, .format = KvFormat::bf16};
  cases[4] = {.value_is_key = true, .norm = NormScope::per_head};
  cases[5] = {.value_is_key = true, .value_norm = true, .norm = NormScope::per_head};
  cases[6] = {.store = false, .norm = NormScope::per_head};
  cases[7] = {.head_dim = 6, .rotary_dim = 2, .q_scale = true, .format = KvFormat::bf16};
  cases[8] = {.rotate = false, .norm = NormScope::all_heads};
  cases[9] = {.heads = 3, .kv_heads = 1, .head_dim = 128, .rotary_dim = 96};
  cases[10] = {.heads = 8, .kv_heads = 8, .head_dim = 64, .rotary_dim = 64, .q_scale = true};
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const auto expected = run_rope(*reference_, cases[i], 32);
    const auto actual = run_rope(*cpu_backend(GetParam(), 1), cases[i], 32);
    EXPECT_TRUE(close(actual.first, expected.first, 2e-6f)) << i;
    // A bfloat16 may round to the other neighbour where the float before it is off by one.
    const float tolerance = cases[i].format == KvFormat::f32 ? 2e-6f : 4e-3f;
    EXPECT_TRUE(
        close(kv_floats(actual.second, cases[i].format), kv_floats(expected.second, cases[i].format), tolerance))
        << i;
    const auto threaded = run_rope(*cpu_backend(GetParam(), 2), cases[i], 32);
    EXPECT_TRUE(identical(threaded.first, actual.first)) << i;
    EXPECT_EQ(threaded.second, actual.second) << i;
  }
}

TEST_P(CpuRows, GatedFfn) {
  Random random(33);
  // A multiple of the panel (gate and up are activated in the task that computes them) and not.
  for (const std::int64_t intermediate : {48, 50, 144}) {
    Ffn weights(random, 40, intermediate);
    for (const Activation activation : kActivations) {
      for (const bool bias : {false, true}) {
        const std::vector<float> x = random.normals(33 * 40);
        const GatedFfn on_reference = weights.on(*reference_, activation, bias);
        const std::vector<float> expected = run_ffn(*reference_, on_reference, x, 33);
        const auto one = cpu_backend(GetParam(), 1), two = cpu_backend(GetParam(), 2);
        const GatedFfn ffn = weights.on(*one, activation, bias);
        const std::vector<float> together = run_ffn(*one, ffn, x, 33);
        EXPECT_TRUE(close(together, expected, 5e-6f)) << intermediate << " " << static_cast<int>(activation);
        EXPECT_TRUE(identical(run_ffn(*two, ffn, x, 33), together));
        for (const std::int64_t rows : {1, 2, 7}) {
          EXPECT_TRUE(
              identical(run_ffn(*one, ffn, part(x, 3 * 40, rows * 40), rows), part(together, 3 * 40, rows * 40)));
        }
      }
    }
  }
}

// Gate and up in pieces of two formats, whose panels fall together or not: the same numbers as in one piece.
TEST_P(CpuRows, GatedFfnInPieces) {
  Random random(39);
  constexpr std::int64_t kWidth = 40;
  const auto backend = cpu_backend(GetParam(), 2);
  for (const std::int64_t intermediate : {200, 208}) {
    const std::vector<float> x = random.normals(9 * kWidth);
    std::vector<float> values = random.normals(2 * intermediate * kWidth);
    std::vector<std::uint16_t> rounded;
    for (float& value : values) {
      rounded.push_back(float_to_bf16(value));
      value = bf16_to_float(rounded.back());
    }
    Ffn weights(random, kWidth, intermediate);
    weights.gate_up = values;
    GatedFfn ffn = weights.on(*backend, Activation::silu, true);
    const std::vector<float> expected = run_ffn(*backend, ffn, x, 9);
    for (const std::vector<std::int64_t>& cuts : {std::vector<std::int64_t>{intermediate},
                                                  {8, intermediate},
                                                  {8, 192, intermediate},
                                                  {16, intermediate, intermediate + 16},
                                                  {8, intermediate, intermediate + 8},
                                                  {32, intermediate + 8},
                                                  {40, 360},
                                                  {intermediate, intermediate + 8},
                                                  {192, 384}}) {
      MatrixSource source;
      std::int64_t begin = 0;
      for (std::size_t i = 0; begin < 2 * intermediate; ++i) {
        const std::int64_t end = i < cuts.size() ? cuts[i] : 2 * intermediate;
        const auto* plain = reinterpret_cast<const std::byte*>(values.data() + begin * kWidth);
        const auto* half = reinterpret_cast<const std::byte*>(rounded.data() + begin * kWidth);
        source.pieces.push_back({i % 2 == 0 ? QuantFormat::f32 : QuantFormat::bf16,
                                 i % 2 == 0 ? plain : half,
                                 end - begin,
                                 kWidth,
                                 0,
                                 0,
                                 {}});
        begin = end;
      }
      auto pieces = backend->pack(source, {});
      ASSERT_TRUE(pieces.ok());
      ffn.gate_up.weight = pieces->get();
      SCOPED_TRACE(fmt::format("{} outputs, {} pieces from {}", intermediate, source.pieces.size(), cuts[0]));
      EXPECT_TRUE(identical(run_ffn(*backend, ffn, x, 9), expected));
      EXPECT_TRUE(identical(run_ffn(*backend, ffn, part(x, 0, kWidth), 1), part(expected, 0, kWidth)));
    }
  }
}

TEST_P(CpuRows, GatedFfnInBf16) {
  Random random(34);
  Ffn weights(random, 64, 96);
  const std::vector<float> x = random.normals(20 * 64);
  const GatedFfn on_reference = weights.on(*reference_, Activation::silu, true, {DType::bf16});
  const std::vector<float> expected = run_ffn(*reference_, on_reference, x, 20);
  const auto backend = cpu_backend(GetParam(), 2);
  const GatedFfn ffn = weights.on(*backend, Activation::silu, true, {DType::bf16});
  // The intermediate is rounded too, and may round to the other neighbour: 2^-9 of one of 96 terms.
  EXPECT_TRUE(close(run_ffn(*backend, ffn, x, 20), expected, 1e-3f));
}

TEST_P(CpuRows, Moe) {
  Random random(35);
  constexpr std::int64_t kWidth = 24;
  for (const int experts : {1, 5, 20}) {
    std::vector<Ffn> weights;
    for (int e = 0; e < experts; ++e) weights.emplace_back(random, kWidth, 32 + 2 * (e % 3));
    std::vector<float> router = random.normals(experts * kWidth);
    // Two experts with the same logits always: the lower one must win.
    if (experts > 2) std::copy_n(router.begin() + kWidth, kWidth, router.begin() + 2 * kWidth);
    std::vector<float> router_bias = random.normals(experts);
    if (experts > 2) router_bias[2] = router_bias[1];
    const std::vector<float> expert_scale = random.normals(experts);
    const std::vector<float> x = random.normals(40 * kWidth), router_x = random.normals(40 * kWidth);
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
          for (Ffn& ffn : weights) all.push_back(ffn.on(backend, Activation::silu, true));
          return all;
        };
        const std::vector<float> expected =
            run_moe(*reference_, args, router, router_bias, router_x, x, kWidth, on(*reference_));
        const auto one = cpu_backend(GetParam(), 1), two = cpu_backend(GetParam(), 2);
        const std::vector<GatedFfn> all = on(*one);
        const std::vector<float> together = run_moe(*one, args, router, router_bias, router_x, x, kWidth, all);
        EXPECT_TRUE(close(together, expected, 5e-6f)) << experts << " experts, top " << top_k;
        EXPECT_TRUE(identical(run_moe(*two, args, router, router_bias, router_x, x, kWidth, all), together));
        for (const std::int64_t rows : {1, 2, 17}) {
          EXPECT_TRUE(identical(run_moe(*one, args, router, router_bias, part(router_x, 4 * kWidth, rows * kWidth),
                                        part(x, 4 * kWidth, rows * kWidth), kWidth, all),
                                part(together, 4 * kWidth, rows * kWidth)));
        }
      }
    }
  }
}

TEST_P(CpuRows, Elementwise) {
  Random random(36);
  const auto one = cpu_backend(GetParam(), 1), two = cpu_backend(GetParam(), 2);
  for (const std::int64_t count : {1, 16, 31, 1000, 70001}) {
    const std::vector<float> x = random.normals(count, 3.0f), y = random.normals(count);
    const std::function<std::vector<float>(Backend&)> operations[] = {
        [&](Backend& backend) {
          std::vector<float> out(x.size());
          backend.combine(0.3f, x.data(), 1.7f, y.data(), out.data(), count);
          return out;
        },
        [&](Backend& backend) {
          std::vector<float> out = x;
          backend.combine(0.3f, out.data(), 1.7f, nullptr, out.data(), count);
          return out;
        },
        [&](Backend& backend) {
          std::vector<float> out = y;
          backend.combine(1.0f, x.data(), -1.0f, out.data(), out.data(), count);
          return out;
        },
        [&](Backend& backend) {
          std::vector<float> out = x;
          backend.scale_softcap(out.data(), count, 0.25f, 0.0f);
          return out;
        },
        [&](Backend& backend) {
          std::vector<float> out = x;
          backend.scale_softcap(out.data(), count, 2.5f, 4.0f);
          return out;
        }};
    for (std::size_t i = 0; i < std::size(operations); ++i) {
      const std::vector<float> alone = operations[i](*one);
      EXPECT_TRUE(close(alone, operations[i](*reference_), 1e-6f)) << count << " operation " << i;
      EXPECT_TRUE(identical(operations[i](*two), alone)) << count << " operation " << i;
    }
  }
}

TEST_P(CpuRows, ActivateMultiply) {
  Random random(37);
  for (const Activation activation : {Activation::silu, Activation::gelu_tanh, Activation::gelu_erf}) {
    for (const std::int64_t width : {3, 16, 260}) {
      const std::int64_t rows = 40, stride = width + 5;
      const std::vector<float> gate = random.normals(rows * width, 4.0f), other = random.normals(rows * stride);
      const auto run = [&](Backend& backend) {
        std::vector<float> out = gate;
        backend.activate_multiply(activation, out.data(), other.data(), stride, rows, width);
        return out;
      };
      const std::vector<float> alone = run(*cpu_backend(GetParam(), 1));
      EXPECT_TRUE(close(alone, run(*reference_), 1e-6f)) << width;
      EXPECT_TRUE(identical(run(*cpu_backend(GetParam(), 2)), alone)) << width;
    }
  }
}

TEST_P(CpuRows, GatherRows) {
  Random random(38);
  const std::vector<float> x = random.normals(50 * 700);
  const std::vector<std::int32_t> indices = {49, 0, 7, 7, 30};
  std::vector<float> out(indices.size() * 700), expected(out.size());
  cpu_backend(GetParam(), 2)->gather_rows(x.data(), indices, 700, out.data());
  reference_->gather_rows(x.data(), indices, 700, expected.data());
  EXPECT_EQ(out, expected);
}

MILLRACE_ON_EACH_LEVEL(CpuRows);

}  // namespace
}  // namespace millrace
