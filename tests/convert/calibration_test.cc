// Methods that go by a text: the algebra of GPTQ, what is seen of inputs, scales that change nothing by themselves.
#include "convert/calibration.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <numeric>
#include <random>

#include "backend/reference/reference_backend.h"
#include "convert/gptq.h"
#include "convert/grid_search.h"
#include "convert/input_scaling.h"
#include "convert/quantize.h"
#include "core/check.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

std::vector<float> normals(std::uint32_t seed, std::int64_t count, float deviation = 1.0f) {
  std::mt19937 engine(seed);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = std::normal_distribution<float>(0.0f, deviation)(engine);
  return values;
}

std::unique_ptr<ThreadPool> two_threads() {
  auto pool = ThreadPool::create(2);
  MILLRACE_CHECK(pool.ok(), "no threads");
  return std::move(*pool);
}

/// Inputs [rows, cols] that go together: each is a mixture of a few sources, of unlike sizes.
std::vector<float> correlated(std::uint32_t seed, std::int64_t rows, std::int64_t cols) {
  constexpr std::int64_t kSources = 12;
  const std::vector<float> mixing = normals(seed, kSources * cols), noise = normals(seed + 1, rows * cols, 0.3f),
                           sources = normals(seed + 2, rows * kSources);
  std::vector<float> x(static_cast<std::size_t>(rows * cols));
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t k = 0; k < cols; ++k) {
      float value = noise[static_cast<std::size_t>(r * cols + k)];
      for (std::int64_t s = 0; s < kSources; ++s) {
        value += sources[static_cast<std::size_t>(r * kSources + s)] * mixing[static_cast<std::size_t>(s * cols + k)];
      }
      x[static_cast<std::size_t>(r * cols + k)] = k % 17 == 0 ? 6.0f * value : value;
    }
  }
  return x;
}

std::vector<float> products_of(const std::vector<float>& x, std::int64_t cols) {
  std::vector<double> sums(static_cast<std::size_t>(cols * cols));
  const std::int64_t rows = static_cast<std::int64_t>(x.size()) / cols;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t i = 0; i < cols; ++i) {
      for (std::int64_t j = 0; j < cols; ++j) {
        sums[static_cast<std::size_t>(i * cols + j)] +=
            static_cast<double>(x[static_cast<std::size_t>(r * cols + i)]) * x[static_cast<std::size_t>(r * cols + j)];
      }
    }
  }
  std::vector<float> products;
  for (const double sum : sums) products.push_back(static_cast<float>(sum / static_cast<double>(rows)));
  return products;
}

/// The summed squares of x (w - coded)^T.
double output_error(const std::vector<float>& x, const std::vector<float>& weights, const CodedRows& coded) {
  double sum = 0.0;
  const std::int64_t cols = coded.cols;
  for (std::int64_t r = 0; r < static_cast<std::int64_t>(x.size()) / cols; ++r) {
    for (std::int64_t o = 0; o < coded.rows; ++o) {
      double change = 0.0;
      for (std::int64_t k = 0; k < cols; ++k) {
        change += static_cast<double>(x[static_cast<std::size_t>(r * cols + k)]) *
                  (weights[static_cast<std::size_t>(o * cols + k)] - coded.value(o, k));
      }
      sum += change * change;
    }
  }
  return sum;
}

