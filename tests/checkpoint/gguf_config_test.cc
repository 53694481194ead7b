// What GGUF metadata becomes in a config.json, architecture by architecture.
#include <gtest/gtest.h>

#include <cmath>

#include "checkpoint/file_builders.h"
#include "model/checkpoint/checkpoint.h"

namespace millrace {
namespace {

nlohmann::json config_of(GgufBuilder& gguf) {
  gguf.floats("token_embd.weight", {5, 8});
  const TempDirectory directory;
  const auto opened = Checkpoint::open(directory.write("model.gguf", gguf.build()));
  if (!opened.ok()) return opened.error().message;
  EXPECT_EQ(opened->find("model.embed_tokens.weight")->shape.size(), 2u);
  return opened->config();
}

GgufBuilder sized(const std::string& architecture, std::uint32_t layers = 1) {
  GgufBuilder gguf(architecture);
  gguf.sizes(architecture, layers);
  return gguf;
}

TEST(GgufConfig, Llama) {
  GgufBuilder gguf = sized("llama");
  gguf.f32("llama.rope.freq_base", 500000.0f).u32("llama.attention.key_length", 4).floats("output.weight", {5, 8});
  gguf.floats("blk.0.attn_q.bias", {8});
  const nlohmann::json config = config_of(gguf);
  EXPECT_EQ(config.at("architectures"), nlohmann::json({"LlamaForCausalLM"}));
  EXPECT_EQ(config.at("model_type"), "llama");
  EXPECT_EQ(config.at("hidden_size"), 8);
  EXPECT_EQ(config.at("intermediate_size"), 12);
  EXPECT_EQ(config.at("num_key_value_heads"), 1);
  EXPECT_EQ(config.at("head_dim"), 4);
  EXPECT_EQ(config.at("rms_norm_eps"), 1e-5);  // and not 9.99999974e-06
  EXPECT_EQ(config.at("rope_theta"), 500000.0);
  EXPECT_TRUE(config.at("rope_scaling").is_null());
  EXPECT_EQ(config.at("tie_word_embeddings"), false);
  EXPECT_EQ(config.at("attention_bias"), true);
  EXPECT_EQ(config.at("mlp_bias"), false);
  EXPECT_EQ(config.at("torch_dtype"), "float32");
  EXPECT_EQ(config.at("vocab_size"), 5);
}

TEST(GgufConfig, MistralAndMixtral) {
  GgufBuilder mistral = sized("llama");
  mistral.u32("llama.attention.sliding_window", 64);
  EXPECT_EQ(config_of(mistral).at("architectures"), nlohmann::json({"MistralForCausalLM"}));
  GgufBuilder mixtral = sized("llama");
  mixtral.u32("llama.expert_count", 4).u32("llama.expert_used_count", 2);
  const nlohmann::json config = config_of(mixtral);
  EXPECT_EQ(config.at("model_type"), "mixtral");
  EXPECT_EQ(config.at("num_local_experts"), 4);
  EXPECT_EQ(config.at("num_experts_per_tok"), 2);
}

TEST(GgufConfig, RopeScaling) {
  GgufBuilder linear = sized("qwen2");
  linear.text("qwen2.rope.scaling.type", "linear").f32("qwen2.rope.scaling.factor", 2.5f);
  EXPECT_EQ(config_of(linear).at("rope_scaling"), (nlohmann::json{{"rope_type", "linear"}, {"factor", 2.5}}));
  GgufBuilder yarn = sized("qwen3");
  yarn.text("qwen3.rope.scaling.type", "yarn").f32("qwen3.rope.scaling.factor", 4.0f);
  yarn.u32("qwen3.rope.scaling.original_context_length", 32).f32("qwen3.rope.scaling.yarn_beta_fast", 16.0f);
  EXPECT_EQ(
      config_of(yarn).at("rope_scaling"),
      (nlohmann::json{
          {"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 32}, {"beta_fast", 16.0}}));
  GgufBuilder old = sized("llama");
  old.f32("llama.rope.scale_linear", 4.0f);
  EXPECT_EQ(config_of(old).at("rope_scaling").at("factor"), 4.0);
  GgufBuilder odd = sized("llama");
  odd.text("llama.rope.scaling.type", "spiral");
  EXPECT_NE(config_of(odd).get<std::string>().find("rope.scaling.type is 'spiral'"), std::string::npos);
}

TEST(GgufConfig, Mistral3) {
  GgufBuilder plain = sized("mistral3");
  EXPECT_EQ(config_of(plain).at("architectures"), nlohmann::json({"MistralForCausalLM"}));
  GgufBuilder gguf = sized("mistral3");
  gguf.text("mistral3.rope.scaling.type", "yarn").f32("mistral3.rope.scaling.factor", 16.0f);
  gguf.u32("mistral3.rope.scaling.original_context_length", 16).f32("mistral3.rope.scaling.yarn_log_multiplier", 1.0f);
  gguf.f32("mistral3.attention.temperature_scale", 0.1f).f32("mistral3.rope.freq_base", 1e6f);
  const nlohmann::json config = config_of(gguf);
  EXPECT_EQ(config.at("architectures"), nlohmann::json({"Ministral3ForCausalLM"}));
  EXPECT_EQ(config.at("rope_parameters"), (nlohmann::json{{"rope_type", "yarn"},
                                                          {"factor", 16.0},
                                                          {"original_max_position_embeddings", 16},
                                                          {"mscale", 1.0},
                                                          {"mscale_all_dim", 1.0},
                                                          {"llama_4_scaling_beta", 0.1},
                                                          {"rope_theta", 1e6}}));
  EXPECT_FALSE(config.contains("rope_scaling"));
}

TEST(GgufConfig, Qwen3Moe) {
  GgufBuilder gguf = sized("qwen3moe", 3);
  gguf.u32("qwen3moe.expert_count", 8).u32("qwen3moe.expert_used_count", 3);
  gguf.u32("qwen3moe.expert_feed_forward_length", 6).floats("blk.1.ffn_gate.weight", {12, 8});
  const nlohmann::json config = config_of(gguf);
  EXPECT_EQ(config.at("num_experts"), 8);
  EXPECT_EQ(config.at("moe_intermediate_size"), 6);
  EXPECT_EQ(config.at("norm_topk_prob"), true);
  EXPECT_EQ(config.at("mlp_only_layers"), nlohmann::json({1}));
}

TEST(GgufConfig, Gemma2And3) {
  GgufBuilder two = sized("gemma2", 46);
  two.u32("gemma2.attention.key_length", 16).f32("gemma2.attn_logit_softcapping", 50.0f);
  two.f32("gemma2.final_logit_softcapping", 30.0f).u32("gemma2.attention.sliding_window", 32);
  nlohmann::json config = config_of(two);
  EXPECT_EQ(config.at("query_pre_attn_scalar"), 4);  // hidden / heads in the model of 46 layers
  EXPECT_EQ(config.at("head_dim"), 16);
  EXPECT_EQ(config.at("attn_logit_softcapping"), 50.0);
  EXPECT_EQ(config.at("sliding_window"), 32);
  EXPECT_EQ(config.at("hidden_activation"), "gelu_pytorch_tanh");

  GgufBuilder three = sized("gemma3", 7);
  three.u32("gemma3.attention.key_length", 16).u32("gemma3.attention.sliding_window", 32);
  three.f32("gemma3.rope.freq_base", 1e6f);
  config = config_of(three);
  EXPECT_EQ(config.at("query_pre_attn_scalar"), 16);
  EXPECT_EQ(config.at("rope_local_base_freq"), 10000.0);
  EXPECT_EQ(config.at("rope_theta"), 1e6);
  EXPECT_EQ(config.at("layer_types").at(4), "sliding_attention");
  EXPECT_EQ(config.at("layer_types").at(5), "full_attention");
  EXPECT_EQ(config.at("layer_types").at(6), "sliding_attention");

  GgufBuilder full = sized("gemma3", 2);
  config = config_of(full);
  EXPECT_EQ(config.at("layer_types"), nlohmann::json({"full_attention", "full_attention"}));
}

TEST(GgufConfig, Gemma4) {
  GgufBuilder gguf("gemma4");
  gguf.u32("gemma4.block_count", 4).u32("gemma4.embedding_length", 8).u32("gemma4.context_length", 128);
  gguf.u32("gemma4.attention.head_count", 2).u32s("gemma4.attention.head_count_kv", {2, 1, 2, 1});
  gguf.u32s("gemma4.feed_forward_length", {12, 12, 24, 24}).f32("gemma4.attention.layer_norm_rms_epsilon", 1e-6f);
  gguf.u32("gemma4.attention.key_length", 16).u32("gemma4.attention.value_length", 16);
  gguf.u32("gemma4.attention.key_length_swa", 8).u32("gemma4.attention.sliding_window", 32);
  gguf.flags("gemma4.attention.sliding_window_pattern", {true, false, true, false});
  gguf.u32("gemma4.attention.shared_kv_layers", 2).u32("gemma4.embedding_length_per_layer_input", 6);
  gguf.f32("gemma4.rope.freq_base", 1e6f).f32("gemma4.final_logit_softcapping", 30.0f);
  gguf.tensor("rope_freqs.weight", {8}, 0, float_bytes({1, 1, 1e30f, 1e30f, 1e30f, 1e30f, 1e30f, 1e30f}));
  gguf.floats("per_layer_token_embd.weight", {5, 24}).floats("blk.1.attn_k.weight", {16, 8});
  gguf.floats("token_embd.weight", {5, 8});
  const TempDirectory directory;
  const auto opened = Checkpoint::open(directory.write("model.gguf", gguf.build()));
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  const nlohmann::json& config = opened->config();
  EXPECT_FALSE(opened->norms_include_one());
  EXPECT_EQ(opened->find("rope_freqs.weight"), nullptr);
  EXPECT_EQ(config.at("head_dim"), 8);
  EXPECT_EQ(config.at("global_head_dim"), 16);
  EXPECT_EQ(config.at("num_key_value_heads"), 2);
  EXPECT_EQ(config.at("num_global_key_value_heads"), 1);
  EXPECT_EQ(config.at("intermediate_size"), 12);
  EXPECT_EQ(config.at("use_double_wide_mlp"), true);
  EXPECT_EQ(config.at("attention_k_eq_v"), true);
  EXPECT_EQ(config.at("enable_moe_block"), false);
  EXPECT_EQ(config.at("num_kv_shared_layers"), 2);
  EXPECT_EQ(config.at("hidden_size_per_layer_input"), 6);
  EXPECT_EQ(config.at("rope_parameters").at("full_attention").at("partial_rotary_factor"), 0.25);
  EXPECT_EQ(config.at("rope_parameters").at("sliding_attention").at("rope_theta"), 10000.0);
  EXPECT_EQ(config.at("layer_types").at(1), "full_attention");
}

TEST(GgufConfig, Phi3) {
  GgufBuilder gguf = sized("phi3");
  gguf.u32("phi3.rope.scaling.original_context_length", 32).u32("phi3.rope.dimension_count", 4);
  gguf.f32("phi3.rope.scaling.attn_factor", static_cast<float>(std::sqrt(1 + std::log(4.0) / std::log(32.0))));
  gguf.u32("phi3.attention.sliding_window", 0);
  gguf.tensor("rope_factors_short.weight", {2}, 0, float_bytes({1.0f, 1.05f}));
  gguf.tensor("rope_factors_long.weight", {2}, 0, float_bytes({1.1f, 7.3f}));
  const nlohmann::json config = config_of(gguf);
  EXPECT_EQ(config.at("original_max_position_embeddings"), 32);
  EXPECT_EQ(config.at("rope_scaling"),
            (nlohmann::json{{"rope_type", "longrope"}, {"short_factor", {1.0, 1.05}}, {"long_factor", {1.1, 7.3}}}));
  EXPECT_TRUE(config.at("sliding_window").is_null());
  EXPECT_EQ(config.at("partial_rotary_factor"), 1.0);
  GgufBuilder own = sized("phi3");
  own.u32("phi3.rope.scaling.original_context_length", 32).f32("phi3.rope.scaling.attn_factor", 1.19f);
  own.tensor("rope_factors_short.weight", {2}, 0, float_bytes({1.0f, 1.05f}));
  own.tensor("rope_factors_long.weight", {2}, 0, float_bytes({1.1f, 7.3f}));
  EXPECT_EQ(config_of(own).at("rope_scaling").at("attention_factor"), 1.19);
}

TEST(GgufConfig, Glm) {
  GgufBuilder gguf = sized("glm4", 3);
  gguf.u32("glm4.nextn_predict_layers", 1).u32("glm4.rope.dimension_count", 2).floats("blk.0.attn_q.bias", {8});
  const nlohmann::json config = config_of(gguf);
  EXPECT_EQ(config.at("architectures"), nlohmann::json({"Glm4ForCausalLM"}));
  EXPECT_EQ(config.at("num_hidden_layers"), 2);
  EXPECT_EQ(config.at("partial_rotary_factor"), 0.5);
  EXPECT_EQ(config.at("attention_bias"), true);
}

TEST(GgufConfig, Granite) {
  GgufBuilder gguf = sized("granite");
  gguf.f32("granite.attention.scale", 0.0625f).f32("granite.embedding_scale", 12.0f);
  gguf.f32("granite.residual_scale", 0.22f).f32("granite.logit_scale", 8.0f);
  const nlohmann::json config = config_of(gguf);
  EXPECT_EQ(config.at("attention_multiplier"), 0.0625);
  EXPECT_EQ(config.at("embedding_multiplier"), 12.0);
  EXPECT_EQ(config.at("residual_multiplier"), 0.22);
  EXPECT_EQ(config.at("logits_scaling"), 8.0);
  GgufBuilder bare = sized("granite");
  EXPECT_EQ(config_of(bare).at("attention_multiplier"), 0.5);
}

TEST(GgufConfig, GptOss) {
  GgufBuilder gguf = sized("gpt-oss", 2);
  gguf.u32("gpt-oss.expert_count", 4).u32("gpt-oss.expert_used_count", 2);
  gguf.u32("gpt-oss.expert_feed_forward_length", 12).u32("gpt-oss.attention.sliding_window", 16);
  gguf.text("gpt-oss.rope.scaling.type", "yarn").f32("gpt-oss.rope.scaling.factor", 32.0f);
  gguf.u32("gpt-oss.rope.scaling.original_context_length", 64);
  const nlohmann::json config = config_of(gguf);
  EXPECT_EQ(config.at("architectures"), nlohmann::json({"GptOssForCausalLM"}));
  EXPECT_EQ(config.at("rope_scaling").at("truncate"), false);
  EXPECT_EQ(config.at("layer_types"), nlohmann::json({"sliding_attention", "full_attention"}));
  EXPECT_EQ(config.at("swiglu_limit"), 7.0);
}

TEST(GgufConfig, SmolLm3AndOlmo) {
  GgufBuilder smol = sized("smollm3");
  EXPECT_EQ(config_of(smol).at("no_rope_layer_interval"), 4);
  GgufBuilder two = sized("olmo2");
  EXPECT_EQ(config_of(two).at("architectures"), nlohmann::json({"Olmo2ForCausalLM"}));
  GgufBuilder three = sized("olmo2", 2);
  three.u32("olmo2.attention.sliding_window", 16).flags("olmo2.attention.sliding_window_pattern", {true, false});
  const nlohmann::json config = config_of(three);
  EXPECT_EQ(config.at("architectures"), nlohmann::json({"Olmo3ForCausalLM"}));
  EXPECT_EQ(config.at("layer_types").at(0), "sliding_attention");
}

TEST(GgufConfig, RefusesWhatItCannotTranslate) {
  const auto error_of = [](GgufBuilder gguf) {
    const nlohmann::json result = config_of(gguf);
    return result.is_string() ? result.get<std::string>() : "";
  };
  const auto expect = [&](GgufBuilder gguf, const char* words) {
    const std::string message = error_of(std::move(gguf));
    EXPECT_NE(message.find(words), std::string::npos) << words << " in: " << message;
  };
  expect(GgufBuilder("mamba"), "architecture 'mamba' is not supported; supported are llama");
  expect(GgufBuilder("llama"), "llama.block_count");
  expect(GgufBuilder("llama").text("general.type", "mmproj"), "'mmproj'");
  expect(sized("llama").f32("llama.rope.freq_base", NAN), "finite");
  expect(sized("llama").text("llama.rope.freq_base", "x"), "llama.rope.freq_base must be");
  expect(sized("llama").u32("llama.attention.key_length", 0), "above 0");
  expect(sized("llama").u32("llama.attention.value_length", 2), "only equal ones");
  expect(sized("llama", 5000), "5000 layers");
  expect(sized("llama", 2).u64("llama.expert_count", ~std::uint64_t{0}), "2^53");
  expect(sized("gpt-oss"), "expert_count");
  GgufBuilder uneven("llama");
  uneven.u32("llama.block_count", 2).u32("llama.embedding_length", 8).u32("llama.context_length", 128);
  uneven.u32s("llama.attention.head_count", {2, 4}).f32("llama.attention.layer_norm_rms_epsilon", 1e-6f);
  expect(uneven, "differs between layers");
  GgufBuilder rows = sized("llama");
  rows.floats("blk.0.attn_q.weight", {6, 8});
  expect(rows, "multiple of 2 x 2 heads");
}

}  // namespace
}  // namespace millrace
