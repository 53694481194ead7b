// Any bytes as a GGUF file: container, then config and texts as if it were a model.
#include <cstdint>
#include <cstdlib>
#include <span>

#include "model/checkpoint/gguf_architecture.h"
#include "model/checkpoint/gguf_file.h"
#include "model/checkpoint/gguf_text.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace millrace;
  const auto parsed = parse_gguf(std::as_bytes(std::span(data, size)), "input");
  if (!parsed.ok()) {
    if (parsed.error().message.find('\n') != std::string::npos) std::abort();
    return 0;
  }
  GgufTensors tensors;
  std::size_t sum = 0;
  for (const GgufTensor& tensor : parsed->tensors) {
    tensors.emplace(tensor.name, &tensor);
    for (const std::byte byte : tensor.data) sum += static_cast<std::size_t>(byte);
  }
  GgufKeys general(parsed->metadata, "general.", "input");
  const GgufArchitecture* architecture = find_gguf_architecture(general.text("architecture").value_or(""));
  if (architecture == nullptr) return sum == 1 ? 1 : 0;
  for (const GgufTensor& tensor : parsed->tensors) (void)gguf_tensor_name(*architecture, tensor.name);
  const auto config = gguf_config(*architecture, parsed->metadata, tensors, "input");
  if (config.ok()) (void)config->dump();
  (void)gguf_text(parsed->metadata, "input");
  return 0;
}