TEST(Gptq, TheFactorIsThatOfTheInverse) {
  const auto pool = two_threads();
  for (const std::int64_t cols : {1, 7, 64, 150}) {
    const std::vector<float> products = products_of(correlated(3, 400, cols), cols);
    const auto factor = gptq_factor(products, cols, 0.01, *pool);
    ASSERT_TRUE(factor.ok()) << factor.error().message;
    const auto n = static_cast<std::size_t>(cols);
    double mean = 0.0;
    for (std::size_t i = 0; i < n; ++i) mean += products[i * n + i] / static_cast<double>(cols);
    for (std::size_t i = 1; i < n; ++i) {
      const auto at = [&](std::size_t k) { return static_cast<std::size_t>(factor->order[k]); };
      EXPECT_GE(products[at(i - 1) * n + at(i - 1)], products[at(i) * n + at(i)]);
    }
    // R H R^T = 1, since H^-1 = R^T R.
    const auto h = [&](std::size_t i, std::size_t j) {
      const double value =
          products[static_cast<std::size_t>(factor->order[i]) * n + static_cast<std::size_t>(factor->order[j])];
      return value + (i == j ? 0.01 * mean : 0.0);
    };
    std::vector<double> rh(n * n);
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = 0; j < n; ++j) {
        for (std::size_t k = i; k < n; ++k) rh[i * n + j] += factor->upper[i * n + k] * h(k, j);
      }
    }
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = 0; j < n; ++j) {
        double sum = 0.0;
        for (std::size_t k = j; k < n; ++k) sum += rh[i * n + k] * factor->upper[j * n + k];
        EXPECT_NEAR(sum, i == j ? 1.0 : 0.0, 2e-3) << cols << ' ' << i << ' ' << j;
      }
    }
  }
}

TEST(Gptq, InputsThatAreIndependentAreRoundedToNearest) {
  const auto pool = two_threads();
  constexpr std::int64_t kRows = 20, kCols = 96;
  std::vector<float> products(kCols * kCols);
  for (std::size_t k = 0; k < kCols; ++k) products[k * (kCols + 1)] = 1.0f + static_cast<float>(k % 5);
  const auto factor = gptq_factor(products, kCols, 0.01, *pool);
  ASSERT_TRUE(factor.ok());
  const std::vector<float> weights = normals(5, kRows * kCols);
  const CodeFormat format{CodeKind::int4, 32, false};
  const CodedRows nearest = round_to_nearest(format, ScaleType::f16, 1.0f, weights.data(), kRows, kCols, *pool);
  const CodedRows ours = gptq(format, ScaleType::f16, 1.0f, weights.data(), kRows, kCols, *factor, *pool);
  EXPECT_EQ(ours.codes, nearest.codes);
  EXPECT_EQ(ours.scales, nearest.scales);
}

TEST(Gptq, ChangesOutputsLessThanRoundingToNearest) {
  const auto pool = two_threads();
  constexpr std::int64_t kRows = 40, kCols = 256;
  const std::vector<float> x = correlated(7, 1000, kCols), other = correlated(7, 200, kCols),
                           weights = normals(8, kRows * kCols, 0.05f);
  const auto factor = gptq_factor(products_of(x, kCols), kCols, 0.01, *pool);
  ASSERT_TRUE(factor.ok());
  for (const CodeFormat& format : {CodeFormat{CodeKind::int4, 32, false}, CodeFormat{CodeKind::int4, 128, true},
                                   CodeFormat{CodeKind::e2m1, 16, true}, CodeFormat{}}) {
    const float unit = tensor_unit(format, 0.3f);
    const double nearest =
        output_error(x, weights, round_to_nearest(format, ScaleType::bf16, unit, weights.data(), kRows, kCols, *pool));
    const double ours =
        output_error(x, weights, gptq(format, ScaleType::bf16, unit, weights.data(), kRows, kCols, *factor, *pool));
    EXPECT_LT(ours, 0.5 * nearest) << code_format_name(format);
  }
}

TEST(Gptq, SaysWhereProductsAreNoProducts) {
  const auto pool = two_threads();
  const std::vector<float> indefinite = {1.0f, 5.0f, 5.0f, 1.0f};
  const auto factor = gptq_factor(indefinite, 2, 0.01, *pool);
  ASSERT_FALSE(factor.ok());
  EXPECT_NE(factor.error().message.find("not positive definite"), std::string::npos);
  EXPECT_TRUE(gptq_factor(std::vector<float>(9), 3, 0.01, *pool).ok());  // inputs that never were anything
}

