// The vocabulary of a tokenizer.json: tokens, types, merges or scores, and the name of its pre-tokenizer.
#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <utility>

#include "convert/gguf_tokenizer.h"
#include "model/checkpoint/json.h"

namespace millrace {

namespace {

using Json = nlohmann::json;

constexpr std::string_view kSpace = "\u2581";  // stands for a space in SentencePiece vocabularies
enum TokenType : std::int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

// Names of pre-tokenizers, the best known of those that mean the same first.
constexpr std::array kPreTokenizers = {"llama-bpe",    "qwen2",          "gpt-2",  "smollm",      "gpt-4o",
                                       "tekken",       "deepseek-v3",    "dbrx",   "chatglm-bpe", "qwen35",
                                       "deepseek-llm", "deepseek-coder", "falcon", "exaone",      "seed-coder",
                                       "bailingmoe",   "exaone-moe",     "youtu",  "kimi-k2",     "superbpe"};

using Merge = std::pair<std::string, std::string>;

std::string type_of(const Json& part) {
  return part.is_object() ? part.value("type", "") : "";
}

const Json& at(const Json& object, const char* key) {
  static const Json kNothing;
  if (!object.is_object()) return kNothing;
  const auto found = object.find(key);
  return found == object.end() ? kNothing : *found;
}

bool is_true(const Json& value) {
  return value.is_boolean() && value.get<bool>();
}

std::string text_of(const Json& value) {
  return value.is_string() ? value.get<std::string>() : "";
}

/// A normalizer or pre-tokenizer as a list of simple ones.
std::vector<Json> steps_of(const Json& part, const char* list) {
  if (part.is_null()) return {};
  if (type_of(part) != "Sequence") return {part};
  std::vector<Json> steps;
  for (const Json& inner : at(part, list)) {
    for (Json& step : steps_of(inner, list)) steps.push_back(std::move(step));
  }
  return steps;
}

/// Where the pieces of a byte-level pre-tokenizer end, as expressions; nothing where it is none.
std::optional<std::vector<std::string>> splits_of(const Json& pre_tokenizer) {
  constexpr const char* kGpt2Alone = "the split that a ByteLevel step makes itself";
  std::vector<std::string> splits;
  bool bytes = false;
  for (const Json& step : steps_of(pre_tokenizer, "pretokenizers")) {
    const std::string type = type_of(step);
    if (bytes) return std::nullopt;
    if (type == "ByteLevel" && !is_true(at(step, "add_prefix_space"))) {
      bytes = true;
      const Json& splitting = at(step, "use_regex");
      if (splitting.is_null() || is_true(splitting)) splits.emplace_back(kGpt2Alone);
    } else if (type == "Split" && at(step, "behavior") == "Isolated" && !is_true(at(step, "invert"))) {
      splits.push_back(text_of(at(at(step, "pattern"), "Regex")));
    } else if (type == "Digits") {
      splits.emplace_back(is_true(at(step, "individual_digits")) ? R"(\p{N})" : R"(\p{N}+)");
    } else {
      return std::nullopt;
    }
  }
  if (!bytes) return std::nullopt;
  return splits;
}

/// What a file with this pre-tokenizer is read as.
Json read_back(const char* pre) {
  const GgufVocab probe{.model = "gpt2",
                        .pre = pre,
                        .tokens = {"a", "b", "ab"},
                        .scores = {},
                        .types = {},
                        .merges = {"a b"},
                        .precompiled_charsmap = {},
                        .add_bos = {},
                        .add_eos = {},
                        .add_space_prefix = {},
                        .remove_extra_whitespaces = {}};
  const auto json = tokenizer_json_from_gguf(probe);
  return json.ok() ? Json::parse(*json, nullptr, false) : Json();
}

/// The name of a pre-tokenizer with these splits; empty: there is none.
std::string pre_tokenizer_name(std::vector<std::string> splits, bool ignore_merges) {
  const std::vector<std::string> gpt2 = *splits_of(read_back("gpt-2")["pre_tokenizer"]);
  const std::vector<std::string> alone = *splits_of(Json{{"type", "ByteLevel"}});
  std::ranges::replace(splits, alone.front(), gpt2.front());
  for (const char* name : kPreTokenizers) {
    const Json known = read_back(name);
    if (!known.is_object() || is_true(at(known["model"], "ignore_merges")) != ignore_merges) continue;
    if (splits_of(known["pre_tokenizer"]) == splits) return name;
  }
  return "";
}

std::optional<std::vector<Merge>> merges_of(const Json& model) {
  std::vector<Merge> merges;
  for (const Json& merge : at(model, "merges")) {
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
      continue;
    }
    const std::string text = text_of(merge);
    const std::size_t gap = text.find(' ', 1);
    if (gap == std::string::npos || gap + 1 == text.size()) return std::nullopt;
    merges.emplace_back(text.substr(0, gap), text.substr(gap + 1));
  }
  return merges;
}

/// Merges with those of one token in an order of their own: which of them comes first makes no difference, since each
/// time all of the token's text is joined. Those of added tokens, which are cut out of a text before, are left out.
std::vector<Merge> comparable(std::vector<Merge> merges, const std::set<std::string>& added) {
  std::erase_if(merges, [&](const Merge& merge) { return added.contains(merge.first + merge.second); });
  for (std::size_t first = 0, last = 0; first < merges.size(); first = last) {
    const std::string token = merges[first].first + merges[first].second;
    while (last < merges.size() && merges[last].first + merges[last].second == token) ++last;
    std::sort(merges.begin() + static_cast<std::ptrdiff_t>(first), merges.begin() + static_cast<std::ptrdiff_t>(last));
  }
  return merges;
}

class VocabWriter {
 public:
  VocabWriter(const Json& tokenizer, std::int64_t size, std::vector<std::string>& notes)
      : tokenizer_(&tokenizer), model_(&at(tokenizer, "model")), size_(size), notes_(&notes) {}

