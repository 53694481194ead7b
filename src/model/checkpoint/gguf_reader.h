// Checkpoints in GGUF files, one or split into several.
#pragma once

#include <filesystem>
#include <vector>

#include "core/result.h"
#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/gguf_architecture.h"
#include "model/checkpoint/gguf_file.h"

namespace millrace {

/// Fills a Checkpoint from a .gguf file; of a split model (NAME-00001-of-00003.gguf) from the first one.
class GgufReader {
 public:
  static Result<Checkpoint> open(const std::filesystem::path& file, bool with_tensors);

 private:
  explicit GgufReader(const std::filesystem::path& file) : path_(file), what_(file.string()) {}

  Status read();
  Result<GgufFile> map(const std::filesystem::path& file);
  Status read_splits();
  Status translate(bool with_tensors);
  Status add(const GgufArchitecture& architecture, const GgufTensor& tensor);
  Status insert(StoredTensor tensor);

  std::filesystem::path path_;
  std::string what_;
  std::vector<GgufFile> files_;
  GgufTensors tensors_;
  Checkpoint checkpoint_;
};

}  // namespace millrace
