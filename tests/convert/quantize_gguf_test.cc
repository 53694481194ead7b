// Whole checkpoints as GGUF files: read back as what was meant, whatever the source is, and gone on with after a stop.
#include "convert/quantize_gguf.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "convert/block_encoder.h"
#include "convert/gguf_writer.h"
#include "convert/safetensors_writer.h"
#include "core/mapped_file.h"
#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/gguf_file.h"
#include "model/checkpoint/gguf_keys.h"
#include "model/families/family.h"
#include "quant/codec.h"
#include "text/tokenizer.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

const fs::path kModels = fs::path(MILLRACE_SOURCE_DIR) / "models";
const fs::path kFixtures = fs::path(MILLRACE_SOURCE_DIR) / "tests/fixtures/checkpoint";

/// A file with what points into it.
struct OpenFile {
  MappedFile map;
  GgufFile file;

  explicit OpenFile(const fs::path& path) {
    auto mapped = MappedFile::open(path);
    EXPECT_TRUE(mapped.ok());
    map = std::move(*mapped);
    auto parsed = parse_gguf(map.bytes(), path.string());
    EXPECT_TRUE(parsed.ok());
    if (parsed.ok()) file = std::move(*parsed);
  }
  [[nodiscard]] const GgufTensor& tensor(std::string_view name) const {
    for (const GgufTensor& tensor : file.tensors) {
      if (tensor.name == name) return tensor;
    }
    static const GgufTensor kNone;
    ADD_FAILURE() << name << " is missing";
    return kNone;
  }
};

std::vector<float> values_of(const GgufTensor& tensor) {
  std::size_t count = 1;
  for (const std::int64_t size : tensor.shape) count *= static_cast<std::size_t>(size);
  std::vector<float> values(count);
  dequantize(tensor.format, tensor.data.data(), values.data(), count);
  return values;
}

class QuantizeGguf : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::temp_directory_path() / ("millrace_gguf_" + std::to_string(::getpid()));
    fs::remove_all(directory_);
    fs::create_directories(directory_);
  }
  void TearDown() override { fs::remove_all(directory_); }

  [[nodiscard]] GgufOptions options(const fs::path& model, const std::string& name, QuantFormat format) const {
    return {.model = model, .output = directory_ / name, .format = format, .threads = 2, .progress = {}};
  }
  [[nodiscard]] QuantizeReport convert(const fs::path& model, const std::string& name, QuantFormat format) const {
    auto report = quantize_to_gguf(options(model, name, format));
    EXPECT_TRUE(report.ok()) << report.error().message;
    return report.ok() ? std::move(*report) : QuantizeReport{};
  }
  [[nodiscard]] std::string error_of(const fs::path& model, const std::string& name,
                                     QuantFormat format = QuantFormat::q8_0) const {
    const auto report = quantize_to_gguf(options(model, name, format));
    return report.ok() ? "" : report.error().message;
  }
  /// A copy of a model's directory that a test may change.
  [[nodiscard]] fs::path copy_of(const fs::path& model, const std::string& name) const {
    fs::copy(model, directory_ / name);
    return directory_ / name;
  }
  static void edit(const fs::path& file, const std::function<void(nlohmann::json&)>& change) {
    nlohmann::json json = nlohmann::json::parse(std::ifstream(file));
    change(json);
    fs::permissions(file, fs::perms::owner_all);
    std::ofstream(file) << json;
  }
  [[nodiscard]] std::vector<std::string> left() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(directory_)) {
      if (entry.is_regular_file()) names.push_back(entry.path().filename().string());
    }
    return names;
  }

  fs::path directory_;
};

/// While it lives nothing is written behind this many bytes of a file, as on a disk that is full.
class FullDisk {
 public:
  explicit FullDisk(std::uint64_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    EXPECT_EQ(::getrlimit(RLIMIT_FSIZE, &before_), 0);
    const struct rlimit limit { bytes, before_.rlim_max };
    EXPECT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  }
  FullDisk(const FullDisk&) = delete;
  FullDisk& operator=(const FullDisk&) = delete;
  ~FullDisk() {
    EXPECT_EQ(::setrlimit(RLIMIT_FSIZE, &before_), 0);
    (void)std::signal(SIGXFSZ, handler_);
  }

 private:
  void (*handler_)(int);
  struct rlimit before_ {};
};

