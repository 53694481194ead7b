// The header of a safetensors file that is written in steps.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "convert/step_file.h"
#include "core/result.h"

namespace millrace {

struct OutputTensor {
  std::string name;
  std::string_view dtype;  // as safetensors names it: "F32", "I8", ...
  std::vector<std::int64_t> shape;

  [[nodiscard]] std::uint64_t bytes() const;
};

/// A file with room for the tensors, one after the other. `fingerprint` and errors: as of StepFile::open().
Result<StepFile> open_safetensors(const std::filesystem::path& path, const std::vector<OutputTensor>& tensors,
                                  const std::string& fingerprint);

}  // namespace millrace
