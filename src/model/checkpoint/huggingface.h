// Hugging Face directories: config.json, safetensors files and the texts beside them.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "core/result.h"
#include "model/checkpoint/checkpoint.h"

namespace millrace {

/// Fills a Checkpoint from a directory; one call each.
class HuggingFaceReader {
 public:
  /// A directory with config.json and, unless `with_tensors` is false, model.safetensors or
  /// model.safetensors.index.json with its shards.
  static Result<Checkpoint> open(const std::filesystem::path& directory, bool with_tensors);
  /// A config alone, whatever its file is called.
  static Result<Checkpoint> open_config(const std::filesystem::path& file);

 private:
  static Status read_texts(Checkpoint& checkpoint, const std::filesystem::path& directory);
  static Status read_tensors(Checkpoint& checkpoint, const std::filesystem::path& directory);
  static Status add_shards(Checkpoint& checkpoint, const std::filesystem::path& directory);
  /// Numbers that mean nothing by themselves, and that no method of quantisation has joined with their scales.
  static void set_aside_unexplained(Checkpoint& checkpoint);
  static Status add_file(Checkpoint& checkpoint, const std::filesystem::path& file);
};

/// The name that a text model alone would give the tensor: without the prefixes of multimodal wrappers.
std::string text_model_name(std::string_view name);

/// Sees to it that `architectures` is a list of at least one string and `model_type` a string: a config may lack one of
/// the two. `what` names the file in messages.
Status complete_architecture(nlohmann::json& config, std::string_view what);

}  // namespace millrace
