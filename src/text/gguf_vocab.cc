#include "text/gguf_vocab.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "text/gguf_pre.h"

namespace millrace {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kSpace = "\u2581";  // stands for a space in SentencePiece vocabularies

enum TokenType : std::int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

struct SpecialId {
  const char* name;  // as in tokenizer_config.json
  std::int64_t GgufVocab::*id;
};
constexpr std::array kSpecialIds = {
    SpecialId{"bos_token", &GgufVocab::bos}, SpecialId{"eos_token", &GgufVocab::eos},
    SpecialId{"unk_token", &GgufVocab::unk}, SpecialId{"sep_token", &GgufVocab::sep},
    SpecialId{"pad_token", &GgufVocab::pad}, SpecialId{"mask_token", &GgufVocab::mask},
    SpecialId{"cls_token", &GgufVocab::cls},
};

/// The vocabulary, checked, with what the models share.
class Vocab {
 public:
  static Result<Vocab> make(const GgufVocab& file) {
    const std::size_t count = file.tokens.size();
    if (count == 0) return fail("tokenizer.ggml.tokens is empty");
    if (!file.types.empty() && file.types.size() != count) {
      return fail("tokenizer.ggml.token_type has {} entries, expected one for each of {} tokens", file.types.size(),
                  count);
    }
    if (!file.scores.empty() && file.scores.size() != count) {
      return fail("tokenizer.ggml.scores has {} entries, expected one for each of {} tokens", file.scores.size(),
                  count);
    }
    for (const SpecialId& special : kSpecialIds) {
      if (const std::int64_t id = file.*special.id; id < -1 || id >= static_cast<std::int64_t>(count)) {
        return fail("the vocabulary's {} is id {}, but there are {} tokens", special.name, id, count);
      }
    }
    Vocab vocab(file);
    vocab.tokens_ = file.tokens;
    for (std::size_t id = 0; id < count; ++id) {
      std::string& token = vocab.tokens_[id];
      if (token.empty()) token = fmt::format("[EMPTY_{}]", id);  // an id without a text cannot be met in one
    }
    vocab.ids_.reserve(count);
    for (std::size_t id = 0; id < count; ++id) {
      const auto [other, is_new] = vocab.ids_.emplace(vocab.tokens_[id], id);
      if (!is_new) return fail("tokenizer.ggml.tokens has \"{}\" twice, as {} and {}", other->first, other->second, id);
    }
    return vocab;
  }

  Vocab(Vocab&&) = default;
  Vocab(const Vocab&) = delete;  // the views would still look into the original

  [[nodiscard]] const std::vector<std::string>& tokens() const { return tokens_; }
  [[nodiscard]] std::int32_t type(std::size_t id) const { return file_->types.empty() ? kNormal : file_->types[id]; }
  [[nodiscard]] float score(std::size_t id) const { return file_->scores.empty() ? 0.0F : file_->scores[id]; }
  [[nodiscard]] const std::string& token(std::int64_t id) const { return tokens_[static_cast<std::size_t>(id)]; }

  /// Id of a token, or -1.
  [[nodiscard]] std::int64_t find(std::string_view token) const {
    const auto found = ids_.find(token);
    return found == ids_.end() ? -1 : static_cast<std::int64_t>(found->second);
  }

  [[nodiscard]] Json as_object() const {
    Json object = Json::object();
    auto& fields = object.get_ref<Json::object_t&>();
    for (std::size_t id = 0; id < tokens_.size(); ++id) fields.emplace_back(tokens_[id], id);  // unique: no search
    return object;
  }

 private:
  explicit Vocab(const GgufVocab& file) : file_(&file) {}

