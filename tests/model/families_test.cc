#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "model/families/family.h"

namespace millrace {
namespace {

nlohmann::json read_json(const std::filesystem::path& path) {
  std::ifstream file(path);
  return nlohmann::json::parse(file);
}

/// Every configuration that the conformance tests know, as transformers saves it.
std::vector<std::filesystem::path> fixtures() {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(MILLRACE_SOURCE_DIR "/tests/fixtures/logits")) {
    if (entry.is_directory()) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

ModelConfig parsed(const nlohmann::json& config) {
  auto model = parse_model_config(config, nlohmann::json::object());
  EXPECT_TRUE(model.ok()) << model.error().message;
  return model.ok() ? *model : ModelConfig{};
}

std::string error_of(const nlohmann::json& config) {
  const auto model = parse_model_config(config, nlohmann::json::object());
  EXPECT_FALSE(model.ok());
  if (model.ok()) return "";
  EXPECT_EQ(model.error().message.find('\n'), std::string::npos) << model.error().message;
  return model.error().message;
}

nlohmann::json small_llama() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"hidden_size", 64},
          {"intermediate_size", 88},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 4},
          {"vocab_size", 97}};
}

TEST(Families, PublishedKeysMeanWhatTheKeysOfTransformers5Mean) {
  const auto paths = fixtures();
  ASSERT_GT(paths.size(), 40u);
  for (const auto& path : paths) {
    SCOPED_TRACE(path.filename().string());
    const nlohmann::json saved = read_json(path / "config.json");
    const nlohmann::json published = read_json(path / "config_published.json");
    const ModelConfig model = parsed(saved);
    EXPECT_TRUE(model == parsed(published));
    EXPECT_FALSE(model.layers.empty());
    EXPECT_TRUE(parse_tensor_names(saved, model).ok());
  }
}

TEST(Families, EveryArchitectureIsFoundByNameAndByModelType) {
  const auto names = supported_architectures();
  EXPECT_TRUE(std::is_sorted(names.begin(), names.end()));
  for (const std::string_view name : names) {
    EXPECT_EQ(error_of({{"architectures", {name}}}).find("not supported"), std::string::npos) << name;
  }
  nlohmann::json config = small_llama();
  config.erase("architectures");
  EXPECT_EQ(parsed(config).architecture, "LlamaForCausalLM");
}

TEST(Families, AnUnknownArchitectureIsNamedWithWhatIsSupported) {
  const std::string message = error_of({{"architectures", {"ZebraForCausalLM"}}, {"model_type", "zebra"}});
  EXPECT_NE(message.find("ZebraForCausalLM"), std::string::npos);
  for (const std::string_view name : supported_architectures()) EXPECT_NE(message.find(name), std::string::npos);
}

TEST(Families, AMultimodalConfigRunsItsTextModel) {
  nlohmann::json inner = read_json(fixtures().front() / "config.json");
  ASSERT_EQ(inner["model_type"], "gemma2");
  for (const auto& path : fixtures()) {
    if (path.filename() == "gemma3") inner = read_json(path / "config.json");
  }
  const nlohmann::json outer{{"architectures", {"Gemma3ForConditionalGeneration"}},
                             {"model_type", "gemma3"},
                             {"eos_token_id", {1, 106}},
                             {"text_config", inner}};
  ModelConfig text = parsed(inner);
  ModelConfig wrapped = parsed(outer);
  EXPECT_EQ(wrapped.layers.size(), text.layers.size());
  EXPECT_TRUE(wrapped.layers == text.layers);
  EXPECT_TRUE(wrapped.ropes == text.ropes);
}

TEST(Families, EndTokensComeFromTheGenerationConfigFirst) {
  nlohmann::json config = small_llama();
  config["eos_token_id"] = 2;
  EXPECT_EQ(parsed(config).eos_ids, (std::vector<std::int32_t>{2}));
  const auto model = parse_model_config(config, {{"eos_token_id", {5, 7}}});
  ASSERT_TRUE(model.ok());
  EXPECT_EQ(model->eos_ids, (std::vector<std::int32_t>{5, 7}));
  config["eos_token_id"] = nullptr;
  EXPECT_TRUE(parsed(config).eos_ids.empty());
  config.erase("eos_token_id");
  EXPECT_EQ(parsed(config).eos_ids, (std::vector<std::int32_t>{2})) << "the default of the family";
  config["eos_token_id"] = "two";
  EXPECT_NE(error_of(config).find("eos_token_id"), std::string::npos);
}

