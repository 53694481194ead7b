// Hugging Face directories: what is found, what is normalised, and what is refused with which words.
#include <gtest/gtest.h>

#include <functional>

#include "checkpoint/file_builders.h"
#include "model/checkpoint/checkpoint.h"

namespace millrace {
namespace {

constexpr const char* kConfig = R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama"})";

std::string open_error(const std::filesystem::path& path) {
  const auto checkpoint = Checkpoint::open(path);
  return checkpoint.ok() ? "" : checkpoint.error().message;
}

void write_all(const TempDirectory& directory, const std::vector<std::pair<std::string, std::string>>& files) {
  for (const auto& [name, content] : files) directory.write(name, content);
}

TEST(HuggingFace, ReadsOneFile) {
  const TempDirectory directory;
  write_all(directory, small_huggingface(false));
  const auto opened = Checkpoint::open(directory.path());
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  const Checkpoint& checkpoint = *opened;
  EXPECT_EQ(checkpoint.tensors().size(), 3u);
  const StoredTensor* embedding = checkpoint.find("model.embed_tokens.weight");
  ASSERT_NE(embedding, nullptr);
  EXPECT_EQ(embedding->format, QuantFormat::f32);
  EXPECT_EQ(embedding->shape, (std::vector<std::int64_t>{6, 8}));
  EXPECT_EQ(embedding->elements(), 48);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(embedding->data.data()), embedding->data.size()),
            counting_floats(48));
  EXPECT_EQ(checkpoint.find("model.norm.weight")->format, QuantFormat::bf16);
  EXPECT_EQ(checkpoint.find("model.layers.0.self_attn.q_proj.weight")->format, QuantFormat::f16);
  EXPECT_EQ(checkpoint.weight_bytes(), 192u + 16u + 128u);
  EXPECT_FALSE(checkpoint.norms_include_one());
  checkpoint.release(*embedding);
  float second = 0;
  std::memcpy(&second, embedding->data.data() + 4, 4);
  EXPECT_EQ(second, 1.0f);
}

TEST(HuggingFace, LeavesIntegerTensorsAside) {
  const TempDirectory directory;
  write_all(directory, small_huggingface(false));
  const auto checkpoint = Checkpoint::open(directory.path());
  ASSERT_TRUE(checkpoint.ok());
  EXPECT_EQ(checkpoint->find("model.position_ids"), nullptr);
  EXPECT_EQ(checkpoint->unreadable().at("model.position_ids"), "I64");
}

