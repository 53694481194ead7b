// Vocabulary, chat template and stop tokens of a GGUF file.
#pragma once

#include <string_view>

#include "core/result.h"
#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/gguf_file.h"

namespace millrace {

/// All texts of the file; `what` names it in messages. A file without a vocabulary gives an empty tokenizer_json.
Result<TextAssets> gguf_text(const GgufMetadata& metadata, std::string_view what);

}  // namespace millrace
