// The vocabulary of a GGUF file, and the tokenizer.json that means the same.
//
// GGUF stores a tokenizer as lists (tokens, scores, types, merges) and names the algorithm and the pre-tokenizer; the
// program that reads it is expected to know what the names mean. Here they become a tokenizer.json, so that there is
// one tokenizer in the house.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/result.h"

namespace millrace {

/// Fields are the file's tokenizer.ggml.*; ids of -1 are absent.
struct GgufVocab {
  std::string model;                 // "gpt2", "llama", "t5", "bert", ...
  std::string pre;                   // the pre-tokenizer of "gpt2"; empty where absent
  std::vector<std::string> tokens;   // by id
  std::vector<float> scores;         // empty where absent
  std::vector<std::int32_t> types;   // tokenizer.ggml.token_type; empty where absent
  std::vector<std::string> merges;   // "a b", in order of rank
  std::string precompiled_charsmap;  // raw bytes; empty where absent
  std::int64_t bos = -1, eos = -1, unk = -1, sep = -1, pad = -1, mask = -1, cls = -1;
  std::optional<bool> add_bos, add_eos, add_space_prefix, remove_extra_whitespaces;
};

/// The equivalent tokenizer.json. Errors: a model or pre-tokenizer that is not known (it and the known ones are named),
/// no tokens, lists of unequal length, an id outside the vocabulary, a merge that is not two tokens.
Result<std::string> tokenizer_json_from_gguf(const GgufVocab& vocab);

/// What a tokenizer_config.json would say: bos_token, eos_token, ... as strings; add_bos_token, add_eos_token.
nlohmann::json tokenizer_config_from_gguf(const GgufVocab& vocab);

}  // namespace millrace
