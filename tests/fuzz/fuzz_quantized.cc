// Any bytes as a quantised checkpoint: two bytes that say how long the config is, the config, a safetensors file. Every
// weight that is accepted can be decoded.
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <span>

#include "model/checkpoint/quantized.h"
#include "model/checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace millrace;
  if (size < 2) return 0;
  const std::size_t length = data[0] + 256u * data[1];
  if (length > size - 2) return 0;
  const auto config = nlohmann::json::parse(data + 2, data + 2 + length, nullptr, false);
  if (!config.is_object()) return 0;
  auto parsed = parse_safetensors(std::as_bytes(std::span(data + 2 + length, size - 2 - length)), "input");
  if (!parsed.ok()) return 0;
  TensorMap tensors;
  for (StoredTensor& tensor : parsed->tensors) {
    std::string name = tensor.name;
    tensors.emplace(std::move(name), std::move(tensor));
  }
  const Status joined = join_quantized(config, "input", tensors);
  if (!joined.ok()) {
    if (joined.error().message.find('\n') != std::string::npos) std::abort();
    return 0;
  }
  constexpr std::int64_t kMostElements = 1 << 20;  // that are worth the time
  for (const auto& [name, tensor] : tensors) {
    if (!tensor.coded || tensor.elements() > kMostElements) continue;
    std::vector<float> row(static_cast<std::size_t>(tensor.coded->cols));
    for (std::int64_t r = 0; r < tensor.coded->rows; ++r) tensor.coded->decode_row(r, row.data());
  }
  return 0;
}
