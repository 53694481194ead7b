// A checkpoint as a GGUF file with its matrices in one of the format's types.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>

#include "convert/conversion.h"
#include "core/result.h"
#include "quant/format.h"

namespace millrace {

struct GgufOptions {
  std::filesystem::path model = {};        // a Hugging Face directory or a GGUF file
  std::filesystem::path output = {};       // a file that is not there, in a directory that is
  QuantFormat format = QuantFormat::q8_0;  // one that encode() writes
  int threads = 0;                         // 0: one a core
  // May be empty: bytes of the source that are done.
  std::function<void(std::uint64_t done, std::uint64_t total)> progress = {};
};

/// Reads, rounds and writes one tensor after the other, a block of rows at a time, so that a model may be larger than
/// memory. What is finished is kept beside the output where the call is killed or the disk is full, and the same call
/// goes on from there. Layers of the report have GGUF's names. Before anything large is written, the program's own
/// reader has to find the source's configuration and tensors in the file, and a tokenizer that splits some texts as the
/// source's does and knows the tokens that this adds to its vocabulary; nothing else of the tokenizer is compared.
/// Errors: the model cannot be read, is quantised in a way that has no blocks, or is something that GGUF cannot
/// express; no matrix has rows of whole blocks; a weight, rounded or copied, is not finite or too large for the type;
/// the output is there already or cannot be written.
Result<QuantizeReport> quantize_to_gguf(const GgufOptions& options);

}  // namespace millrace
