// GGUF checkpoints: twins of safetensors directories, names, shapes, splits.
#include <gtest/gtest.h>

#include <cstring>

#include "checkpoint/file_builders.h"
#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/gguf_architecture.h"
#include "quant/codec.h"

namespace millrace {
namespace {

std::filesystem::path fixture(const std::string& name) {
  return std::filesystem::path(MILLRACE_SOURCE_DIR) / "tests/fixtures/checkpoint" / name;
}

/// The values of a tensor, rows in Hugging Face's order.
std::vector<float> values_of(const StoredTensor& tensor) {
  std::vector<float> stored(static_cast<std::size_t>(tensor.elements()));
  dequantize(tensor.format, tensor.data.data(), stored.data(), stored.size());
  if (tensor.unpermute_heads == 0) return stored;
  const auto rows = static_cast<std::size_t>(tensor.shape.front());
  const std::size_t columns = stored.size() / rows;
  const std::size_t head = rows / static_cast<std::size_t>(tensor.unpermute_heads);
  std::vector<float> result(stored.size());
  for (std::size_t row = 0; row < rows; ++row) {
    const std::size_t within = row % head;
    // Row i of half p lies at 2 i + p.
    const std::size_t source = row - within + 2 * (within % (head / 2)) + within / (head / 2);
    std::copy_n(stored.begin() + static_cast<std::ptrdiff_t>(source * columns), columns,
                result.begin() + static_cast<std::ptrdiff_t>(row * columns));
  }
  return result;
}

class Twins : public testing::TestWithParam<const char*> {};

TEST_P(Twins, HoldTheSameTensors) {
  const std::string name = GetParam();
  const auto directory = Checkpoint::open(fixture(name));
  const auto gguf = Checkpoint::open(fixture(name + ".gguf"));
  ASSERT_TRUE(directory.ok()) << directory.error().message;
  ASSERT_TRUE(gguf.ok()) << gguf.error().message;
  EXPECT_EQ(directory->tensors().size(), gguf->tensors().size());
  for (const auto& [tensor_name, tensor] : directory->tensors()) {
    const StoredTensor* twin = gguf->find(tensor_name);
    ASSERT_NE(twin, nullptr) << tensor_name;
    EXPECT_EQ(twin->shape, tensor.shape) << tensor_name;
    EXPECT_EQ(twin->name, tensor_name);
    std::vector<float> expected = values_of(tensor);
    if (gguf->norms_include_one() && tensor_name.ends_with("norm.weight")) {
      for (float& value : expected) value += 1.0f;
    }
    const std::vector<float> found = values_of(*twin);
    ASSERT_EQ(found.size(), expected.size());
    EXPECT_EQ(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)), 0) << tensor_name;
  }
}

TEST_P(Twins, AgreeOnTheConfig) {
  const std::string name = GetParam();
  const auto directory = Checkpoint::open(fixture(name));
  const auto gguf = Checkpoint::open(fixture(name + ".gguf"));
  ASSERT_TRUE(directory.ok() && gguf.ok());
  for (const char* key :
       {"architectures", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps", "bos_token_id",
        "eos_token_id", "tie_word_embeddings", "attention_bias", "query_pre_attn_scalar"}) {
    if (!directory->config().contains(key)) continue;
    ASSERT_TRUE(gguf->config().contains(key)) << key;
    EXPECT_EQ(directory->config().at(key), gguf->config().at(key)) << key;
  }
}

INSTANTIATE_TEST_SUITE_P(Fixtures, Twins, testing::Values("llama", "qwen3", "gemma3"));

TEST(Gguf, ReordersQueriesAndKeysOnlyWhereTheConverterDid) {
  const auto llama = Checkpoint::open(fixture("llama.gguf"));
  ASSERT_TRUE(llama.ok());
  EXPECT_EQ(llama->find("model.layers.1.self_attn.q_proj.weight")->unpermute_heads, 4);
  EXPECT_EQ(llama->find("model.layers.1.self_attn.q_proj.bias")->unpermute_heads, 4);
  EXPECT_EQ(llama->find("model.layers.1.self_attn.k_proj.weight")->unpermute_heads, 2);
  EXPECT_EQ(llama->find("model.layers.1.self_attn.v_proj.weight")->unpermute_heads, 0);
  const auto qwen = Checkpoint::open(fixture("qwen3.gguf"));
  ASSERT_TRUE(qwen.ok());
  EXPECT_EQ(qwen->find("model.layers.1.self_attn.q_proj.weight")->unpermute_heads, 0);
}

