// A checkpoint, whatever its file format: a Hugging Face directory or a GGUF file, seen through the same three things:
// a config, named tensors, and the texts a tokenizer is made from. GGUF's metadata and tensor names are translated to
// their Hugging Face counterparts at this border, so that a model family knows one set of names.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/mapped_file.h"
#include "core/result.h"
#include "quant/coded_matrix.h"
#include "quant/format.h"

namespace millrace {

/// One tensor as it lies in the mapped file. Row-major; shape outermost dimension first, as in PyTorch.
struct StoredTensor {
  std::string name;  // the Hugging Face name, e.g. "model.layers.0.self_attn.q_proj.weight"
  QuantFormat format = QuantFormat::f32;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> data;
  std::string name_in_file = {};  // where that is another; empty: it is not

  /// GGUF files of some architectures (llama, mistral, ...) store the rows of the query and key projections reordered
  /// for interleaved rotary pairs. Number of heads whose rows must be put back into the half-split order; 0: as is.
  std::int64_t unpermute_heads = 0;

  /// Of format codes: what the tensor is, and the bytes of all of its parts; `data` is empty.
  std::shared_ptr<const CodedMatrix> coded = {};
  std::vector<std::span<const std::byte>> parts = {};

  [[nodiscard]] std::int64_t elements() const;
  [[nodiscard]] std::uint64_t bytes() const;  // in the file
};

/// What a tokenizer and a chat are made from. Empty strings where the checkpoint has none.
struct TextAssets {
  std::string tokenizer_json;  // tokenizer.json, or its equivalent built from a GGUF vocabulary
  std::string chat_template;   // Jinja source
  nlohmann::json tokenizer_config =
      nlohmann::json::object();  // bos_token, eos_token, add_bos_token, ... as strings/flags
  nlohmann::json generation_config = nlohmann::json::object();  // as generation_config.json
};

/// An open checkpoint; owns the mappings that the tensors point into. Movable.
class Checkpoint {
 public:
  /// `path`: a directory with config.json, or a .gguf file. Every length, offset and shape has been checked against the
  /// file when this returns. Errors: one line that names the file, what is wrong and what was expected.
  static Result<Checkpoint> open(const std::filesystem::path& path);

  /// Only config and texts, no tensors: for random weights (--dummy). `path`: a directory with config.json, a .gguf
  /// file, or the path of a config itself, whose directory gives the texts if it is called config.json. Of a .gguf with
  /// an unsupported architecture the config has only its name.
  static Result<Checkpoint> open_config_only(const std::filesystem::path& path);

  /// config.json, or its equivalent built from GGUF metadata. `architectures` and `model_type` are always there.
  [[nodiscard]] const nlohmann::json& config() const { return config_; }
  /// True where norm weights already contain the "+1" of the Gemma families (GGUF files do).
  [[nodiscard]] bool norms_include_one() const { return norms_include_one_; }
  [[nodiscard]] const TextAssets& text() const { return text_; }

  [[nodiscard]] const StoredTensor* find(std::string_view name) const;
  [[nodiscard]] const std::map<std::string, StoredTensor, std::less<>>& tensors() const { return tensors_; }
  /// Tensors that the files have but that find() does not know, because their dtype is none of ours or they are empty:
  /// name -> dtype ("I64", "F8_E4M3", ...) or "no elements". For the message when one of them is wanted.
  [[nodiscard]] const std::map<std::string, std::string, std::less<>>& unreadable() const { return unreadable_; }
  [[nodiscard]] std::uint64_t weight_bytes() const;  // bytes of all tensors
  [[nodiscard]] const std::string& path() const { return path_; }
  /// Paths of the files that hold tensors.
  [[nodiscard]] std::vector<std::string> files() const;

  /// Drops the tensor's file pages from the resident set once its values have been packed.
  void release(const StoredTensor& tensor) const;

 private:
  friend class HuggingFaceReader;
  friend class GgufReader;

  void release(std::span<const std::byte> bytes, const std::string& name) const;

  std::string path_;
  nlohmann::json config_;
  bool norms_include_one_ = false;
  TextAssets text_;
  std::vector<std::unique_ptr<MappedFile>> files_;
  std::map<std::string, StoredTensor, std::less<>> tensors_;
  std::map<std::string, std::string, std::less<>> unreadable_;
};

}  // namespace millrace
