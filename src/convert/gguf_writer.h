// The container of a GGUF file (version 3, little endian): metadata, tensor infos, and where the tensors' data goes.
// Nothing here knows what a key or a tensor means. Source: the format's description in ggml's repository.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "convert/step_file.h"
#include "model/checkpoint/gguf_file.h"
#include "quant/format.h"

namespace millrace {

/// Keys with their values as they lie in a file, in the order in which they were set.
class GgufMetadataWriter {
 public:
  // Each sets a key, in the place where it is if it is there already. The format tells types apart, and readers demand
  // the one that they expect: counts and ids are 32 bits without a sign unless said otherwise.
  void set_uint32(std::string_view key, std::uint64_t value);  // at most 2^32 - 1
  void set_int32(std::string_view key, std::int32_t value);
  void set_float(std::string_view key, double value);
  void set_flag(std::string_view key, bool value);
  void set_text(std::string_view key, std::string_view value);
  void set_texts(std::string_view key, const std::vector<std::string>& values);
  void set_int32s(std::string_view key, const std::vector<std::int32_t>& values);
  void set_floats(std::string_view key, const std::vector<float>& values);
  void set_flags(std::string_view key, const std::vector<bool>& values);
  /// A value as another file has it, behind its type.
  void set_stored(std::string_view key, GgufType type, std::span<const std::byte> value);

  [[nodiscard]] const std::vector<std::pair<std::string, std::string>>& pairs() const { return pairs_; }

 private:
  void set(std::string_view key, std::string value);

  std::vector<std::pair<std::string, std::string>> pairs_;  // key -> type and value, encoded
};

/// All keys of a parsed file with their types and values as they are there, in the file's order. `metadata` must still
/// point into it.
GgufMetadataWriter copy_metadata(const GgufMetadata& metadata);

struct GgufOutputTensor {
  std::string name;
  QuantFormat format = QuantFormat::f32;  // one that encode() writes, or that a source has as it is
  std::vector<std::int64_t> shape;        // outermost dimension first; rows are whole blocks

  [[nodiscard]] std::uint64_t bytes() const;
};

/// Data of tensors is aligned to this, which is what readers take where general.alignment does not say.
inline constexpr std::uint64_t kGgufAlignment = 32;

/// Header and places of a file with the tensors one after the other.
StepFileLayout gguf_layout(const GgufMetadataWriter& metadata, const std::vector<GgufOutputTensor>& tensors);

}  // namespace millrace