TEST(Gguf, TranslatesNames) {
  const auto name = [](const char* architecture, const char* own) {
    return gguf_tensor_name(*find_gguf_architecture(architecture), own);
  };
  EXPECT_EQ(name("llama", "token_embd.weight"), "model.embed_tokens.weight");
  EXPECT_EQ(name("llama", "output.weight"), "lm_head.weight");
  EXPECT_EQ(name("llama", "output_norm.weight"), "model.norm.weight");
  EXPECT_EQ(name("llama", "rope_freqs.weight"), "rope_freqs.weight");
  EXPECT_EQ(name("llama", "blk.12.attn_output.bias"), "model.layers.12.self_attn.o_proj.bias");
  EXPECT_EQ(name("llama", "blk.0.ffn_gate_inp.weight"), "model.layers.0.block_sparse_moe.gate.weight");
  EXPECT_EQ(name("llama", "blk.3.ffn_up_exps.weight"), "model.layers.3.mlp.experts.up_proj.weight");
  EXPECT_EQ(name("llama", "blk.3.ffn_down.7.weight"), "model.layers.3.block_sparse_moe.experts.7.w2.weight");
  EXPECT_EQ(name("llama", "blk.3.something.weight"), "blk.3.something.weight");
  EXPECT_EQ(name("llama", "blk.x.attn_q.weight"), "blk.x.attn_q.weight");
  EXPECT_EQ(name("llama", "blk.3"), "blk.3");
  EXPECT_EQ(name("llama", "blk."), "blk.");
  EXPECT_EQ(name("llama", "odd"), "odd");
  EXPECT_EQ(name("qwen3moe", "blk.0.ffn_gate_inp.weight"), "model.layers.0.mlp.gate.weight");
  EXPECT_EQ(name("gemma2", "blk.0.ffn_norm.weight"), "model.layers.0.pre_feedforward_layernorm.weight");
  EXPECT_EQ(name("gemma3", "blk.0.post_attention_norm.weight"), "model.layers.0.post_attention_layernorm.weight");
  EXPECT_EQ(name("gemma4", "blk.0.layer_output_scale.weight"), "model.layers.0.layer_scalar");
  EXPECT_EQ(name("gemma4", "blk.0.ffn_gate_inp.scale"), "model.layers.0.router.scale");
  EXPECT_EQ(name("gemma4", "blk.0.ffn_gate_inp.weight"), "model.layers.0.router.proj.weight");
  EXPECT_EQ(name("gemma4", "blk.0.ffn_gate_up_exps.weight"), "model.layers.0.experts.gate_up_proj");
  EXPECT_EQ(name("gemma4", "per_layer_token_embd.weight"), "model.embed_tokens_per_layer.weight");
  EXPECT_EQ(name("phi3", "blk.0.attn_qkv.weight"), "model.layers.0.self_attn.qkv_proj.weight");
  EXPECT_EQ(name("phi3", "blk.0.ffn_up.weight"), "model.layers.0.mlp.gate_up_proj.weight");
  EXPECT_EQ(name("glm4", "blk.0.post_attention_norm.weight"), "model.layers.0.post_self_attn_layernorm.weight");
  EXPECT_EQ(name("glm4", "blk.0.ffn_norm.weight"), "model.layers.0.post_attention_layernorm.weight");
  EXPECT_EQ(name("gpt-oss", "blk.0.attn_sinks.weight"), "model.layers.0.self_attn.sinks");
  EXPECT_EQ(name("gpt-oss", "blk.0.ffn_gate_inp.bias"), "model.layers.0.mlp.router.bias");
  EXPECT_EQ(name("gpt-oss", "blk.0.ffn_down_exps.bias"), "model.layers.0.mlp.experts.down_proj.bias");
}