void expect_words(const std::string& message, const std::string& words) {
  EXPECT_NE(message.find(words), std::string::npos) << words << " in: " << message;
}

void expect_encoded(const GgufTensor& tensor, const std::vector<float>& original, QuantFormat format) {
  if (tensor.shape.size() == 1) {
    EXPECT_EQ(tensor.format, QuantFormat::f32);
    EXPECT_EQ(values_of(tensor), original);
    return;
  }
  EXPECT_EQ(tensor.format, format);
  std::vector<std::byte> bytes(format_bytes(format, original.size()));
  encode(format, original.data(), bytes.data(), original.size());
  EXPECT_TRUE(std::ranges::equal(bytes, tensor.data)) << tensor.name;
}

/// A model of one layer whose rows are whole blocks of 256, without a tokenizer.
void make_model(const fs::path& directory, const nlohmann::json& changes, bool biases) {
  fs::create_directories(directory);
  nlohmann::json config = {{"architectures", {"LlamaForCausalLM"}},
                           {"model_type", "llama"},
                           {"vocab_size", 40},
                           {"hidden_size", 256},
                           {"intermediate_size", 512},
                           {"num_hidden_layers", 1},
                           {"num_attention_heads", 4},
                           {"num_key_value_heads", 2},
                           {"max_position_embeddings", 64},
                           {"rms_norm_eps", 1e-5},
                           {"rope_theta", 10000.0},
                           {"hidden_act", "silu"},
                           {"tie_word_embeddings", true},
                           {"torch_dtype", "float32"}};
  config.update(changes);
  std::ofstream(directory / "config.json") << config;
  const std::string layer = "model.layers.0.";
  std::vector<OutputTensor> tensors{
      {"model.embed_tokens.weight", "F32", {40, 256}},        {"model.norm.weight", "F32", {256}},
      {layer + "input_layernorm.weight", "F32", {256}},       {layer + "post_attention_layernorm.weight", "F32", {256}},
      {layer + "self_attn.q_proj.weight", "F32", {256, 256}}, {layer + "self_attn.k_proj.weight", "F32", {128, 256}},
      {layer + "self_attn.v_proj.weight", "F32", {128, 256}}, {layer + "self_attn.o_proj.weight", "F32", {256, 256}},
      {layer + "mlp.gate_proj.weight", "F32", {512, 256}},    {layer + "mlp.up_proj.weight", "F32", {512, 256}},
      {layer + "mlp.down_proj.weight", "F32", {256, 512}}};
  if (biases) {
    tensors.push_back({layer + "self_attn.q_proj.bias", "F32", {256}});
    tensors.push_back({layer + "self_attn.k_proj.bias", "F32", {128}});
    tensors.push_back({layer + "self_attn.v_proj.bias", "F32", {128}});
  }
  auto file = open_safetensors(directory / "model.safetensors", tensors, "test");
  ASSERT_TRUE(file.ok()) << file.error().message;
  std::uint32_t state = 1;
  for (const OutputTensor& tensor : tensors) {
    std::vector<float> values(tensor.bytes() / sizeof(float));
    for (float& value : values) {
      state = state * 1664525u + 1013904223u;
      value = static_cast<float>(state >> 8U) / 8388608.0f - 1.0f;
    }
    ASSERT_TRUE(file->write(tensor.name, 0, std::as_bytes(std::span(values))).ok());
  }
  ASSERT_TRUE(file->commit().ok());
}

TEST_F(QuantizeGguf, DirectoriesBecomeTheTwinsThatTheFormatsConverterMakes) {
  for (const char* name : {"llama", "qwen3", "gemma3"}) {
    SCOPED_TRACE(name);
    const std::string file = std::string(name) + ".gguf";
    const QuantizeReport report = convert(kFixtures / name, file, QuantFormat::f32);
    const OpenFile written(directory_ / file), twin(kFixtures / file);
    ASSERT_EQ(written.file.tensors.size(), twin.file.tensors.size());
    for (const GgufTensor& expected : twin.file.tensors) {
      const GgufTensor& found = written.tensor(expected.name);
      EXPECT_EQ(found.shape, expected.shape) << expected.name;
      EXPECT_EQ(values_of(found), values_of(expected)) << expected.name;
    }
    const auto a = Checkpoint::open(directory_ / file), b = Checkpoint::open(kFixtures / file);
    ASSERT_TRUE(a.ok() && b.ok());
    EXPECT_EQ(*parse_model_config(a->config(), {}), *parse_model_config(b->config(), {}));
    for (const LayerReport& layer : report.layers) EXPECT_EQ(layer.error, 0.0);
  }
}

