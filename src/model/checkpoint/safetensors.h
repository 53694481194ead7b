// The safetensors format: 8 bytes of header length (little endian), a JSON header, the tensors' bytes.
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "model/checkpoint/checkpoint.h"

namespace millrace {

/// What a safetensors file holds. The tensors' data point into the span that was parsed.
struct SafetensorsFile {
  std::vector<StoredTensor> tensors;
  /// Tensors that are none of our weights, name -> why: a dtype that we do not read (I64, F8_E4M3, ...) or "no
  /// elements". Checked like the others.
  std::map<std::string, std::string> unreadable;
  std::map<std::string, std::string> metadata;  // "__metadata__"
};

/// Parses a whole file; `what` names it in messages. As strict as the format's reference implementation: the header is
/// at most 100 MB of valid JSON of the format's shape, names are unique, and the tensors' byte ranges fit dtype and
/// shape and cover the rest of the file without hole or overlap. Memory is a small multiple of the header's size.
Result<SafetensorsFile> parse_safetensors(std::span<const std::byte> file, std::string_view what);

}  // namespace millrace