  Result<GgufVocab> write() {
    if (type_of(*model_) != "BPE") {
      return fail("a tokenizer of the kind {} is not written as GGUF; BPE is", shown(type_of(*model_)));
    }
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (!text_of(at(*model_, key)).empty()) return fail("GGUF has no counterpart for \"{}\" of tokenizer.json", key);
    }
    MILLRACE_CHECK_OK(fill_tokens());
    auto merges = merges_of(*model_);
    if (!merges) return fail("tokenizer.json has merges that are not two tokens each");
    merges_ = std::move(*merges);
    if (const auto splits = splits_of(at(*tokenizer_, "pre_tokenizer"))) {
      MILLRACE_CHECK_OK(fill_byte_level(*splits));
    } else {
      MILLRACE_CHECK_OK(fill_sentencepiece());
    }
    return std::move(vocab_);
  }

 private:
  Status fill_tokens() {
    const auto size = static_cast<std::size_t>(size_);
    vocab_.tokens.assign(size, "");
    vocab_.types.assign(size, kUnused);
    for (const auto& [token, id] : at(*model_, "vocab").items()) MILLRACE_CHECK_OK(set_token(id, token, kNormal));
    for (const Json& token : at(*tokenizer_, "added_tokens")) {
      const std::string text = text_of(at(token, "content"));
      for (const char* flag : {"single_word", "lstrip", "rstrip"}) {
        if (is_true(at(token, flag))) {
          return fail("the token {} is \"{}\" in tokenizer.json, which GGUF cannot say", shown(text), flag);
        }
      }
      MILLRACE_CHECK_OK(set_token(at(token, "id"), text, is_true(at(token, "special")) ? kControl : kUserDefined));
      added_.insert(text);
    }
    for (std::size_t id = 0; id < size; ++id) {
      if (vocab_.types[id] == kUnused) vocab_.tokens[id] = fmt::format("[PAD{}]", id);
    }
    return Ok{};
  }

  Status set_token(const Json& id, const std::string& text, TokenType type) {
    if (!id.is_number_integer() || id < 0) return fail("tokenizer.json: the token {} has no id", shown(text));
    if (id >= size_) {
      return fail("tokenizer.json: the token {} has the id {}, but the model has {} tokens", shown(text),
                  id.get<std::int64_t>(), size_);
    }
    const auto index = id.get<std::size_t>();
    vocab_.tokens[index] = text;
    vocab_.types[index] = type;
    return Ok{};
  }

  Status fill_byte_level(const std::vector<std::string>& splits) {
    for (const Json& step : steps_of(at(*tokenizer_, "normalizer"), "normalizers")) {
      if (type_of(step) != "NFC") return no_counterpart("normalizer", step);
      notes_->emplace_back("GGUF cannot say that texts are brought to Unicode's form NFC first: its readers do not");
    }
    vocab_.model = "gpt2";
    vocab_.pre = pre_tokenizer_name(splits, is_true(at(*model_, "ignore_merges")));
    if (vocab_.pre.empty()) return fail("GGUF has no name for the way in which tokenizer.json splits texts into words");
    for (const auto& [left, right] : merges_) {
      if (left.find(' ') != std::string::npos || right.find(' ') != std::string::npos) {
        return fail("tokenizer.json has a merge of a token with a space, which GGUF cannot say");
      }
      vocab_.merges.push_back(left + ' ' + right);
    }
    return Ok{};
  }