TEST_F(QuantizeGguf, MatricesAreEncodedAndTheRestIsKept) {
  (void)convert(kModels / "millrace-tiny", "exact.gguf", QuantFormat::f32);
  const OpenFile exact(directory_ / "exact.gguf");
  for (const QuantFormat format : {QuantFormat::f16, QuantFormat::bf16, QuantFormat::q8_0, QuantFormat::q4_0,
                                   QuantFormat::q4_1, QuantFormat::q5_0, QuantFormat::q5_1}) {
    const std::string name = std::string(format_info(format).name);
    SCOPED_TRACE(name);
    const QuantizeReport report = convert(kModels / "millrace-tiny", name + ".gguf", format);
    const OpenFile written(directory_ / (name + ".gguf"));
    EXPECT_EQ(report.output_bytes, written.map.bytes().size());
    EXPECT_EQ(report.layers.size(), 5u * 7 + 1);
    for (const GgufTensor& tensor : written.file.tensors) {
      const std::vector<float> original = values_of(exact.tensor(tensor.name));
      expect_encoded(tensor, original, format);
    }
    for (const LayerReport& layer : report.layers) {
      EXPECT_EQ(layer.format, name);
      EXPECT_LE(layer.error, format == QuantFormat::q8_0 ? 0.011 : 0.16) << layer.layer;
    }
  }
}

TEST_F(QuantizeGguf, KTypesAreWrittenTensorByTensor) {
  make_model(directory_ / "wide", nlohmann::json::object(), false);
  (void)convert(directory_ / "wide", "exact.gguf", QuantFormat::f32);
  const OpenFile exact(directory_ / "exact.gguf");
  for (const QuantFormat format : {QuantFormat::q4_k, QuantFormat::q5_k, QuantFormat::q6_k}) {
    const std::string name = std::string(format_info(format).name);
    SCOPED_TRACE(name);
    const QuantizeReport report = convert(directory_ / "wide", name + ".gguf", format);
    EXPECT_EQ(report.layers.size(), 8u);
    for (const LayerReport& layer : report.layers) EXPECT_LE(layer.error, 0.1) << layer.layer;
    const OpenFile written(directory_ / (name + ".gguf"));
    for (const GgufTensor& tensor : written.file.tensors) {
      expect_encoded(tensor, values_of(exact.tensor(tensor.name)), format);
    }
  }
}

TEST_F(QuantizeGguf, TheTokenizerAndItsTemplateComeAlong) {
  for (const char* model : {"millrace-tiny", "stories260K"}) {
    SCOPED_TRACE(model);
    const std::string file = std::string(model) + ".gguf";
    (void)convert(kModels / model, file, QuantFormat::f16);
    const auto before = Checkpoint::open(kModels / model), after = Checkpoint::open(directory_ / file);
    ASSERT_TRUE(before.ok() && after.ok());
    EXPECT_EQ(before->text().chat_template, after->text().chat_template);
    EXPECT_EQ(parse_model_config(before->config(), before->text().generation_config)->eos_ids,
              parse_model_config(after->config(), after->text().generation_config)->eos_ids);
    const auto a = Tokenizer::from_json(before->text().tokenizer_json);
    const auto b = Tokenizer::from_json(after->text().tokenizer_json);
    ASSERT_TRUE(a.ok() && b.ok());
    for (const char* text :
         {"Once upon a time, there were 1234 cats.", "\nHe'd said: \"No\u2026\" \u4f60\u597d", "x"}) {
      EXPECT_EQ(*a->encode(text, true), *b->encode(text, true)) << text;
      EXPECT_EQ(*a->decode(*a->encode(text, true), true), *b->decode(*b->encode(text, true), true)) << text;
    }
  }
}