TEST(InputScaling, ProtectsInputsThatAreLarge) {
  const auto pool = two_threads();
  constexpr std::int64_t kRows = 48, kCols = 128, kSample = 64;
  InputStatistics inputs{.cols = kCols, .rows = kSample};
  inputs.sample = correlated(11, kSample, kCols);
  inputs.sample_rows = kSample;
  inputs.mean_magnitude.resize(kCols);
  inputs.largest.resize(kCols);
  for (std::size_t i = 0; i < inputs.sample.size(); ++i) {
    const std::size_t k = i % kCols;
    const float size = std::fabs(inputs.sample[i]);
    inputs.mean_magnitude[k] += size / kSample;
    inputs.largest[k] = std::max(inputs.largest[k], size);
  }
  const std::vector<float> weights = normals(12, kRows * kCols, 0.05f);
  const std::vector<ScaledLayer> four{{{CodeKind::int4, 64, true}, ScaleType::f16, kRows, weights.data()}};
  const InputScaling awq = find_input_scaling(ScalingMethod::awq, four, kCols, inputs, *pool);
  ASSERT_FALSE(awq.scales.empty());
  EXPECT_LT(awq.gain, 0.95);
  const std::vector<ScaledLayer> eight{{{}, ScaleType::f16, kRows, weights.data()}};
  const InputScaling smooth = find_input_scaling(ScalingMethod::smoothquant, eight, kCols, inputs, *pool);
  ASSERT_FALSE(smooth.scales.empty());
  EXPECT_LT(smooth.gain, 0.95);
  EXPECT_GT(smooth.scales[0], smooth.scales[1]);  // input 0 is six times as large
}

/// Groups that have their products, and those that are longer than the sample and have the sample, against a plain sum.
TEST(GroupChanges, AreTheOutputsMeanSquares) {
  const auto pool = two_threads();
  constexpr std::int64_t kCols = 100, kSample = 40;
  const std::vector<float> x = correlated(31, kSample, kCols), changes = normals(32, kCols, 0.01f);
  for (const std::int64_t group : {16, 32, 64, 0}) {
    const GroupChanges outputs(x, kCols, group, *pool);
    const std::int64_t step = group == 0 ? kCols : group;
    for (std::int64_t first = 0; first < kCols; first += step) {
      const std::int64_t count = std::min(step, kCols - first);
      double together = 0.0, alone = 0.0;
      for (std::int64_t r = 0; r < kSample; ++r) {
        double output = 0.0;
        for (std::int64_t k = 0; k < count; ++k) {
          const double part = static_cast<double>(x[static_cast<std::size_t>(r * kCols + first + k)]) *
                              changes[static_cast<std::size_t>(k)];
          output += part;
          alone += part * part / kSample;
        }
        together += output * output / kSample;
      }
      // 16 rows of doubt beside the 40 of the sample.
      const double wanted = together * 40 / 56 + alone * 16 / 56;
      EXPECT_NEAR(outputs.error(first / step, changes.data()), wanted, 1e-4 * wanted) << group << ' ' << first;
    }
  }
}

/// Also on inputs that grids were not searched for, and without a choice that rests on nothing.
TEST(BestGrids, ChangeOutputsLessThanThoseOfTheWeights) {
  const auto pool = two_threads();
  constexpr std::int64_t kRows = 48, kCols = 128, kSample = 64;
  const std::vector<float> x = correlated(11, kSample, kCols), other = correlated(11, 4 * kSample, kCols),
                           weights = normals(12, kRows * kCols, 0.05f);
  for (const CodeFormat& format : {CodeFormat{CodeKind::int4, 32, false}, CodeFormat{CodeKind::int4, 64, true},
                                   CodeFormat{CodeKind::e2m1, 16, true}, CodeFormat{CodeKind::e2m1, 32, true},
                                   CodeFormat{}, CodeFormat{CodeKind::e4m3, 0, true}}) {
    const float unit = tensor_unit(format, 0.3f);
    const CodedRows nearest = round_to_nearest(format, ScaleType::bf16, unit, weights.data(), kRows, kCols, *pool);
    const GroupChanges outputs(x, kCols, format.group, *pool);
    const CodedRows best =
        round_to_best_grids(format, ScaleType::bf16, unit, weights.data(), kRows, kCols, outputs, *pool);
    EXPECT_LT(output_error(other, weights, best), 0.9 * output_error(other, weights, nearest))
        << code_format_name(format);
    const GroupChanges nothing(std::vector<float>(x.size()), kCols, format.group, *pool);
    const CodedRows same =
        round_to_best_grids(format, ScaleType::bf16, unit, weights.data(), kRows, kCols, nothing, *pool);
    EXPECT_EQ(same.codes, nearest.codes);
    EXPECT_EQ(same.scales, nearest.scales);
  }
}