Result<Checkpoint> open_built(const GgufBuilder& gguf) {
  const TempDirectory directory;
  return Checkpoint::open(directory.write("model.gguf", gguf.build()));
}

TEST(Gguf, ReadsBlockFormats) {
  GgufBuilder gguf("qwen2");
  gguf.sizes("qwen2").floats("token_embd.weight", {5, 8});
  gguf.tensor("a.weight", {3, 64}, 8, std::string(6 * 34, '\1'));        // Q8_0
  gguf.tensor("b.weight", {2, 2, 256}, 12, std::string(4 * 144, '\2'));  // Q4_K
  gguf.tensor("c.weight", {2, 32}, 39, std::string(2 * 17, '\3'));       // MXFP4
  gguf.tensor("d.weight", {7}, 30, std::string(14, '\4'));               // BF16
  gguf.tensor("ids", {4}, 26, std::string(16, '\5'));                    // I32
  const auto checkpoint = open_built(gguf);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
  EXPECT_EQ(checkpoint->find("a.weight")->format, QuantFormat::q8_0);
  EXPECT_EQ(checkpoint->find("a.weight")->data.size(), 6u * 34);
  EXPECT_EQ(checkpoint->find("b.weight")->shape, (std::vector<std::int64_t>{2, 2, 256}));
  EXPECT_EQ(checkpoint->find("b.weight")->data.size(), 4u * 144);
  EXPECT_EQ(checkpoint->find("c.weight")->data.size(), 34u);
  EXPECT_EQ(checkpoint->find("d.weight")->elements(), 7);
  EXPECT_EQ(checkpoint->find("ids"), nullptr);
  EXPECT_EQ(checkpoint->unreadable().at("ids"), "I32");
  EXPECT_EQ(checkpoint->config().at("vocab_size"), 5);
}

TEST(Gguf, ReadsVersion2AndItsOwnAlignment) {
  GgufBuilder gguf("qwen2");
  gguf.sizes("qwen2").u32("general.alignment", 8).floats("token_embd.weight", {5, 8});
  gguf.version = 2;
  const auto checkpoint = open_built(gguf);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
}

TEST(Gguf, CutsFusedProjectionsApart) {
  GgufBuilder gguf("chatglm");
  gguf.sizes("chatglm").floats("token_embd.weight", {5, 8});
  gguf.floats("blk.0.attn_qkv.weight", {16, 8}).floats("blk.0.attn_qkv.bias", {16});
  gguf.floats("blk.0.ffn_up.weight", {24, 8});
  const auto checkpoint = open_built(gguf);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
  EXPECT_EQ(checkpoint->config().at("attention_bias"), true);
  const auto first = [&](const char* name) { return values_of(*checkpoint->find(name)).front(); };
  EXPECT_EQ(checkpoint->find("model.layers.0.self_attn.q_proj.weight")->shape, (std::vector<std::int64_t>{8, 8}));
  EXPECT_EQ(checkpoint->find("model.layers.0.self_attn.v_proj.weight")->shape, (std::vector<std::int64_t>{4, 8}));
  EXPECT_EQ(first("model.layers.0.self_attn.q_proj.weight"), 0.0f);
  EXPECT_EQ(first("model.layers.0.self_attn.k_proj.weight"), 64.0f);
  EXPECT_EQ(first("model.layers.0.self_attn.v_proj.weight"), 96.0f);
  EXPECT_EQ(first("model.layers.0.self_attn.k_proj.bias"), 8.0f);
  EXPECT_NE(checkpoint->find("model.layers.0.mlp.gate_up_proj.weight"), nullptr);
}

