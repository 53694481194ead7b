#include "model/weight_builder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <optional>

#include "backend/reference/reference_backend.h"
#include "checkpoint/file_builders.h"
#include "model/weight_loader.h"

namespace millrace {
namespace {

TEST(HalfSplitOrder, PutsNeighboursHalfARotationApart) {
  EXPECT_EQ(half_split_order(1, 4, 4), (std::vector<std::int32_t>{0, 2, 1, 3}));
  EXPECT_EQ(half_split_order(2, 4, 2), (std::vector<std::int32_t>{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(half_split_order(1, 6, 4), (std::vector<std::int32_t>{0, 2, 1, 3, 4, 5}));
  EXPECT_TRUE(half_split_order(3, 4, 0).empty());
  std::vector<std::int32_t> order = half_split_order(3, 10, 8);
  std::sort(order.begin(), order.end());
  std::vector<std::int32_t> all(30);
  std::iota(all.begin(), all.end(), 0);
  EXPECT_EQ(order, all);
}

nlohmann::json tiny() {
  return {{"dtype", "bfloat16"}};
}

ModelConfig tiny_model() {
  ModelConfig config;
  config.hidden = 16;
  config.vocab = 10;
  config.ropes.push_back({.rotary_dim = 4});
  LayerSpec layer;
  layer.attention = {.heads = 4, .kv_heads = 2, .head_dim = 4, .scale = 0.5f, .rope = 0};
  layer.intermediate = 24;
  config.layers.assign(3, layer);
  return config;
}

TEST(WeightLoader, MeasuresExactlyWhatItPacks) {
  const auto backend = make_reference_backend();
  const auto source = TensorSource::dummy(tiny());
  ASSERT_TRUE(source.ok());
  const ModelConfig config = tiny_model();
  const TensorNames names;
  WeightLoader loader(config, names, *source, *backend, LinearFormat{});
  const auto measured = loader.measure();
  ASSERT_TRUE(measured.ok()) << measured.error().message;
  std::uint64_t last = 0, total = 0;
  const auto weights = loader.load(*measured, [&](std::uint64_t done, std::uint64_t of) {
    EXPECT_GE(done, last);
    last = done;
    total = of;
  });
  ASSERT_TRUE(weights.ok()) << weights.error().message;
  EXPECT_EQ(last, *measured);
  EXPECT_EQ(total, *measured);
  EXPECT_EQ(weights->layers.size(), 3u);
  EXPECT_EQ(weights->layers[0].qkv.weight->rows(), 16 + 2 * 8);
  EXPECT_EQ(weights->layers[0].ffn.gate_up.weight->rows(), 48);
}

/// A directory with an embedding and, where given, a head, each [4, 8] of one value.
class TiedHead : public testing::Test {
 protected:
  TensorSource source(float embedding, std::optional<float> head) {
    std::vector<SafetensorsEntry> tensors{{"model.embed_tokens.weight", "F32", {4, 8}, filled(embedding)}};
    if (head) tensors.push_back({"lm_head.weight", "F32", {4, 8}, filled(*head)});
    directory_.write("config.json", R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama"})");
    directory_.write("model.safetensors", safetensors_file(tensors));
    auto checkpoint = Checkpoint::open(directory_.path());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.error().message;
    checkpoint_ = std::move(*checkpoint);
    return TensorSource::of_checkpoint(checkpoint_);
  }

 private:
  static std::string filled(float value) { return float_bytes(std::vector<float>(32, value)); }

  TempDirectory directory_;
  Checkpoint checkpoint_;
};

TEST_F(TiedHead, ANotherHeadInTheFileIsSeen) {
  EXPECT_FALSE(source(1.0f, std::nullopt).differ("lm_head.weight", "model.embed_tokens.weight"));
  EXPECT_FALSE(source(1.0f, 1.0f).differ("lm_head.weight", "model.embed_tokens.weight"));
  EXPECT_TRUE(source(1.0f, 2.0f).differ("lm_head.weight", "model.embed_tokens.weight"));
}

TEST(WeightBuilder, RawBytesAreNoWeight) {
  const auto backend = make_reference_backend();
  const auto source = TensorSource::dummy(tiny());
  WeightBuilder builder(*source, *backend, LinearFormat{});
  const auto matrix = builder.matrix({{{.format = QuantFormat::u8, .rows = 4, .cols = 8}}});
  ASSERT_FALSE(matrix.ok());
  EXPECT_NE(matrix.error().message.find("U8"), std::string::npos);
}

}  // namespace
}  // namespace millrace