TEST_F(QuantizeGguf, OfAFileAllIsKeptButTheTypes) {
  (void)convert(kModels / "millrace-tiny", "source.gguf", QuantFormat::bf16);
  const QuantizeReport report = convert(directory_ / "source.gguf", "result.gguf", QuantFormat::q8_0);
  const OpenFile source(directory_ / "source.gguf"), result(directory_ / "result.gguf");
  ASSERT_EQ(source.file.metadata.size(), result.file.metadata.size());
  for (std::size_t i = 0; i < source.file.tensors.size(); ++i) {
    EXPECT_EQ(source.file.tensors[i].name, result.file.tensors[i].name);
    EXPECT_EQ(source.file.tensors[i].shape, result.file.tensors[i].shape);
  }
  GgufKeys keys(result.file.metadata, "general.", "file");
  EXPECT_EQ(keys.integer("file_type"), 7);
  EXPECT_EQ(keys.integer("quantization_version"), 2);
  // By way of the file the same comes out as from the directory.
  (void)convert(kModels / "millrace-tiny", "direct.gguf", QuantFormat::q8_0);
  const OpenFile direct(directory_ / "direct.gguf");
  EXPECT_TRUE(std::ranges::equal(direct.map.bytes(), result.map.bytes()));
  EXPECT_EQ(report.layers.size(), 36u);
}

TEST_F(QuantizeGguf, BlocksMayBeRoundedOnceMoreAndEqualOnesAreCopied) {
  (void)convert(kModels / "millrace-tiny", "q8_0.gguf", QuantFormat::q8_0);
  const QuantizeReport same = convert(directory_ / "q8_0.gguf", "again.gguf", QuantFormat::q8_0);
  for (const LayerReport& layer : same.layers) EXPECT_EQ(layer.error, 0.0);
  const OpenFile first(directory_ / "q8_0.gguf"), again(directory_ / "again.gguf");
  EXPECT_TRUE(std::ranges::equal(first.map.bytes(), again.map.bytes()));
  const QuantizeReport smaller = convert(directory_ / "q8_0.gguf", "q4_0.gguf", QuantFormat::q4_0);
  for (const LayerReport& layer : smaller.layers) EXPECT_GT(layer.error, 0.01);
}

TEST_F(QuantizeGguf, RowsWithoutWholeBlocksAreKeptInHalves) {
  // stories260K has rows of 64 and 172.
  const QuantizeReport report = convert(kModels / "stories260K", "q8_0.gguf", QuantFormat::q8_0);
  const OpenFile written(directory_ / "q8_0.gguf");
  EXPECT_EQ(written.tensor("blk.0.ffn_up.weight").format, QuantFormat::q8_0);
  EXPECT_EQ(written.tensor("blk.0.ffn_down.weight").format, QuantFormat::f16);
  const auto notes = std::ranges::count_if(
      report.notes, [](const std::string& note) { return note.find("ffn_down.weight is kept in f16") != note.npos; });
  EXPECT_EQ(notes, 5);
  expect_words(error_of(kModels / "stories260K", "q4_k.gguf", QuantFormat::q4_k), "rows of a multiple of 256");
}

TEST_F(QuantizeGguf, GoesOnWhereItWasStopped) {
  GgufOptions whole = options(kModels / "millrace-tiny", "whole.gguf", QuantFormat::q5_1);
  const fs::path half = directory_ / "half.gguf";
  // A copy of what is on disk in the middle is what a killed process leaves.
  whole.progress = [&](std::uint64_t done, std::uint64_t total) {
    const std::string part = half.string() + ".part", journal = half.string() + ".journal";
    if (done < total / 2 || fs::exists(part)) return;
    fs::copy_file(whole.output.string() + ".part", part);
    fs::copy_file(whole.output.string() + ".journal", journal);
  };
  const auto first = quantize_to_gguf(whole);
  ASSERT_TRUE(first.ok()) << first.error().message;
  EXPECT_EQ(first->resumed, 0u);
  const QuantizeReport second = convert(kModels / "millrace-tiny", "half.gguf", QuantFormat::q5_1);
  EXPECT_GT(second.resumed, 0u);
  ASSERT_EQ(second.layers.size(), first->layers.size());
  for (std::size_t i = 0; i < first->layers.size(); ++i) EXPECT_EQ(second.layers[i].error, first->layers[i].error);
  const OpenFile a(whole.output), b(half);
  EXPECT_TRUE(std::ranges::equal(a.map.bytes(), b.map.bytes()));
  EXPECT_EQ(left().size(), 2u);
}

