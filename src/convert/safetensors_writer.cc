#include "convert/safetensors_writer.h"

#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/check.h"

namespace millrace {

namespace {

std::uint64_t dtype_bits(std::string_view dtype) {
  if (dtype == "F32" || dtype == "I32") return 32;
  if (dtype == "F16" || dtype == "BF16") return 16;
  if (dtype == "I64") return 64;
  MILLRACE_CHECK(dtype == "U8" || dtype == "I8" || dtype == "F8_E4M3", "dtype {}", dtype);
  return 8;
}

/// Length and JSON, filled with spaces to whole cache lines so that tensors are aligned.
std::string header_of(const std::vector<OutputTensor>& tensors) {
  nlohmann::ordered_json header;
  header["__metadata__"] = {{"format", "pt"}};
  std::uint64_t offset = 0;
  for (const OutputTensor& tensor : tensors) {
    header[tensor.name] = {
        {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {offset, offset + tensor.bytes()}}};
    offset += tensor.bytes();
  }
  std::string text = header.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  while ((sizeof(std::uint64_t) + text.size()) % 64 != 0) text += ' ';
  const std::uint64_t length = text.size();
  std::string result(sizeof length, '\0');
  std::memcpy(result.data(), &length, sizeof length);
  return result + text;
}

}  // namespace

std::uint64_t OutputTensor::bytes() const {
  std::uint64_t count = 1;
  for (const std::int64_t size : shape) count *= static_cast<std::uint64_t>(size);
  return count * dtype_bits(dtype) / 8;
}

Result<StepFile> open_safetensors(const std::filesystem::path& path, const std::vector<OutputTensor>& tensors,
                                  const std::string& fingerprint) {
  StepFileLayout layout;
  layout.header = header_of(tensors);
  layout.bytes = layout.header.size();
  for (const OutputTensor& tensor : tensors) {
    layout.places.emplace(tensor.name, StepFileLayout::Place{layout.bytes, tensor.bytes()});
    layout.bytes += tensor.bytes();
  }
  return StepFile::open(path, std::move(layout), fingerprint);
}

}  // namespace millrace