TEST(WatchingBackend, SeesWhatLayersRead) {
  constexpr std::int64_t kHidden = 24, kWidth = 40, kRows = 700;
  WatchingBackend backend(
      make_reference_backend(), [](const std::string& layer) { return layer != "other"; }, true, 16);
  const std::vector<float> up = normals(1, 2 * kWidth * kHidden, 0.2f), down = normals(2, kHidden * kWidth, 0.2f),
                           x = normals(3, kRows * kHidden);
  const auto pack = [&](const std::vector<float>& values, std::int64_t rows, std::int64_t cols,
                        const std::string& layer) {
    auto matrix = backend.pack({{{.format = QuantFormat::f32,
                                  .data = reinterpret_cast<const std::byte*>(values.data()),
                                  .rows = rows,
                                  .cols = cols}},
                                {layer}},
                               {});
    MILLRACE_CHECK(matrix.ok(), "pack");
    return std::move(*matrix);
  };
  const auto gate_up = pack(up, 2 * kWidth, kHidden, "gate_up"), out = pack(down, kHidden, kWidth, "down"),
             other = pack(down, kHidden, kWidth, "other");
  std::vector<float> scratch(kRows * 2 * kWidth), result(x.size()), plain(x.size());
  const GatedFfn ffn{.gate_up = {gate_up.get()}, .down = {out.get()}};
  for (const auto& [first, rows] : {std::pair<std::int64_t, std::int64_t>{0, 500}, {500, 200}}) {
    backend.gated_ffn(ffn, x.data() + first * kHidden, rows, scratch.data(), result.data() + first * kHidden);
  }
  make_reference_backend()->gated_ffn(ffn, x.data(), kRows, scratch.data(), plain.data());
  for (std::size_t i = 0; i < plain.size(); ++i) EXPECT_NEAR(result[i], plain[i], 1e-5f);
  const auto statistics = backend.statistics();
  ASSERT_TRUE(statistics.ok());
  EXPECT_FALSE(statistics->contains("other"));
  const InputStatistics& seen = *statistics->at("gate_up");
  EXPECT_EQ(seen.rows, kRows);
  EXPECT_EQ(seen.sample_rows, 16);
  const std::vector<float> products = products_of(x, kHidden);
  for (std::size_t i = 0; i < products.size(); ++i) EXPECT_NEAR(seen.products[i], products[i], 1e-4f);
  for (std::size_t k = 0; k < kHidden; ++k) {
    float largest = 0.0f;
    for (std::size_t r = 0; r < kRows; ++r) largest = std::max(largest, std::fabs(x[r * kHidden + k]));
    EXPECT_EQ(seen.largest[k], largest);
  }
  EXPECT_EQ(statistics->at("down")->cols, kWidth);
  EXPECT_EQ(statistics->at("down")->rows, kRows);
}

/// Texts are read in windows: their first tokens must not be seen more often than others.
TEST(WatchingBackend, DrawsItsSampleFromAllPlacesOfAWindow) {
  constexpr std::int64_t kWindow = 256, kWindows = 64, kSample = 128;
  WatchingBackend backend(
      make_reference_backend(), [](const std::string&) { return true; }, false, kSample);
  const float one = 1.0f;
  auto matrix = backend.pack(
      {{{.format = QuantFormat::f32, .data = reinterpret_cast<const std::byte*>(&one), .rows = 1, .cols = 1}}, {"x"}},
      {});
  ASSERT_TRUE(matrix.ok());
  std::vector<float> places(kWindow), out(kWindow);
  std::iota(places.begin(), places.end(), 0.0f);
  for (int w = 0; w < kWindows; ++w) backend.linear({matrix->get()}, places.data(), kWindow, out.data(), 1);
  const auto statistics = backend.statistics();
  ASSERT_TRUE(statistics.ok());
  const InputStatistics& seen = *statistics->at("x");
  ASSERT_EQ(seen.sample_rows, kSample);
  std::map<float, int> times;
  double sum = 0.0;
  for (const float place : seen.sample) {
    ++times[place];
    sum += place / kSample;
  }
  // Of a uniform sample: 128 of 256 places are some 100 different ones, and their mean is 127.5 with a deviation
  // of 6.5.
  EXPECT_GT(times.size(), 80u);
  EXPECT_NEAR(sum, 127.5, 20.0);
}

