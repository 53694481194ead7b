// Whole checkpoints: what is written is read back as what was meant, and a call that was stopped is gone on with.
#include "convert/quantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "backend/matrix_source.h"
#include "convert/code_grid.h"
#include "convert/linear_layers.h"
#include "core/check.h"
#include "core/mapped_file.h"
#include "model/checkpoint/checkpoint.h"
#include "model/weight_builder.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

const fs::path kModel = fs::path(MILLRACE_SOURCE_DIR) / "models/millrace-tiny";

class Quantize : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::temp_directory_path() / ("millrace_quantize_" + std::to_string(::getpid()));
    fs::remove_all(directory_);
    fs::create_directories(directory_);
  }
  void TearDown() override { fs::remove_all(directory_); }

  [[nodiscard]] QuantizeOptions options(const std::string& name, const std::string& weights) const {
    auto recipe = parse_recipe(R"({"millrace_recipe": 1, "weights": )" + weights + "}", "recipe");
    MILLRACE_CHECK(recipe.ok(), "{}", recipe.error().message);
    return {.model = kModel, .output = directory_ / name, .recipe = std::move(*recipe), .threads = 2, .progress = {}};
  }
  static std::string error_of(const QuantizeOptions& options) {
    const auto report = quantize_checkpoint(options);
    return report.ok() ? "" : report.error().message;
  }

  fs::path directory_;
};

std::vector<float> rows_of(const StoredTensor& tensor) {
  const MatrixSource source{{WeightBuilder::piece({tensor, {}}, tensor.shape[0], tensor.shape[1], {})}};
  std::vector<float> values(static_cast<std::size_t>(tensor.elements()));
  for (std::int64_t r = 0; r < tensor.shape[0]; ++r) read_row(source, r, values.data() + r * tensor.shape[1]);
  return values;
}

TEST_F(Quantize, IsReadBackAsWhatWasRounded) {
  const auto original = Checkpoint::open(kModel);
  ASSERT_TRUE(original.ok());
  const auto pool = ThreadPool::create(2);
  for (const char* name : {"int8", "int4.g64", "int4.g32.sym", "nvfp4", "mxfp4", "fp8_e4m3", "int8.a16"}) {
    SCOPED_TRACE(name);
    const CodeFormat format = *code_format_from_name(name);
    const auto report = quantize_checkpoint(options(name, fmt::format(R"({{"default": "{}"}})", name)));
    ASSERT_TRUE(report.ok()) << report.error().message;
    const auto written = Checkpoint::open(directory_ / name);
    ASSERT_TRUE(written.ok()) << written.error().message;
    std::size_t coded = 0;
    for (const auto& [tensor_name, tensor] : original->tensors()) {
      const StoredTensor* found = written->find(tensor_name);
      ASSERT_NE(found, nullptr) << tensor_name;
      if (!found->coded) {
        EXPECT_TRUE(std::ranges::equal(found->data, tensor.data)) << tensor_name;
        continue;
      }
      ++coded;
      const std::vector<float> weights = rows_of(tensor), read = rows_of(*found);
      float largest = 0.0f;
      for (const float weight : weights) largest = std::max(largest, std::fabs(weight));
      const ScaleType type = tensor.format == QuantFormat::f32    ? ScaleType::f32
                             : tensor.format == QuantFormat::bf16 ? ScaleType::bf16
                                                                  : ScaleType::f16;
      const CodedRows expected = round_to_nearest(format, type, tensor_unit(format, largest), weights.data(),
                                                  tensor.shape[0], tensor.shape[1], **pool);
      for (std::int64_t i = 0; i < tensor.elements(); ++i) {
        const float value = expected.value(i / tensor.shape[1], i % tensor.shape[1]);
        ASSERT_NEAR(read[static_cast<std::size_t>(i)], value, 1e-6f * std::fabs(value)) << tensor_name << ' ' << i;
      }
      EXPECT_EQ(found->coded->byte_inputs, std::string(name) == "int8") << tensor_name;
    }
    EXPECT_EQ(coded, report->layers.size());
    EXPECT_GE(coded, 7u);
    for (const LayerReport& layer : report->layers) {
      EXPECT_GT(layer.error, 0.0);
      EXPECT_LT(layer.error, format.four_bits() ? 0.2 : 0.04) << layer.layer;
    }
    EXPECT_TRUE(fs::exists(directory_ / name / "tokenizer.json"));
    EXPECT_EQ(written->config()["quantization_config"]["quant_method"], "compressed-tensors");
  }
}

