// Which tokens a file has, and what surrounds a text.
#include "convert/gguf_tokenizer.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "text/tokenizer.h"

namespace millrace {

namespace {

constexpr std::size_t kMostEnds = 3;  // that have keys

/// "bos_token" of tokenizer_config.json: a string, or an object that has one.
std::string token_text(const nlohmann::json& config, const char* key) {
  const auto found = config.find(key);
  if (found == config.end()) return "";
  if (found->is_string()) return found->get<std::string>();
  const auto content = found->is_object() ? found->find("content") : found->end();
  return found->is_object() && content != found->end() && content->is_string() ? content->get<std::string>() : "";
}

std::int64_t id_of(const GgufVocab& vocab, const std::string& token) {
  const auto found = std::ranges::find(vocab.tokens, token);
  return token.empty() || found == vocab.tokens.end() ? -1 : found - vocab.tokens.begin();
}

/// What the tokenizer puts before and after a text.
Status find_surroundings(const TextAssets& text, GgufVocab& vocab) {
  MILLRACE_TRY(const Tokenizer tokenizer, Tokenizer::from_json(text.tokenizer_json));
  MILLRACE_TRY(const std::vector<std::int32_t> bare, tokenizer.encode("a", false));
  MILLRACE_TRY(const std::vector<std::int32_t> whole, tokenizer.encode("a", true));
  const auto inner = std::search(whole.begin(), whole.end(), bare.begin(), bare.end());
  const std::ptrdiff_t before = inner - whole.begin();
  const std::ptrdiff_t after = std::ssize(whole) - std::ssize(bare) - before;
  if (bare.empty() || inner == whole.end() || before > 1 || after > 1) {
    return fail("tokenizer.json puts more than one token before or after a text, which GGUF cannot say");
  }
  vocab.add_bos = before == 1;
  vocab.add_eos = after == 1;
  if (before == 1) vocab.bos = whole.front();
  if (after == 1) vocab.eos = whole.back();
  return Ok{};
}

/// Ids of the tokens that end a text, the one first that is put after each.
Result<std::vector<std::int32_t>> ends_of(const ModelConfig& model, const GgufVocab& vocab) {
  std::vector<std::int32_t> ends;
  for (const std::int32_t id : model.eos_ids) {
    if (std::ranges::find(ends, id) == ends.end()) ends.push_back(id);
  }
  if (vocab.add_eos.value_or(false)) {
    const auto first = std::ranges::find(ends, vocab.eos);
    if (first == ends.end()) {
      return fail("tokenizer.json puts token {} after a text, which is none that ends one: GGUF cannot say that",
                  vocab.eos);
    }
    std::rotate(ends.begin(), first, first + 1);
  }
  if (ends.size() > kMostEnds) {
    return fail("{} tokens end a text, of which GGUF can name {}", ends.size(), kMostEnds);
  }
  return ends;
}

void set_sampling(GgufMetadataWriter& metadata, const nlohmann::json& generation) {
  constexpr std::pair<const char*, const char*> kNumbers[] = {
      {"temperature", "general.sampling.temp"},
      {"top_p", "general.sampling.top_p"},
      {"min_p", "general.sampling.min_p"},
      {"repetition_penalty", "general.sampling.penalty_repeat"},
  };
  const auto sampled = generation.find("do_sample");
  if (sampled == generation.end() || *sampled != true) return;
  for (const auto& [name, key] : kNumbers) {
    const auto found = generation.find(name);
    if (found != generation.end() && found->is_number()) metadata.set_float(key, found->get<double>());
  }
  const auto top_k = generation.find("top_k");
  if (top_k != generation.end() && top_k->is_number_unsigned() && *top_k < 1 << 30) {
    metadata.set_int32("general.sampling.top_k", top_k->get<std::int32_t>());
  }
}

void set_vocab(GgufMetadataWriter& metadata, const GgufVocab& vocab) {
  metadata.set_text("tokenizer.ggml.model", vocab.model);
  metadata.set_text("tokenizer.ggml.pre", vocab.pre);
  metadata.set_texts("tokenizer.ggml.tokens", vocab.tokens);
  if (!vocab.scores.empty()) metadata.set_floats("tokenizer.ggml.scores", vocab.scores);
  metadata.set_int32s("tokenizer.ggml.token_type", vocab.types);
  if (!vocab.merges.empty()) metadata.set_texts("tokenizer.ggml.merges", vocab.merges);
  if (vocab.add_space_prefix) metadata.set_flag("tokenizer.ggml.add_space_prefix", *vocab.add_space_prefix);
}

void set_ends(GgufMetadataWriter& metadata, const std::vector<std::int32_t>& ends) {
  constexpr const char* kEnds[kMostEnds] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                            "tokenizer.ggml.eom_token_id"};
  for (std::size_t i = 0; i < ends.size(); ++i) {
    metadata.set_uint32(kEnds[i], static_cast<std::uint64_t>(ends[i]));
  }
}

void set_id(GgufMetadataWriter& metadata, std::string_view key, std::int64_t id) {
  if (id >= 0) metadata.set_uint32(key, static_cast<std::uint64_t>(id));
}

}  // namespace

Status set_text_keys(GgufMetadataWriter& metadata, const Checkpoint& source, const ModelConfig& model,
                     std::vector<std::string>& notes) {
  const TextAssets& text = source.text();
  set_sampling(metadata, text.generation_config);
  if (text.tokenizer_json.empty()) {
    notes.emplace_back("there is no tokenizer.json: the file has no vocabulary");
    metadata.set_text("tokenizer.ggml.model", "none");
    MILLRACE_TRY(const std::vector<std::int32_t> ends, ends_of(model, {}));
    set_ends(metadata, ends);
    return Ok{};
  }
  MILLRACE_TRY(GgufVocab vocab, vocab_from_tokenizer(text.tokenizer_json, model.vocab, notes));
  MILLRACE_CHECK_OK(find_surroundings(text, vocab));
  MILLRACE_TRY(const std::vector<std::int32_t> ends, ends_of(model, vocab));
  set_vocab(metadata, vocab);
  if (vocab.bos < 0) vocab.bos = id_of(vocab, token_text(text.tokenizer_config, "bos_token"));
  if (vocab.unk < 0) vocab.unk = id_of(vocab, token_text(text.tokenizer_config, "unk_token"));
  set_id(metadata, "tokenizer.ggml.bos_token_id", vocab.bos);
  set_ends(metadata, ends);
  set_id(metadata, "tokenizer.ggml.unknown_token_id", vocab.unk);
  set_id(metadata, "tokenizer.ggml.padding_token_id", id_of(vocab, token_text(text.tokenizer_config, "pad_token")));
  metadata.set_flag("tokenizer.ggml.add_bos_token", *vocab.add_bos);
  metadata.set_flag("tokenizer.ggml.add_eos_token", *vocab.add_eos);
  if (!text.chat_template.empty()) metadata.set_text("tokenizer.chat_template", text.chat_template);
  return Ok{};
}

}  // namespace millrace