class Calibrated : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::temp_directory_path() / ("millrace_calibrated_" + std::to_string(::getpid()));
    fs::remove_all(directory_);
    fs::create_directories(directory_);
    std::ofstream text(directory_ / "text.txt");
    std::ifstream source(fs::path(MILLRACE_SOURCE_DIR) / "README.md");
    text << source.rdbuf();
  }
  void TearDown() override { fs::remove_all(directory_); }

  Result<QuantizeReport> quantize(const std::string& name, RoundingMethod method, const std::string& format,
                                  std::uint64_t memory = 0) const {
    QuantizeOptions options;
    options.model = fs::path(MILLRACE_SOURCE_DIR) / "models/millrace-tiny";
    options.output = directory_ / name;
    options.recipe.default_weights = code_format_from_name(format);
    options.method = method;
    options.text = {.file = directory_ / "text.txt", .tokens = 1000};
    options.memory = memory;
    options.threads = 2;
    return quantize_checkpoint(options);
  }
  static double mean_output_error(const QuantizeReport& report) {
    double sum = 0.0;
    for (const LayerReport& layer : report.layers) sum += layer.output_error.value_or(1e9);
    return sum / static_cast<double>(report.layers.size());
  }

  fs::path directory_;
};

TEST_F(Calibrated, EachMethodIsBetterThanRoundingToNearest) {
  const auto nearest = quantize("rtn", RoundingMethod::nearest, "int4.g64"),
             gptq = quantize("gptq", RoundingMethod::gptq, "int4.g64"),
             awq = quantize("awq", RoundingMethod::awq, "int4.g64");
  ASSERT_TRUE(nearest.ok() && gptq.ok() && awq.ok());
  EXPECT_LT(mean_output_error(*gptq), 0.75 * mean_output_error(*nearest));
  EXPECT_LT(mean_output_error(*awq), 0.95 * mean_output_error(*nearest));
  EXPECT_GT(awq->scaled, 0);
  for (const char* name : {"rtn", "gptq", "awq"}) EXPECT_TRUE(Checkpoint::open(directory_ / name).ok());
}

TEST_F(Calibrated, AwqHelpsUnequalStepsToo) {
  for (const char* format : {"nvfp4", "mxfp4"}) {
    const auto nearest = quantize(std::string("rtn-") + format, RoundingMethod::nearest, format),
               awq = quantize(std::string("awq-") + format, RoundingMethod::awq, format);
    ASSERT_TRUE(nearest.ok() && awq.ok());
    EXPECT_LT(mean_output_error(*awq), 0.95 * mean_output_error(*nearest)) << format;
  }
}

/// Running the text for a layer or two at a time must give what running it once does.
TEST_F(Calibrated, StagesDoNotShow) {
  ASSERT_TRUE(quantize("whole", RoundingMethod::gptq, "int4.g32").ok());
  ASSERT_TRUE(quantize("stages", RoundingMethod::gptq, "int4.g32", 1).ok());
  const auto whole = Checkpoint::open(directory_ / "whole"), stages = Checkpoint::open(directory_ / "stages");
  ASSERT_TRUE(whole.ok() && stages.ok());
  for (const auto& [name, tensor] : whole->tensors()) {
    const StoredTensor* other = stages->find(name);
    ASSERT_NE(other, nullptr);
    EXPECT_TRUE(std::ranges::equal(tensor.data, other->data)) << name;
    for (std::size_t p = 0; p < tensor.parts.size(); ++p) {
      EXPECT_TRUE(std::ranges::equal(tensor.parts[p], other->parts[p])) << name;
    }
  }
}

