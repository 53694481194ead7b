// Any bytes as a safetensors file; every byte of what is accepted can be read.
#include <cstdint>
#include <cstdlib>
#include <span>

#include "model/checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace millrace;
  const auto parsed = parse_safetensors(std::as_bytes(std::span(data, size)), "input");
  if (!parsed.ok()) {
    if (parsed.error().message.find('\n') != std::string::npos) std::abort();
    return 0;
  }
  std::size_t bytes = 0;
  std::size_t sum = 0;
  for (const StoredTensor& tensor : parsed->tensors) {
    if (tensor.data.size() != format_bytes(tensor.format, static_cast<std::size_t>(tensor.elements()))) std::abort();
    bytes += tensor.data.size();
    for (const std::byte byte : tensor.data) sum += static_cast<std::size_t>(byte);
  }
  if (bytes > size) std::abort();  // tensors overlap
  return sum == ~std::size_t{0} ? 1 : 0;
}