  const GgufVocab* file_;
  std::vector<std::string> tokens_;
  std::unordered_map<std::string_view, std::size_t> ids_;  // views of tokens_, whose strings do not move with it
};

Json sequence(const char* key, Json parts) {
  return {{"type", "Sequence"}, {key, std::move(parts)}};
}

Json replace(std::string_view pattern, std::string_view content) {
  return {{"type", "Replace"}, {"pattern", {{"String", pattern}}}, {"content", content}};
}

Json split(std::string_view regex) {
  return {{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}, {"invert", false}};
}

Json byte_level() {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
}

/// Decoder of a vocabulary with U+2581 for spaces and byte tokens.
Json sentencepiece_decoder(bool strip_first_space) {
  Json steps = {replace(kSpace, " "), {{"type", "ByteFallback"}}, {{"type", "Fuse"}}};
  if (strip_first_space) steps.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  return sequence("decoders", std::move(steps));
}

/// Tokens that are found in a text before anything else is done to it.
Json added_tokens(const Vocab& vocab) {
  Json added = Json::array();
  for (std::size_t id = 0; id < vocab.tokens().size(); ++id) {
    const std::int32_t type = vocab.type(id);
    if (type != kControl && type != kUserDefined && type != kUnknown) continue;
    added.push_back({{"id", id},
                     {"content", vocab.tokens()[id]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", type != kUserDefined}});
  }
  return added;
}

/// Puts the tokens around a text that the file asks for; null where there are none.
Json post_processor(const GgufVocab& file, const Vocab& vocab, bool add_bos, bool add_eos) {
  Json single = Json::array();
  Json pair = Json::array();
  Json specials = Json::object();
  const auto add_special = [&](std::int64_t id, int segment) {
    const std::string& token = vocab.token(id);
    if (segment == 0) single.push_back({{"SpecialToken", {{"id", token}, {"type_id", 0}}}});
    pair.push_back({{"SpecialToken", {{"id", token}, {"type_id", segment}}}});
    specials[token] = {{"id", token}, {"ids", Json::array({id})}, {"tokens", Json::array({token})}};
  };
  for (const int segment : {0, 1}) {
    if (add_bos && file.bos >= 0) add_special(file.bos, segment);
    const Json text = {{"Sequence", {{"id", segment == 0 ? "A" : "B"}, {"type_id", segment}}}};
    if (segment == 0) single.push_back(text);
    pair.push_back(text);
    if (add_eos && file.eos >= 0) add_special(file.eos, segment);
  }
  if (specials.empty()) return nullptr;
  return {{"type", "TemplateProcessing"},
          {"single", std::move(single)},
          {"pair", std::move(pair)},
          {"special_tokens", std::move(specials)}};
}

struct Parts {
  Json normalizer, pre_tokenizer, decoder, model;
  bool add_bos = false;  // where the file does not say
  bool add_eos = false;
};

Json bpe(const Vocab& vocab, Json merges, const Json& unk, bool byte_fallback, bool ignore_merges) {
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", unk},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", byte_fallback},
          {"byte_fallback", byte_fallback},
          {"ignore_merges", ignore_merges},
          {"vocab", vocab.as_object()},
          {"merges", std::move(merges)}};
}

Result<Json> listed_merges(const GgufVocab& file) {
  Json merges = Json::array();
  for (std::size_t i = 0; i < file.merges.size(); ++i) {
    const std::string& merge = file.merges[i];
    const std::size_t gap = merge.find(' ', 1);  // a token may itself begin with a space
    if (gap == std::string::npos || gap + 1 == merge.size()) {
      return fail("tokenizer.ggml.merges[{}] is \"{}\", expected two tokens with a space between them", i, merge);
    }
    merges.push_back(Json::array({merge.substr(0, gap), merge.substr(gap + 1)}));
  }
  return merges;
}

/// SentencePiece's BPE knows no list of merges: it joins the two neighbours whose union has the best score. As a list:
/// each way to cut a token into two tokens, in order of the token's score.
Json scored_merges(const Vocab& vocab) {
  struct Merge {
    float score;
    std::size_t left_chars, right_chars;
    std::string_view left, right;
  };
  const auto joins = [&](std::int64_t id) {
    if (id < 0) return false;
    const std::int32_t type = vocab.type(static_cast<std::size_t>(id));
    return type != kControl && type != kUnknown && type != kByte;
  };
  const auto is_start = [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; };
  std::vector<Merge> merges;
  for (std::size_t id = 0; id < vocab.tokens().size(); ++id) {
    if (!joins(static_cast<std::int64_t>(id))) continue;
    const std::string_view token = vocab.tokens()[id];
    const auto chars = static_cast<std::size_t>(std::count_if(token.begin(), token.end(), is_start));
    std::vector<std::tuple<std::int64_t, std::int64_t, Merge>> cuts;  // in order of the parts' ids
    std::size_t left_chars = 1;
    for (std::size_t at = 1; at < token.size(); ++at) {
      if (!is_start(token[at])) continue;
      const std::string_view left = token.substr(0, at), right = token.substr(at);
      const std::int64_t left_id = vocab.find(left), right_id = vocab.find(right);
      if (joins(left_id) && joins(right_id)) {
        cuts.emplace_back(left_id, right_id, Merge{vocab.score(id), left_chars, chars - left_chars, left, right});
      }
      ++left_chars;
    }
    std::sort(cuts.begin(), cuts.end(), [](const auto& a, const auto& b) {
      return std::tie(std::get<0>(a), std::get<1>(a)) < std::tie(std::get<0>(b), std::get<1>(b));
    });
    for (auto& cut : cuts) merges.push_back(std::get<2>(cut));
  }
  std::stable_sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) {
    return std::tie(a.score, a.left_chars, a.right_chars) > std::tie(b.score, b.left_chars, b.right_chars);
  });
  Json list = Json::array();
  for (const Merge& merge : merges) list.push_back(Json::array({merge.left, merge.right}));
  return list;
}