/// The product of what makes the inputs and of what reads them stays what it was.
TEST_F(Calibrated, ScalesChangeNothingByThemselves) {
  const auto checkpoint = Checkpoint::open(fs::path(MILLRACE_SOURCE_DIR) / "models/millrace-tiny");
  ASSERT_TRUE(checkpoint.ok());
  const auto layers = LinearLayers::of(*checkpoint);
  ASSERT_TRUE(layers.ok());
  const auto pool = two_threads();
  TensorReader before(*checkpoint, layers->names(), *pool), after(*checkpoint, layers->names(), *pool);
  std::vector<RoundedLayer> rounded;
  std::set<std::string> names;
  for (const std::string& layer : layers->all()) {
    if (layer == "lm_head") continue;
    rounded.push_back({layer + ".weight", layer, {CodeKind::int4, 64, false}, ScaleType::bf16});
    names.insert(layer);
  }
  const auto statistics = look_at_inputs(fs::path(MILLRACE_SOURCE_DIR) / "models/millrace-tiny", 2,
                                         {directory_ / "text.txt", 600}, names, false, {});
  ASSERT_TRUE(statistics.ok()) << statistics.error().message;
  EXPECT_GT(scale_inputs(RoundingMethod::awq, *layers, *checkpoint, rounded, *statistics, after, *pool), 3);
  const auto read = [&](const TensorReader& reader, const std::string& name) {
    return reader.read(*checkpoint->find(name));
  };
  const auto expect_same = [](float a, float b) { EXPECT_NEAR(a, b, 2e-6f * std::fabs(b)); };
  for (const auto& [norm, reader] :
       {std::pair{"model.layers.1.input_layernorm.weight", "model.layers.1.self_attn.k_proj.weight"},
        {"model.layers.1.post_attention_layernorm.weight", "model.layers.1.mlp.gate_proj.weight"}}) {
    const std::vector<float> n0 = read(before, norm), n1 = read(after, norm), w0 = read(before, reader),
                             w1 = read(after, reader);
    EXPECT_NE(n0, n1);
    for (std::size_t k = 0; k < n0.size(); ++k) expect_same(n1[k] * w1[k], n0[k] * w0[k]);
  }
  // Input k of the down projection is made by row k of the up projection, whose columns are scaled too.
  const std::string up = "model.layers.1.mlp.up_proj.weight", down = "model.layers.1.mlp.down_proj.weight";
  const std::vector<float> u0 = read(before, up), u1 = read(after, up), d0 = read(before, down), d1 = read(after, down);
  const float column = after.column_factors(up) != nullptr ? after.column_factors(up)->front() : 1.0f;
  const auto width = static_cast<std::size_t>(checkpoint->find(up)->shape[1]);
  EXPECT_NE(d0, d1);
  for (std::size_t k = 0; k * width < u0.size(); ++k)
    expect_same(u1[k * width] / column * d1[k], u0[k * width] * d0[k]);
}

TEST_F(Calibrated, WhatCannotBeDoneIsSaid) {
  QuantizeOptions options;
  options.model = fs::path(MILLRACE_SOURCE_DIR) / "models/millrace-tiny";
  options.output = directory_ / "out";
  options.recipe.default_weights = code_format_from_name("int4.g64");
  options.method = RoundingMethod::gptq;
  const auto expect = [&](const std::string& words) {
    const auto report = quantize_checkpoint(options);
    ASSERT_FALSE(report.ok());
    EXPECT_NE(report.error().message.find(words), std::string::npos) << report.error().message;
  };
  expect("name one");
  options.text.file = directory_ / "missing.txt";
  expect("missing.txt");
  options.method = RoundingMethod::smoothquant;
  expect("SmoothQuant is for formats that round inputs");
}

}  // namespace
}  // namespace millrace