TEST(HuggingFace, ReadsShards) {
  const TempDirectory directory;
  write_all(directory, small_huggingface(true));
  const auto checkpoint = Checkpoint::open(directory.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
  EXPECT_EQ(checkpoint->tensors().size(), 3u);
  checkpoint->release(*checkpoint->find("model.layers.0.self_attn.q_proj.weight"));
}

TEST(HuggingFace, ReadsTexts) {
  const TempDirectory directory;
  write_all(directory, small_huggingface(false));
  directory.write("tokenizer.json", "{\"version\": \"1.0\"}");
  auto checkpoint = Checkpoint::open(directory.path());
  ASSERT_TRUE(checkpoint.ok());
  EXPECT_EQ(checkpoint->text().tokenizer_json, "{\"version\": \"1.0\"}");
  EXPECT_EQ(checkpoint->text().chat_template, "{{ messages }}");
  EXPECT_EQ(checkpoint->text().generation_config.at("eos_token_id"), nlohmann::json({2}));
  EXPECT_EQ(checkpoint->text().tokenizer_config.at("bos_token"), "<s>");

  directory.write("chat_template.json", R"({"chat_template": "from json"})");
  EXPECT_EQ(Checkpoint::open(directory.path())->text().chat_template, "{{ messages }}");
  directory.write(
      "tokenizer_config.json",
      R"({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]})");
  EXPECT_EQ(Checkpoint::open(directory.path())->text().chat_template, "d");
  directory.write("tokenizer_config.json", "{}");
  EXPECT_EQ(Checkpoint::open(directory.path())->text().chat_template, "from json");
  directory.write("chat_template.jinja", "from jinja");
  EXPECT_EQ(Checkpoint::open(directory.path())->text().chat_template, "from jinja");
}

TEST(HuggingFace, StripsMultimodalPrefixes) {
  const TempDirectory directory;
  directory.write("config.json", kConfig);
  directory.write("model.safetensors",
                  safetensors_file({{"language_model.model.norm.weight", "F32", {1}, counting_floats(1)},
                                    {"language_model.lm_head.weight", "F32", {1}, counting_floats(1)},
                                    {"model.language_model.embed_tokens.weight", "F32", {1}, counting_floats(1)},
                                    {"vision_tower.x", "F32", {1}, counting_floats(1)}}));
  const auto checkpoint = Checkpoint::open(directory.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
  for (const char* name : {"model.norm.weight", "lm_head.weight", "model.embed_tokens.weight", "vision_tower.x"}) {
    ASSERT_NE(checkpoint->find(name), nullptr) << name;
    EXPECT_EQ(checkpoint->find(name)->name, name);
  }
}

TEST(HuggingFace, CompletesTheArchitecture) {
  const TempDirectory directory;
  const auto config_of = [&](const std::string& text) {
    const auto opened = Checkpoint::open_config_only(directory.write("some_config.json", text));
    return opened.ok() ? opened->config() : nlohmann::json(opened.error().message);
  };
  EXPECT_EQ(config_of(R"({"model_type": "qwen2"})").at("architectures"), nlohmann::json({"Qwen2ForCausalLM"}));
  EXPECT_EQ(config_of(R"({"architectures": ["GptOssForCausalLM"]})").at("model_type"), "gpt_oss");
  EXPECT_EQ(config_of(R"({"model_type": "mamba7"})").at("architectures"), nlohmann::json({"mamba7"}));
  EXPECT_TRUE(config_of("{}").is_string());
  EXPECT_TRUE(config_of(R"({"architectures": "LlamaForCausalLM"})").is_string());
  EXPECT_TRUE(config_of(R"({"architectures": []})").is_string());
  EXPECT_TRUE(config_of(R"({"architectures": ["A"], "model_type": 3})").is_string());
}

TEST(HuggingFace, OpensAConfigAlone) {
  const TempDirectory directory;
  directory.write("tokenizer.json", "{}");
  const auto named = Checkpoint::open_config_only(directory.write("config.json", kConfig));
  ASSERT_TRUE(named.ok());
  EXPECT_EQ(named->text().tokenizer_json, "{}");
  EXPECT_TRUE(named->tensors().empty());
  const auto other = Checkpoint::open_config_only(directory.write("config_published.json", kConfig));
  ASSERT_TRUE(other.ok());
  EXPECT_TRUE(other->text().tokenizer_json.empty());
  const auto whole = Checkpoint::open_config_only(directory.path());
  ASSERT_TRUE(whole.ok());
  EXPECT_EQ(whole->config(), named->config());
}

TEST(HuggingFace, NamesWhatIsMissing) {
  const TempDirectory directory;
  EXPECT_NE(open_error(directory.path() / "nothing").find("does not exist"), std::string::npos);
  EXPECT_NE(open_error(directory.path()).find("no config.json"), std::string::npos);
  directory.write("config.json", kConfig);
  EXPECT_NE(open_error(directory.path()).find("no model.safetensors"), std::string::npos);
  directory.write("pytorch_model.bin", "x");
  EXPECT_NE(open_error(directory.path()).find("convert them to safetensors"), std::string::npos);
  EXPECT_NE(open_error(directory.path() / "config.json").find("neither"), std::string::npos);
}

TEST(HuggingFace, RefusesBadJson) {
  const TempDirectory directory;
  const auto error_of = [&](const std::string& text) {
    directory.write("config.json", text);
    const auto opened = Checkpoint::open_config_only(directory.path());
    return opened.ok() ? "" : opened.error().message;
  };
  EXPECT_NE(error_of("").find("not valid JSON"), std::string::npos);
  EXPECT_NE(error_of("[1]").find("expected a JSON object"), std::string::npos);
  EXPECT_NE(error_of("{\"a\": \"\xff\"}").find("not valid JSON"), std::string::npos);
  EXPECT_NE(error_of("{\"a\": 1e999}").find("number"), std::string::npos);
  EXPECT_NE(error_of("{\"a\": " + std::string(100'000, '[')).find("deep"), std::string::npos);
  std::string many = "[0";
  for (int i = 0; i < 2'100'000; ++i) many += ",0";
  EXPECT_NE(error_of("{\"a\": " + many + "]}").find("values"), std::string::npos);
}

TEST(HuggingFace, RefusesWrongIndexes) {
  const TempDirectory directory;
  write_all(directory, small_huggingface(true));
  const auto error_of = [&](const std::function<void(nlohmann::json&)>& change) {
    nlohmann::json index = nlohmann::json::parse(small_huggingface(true)[3].second);
    change(index);
    directory.write("model.safetensors.index.json", index.dump());
    return open_error(directory.path());
  };
  EXPECT_EQ(error_of([](nlohmann::json&) {}), "");
  EXPECT_NE(error_of([](auto& index) { index.erase("weight_map"); }).find("weight_map"), std::string::npos);
  EXPECT_NE(error_of([](auto& index) {
              index["weight_map"]["x"] = "../model-00001-of-00002.safetensors";
            }).find("no file name"),
            std::string::npos);
  EXPECT_NE(error_of([](auto& index) { index["weight_map"]["x"] = 3; }).find("no file name"), std::string::npos);
  EXPECT_NE(error_of([](auto& index) { index["weight_map"]["x"] = "absent.safetensors"; }).find("is missing"),
            std::string::npos);
  EXPECT_NE(
      error_of([](auto& index) { index["weight_map"]["x"] = "model-00001-of-00002.safetensors"; }).find("should be in"),
      std::string::npos);
  EXPECT_NE(error_of([](auto& index) {
              index["weight_map"]["model.norm.weight"] = "model-00002-of-00002.safetensors";
            }).find("should be in"),
            std::string::npos);
}

TEST(HuggingFace, RefusesATensorInTwoShards) {
  const TempDirectory directory;
  write_all(directory, small_huggingface(true));
  directory.write("model-00002-of-00002.safetensors",
                  safetensors_file({{"model.layers.0.self_attn.q_proj.weight", "F32", {1}, counting_floats(1)},
                                    {"model.position_ids", "I64", {1}, std::string(8, '\0')},
                                    {"model.norm.weight", "F32", {1}, counting_floats(1)}}));
  EXPECT_NE(open_error(directory.path()).find("twice"), std::string::npos);
}

}  // namespace
}  // namespace millrace