TEST(Families, WhatIsMissingOrWrongIsNamedWithItsValue) {
  for (const char* key :
       {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"}) {
    nlohmann::json config = small_llama();
    config.erase(key);
    EXPECT_NE(error_of(config).find(key), std::string::npos) << key;
    for (const nlohmann::json& bad :
         {nlohmann::json(0), nlohmann::json(-3), nlohmann::json("4"), nlohmann::json(1.5), nlohmann::json(1e300),
          nlohmann::json(18446744073709551615ull), nlohmann::json::array({4}), nlohmann::json(true)}) {
      config[key] = bad;
      EXPECT_NE(error_of(config).find(key), std::string::npos) << key << " = " << bad;
    }
  }
  const auto with = [](const char* key, const nlohmann::json& value) {
    nlohmann::json config = small_llama();
    config[key] = value;
    return error_of(config);
  };
  EXPECT_NE(with("num_key_value_heads", 3).find("multiple"), std::string::npos);
  EXPECT_NE(with("hidden_act", "quux").find("quux"), std::string::npos);
  EXPECT_NE(with("rms_norm_eps", -1).find("rms_norm_eps"), std::string::npos);
  EXPECT_NE(with("head_dim", 15).find("even"), std::string::npos);
  EXPECT_NE(with("rope_theta", 0).find("rope_theta"), std::string::npos);
  EXPECT_NE(with("tie_word_embeddings", 1).find("tie_word_embeddings"), std::string::npos);
  EXPECT_NE(with("rope_scaling", "fast").find("rope_scaling"), std::string::npos);
  EXPECT_NE(with("rope_scaling", {{"rope_type", "quux"}}).find("quux"), std::string::npos);
  EXPECT_NE(with("rope_scaling", {{"rope_type", "linear"}}).find("factor"), std::string::npos);
  EXPECT_NE(with("rope_scaling", {{"type", "longrope"}, {"short_factor", {1, 2}}}).find("short_factor"),
            std::string::npos);
  EXPECT_NE(
      with("rope_scaling", {{"rope_type", "llama3"}, {"factor", 8}, {"low_freq_factor", 4}, {"high_freq_factor", 1}})
          .find("high_freq_factor"),
      std::string::npos);
}

TEST(Families, AConfigThatIsNoModelIsRefused) {
  EXPECT_NE(error_of(nlohmann::json::array()).find("object"), std::string::npos);
  EXPECT_NE(error_of(nlohmann::json::object()).find("architectures"), std::string::npos);
  EXPECT_NE(error_of({{"architectures", nlohmann::json::array()}}).find("architectures"), std::string::npos);
}

TEST(Families, DynamicScalingWidensTheContext) {
  nlohmann::json config = small_llama();
  config["max_position_embeddings"] = 100;
  config["rope_scaling"] = {{"type", "dynamic"}, {"factor", 4.0}};
  EXPECT_EQ(parsed(config).max_position, 400);
}

TEST(Families, YarnAndLinearScalingGiveTheContextThatTheyMake) {
  nlohmann::json config = small_llama();
  config["max_position_embeddings"] = 4096;
  config["rope_scaling"] = {{"type", "linear"}, {"factor", 4.0}};
  EXPECT_EQ(parsed(config).max_position, 16384);
  config["rope_scaling"] = {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 4096}};
  EXPECT_EQ(parsed(config).max_position, 16384);
  config["max_position_embeddings"] = 20000;
  EXPECT_EQ(parsed(config).max_position, 20000);
}