  Status no_counterpart(const char* part, const Json& step) const {
    return fail("GGUF has no counterpart for the {} {} of tokenizer.json", part, shown(step.dump(-1, ' ', true)));
  }

  Status fill_sentencepiece() {
    MILLRACE_CHECK_OK(read_spaces());
    const std::string unknown = text_of(at(*model_, "unk_token"));
    for (std::size_t id = 0; id < vocab_.tokens.size(); ++id) {
      const std::string& token = vocab_.tokens[id];
      if (token == unknown && !unknown.empty()) {
        vocab_.unk = static_cast<std::int64_t>(id);
        vocab_.types[id] = kUnknown;
      }
      if (is_true(at(*model_, "byte_fallback")) && token.size() == 6 && token.starts_with("<0x") && token[5] == '>') {
        vocab_.types[id] = kByte;
      }
    }
    vocab_.model = "llama";
    vocab_.pre = "default";
    set_scores();
    return check_scores();
  }

  /// How spaces become U+2581, and whether one is put before a text.
  Status read_spaces() {
    bool prefix = false, replaced = false;
    for (const Json& step : steps_of(at(*tokenizer_, "normalizer"), "normalizers")) {
      const Json& pattern = at(step, "pattern");
      const std::string type = type_of(step), content = text_of(at(step, "content"));
      if (type == "Prepend" && at(step, "prepend") == kSpace) {
        prefix = true;
      } else if (type == "Replace" && at(pattern, "String") == " " && content == kSpace) {
        replaced = true;
      } else if (type == "Replace" && pattern.contains("Regex") && (content.empty() || content == " ")) {
        notes_->emplace_back("GGUF cannot say that tokenizer.json drops or shortens some spaces: they are kept");
      } else {
        return no_counterpart("normalizer", step);
      }
    }
    for (const Json& step : steps_of(at(*tokenizer_, "pre_tokenizer"), "pretokenizers")) {
      const bool whole =
          type_of(step) == "Metaspace" && at(step, "replacement") == kSpace && at(step, "split") == false;
      if (whole) {
        replaced = true;
        prefix = at(step, "prepend_scheme") != "never";
      } else if (type_of(step) != "Split" || !replaced || at(at(step, "pattern"), "String") != " ") {
        return no_counterpart("pre-tokenizer", step);  // a split at spaces finds none
      }
    }
    if (!replaced) return fail("tokenizer.json is neither byte-level nor does it replace spaces: GGUF cannot say it");
    vocab_.add_space_prefix = prefix;
    return Ok{};
  }

  /// The sooner a token is joined, the higher its score.
  void set_scores() {
    std::map<std::string_view, std::size_t> ids;
    for (std::size_t id = 0; id < vocab_.tokens.size(); ++id) ids.emplace(vocab_.tokens[id], id);
    vocab_.scores.assign(vocab_.tokens.size(), -static_cast<float>(merges_.size()) - 1.0f);
    std::set<std::string> seen;
    for (std::size_t rank = 0; rank < merges_.size(); ++rank) {
      const std::string token = merges_[rank].first + merges_[rank].second;
      const auto found = ids.find(token);
      if (found != ids.end() && seen.insert(token).second) vocab_.scores[found->second] = -static_cast<float>(rank);
    }
  }

  /// A reader makes its merges from the scores: they have to be those that were here.
  Status check_scores() const {
    MILLRACE_TRY(const std::string text, tokenizer_json_from_gguf(vocab_));
    const Json json = Json::parse(text, nullptr, false);
    const auto found = merges_of(at(json, "model"));
    if (!found || comparable(*found, added_) != comparable(merges_, added_)) {
      return fail("the merges of tokenizer.json cannot be said by scores of tokens, as GGUF has them");
    }
    return Ok{};
  }

  const Json* tokenizer_;
  const Json* model_;
  std::int64_t size_;
  std::vector<std::string>* notes_;
  std::set<std::string> added_;
  std::vector<Merge> merges_;
  GgufVocab vocab_;
};

}  // namespace

Result<GgufVocab> vocab_from_tokenizer(const std::string& tokenizer_json, std::int64_t size,
                                       std::vector<std::string>& notes) {
  const Json tokenizer = Json::parse(tokenizer_json, nullptr, false);
  if (!tokenizer.is_object()) return fail("tokenizer.json is not a JSON object");
  return VocabWriter(tokenizer, size, notes).write();
}

}  // namespace millrace