TEST(Gguf, ReadsSplitModels) {
  const TempDirectory directory;
  const auto part = [&](std::uint32_t number, std::uint32_t count, const char* tensor) {
    GgufBuilder gguf("qwen2");
    if (number == 0) gguf.sizes("qwen2");
    gguf.u32("split.no", number).u32("split.count", count).i32("split.tensors.count", 2);
    gguf.floats(tensor, {5, 8});
    return gguf.build();
  };
  const auto first = directory.write("m-00001-of-00002.gguf", part(0, 2, "token_embd.weight"));
  const auto error_of = [](const std::filesystem::path& path) {
    const auto opened = Checkpoint::open(path);
    return opened.ok() ? "" : opened.error().message;
  };
  EXPECT_NE(error_of(first).find("m-00002-of-00002.gguf"), std::string::npos);
  const auto second = directory.write("m-00002-of-00002.gguf", part(1, 2, "output.weight"));
  EXPECT_EQ(error_of(first), "");
  EXPECT_EQ(Checkpoint::open(first)->tensors().size(), 2u);
  EXPECT_EQ(Checkpoint::open(first)->config().at("tie_word_embeddings"), false);
  EXPECT_NE(error_of(second).find("open the first"), std::string::npos);
  directory.write("m-00002-of-00002.gguf", part(1, 2, "token_embd.weight"));
  EXPECT_NE(error_of(first).find("twice"), std::string::npos);
  directory.write("m-00002-of-00002.gguf", part(1, 3, "output.weight"));
  EXPECT_NE(error_of(first).find("does not say"), std::string::npos);
}

TEST(Gguf, ReadsTexts) {
  const TempDirectory directory;
  const auto path = directory.write("model.gguf", small_gguf());
  const auto checkpoint = Checkpoint::open(path);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
  EXPECT_EQ(checkpoint->text().chat_template, "{{ bos_token }}");
  EXPECT_FALSE(checkpoint->text().tokenizer_json.empty());
  EXPECT_EQ(checkpoint->text().tokenizer_config.at("eos_token"), "</s>");
  EXPECT_EQ(checkpoint->text().generation_config.at("eos_token_id"), nlohmann::json({2}));
  EXPECT_EQ(checkpoint->config().at("eos_token_id"), 2);
  const auto bare = Checkpoint::open_config_only(path);
  ASSERT_TRUE(bare.ok());
  EXPECT_TRUE(bare->tensors().empty());
  EXPECT_EQ(bare->config(), checkpoint->config());
  EXPECT_EQ(bare->text().tokenizer_json, checkpoint->text().tokenizer_json);
}

TEST(Gguf, GivesTheTextsOfUnsupportedArchitecturesToo) {
  const TempDirectory directory;
  GgufBuilder gguf("falcon");
  gguf.text("tokenizer.chat_template", "x");
  const auto path = directory.write("model.gguf", gguf.build());
  const auto bare = Checkpoint::open_config_only(path);
  ASSERT_TRUE(bare.ok()) << bare.error().message;
  EXPECT_EQ(bare->config().at("architectures"), nlohmann::json({"falcon"}));
  EXPECT_EQ(bare->text().chat_template, "x");
  EXPECT_FALSE(Checkpoint::open(path).ok());
}

TEST(Gguf, TakesRecommendedSamplingAndAllStopTokens) {
  GgufBuilder gguf("qwen2");
  gguf.sizes("qwen2").floats("token_embd.weight", {5, 8});
  gguf.u32("tokenizer.ggml.eos_token_id", 4)
      .u32("tokenizer.ggml.eot_token_id", 3)
      .u32("tokenizer.ggml.eom_token_id", 4);
  gguf.f32("general.sampling.temp", 0.7f).i32("general.sampling.top_k", 20).f32("general.sampling.top_p", 0.95f);
  const auto checkpoint = open_built(gguf);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
  const nlohmann::json& generation = checkpoint->text().generation_config;
  EXPECT_EQ(generation.at("eos_token_id"), nlohmann::json({4, 3}));
  EXPECT_EQ(generation.at("temperature"), 0.7);
  EXPECT_EQ(generation.at("top_k"), 20);
  EXPECT_EQ(generation.at("do_sample"), true);
  EXPECT_TRUE(checkpoint->text().tokenizer_json.empty());
}

}  // namespace
}  // namespace millrace