Json unk_token(const GgufVocab& file, const Vocab& vocab) {
  return file.unk >= 0 ? Json(vocab.token(file.unk)) : Json(nullptr);
}

/// "gpt2": byte-level BPE, and "gemma4": BPE with U+2581 for spaces.
Result<Parts> bpe_parts(const GgufVocab& file, const Vocab& vocab) {
  const std::string name = file.model == "gemma4" ? file.model : file.pre;
  const GgufPreTokenizer* pre = find_gguf_pre_tokenizer(name);
  if (pre == nullptr) {
    return fail("unknown pre-tokenizer \"{}\" (tokenizer.ggml.pre); known are: {}", name, gguf_pre_tokenizer_names());
  }
  if (file.merges.empty()) return fail("tokenizer.ggml.merges is missing, expected for the model \"{}\"", file.model);
  MILLRACE_TRY(Json merges, listed_merges(file));
  Json steps = Json::array();
  for (const std::string_view regex : pre->splits) steps.push_back(split(regex));
  const bool raw = name == "gemma4" || name == "sarvam-moe";
  Parts parts;
  parts.add_bos = pre->add_bos;
  if (raw) {
    parts.normalizer = replace(" ", kSpace);
    parts.decoder = sentencepiece_decoder(false);
    parts.model = bpe(vocab, std::move(merges), unk_token(file, vocab), true, pre->ignore_merges);
  } else {
    steps.push_back(byte_level());
    parts.decoder = byte_level();
    parts.model = bpe(vocab, std::move(merges), nullptr, false, pre->ignore_merges);
  }
  parts.pre_tokenizer = sequence("pretokenizers", std::move(steps));
  return parts;
}

/// "llama": SentencePiece's BPE.
Result<Parts> sentencepiece_parts(const GgufVocab& file, const Vocab& vocab) {
  if (file.scores.empty()) return fail("tokenizer.ggml.scores is missing, expected for the model \"llama\"");
  const bool prefix = file.add_space_prefix.value_or(true);
  Parts parts;
  Json steps = Json::array();
  if (prefix) steps.push_back({{"type", "Prepend"}, {"prepend", kSpace}});
  steps.push_back(replace(" ", kSpace));
  parts.normalizer = sequence("normalizers", std::move(steps));
  parts.decoder = sentencepiece_decoder(prefix);
  parts.model = bpe(vocab, scored_merges(vocab), unk_token(file, vocab), vocab.find("<0x00>") >= 0, false);
  parts.add_bos = true;
  return parts;
}

std::string base64(std::string_view bytes) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t group = 0;
    for (std::size_t j = 0; j < 3; ++j) {
      group = group << 8U | (i + j < bytes.size() ? static_cast<unsigned char>(bytes[i + j]) : 0U);
    }
    for (std::size_t j = 0; j < 4; ++j) {
      text += i + j <= bytes.size() ? kDigits[group >> (18U - 6U * j) & 63U] : '=';
    }
  }
  return text;
}

