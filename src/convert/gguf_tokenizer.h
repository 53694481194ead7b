// A tokenizer.json as GGUF's vocabulary: the inverse of text/gguf_vocab.h.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "convert/gguf_writer.h"
#include "core/result.h"
#include "model/checkpoint/checkpoint.h"
#include "model/config.h"
#include "text/gguf_vocab.h"

namespace millrace {

/// Byte-level BPE becomes "gpt2" with the name of its pre-tokenizer, BPE with U+2581 for spaces "llama" with scores in
/// the order of its merges. `size`: rows of the embedding; ids without a token get one that no text holds. `notes`:
/// what GGUF cannot say and hardly matters. Errors: another model, or a part of it that has no counterpart.
Result<GgufVocab> vocab_from_tokenizer(const std::string& tokenizer_json, std::int64_t size,
                                       std::vector<std::string>& notes);

/// Sets tokenizer.*, general.sampling.* and the chat template. A source without a tokenizer gets "none".
Status set_text_keys(GgufMetadataWriter& metadata, const Checkpoint& source, const ModelConfig& model,
                     std::vector<std::string>& notes);

}  // namespace millrace