TEST(Families, AbsurdSizesAreRefusedBeforeMemoryIsTaken) {
  nlohmann::json config = small_llama();
  config["num_attention_heads"] = 65536;
  config["head_dim"] = 8192;
  EXPECT_NE(error_of(config).find("heads"), std::string::npos);
  config = small_llama();
  config["architectures"] = {"MixtralForCausalLM"};
  config["num_hidden_layers"] = 8192;
  config["num_local_experts"] = 4096;
  config["num_key_value_heads"] = 4;
  EXPECT_NE(error_of(config).find("experts"), std::string::npos);
}

TEST(Families, KvHeadsThatAreNullAreAsManyAsHeads) {
  nlohmann::json config = small_llama();
  config["architectures"] = {"MixtralForCausalLM"};
  config["num_key_value_heads"] = nullptr;
  EXPECT_EQ(parsed(config).layers.front().attention.kv_heads, 4);
}

TEST(Families, Ministral3WithoutAWordAboutRopeIsYarn) {
  nlohmann::json config = small_llama();
  config["architectures"] = {"Ministral3ForCausalLM"};
  config["num_key_value_heads"] = 2;
  const ModelConfig model = parsed(config);
  ASSERT_EQ(model.ropes.size(), 1u);
  EXPECT_EQ(model.ropes.front().scaling, RopeScaling::yarn);
  EXPECT_EQ(model.ropes.front().factor, 16.0);
  EXPECT_EQ(model.layers.front().attention.head_dim, 128);
  EXPECT_FLOAT_EQ(model.layers.front().attention.temperature_beta, 0.1f);
  EXPECT_EQ(model.layers.front().attention.temperature_length, 16384);
}

TEST(Families, Phi3TakesTheOriginalLengthFromBesideTheRope) {
  nlohmann::json config = small_llama();
  config["architectures"] = {"Phi3ForCausalLM"};
  config["max_position_embeddings"] = 131072;
  const std::vector<double> factors(8, 1.5);
  config["rope_scaling"] = {{"type", "longrope"}, {"short_factor", factors}, {"long_factor", factors}};
  EXPECT_EQ(parsed(config).ropes.front().original_max_position, 4096);
  config["original_max_position_embeddings"] = 8192;
  EXPECT_EQ(parsed(config).ropes.front().original_max_position, 8192);
}

TEST(Families, AnEmptyRopeScalingSaysNothing) {
  nlohmann::json config = small_llama();
  config["rope_scaling"] = nlohmann::json::object();
  config["rope_parameters"] = {{"rope_type", "linear"}, {"factor", 2.0}, {"rope_theta", 1000.0}};
  EXPECT_EQ(parsed(config).ropes.front().scaling, RopeScaling::linear);
  EXPECT_EQ(parsed(config).ropes.front().theta, 1000.0);
}

TEST(Families, Gemma4LayersShareKeysOfTheirOwnShapeOnly) {
  nlohmann::json config;
  for (const auto& path : fixtures()) {
    if (path.filename() == "gemma4_shared") config = read_json(path / "config.json");
  }
  ASSERT_FALSE(config.is_null());
  EXPECT_EQ(parsed(config).layers.back().attention.kv_source, 2);
  config["per_layer_config"]["5"]["head_dim"] = 64;
  EXPECT_NE(error_of(config).find("layer 5"), std::string::npos);
}

TEST(Families, AWrapperSaysWhetherTheHeadIsTied) {
  nlohmann::json inner = small_llama();
  inner["model_type"] = "mistral";
  inner["num_key_value_heads"] = 2;
  inner["tie_word_embeddings"] = false;
  nlohmann::json outer{{"architectures", {"Mistral3ForConditionalGeneration"}}, {"text_config", inner}};
  EXPECT_TRUE(parsed(outer).tied_head);
  outer["tie_word_embeddings"] = false;
  EXPECT_FALSE(parsed(outer).tied_head);
}

TEST(Families, MistralHasAWindowUnlessItIsSwitchedOff) {
  nlohmann::json config = small_llama();
  config["architectures"] = {"MistralForCausalLM"};
  config["num_key_value_heads"] = 2;
  EXPECT_EQ(parsed(config).layers.front().attention.window, 4096);
  config["sliding_window"] = nullptr;
  EXPECT_EQ(parsed(config).layers.front().attention.window, 0);
}

}  // namespace
}  // namespace millrace