TEST_F(QuantizeGguf, AFullDiskKeepsWhatIsDone) {
  GgufOptions call = options(kModels / "millrace-tiny", "full.gguf", QuantFormat::q8_0);
  std::optional<FullDisk> full;
  call.progress = [&](std::uint64_t done, std::uint64_t total) {
    if (done >= total / 2 && !full) full.emplace(65536);
  };
  const auto stopped = quantize_to_gguf(call);
  full.reset();
  ASSERT_FALSE(stopped.ok());
  expect_words(stopped.error().message, "goes on from there");
  EXPECT_EQ(left().size(), 2u);
  EXPECT_GT(convert(kModels / "millrace-tiny", "full.gguf", QuantFormat::q8_0).resumed, 0u);
  (void)convert(kModels / "millrace-tiny", "whole.gguf", QuantFormat::q8_0);
  const OpenFile a(call.output), b(directory_ / "whole.gguf");
  EXPECT_TRUE(std::ranges::equal(a.map.bytes(), b.map.bytes()));
}

TEST_F(QuantizeGguf, AFailedCheckKeepsWhatAnEarlierCallDid) {
  GgufOptions call = options(kModels / "millrace-tiny", "x.gguf", QuantFormat::q8_0);
  std::optional<FullDisk> full;
  call.progress = [&](std::uint64_t done, std::uint64_t total) {
    if (done >= total / 2 && !full) full.emplace(65536);
  };
  ASSERT_FALSE(quantize_to_gguf(call).ok());
  full.reset();
  call.progress = {};
  const fs::path part = directory_ / "x.gguf.part";
  const auto change = [&](std::size_t at, char byte) {
    std::fstream stream(part, std::ios::binary | std::ios::in | std::ios::out);
    stream.seekp(static_cast<std::streamoff>(at));
    stream.put(byte);
  };
  change(0, 'X');  // it cannot be read
  EXPECT_FALSE(quantize_to_gguf(call).ok());
  EXPECT_EQ(left().size(), 2u);
  change(0, 'G');
  std::string head(4096, ' ');
  std::ifstream(part).read(head.data(), static_cast<std::streamsize>(head.size()));
  const std::string key = "layer_norm_rms_epsilon";
  const std::size_t value = head.find(key) + key.size() + sizeof(std::uint32_t);
  change(value, static_cast<char>(head[value] + 1));  // it says something else
  expect_words(error_of(call.model, "x.gguf"), "the epsilon of its norms would be read differently");
  EXPECT_EQ(left().size(), 2u);
  change(value, head[value]);
  EXPECT_GT(convert(call.model, "x.gguf", QuantFormat::q8_0).resumed, 0u);
}

TEST_F(QuantizeGguf, NamesDoNotBreakTheJournal) {
  (void)convert(kModels / "stories260K", "source.gguf", QuantFormat::f16);
  const OpenFile source(directory_ / "source.gguf");
  std::vector<GgufOutputTensor> tensors{{.name = "odd\n0\tname", .shape = {1}}};
  for (const GgufTensor& tensor : source.file.tensors) {
    tensors.push_back({std::string(tensor.name), tensor.format, tensor.shape});
  }
  {
    auto odd =
        StepFile::open(directory_ / "odd.gguf", gguf_layout(copy_metadata(source.file.metadata), tensors), "test");
    ASSERT_TRUE(odd.ok());
    for (const GgufTensor& tensor : source.file.tensors) {
      ASSERT_TRUE(odd->write(std::string(tensor.name), 0, tensor.data).ok());
    }
    ASSERT_TRUE(odd->commit().ok());
  }
  GgufOptions call = options(directory_ / "odd.gguf", "x.gguf", QuantFormat::q8_0);
  std::ptrdiff_t lines = 0;
  call.progress = [&](std::uint64_t, std::uint64_t) {
    std::ifstream journal(directory_ / "x.gguf.journal");
    lines = std::count(std::istreambuf_iterator<char>(journal), {}, '\n');
  };
  const auto done = quantize_to_gguf(call);
  ASSERT_TRUE(done.ok()) << done.error().message;
  EXPECT_EQ(lines, std::ssize(tensors) + 1);
}

TEST_F(QuantizeGguf, WeightsThatAreCopiedAreLookedAt) {
  make_model(directory_ / "wide", nlohmann::json::object(), false);
  std::fstream stream(directory_ / "wide/model.safetensors", std::ios::binary | std::ios::in | std::ios::out);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  stream.seekp(-2000, std::ios::end);
  stream.write(reinterpret_cast<const char*>(&nan), sizeof nan);
  stream.close();
  expect_words(error_of(directory_ / "wide", "x.gguf", QuantFormat::f32), "is not finite");
  EXPECT_TRUE(left().empty());
}

