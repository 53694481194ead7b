#include "checkpoint/file_builders.h"

#include <unistd.h>

#include <atomic>
#include <fstream>

namespace millrace {

namespace {

constexpr std::size_t kAlignment = 32;

std::string string_bytes(std::string_view text) {
  std::string bytes;
  append<std::uint64_t>(bytes, text.size());
  bytes += text;
  return bytes;
}

template <typename T>
std::string array_bytes(std::uint32_t type, const std::vector<T>& values) {
  std::string bytes;
  append(bytes, type);
  append<std::uint64_t>(bytes, values.size());
  for (const T value : values) append(bytes, value);
  return bytes;
}

}  // namespace

TempDirectory::TempDirectory() {
  static std::atomic<int> counter{0};
  path_ = std::filesystem::temp_directory_path() /
          ("millrace_checkpoint_" + std::to_string(::getpid()) + "_" + std::to_string(counter++));
  std::filesystem::create_directories(path_);
}

TempDirectory::~TempDirectory() {
  std::error_code error;
  std::filesystem::remove_all(path_, error);
}

std::filesystem::path TempDirectory::write(const std::string& name, std::string_view content) const {
  std::ofstream(path_ / name, std::ios::binary) << content;
  return path_ / name;
}

std::string float_bytes(const std::vector<float>& values) {
  std::string bytes;
  for (const float value : values) append(bytes, value);
  return bytes;
}

std::string counting_floats(std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<float>(i);
  return float_bytes(values);
}

std::string safetensors_file(const std::string& header, std::string_view data) {
  std::string file;
  append<std::uint64_t>(file, header.size());
  return file + header + std::string(data);
}

std::string safetensors_file(const std::vector<SafetensorsEntry>& tensors) {
  nlohmann::ordered_json header;
  header["__metadata__"] = {{"format", "pt"}};
  std::string data;
  for (const SafetensorsEntry& tensor : tensors) {
    header[tensor.name] = {{"dtype", tensor.dtype},
                           {"shape", tensor.shape},
                           {"data_offsets", {data.size(), data.size() + tensor.data.size()}}};
    data += tensor.data;
  }
  return safetensors_file(header.dump(), data);
}

GgufBuilder& GgufBuilder::key(const std::string& name, std::uint32_t type) {
  metadata_ += string_bytes(name);
  append(metadata_, type);
  ++pairs_;
  return *this;
}

GgufBuilder& GgufBuilder::raw(const std::string& name, std::uint32_t type, std::string_view value) {
  key(name, type);
  metadata_ += value;
  return *this;
}

GgufBuilder& GgufBuilder::text(const std::string& name, std::string_view value) {
  return raw(name, 8, string_bytes(value));
}

GgufBuilder& GgufBuilder::u32(const std::string& name, std::uint32_t value) {
  key(name, 4);
  append(metadata_, value);
  return *this;
}

GgufBuilder& GgufBuilder::u64(const std::string& name, std::uint64_t value) {
  key(name, 10);
  append(metadata_, value);
  return *this;
}

GgufBuilder& GgufBuilder::i32(const std::string& name, std::int32_t value) {
  key(name, 5);
  append(metadata_, value);
  return *this;
}

GgufBuilder& GgufBuilder::f32(const std::string& name, float value) {
  key(name, 6);
  append(metadata_, value);
  return *this;
}

GgufBuilder& GgufBuilder::flag(const std::string& name, bool value) {
  return raw(name, 7, std::string(1, value ? '\1' : '\0'));
}

GgufBuilder& GgufBuilder::texts(const std::string& name, const std::vector<std::string>& values) {
  std::string bytes = array_bytes<char>(8, {});
  std::uint64_t count = values.size();
  std::memcpy(bytes.data() + 4, &count, sizeof(count));
  for (const std::string& value : values) bytes += string_bytes(value);
  return raw(name, 9, bytes);
}

GgufBuilder& GgufBuilder::u32s(const std::string& name, const std::vector<std::uint32_t>& values) {
  return raw(name, 9, array_bytes(4, values));
}

GgufBuilder& GgufBuilder::i32s(const std::string& name, const std::vector<std::int32_t>& values) {
  return raw(name, 9, array_bytes(5, values));
}

GgufBuilder& GgufBuilder::f32s(const std::string& name, const std::vector<float>& values) {
  return raw(name, 9, array_bytes(6, values));
}

GgufBuilder& GgufBuilder::flags(const std::string& name, const std::vector<bool>& values) {
  std::vector<char> bytes(values.begin(), values.end());
  return raw(name, 9, array_bytes(7, bytes));
}

void GgufBuilder::info(const std::string& name, const std::vector<std::uint64_t>& shape, std::uint32_t type,
                       std::uint64_t offset) {
  infos_ += string_bytes(name);
  append(infos_, static_cast<std::uint32_t>(shape.size()));
  for (auto dimension = shape.rbegin(); dimension != shape.rend(); ++dimension) append(infos_, *dimension);
  append(infos_, type);
  append(infos_, offset);
  ++tensors_;
}

GgufBuilder& GgufBuilder::tensor(const std::string& name, const std::vector<std::uint64_t>& shape, std::uint32_t type,
                                 const std::string& data) {
  info(name, shape, type, data_.size());
  data_ += data;
  data_.resize((data_.size() + kAlignment - 1) / kAlignment * kAlignment);
  return *this;
}

GgufBuilder& GgufBuilder::floats(const std::string& name, const std::vector<std::uint64_t>& shape) {
  std::size_t count = 1;
  for (const std::uint64_t dimension : shape) count *= dimension;
  return tensor(name, shape, 0, counting_floats(count));
}

GgufBuilder& GgufBuilder::placed(const std::string& name, const std::vector<std::uint64_t>& shape, std::uint32_t type,
                                 std::uint64_t offset) {
  info(name, shape, type, offset);
  return *this;
}

GgufBuilder& GgufBuilder::sizes(const std::string& architecture, std::uint32_t layers) {
  const std::string prefix = architecture + ".";
  u32(prefix + "block_count", layers);
  u32(prefix + "embedding_length", 8);
  u32(prefix + "context_length", 128);
  u32(prefix + "attention.head_count", 2);
  u32(prefix + "attention.head_count_kv", 1);
  u32(prefix + "feed_forward_length", 12);
  f32(prefix + "attention.layer_norm_rms_epsilon", 1e-5f);
  return *this;
}

std::string GgufBuilder::build() const {
  std::string file = "GGUF";
  append(file, version);
  append(file, tensors_ + more_tensors);
  append(file, pairs_ + more_pairs);
  file += metadata_ + infos_;
  if (!data_.empty()) file.resize((file.size() + kAlignment - 1) / kAlignment * kAlignment);
  return file + data_;
}

std::string small_gguf() {
  GgufBuilder gguf("llama");
  gguf.sizes("llama").f32("llama.rope.freq_base", 10000.0f).u32("llama.rope.dimension_count", 4);
  gguf.text("tokenizer.ggml.model", "llama");
  gguf.texts("tokenizer.ggml.tokens", {"<unk>", "<s>", "</s>", "\xe2\x96\x81", "a", "b"});
  gguf.f32s("tokenizer.ggml.scores", {0, 0, 0, -1, -2, -3}).i32s("tokenizer.ggml.token_type", {2, 3, 3, 1, 1, 1});
  gguf.u32("tokenizer.ggml.bos_token_id", 1).u32("tokenizer.ggml.eos_token_id", 2);
  gguf.u32("tokenizer.ggml.unknown_token_id", 0).flag("tokenizer.ggml.add_bos_token", true);
  gguf.text("tokenizer.chat_template", "{{ bos_token }}");
  gguf.floats("token_embd.weight", {6, 8}).floats("output_norm.weight", {8});
  gguf.floats("blk.0.attn_q.weight", {8, 8})
      .floats("blk.0.attn_k.weight", {4, 8})
      .floats("blk.0.attn_v.weight", {4, 8});
  gguf.floats("blk.0.attn_output.weight", {8, 8}).floats("blk.0.attn_norm.weight", {8});
  gguf.floats("blk.0.ffn_norm.weight", {8}).floats("blk.0.ffn_gate.weight", {12, 8});
  gguf.floats("blk.0.ffn_up.weight", {12, 8}).floats("blk.0.ffn_down.weight", {8, 12});
  return gguf.build();
}

std::vector<std::pair<std::string, std::string>> small_huggingface(bool sharded) {
  const SafetensorsEntry embedding{"model.embed_tokens.weight", "F32", {6, 8}, counting_floats(48)};
  const SafetensorsEntry norm{"model.norm.weight", "BF16", {8}, std::string(16, '\x3f')};
  const SafetensorsEntry query{"model.layers.0.self_attn.q_proj.weight", "F16", {8, 8}, std::string(128, '\x2a')};
  const SafetensorsEntry ids{"model.position_ids", "I64", {1, 4}, std::string(32, '\0')};
  std::vector<std::pair<std::string, std::string>> files = {
      {"config.json", R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8})"},
      {"generation_config.json", R"({"eos_token_id": [2]})"},
      {"tokenizer_config.json", R"({"bos_token": "<s>", "chat_template": "{{ messages }}"})"},
  };
  if (!sharded) {
    files.emplace_back("model.safetensors", safetensors_file({embedding, norm, query, ids}));
    return files;
  }
  const nlohmann::json index = {{"metadata", {{"total_size", 1}}},
                                {"weight_map",
                                 {{embedding.name, "model-00001-of-00002.safetensors"},
                                  {norm.name, "model-00001-of-00002.safetensors"},
                                  {query.name, "model-00002-of-00002.safetensors"},
                                  {ids.name, "model-00002-of-00002.safetensors"}}}};
  files.emplace_back("model.safetensors.index.json", index.dump());
  files.emplace_back("model-00001-of-00002.safetensors", safetensors_file({embedding, norm}));
  files.emplace_back("model-00002-of-00002.safetensors", safetensors_file({query, ids}));
  return files;
}

}  // namespace millrace