/// "t5": SentencePiece's Unigram.
Result<Parts> unigram_parts(const GgufVocab& file, const Vocab& vocab) {
  if (file.scores.empty()) return fail("tokenizer.ggml.scores is missing, expected for the model \"t5\"");
  const std::int64_t unk = file.unk >= 0 ? file.unk : vocab.find("<unk>");
  if (unk < 0) return fail("the model \"t5\" needs tokenizer.ggml.unknown_token_id or a token <unk>");
  Parts parts;
  Json steps = Json::array();
  if (!file.precompiled_charsmap.empty()) {
    steps.push_back({{"type", "Precompiled"}, {"precompiled_charsmap", base64(file.precompiled_charsmap)}});
  }
  if (file.remove_extra_whitespaces.value_or(true)) {
    steps.push_back({{"type", "Strip"}, {"strip_left", false}, {"strip_right", true}});
    steps.push_back({{"type", "Replace"}, {"pattern", {{"Regex", " {2,}"}}}, {"content", kSpace}});
  }
  if (!steps.empty()) parts.normalizer = sequence("normalizers", std::move(steps));
  const char* scheme = file.add_space_prefix.value_or(true) ? "always" : "never";
  const Json metaspace = {{"type", "Metaspace"}, {"replacement", kSpace}, {"prepend_scheme", scheme}, {"split", true}};
  parts.pre_tokenizer = metaspace;
  parts.decoder = metaspace;
  Json pieces = Json::array();
  for (std::size_t id = 0; id < vocab.tokens().size(); ++id) {
    pieces.push_back(Json::array({vocab.tokens()[id], vocab.score(id)}));
  }
  parts.model = {
      {"type", "Unigram"}, {"unk_id", unk}, {"vocab", std::move(pieces)}, {"byte_fallback", vocab.find("<0x00>") >= 0}};
  parts.add_eos = true;
  return parts;
}

Result<Parts> parts_of(const GgufVocab& file, const Vocab& vocab) {
  if (file.model == "gpt2" || file.model == "gemma4") return bpe_parts(file, vocab);
  if (file.model == "llama") return sentencepiece_parts(file, vocab);
  if (file.model == "t5") return unigram_parts(file, vocab);
  return fail("unknown tokenizer \"{}\" (tokenizer.ggml.model); known are: gpt2, gemma4, llama, t5", file.model);
}

}  // namespace

Result<std::string> tokenizer_json_from_gguf(const GgufVocab& file) try {
  MILLRACE_TRY(const Vocab vocab, Vocab::make(file));
  MILLRACE_TRY(Parts parts, parts_of(file, vocab));
  const bool add_bos = file.add_bos.value_or(parts.add_bos);
  const bool add_eos = file.add_eos.value_or(parts.add_eos);
  const Json json = {{"version", "1.0"},
                     {"truncation", nullptr},
                     {"padding", nullptr},
                     {"added_tokens", added_tokens(vocab)},
                     {"normalizer", std::move(parts.normalizer)},
                     {"pre_tokenizer", std::move(parts.pre_tokenizer)},
                     {"post_processor", post_processor(file, vocab, add_bos, add_eos)},
                     {"decoder", std::move(parts.decoder)},
                     {"model", std::move(parts.model)}};
  return json.dump();
} catch (const nlohmann::json::exception&) {  // dump() refuses what is not UTF-8
  return fail("tokenizer.ggml.tokens or merges hold text that is not UTF-8");
}

nlohmann::json tokenizer_config_from_gguf(const GgufVocab& file) {
  nlohmann::json config = nlohmann::json::object();
  for (const SpecialId& special : kSpecialIds) {
    const std::int64_t id = file.*special.id;
    if (id >= 0 && id < static_cast<std::int64_t>(file.tokens.size())) {
      config[special.name] = file.tokens[static_cast<std::size_t>(id)];
    }
  }
  if (file.add_bos) config["add_bos_token"] = *file.add_bos;
  if (file.add_eos) config["add_eos_token"] = *file.add_eos;
  return config;
}

}  // namespace millrace
