// What a GGUF file will hold: its metadata, and each tensor with where its numbers come from.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "convert/gguf_writer.h"
#include "core/result.h"
#include "core/thread_pool.h"
#include "model/checkpoint/checkpoint.h"
#include "quant/format.h"

namespace millrace {

/// A tensor, as rows of its last dimension: [rows, cols].
struct GgufStep {
  GgufOutputTensor output;
  std::uint64_t source_bytes = 0;
  QuantFormat source_format = QuantFormat::f32;
  std::span<const std::byte> stored = {};  // in source_format, in the order of the result; empty: it must be read
  std::int64_t multiple = 1;               // rows are read in whole multiples of this many
  bool early = false;                      // others' meaning depends on it: it is written before the rest
  /// Rows [first, first + count) as floats, target [count, cols].
  std::function<void(std::int64_t first, std::int64_t count, float* target)> read = {};
  std::function<void()> release = {};  // the source is not read again; may be empty

  [[nodiscard]] std::int64_t cols() const { return output.shape.back(); }
  [[nodiscard]] std::int64_t rows() const;
};

struct GgufPlan {
  GgufMetadataWriter metadata;
  std::vector<GgufStep> steps;
  std::vector<std::string> notes;
  std::shared_ptr<void> owner = {};  // of what steps read
};

/// Whether a tensor by this name takes part in quantisation: matrices of linear layers, embeddings and the head. The
/// others (norms, biases, routers, factors of ropes) are kept in f32.
bool is_quantised(std::string_view name, std::size_t dimensions);

/// The type that a tensor gets, and a note where it is not the wanted one: rows that are no whole number of blocks are
/// kept in f16.
QuantFormat format_for(QuantFormat wanted, const std::string& name, const std::vector<std::int64_t>& shape,
                       std::vector<std::string>& notes);

/// Sets what the file says of its types.
void set_file_type(GgufMetadataWriter& metadata, QuantFormat format);

/// A GGUF file, or several with one model: metadata, names and order of rows are kept. Errors: it holds tensors of
/// types that are no weights.
Result<GgufPlan> plan_from_gguf(const Checkpoint& source, QuantFormat format, ThreadPool& pool);

/// A Hugging Face directory: names, rows of queries and keys, norms and experts become what GGUF has for the family.
/// `source` must outlive the plan. Errors: a family, a configuration or a tokenizer that GGUF cannot express.
Result<GgufPlan> plan_from_huggingface(const Checkpoint& source, QuantFormat format, ThreadPool& pool);

}  // namespace millrace