TEST_F(Quantize, LayersHaveTheFormatsOfTheRecipe) {
  const auto report = quantize_checkpoint(
      options("mixed", R"({"default": "int8", "*.down_proj": "int4.g32", "model.layers.0.*": "stored"})"));
  ASSERT_TRUE(report.ok()) << report.error().message;
  const auto written = Checkpoint::open(directory_ / "mixed");
  ASSERT_TRUE(written.ok());
  EXPECT_FALSE(written->find("model.layers.0.mlp.down_proj.weight")->coded);
  EXPECT_EQ(written->find("model.layers.1.mlp.down_proj.weight")->coded->kind, CodeKind::int4);
  EXPECT_EQ(written->find("model.layers.1.mlp.up_proj.weight")->coded->kind, CodeKind::int8);
  const nlohmann::json& config = written->config()["quantization_config"];
  EXPECT_EQ(config["config_groups"].size(), 2u);
  EXPECT_EQ(config["format"], "mixed-precision");
  EXPECT_EQ(std::ranges::count(config["ignore"], "model.layers.0.mlp.up_proj"), 1);
}

TEST_F(Quantize, GoesOnWhereItWasStopped) {
  QuantizeOptions whole = options("whole", R"({"default": "int4.g32"})");
  const fs::path half = directory_ / "half";
  // A copy of what is on disk in the middle is what a killed process leaves.
  whole.progress = [&](std::uint64_t done, std::uint64_t total) {
    if (done < total / 2 || fs::exists(half)) return;
    fs::create_directory(half);
    for (const char* file : {"model.safetensors.part", "model.safetensors.journal"}) {
      fs::copy_file(whole.output / file, half / file);
    }
  };
  const auto first = quantize_checkpoint(whole);
  ASSERT_TRUE(first.ok()) << first.error().message;
  EXPECT_EQ(first->resumed, 0u);
  const auto second = quantize_checkpoint(options("half", R"({"default": "int4.g32"})"));
  ASSERT_TRUE(second.ok()) << second.error().message;
  EXPECT_GT(second->resumed, 0u);
  ASSERT_EQ(second->layers.size(), first->layers.size());
  for (std::size_t i = 0; i < first->layers.size(); ++i) EXPECT_EQ(second->layers[i].error, first->layers[i].error);
  for (const char* file : {"model.safetensors", "config.json", "tokenizer.json"}) {
    const auto a = MappedFile::open(whole.output / file), b = MappedFile::open(half / file);
    ASSERT_TRUE(a.ok() && b.ok());
    EXPECT_TRUE(std::ranges::equal(a->bytes(), b->bytes())) << file;
  }
}

TEST_F(Quantize, WhatCannotBeDoneIsSaid) {
  const auto expect = [](const std::string& message, const std::string& words) {
    EXPECT_NE(message.find(words), std::string::npos) << words << " in: " << message;
  };
  expect(error_of(options("none", R"({"default": "stored"})")), "leaves all layers");
  expect(error_of(options("pattern", R"({"*.nothing": "int8"})")), "matches no linear layer");
  QuantizeOptions narrow = options("narrow", R"({"default": "int4.g128"})");
  narrow.model = fs::path(MILLRACE_SOURCE_DIR) / "models/stories260K";
  expect(error_of(narrow), "which groups of 128 do not divide");
  ASSERT_EQ(error_of(options("once", R"({"default": "int8"})")), "");
  expect(error_of(options("once", R"({"default": "int8"})")), "is not empty");
  QuantizeOptions again = options("again", R"({"default": "int8"})");
  again.model = directory_ / "once";
  expect(error_of(again), "is quantised already");
  std::ofstream(directory_ / "file") << "x";
  expect(error_of(options("file", R"({"default": "int8"})")), "cannot make the directory");
}

}  // namespace
}  // namespace millrace
