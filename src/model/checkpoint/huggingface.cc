#include "model/checkpoint/huggingface.h"

#include <algorithm>
#include <set>
#include <system_error>
#include <utility>

#include "model/checkpoint/json.h"
#include "model/checkpoint/quantized.h"
#include "model/checkpoint/safetensors.h"

namespace millrace {

namespace {

namespace fs = std::filesystem;

struct ArchitectureName {
  std::string_view model_type;
  std::string_view architecture;
};

// Only to complete a config that lacks one of the two; which of them can be loaded is for the families to say.
constexpr ArchitectureName kArchitectures[] = {
    {"llama", "LlamaForCausalLM"},        {"mistral", "MistralForCausalLM"},
    {"mixtral", "MixtralForCausalLM"},    {"ministral3", "Ministral3ForCausalLM"},
    {"qwen2", "Qwen2ForCausalLM"},        {"qwen3", "Qwen3ForCausalLM"},
    {"qwen3_moe", "Qwen3MoeForCausalLM"}, {"gemma2", "Gemma2ForCausalLM"},
    {"gemma3_text", "Gemma3ForCausalLM"}, {"gemma3", "Gemma3ForConditionalGeneration"},
    {"gemma4_text", "Gemma4ForCausalLM"}, {"gemma4", "Gemma4ForConditionalGeneration"},
    {"phi3", "Phi3ForCausalLM"},          {"olmo2", "Olmo2ForCausalLM"},
    {"smollm3", "SmolLM3ForCausalLM"},    {"glm", "GlmForCausalLM"},
    {"glm4", "Glm4ForCausalLM"},          {"granite", "GraniteForCausalLM"},
    {"gpt_oss", "GptOssForCausalLM"},     {"mistral3", "Mistral3ForConditionalGeneration"},
};

/// Whether a file is there (and not, say, unreadable: opening it then tells).
bool file_exists(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

/// A file name from an index: in the directory itself, and nothing that would spoil a message.
bool is_plain_file_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." &&
         std::all_of(name.begin(), name.end(), [](char c) { return c >= ' ' && c <= '~' && c != '/'; });
}

/// What else lies in the directory, for the message that there is no safetensors file.
std::string other_weights(const fs::path& directory) {
  std::error_code error;
  for (fs::directory_iterator entry(directory, error); !error && entry != fs::directory_iterator();
       entry.increment(error)) {
    const std::string extension = entry->path().extension().string();
    if (extension == ".bin" || extension == ".pth" || extension == ".pt") {
      return fmt::format("; its weights are {} files: convert them to safetensors", extension);
    }
    if (extension == ".gguf" || extension == ".safetensors") {
      return fmt::format(", but {}", shown(entry->path().filename().string()));
    }
  }
  return "";
}

/// tokenizer_config.json's chat_template: the source, or a list of {"name", "template"} of which "default" counts.
std::string template_of(const nlohmann::json& config) {
  const auto found = config.find("chat_template");
  if (found == config.end()) return "";
  if (found->is_string()) return found->get<std::string>();
  if (!found->is_array()) return "";
  for (const nlohmann::json& entry : *found) {
    if (!entry.is_object() || entry.value("name", nlohmann::json()) != "default") continue;
    const auto source = entry.find("template");
    if (source != entry.end() && source->is_string()) return source->get<std::string>();
  }
  return "";
}

}  // namespace

std::string text_model_name(std::string_view name) {
  constexpr std::pair<std::string_view, std::string_view> kPrefixes[] = {
      {"language_model.model.", "model."},
      {"model.language_model.", "model."},
      {"language_model.lm_head.", "lm_head."},
  };
  for (const auto& [wrapped, plain] : kPrefixes) {
    if (name.starts_with(wrapped)) return std::string(plain) + std::string(name.substr(wrapped.size()));
  }
  return std::string(name);
}

Status complete_architecture(nlohmann::json& config, std::string_view what) {
  const auto architectures = config.find("architectures");
  const bool has_architectures = architectures != config.end() && !architectures->is_null();
  if (has_architectures) {
    const bool strings = architectures->is_array() && !architectures->empty() &&
                         std::all_of(architectures->begin(), architectures->end(),
                                     [](const nlohmann::json& item) { return item.is_string(); });
    if (!strings) return fail("{}: architectures must be a list of names", what);
  }
  const auto type = config.find("model_type");
  const bool has_type = type != config.end() && !type->is_null();
  if (has_type && !type->is_string()) return fail("{}: model_type must be a string", what);
  if (!has_architectures && !has_type) {
    return fail("{}: neither architectures nor model_type say what model this is", what);
  }
  // A name that the table lacks stands for itself: the message about it then says what the file says.
  if (!has_architectures) {
    const auto model_type = type->get<std::string>();
    const auto* known = std::find_if(std::begin(kArchitectures), std::end(kArchitectures),
                                     [&](const auto& row) { return row.model_type == model_type; });
    config["architectures"] = {known == std::end(kArchitectures) ? model_type : std::string(known->architecture)};
  } else if (!has_type) {
    const auto architecture = architectures->front().get<std::string>();
    const auto* known = std::find_if(std::begin(kArchitectures), std::end(kArchitectures),
                                     [&](const auto& row) { return row.architecture == architecture; });
    config["model_type"] = known == std::end(kArchitectures) ? architecture : std::string(known->model_type);
  }
  return Ok{};
}

Result<Checkpoint> HuggingFaceReader::open(const fs::path& directory, bool with_tensors) {
  const fs::path config = directory / "config.json";
  if (!file_exists(config)) return fail("{} has no config.json: expected a Hugging Face directory", directory.string());
  MILLRACE_TRY(Checkpoint checkpoint, open_config(config));
  checkpoint.path_ = directory.string();
  if (!with_tensors) return checkpoint;
  MILLRACE_CHECK_OK(read_tensors(checkpoint, directory));
  MILLRACE_CHECK_OK(join_quantized(checkpoint.config_, checkpoint.path_, checkpoint.tensors_));
  set_aside_unexplained(checkpoint);
  return checkpoint;
}

void HuggingFaceReader::set_aside_unexplained(Checkpoint& checkpoint) {
  const auto type = [](QuantFormat format) -> std::string {
    switch (format) {
      case QuantFormat::f8_e4m3:
        return "F8_E4M3";
      case QuantFormat::i8:
        return "I8";
      case QuantFormat::i32:
        return "I32";
      case QuantFormat::i64:
        return "I64";
      default:
        return "";
    }
  };
  std::erase_if(checkpoint.tensors_, [&](const auto& entry) {
    std::string name = type(entry.second.format);
    const bool aside = !name.empty();
    if (aside) checkpoint.unreadable_.emplace(entry.first, std::move(name));
    return aside;
  });
}

Result<Checkpoint> HuggingFaceReader::open_config(const fs::path& file) {
  Checkpoint checkpoint;
  checkpoint.path_ = file.string();
  MILLRACE_TRY(checkpoint.config_, read_json_object(file));
  MILLRACE_CHECK_OK(complete_architecture(checkpoint.config_, file.string()));
  if (file.filename() == "config.json") MILLRACE_CHECK_OK(read_texts(checkpoint, file.parent_path()));
  return checkpoint;
}

Status HuggingFaceReader::read_texts(Checkpoint& checkpoint, const fs::path& directory) {
  TextAssets& text = checkpoint.text_;
  if (file_exists(directory / "tokenizer.json")) {
    MILLRACE_TRY(text.tokenizer_json, read_text_file(directory / "tokenizer.json"));
  }
  if (file_exists(directory / "tokenizer_config.json")) {
    MILLRACE_TRY(text.tokenizer_config, read_json_object(directory / "tokenizer_config.json"));
  }
  if (file_exists(directory / "generation_config.json")) {
    MILLRACE_TRY(text.generation_config, read_json_object(directory / "generation_config.json"));
  }
  // The file of its own wins over the key, as in transformers; chat_template.json is what processors wrote for a while.
  if (file_exists(directory / "chat_template.jinja")) {
    MILLRACE_TRY(text.chat_template, read_text_file(directory / "chat_template.jinja", std::size_t{16} << 20));
    return Ok{};
  }
  text.chat_template = template_of(text.tokenizer_config);
  if (text.chat_template.empty() && file_exists(directory / "chat_template.json")) {
    MILLRACE_TRY(const nlohmann::json processor, read_json_object(directory / "chat_template.json"));
    text.chat_template = template_of(processor);
  }
  return Ok{};
}

Status HuggingFaceReader::read_tensors(Checkpoint& checkpoint, const fs::path& directory) {
  if (file_exists(directory / "model.safetensors")) return add_file(checkpoint, directory / "model.safetensors");
  if (file_exists(directory / "model.safetensors.index.json")) return add_shards(checkpoint, directory);
  return fail("{} has no model.safetensors and no model.safetensors.index.json{}", directory.string(),
              other_weights(directory));
}

Status HuggingFaceReader::add_shards(Checkpoint& checkpoint, const fs::path& directory) {
  const fs::path path = directory / "model.safetensors.index.json";
  MILLRACE_TRY(const nlohmann::json index, read_json_object(path));
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object()) return fail("{}: has no object weight_map", path.string());
  std::map<std::string, std::vector<std::string>> promised;  // shard -> names
  for (const auto& [name, shard] : map->items()) {
    if (!shard.is_string() || !is_plain_file_name(shard.get_ref<const std::string&>())) {
      return fail("{}: tensor {} is mapped to something that is no file name", path.string(), shown(name));
    }
    promised[shard.get<std::string>()].push_back(text_model_name(name));
  }
  for (const auto& [shard, names] : promised) {
    if (!file_exists(directory / shard)) return fail("{}: the shard {} is missing", path.string(), shard);
    const std::size_t before = checkpoint.files_.size();
    MILLRACE_CHECK_OK(add_file(checkpoint, directory / shard));
    const std::span<const std::byte> bytes = checkpoint.files_[before]->bytes();
    for (const std::string& name : names) {
      const StoredTensor* tensor = checkpoint.find(name);
      const bool here =
          tensor != nullptr && tensor->data.data() >= bytes.data() && tensor->data.data() < bytes.data() + bytes.size();
      if (!here && !checkpoint.unreadable_.contains(name)) {
        return fail("{}: tensor {} should be in {} and is not", path.string(), shown(name), shard);
      }
    }
  }
  return Ok{};
}

Status HuggingFaceReader::add_file(Checkpoint& checkpoint, const fs::path& file) {
  MILLRACE_TRY(MappedFile mapped, MappedFile::open(file));
  checkpoint.files_.push_back(std::make_unique<MappedFile>(std::move(mapped)));
  MILLRACE_TRY(SafetensorsFile content, parse_safetensors(checkpoint.files_.back()->bytes(), file.string()));
  for (StoredTensor& tensor : content.tensors) {
    std::string name = text_model_name(tensor.name);
    if (name != tensor.name) tensor.name_in_file = std::exchange(tensor.name, name);
    const auto [place, added] = checkpoint.tensors_.emplace(std::move(name), std::move(tensor));
    if (!added || checkpoint.unreadable_.contains(place->first)) {
      return fail("{}: tensor {} is there twice, here and in another place", file.string(), shown(place->first));
    }
  }
  for (auto& [name, why] : content.unreadable) {
    const auto [place, added] = checkpoint.unreadable_.emplace(text_model_name(name), std::move(why));
    if (!added || checkpoint.tensors_.contains(place->first)) {
      return fail("{}: tensor {} is there twice, here and in another place", file.string(), shown(place->first));
    }
  }
  return Ok{};
}

}  // namespace millrace
