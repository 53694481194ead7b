#include "model/checkpoint/gguf_text.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "model/checkpoint/gguf_keys.h"
#include "model/checkpoint/json.h"
#include "text/gguf_vocab.h"

namespace millrace {

namespace {

std::vector<std::string> copies(const GgufArray* array) {
  if (array == nullptr) return {};
  const std::vector<std::string_view> views = array->strings();
  return {views.begin(), views.end()};
}

std::vector<std::int32_t> narrow(const GgufArray* array) {
  if (array == nullptr) return {};
  const std::vector<std::int64_t> wide = array->integers();
  std::vector<std::int32_t> result(wide.size());
  std::transform(wide.begin(), wide.end(), result.begin(), [](std::int64_t v) { return static_cast<std::int32_t>(v); });
  return result;
}

/// Reads the vocabulary; what is wrong is left in `keys`.
GgufVocab read_vocab(GgufKeys& keys) {
  GgufVocab vocab;
  vocab.model = keys.text("model").value_or("");
  vocab.pre = keys.text("pre").value_or("");
  vocab.tokens = copies(keys.array("tokens", GgufType::string));
  vocab.merges = copies(keys.array("merges", GgufType::string));
  vocab.types = narrow(keys.array("token_type", GgufType::int32));
  if (const GgufArray* scores = keys.array("scores", GgufType::float32)) vocab.scores = scores->floats();
  if (keys.has("precompiled_charsmap")) {
    const GgufArray* map = keys.array("precompiled_charsmap", GgufType::uint8);
    if (map != nullptr) vocab.precompiled_charsmap = map->raw();
  }
  constexpr std::pair<const char*, std::int64_t GgufVocab::*> kIds[] = {
      {"bos_token_id", &GgufVocab::bos},     {"eos_token_id", &GgufVocab::eos},
      {"unknown_token_id", &GgufVocab::unk}, {"seperator_token_id", &GgufVocab::sep},  // spelt so in the format
      {"padding_token_id", &GgufVocab::pad}, {"mask_token_id", &GgufVocab::mask},
      {"cls_token_id", &GgufVocab::cls},
  };
  for (const auto& [key, member] : kIds) vocab.*member = keys.integer(key).value_or(-1);
  vocab.add_bos = keys.flag("add_bos_token");
  vocab.add_eos = keys.flag("add_eos_token");
  vocab.add_space_prefix = keys.flag("add_space_prefix");
  vocab.remove_extra_whitespaces = keys.flag("remove_extra_whitespaces");
  const std::size_t count = vocab.tokens.size();
  const auto fits = [&](std::size_t size) { return size == 0 || size == count; };
  if (!fits(vocab.scores.size()) || !fits(vocab.types.size())) {
    keys.refuse(fail("{}: {} tokens, but {} scores and {} token types", keys.what(), count, vocab.scores.size(),
                     vocab.types.size()));
  }
  return vocab;
}

/// Stop tokens and the sampling that the model's makers recommend, as generation_config.json has them.
nlohmann::json generation_config(GgufKeys& tokenizer, GgufKeys& sampling) {
  nlohmann::json config = nlohmann::json::object();
  if (const auto bos = tokenizer.integer("bos_token_id")) config["bos_token_id"] = *bos;
  nlohmann::json stops = nlohmann::json::array();
  for (const char* key : {"eos_token_id", "eot_token_id", "eom_token_id"}) {
    const auto id = tokenizer.integer(key);
    if (id && std::find(stops.begin(), stops.end(), nlohmann::json(*id)) == stops.end()) stops.push_back(*id);
  }
  if (!stops.empty()) config["eos_token_id"] = stops;
  constexpr std::pair<const char*, const char*> kSampling[] = {
      {"temp", "temperature"},
      {"top_p", "top_p"},
      {"min_p", "min_p"},
      {"penalty_repeat", "repetition_penalty"},
  };
  for (const auto& [key, name] : kSampling) {
    if (const auto value = sampling.number(key)) config[name] = *value;
  }
  if (const auto top_k = sampling.integer("top_k")) config["top_k"] = *top_k;
  if (config.contains("temperature")) config["do_sample"] = config["temperature"] > 0.0;
  return config;
}

}  // namespace

Result<TextAssets> gguf_text(const GgufMetadata& metadata, std::string_view what) {
  GgufKeys tokenizer(metadata, "tokenizer.ggml.", what);
  GgufKeys above(metadata, "tokenizer.", what);
  GgufKeys sampling(metadata, "general.sampling.", what);
  TextAssets text;
  text.chat_template = above.text("chat_template").value_or("");
  text.generation_config = generation_config(tokenizer, sampling);
  const GgufVocab vocab = read_vocab(tokenizer);
  MILLRACE_CHECK_OK(tokenizer.status());
  MILLRACE_CHECK_OK(sampling.status());
  text.tokenizer_json = above.text("huggingface.json").value_or("");
  MILLRACE_CHECK_OK(above.status());
  if (vocab.tokens.empty()) return text;
  text.tokenizer_config = tokenizer_config_from_gguf(vocab);
  if (text.tokenizer_json.empty()) {
    auto json = tokenizer_json_from_gguf(vocab);
    if (!json.ok()) return fail("{}: {}", what, printable(json.error().message));
    text.tokenizer_json = std::move(*json);
  }
  return text;
}

}  // namespace millrace