TEST_F(QuantizeGguf, ThreadsDoNotShow) {
  GgufOptions one = options(kModels / "millrace-tiny", "one.gguf", QuantFormat::q4_1);
  one.threads = 1;
  ASSERT_TRUE(quantize_to_gguf(one).ok());
  (void)convert(kModels / "millrace-tiny", "two.gguf", QuantFormat::q4_1);
  const OpenFile a(one.output), b(directory_ / "two.gguf");
  EXPECT_TRUE(std::ranges::equal(a.map.bytes(), b.map.bytes()));
}

TEST_F(QuantizeGguf, DamagedWeightsAreRefusedAndLeaveNothing) {
  for (const auto& [value, words] :
       {std::pair{std::numeric_limits<float>::quiet_NaN(), "is not finite"},
        std::pair{std::numeric_limits<float>::infinity(), "is not finite"}, std::pair{3e38f, "too large for q8_0"}}) {
    const fs::path model = copy_of(kModels / "stories260K", "damaged");
    const fs::path file = model / "model.safetensors";
    fs::permissions(file, fs::perms::owner_all);
    std::fstream stream(file, std::ios::binary | std::ios::in | std::ios::out);
    stream.seekp(-2000, std::ios::end);  // which is in a matrix
    stream.write(reinterpret_cast<const char*>(&value), sizeof value);
    stream.close();
    expect_words(error_of(model, "damaged.gguf"), words);
    EXPECT_TRUE(left().empty()) << left().front();
    fs::remove_all(model);
  }
}

TEST_F(QuantizeGguf, WhatCannotBeSaidIsRefused) {
  const fs::path model = copy_of(kModels / "stories260K", "model");
  const nlohmann::json config = nlohmann::json::parse(std::ifstream(model / "config.json"));
  const auto with = [&](const nlohmann::json& change) {
    edit(model / "config.json", [&](nlohmann::json& json) {
      json = config;
      json.update(change);
    });
    return error_of(model, "x.gguf");
  };
  expect_words(with({{"architectures", {"GlmNextForCausalLM"}}, {"model_type", "glm_next"}}), "not supported");
  expect_words(with({{"rope_scaling", {{"rope_type", "dynamic"}, {"factor", 2.0}}}}), "rope");
  expect_words(
      with({{"rms_norm_eps", 1e-7},
            {"rope_scaling",
             {{"rope_type", "yarn"}, {"factor", 2.0}, {"original_max_position_embeddings", 256}, {"mscale", 2.0}}}}),
      "its rope would be read differently");
  edit(model / "config.json", [&](nlohmann::json& json) { json = config; });
  edit(model / "tokenizer.json", [](nlohmann::json& json) { json["model"]["type"] = "WordPiece"; });
  expect_words(error_of(model, "x.gguf"), "WordPiece");
  // Some spaces are dropped, which is noted; that letters are is seen.
  edit(model / "tokenizer.json", [](nlohmann::json& json) {
    json["model"]["type"] = "BPE";
    json["normalizer"]["normalizers"][1] = {{"type", "Replace"}, {"pattern", {{"Regex", "fox"}}}, {"content", ""}};
  });
  expect_words(error_of(model, "x.gguf"), "GGUF cannot say this tokenizer");
  // Some of its layers have a window, and of GGUF's Qwen2 none.
  make_model(directory_ / "sliding",
             {{"architectures", {"Qwen2ForCausalLM"}},
              {"model_type", "qwen2"},
              {"use_sliding_window", true},
              {"sliding_window", 16},
              {"max_window_layers", 0}},
             true);
  expect_words(error_of(directory_ / "sliding", "x.gguf"), "the attention window of layer 0");
  EXPECT_TRUE(left().empty());
}

TEST_F(QuantizeGguf, WhatIsThereIsNotOverwritten) {
  std::ofstream(directory_ / "mine.gguf") << "mine";
  expect_words(error_of(kModels / "millrace-tiny", "mine.gguf"), "is there already");
  expect_words(error_of(kModels / "millrace-tiny", "no/such.gguf"), "cannot make");
  expect_words(error_of(directory_ / "nowhere", "x.gguf"), "nowhere");
  EXPECT_EQ(left(), (std::vector<std::string>{"mine.gguf"}));
}

}  // namespace
}  // namespace millrace
