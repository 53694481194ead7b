#include "runtime/model_fingerprint.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/fnv.h"

namespace millrace {

std::string model_fingerprint(const Checkpoint& checkpoint) {
  constexpr std::size_t kBytes = 1024;  // of a tensor
  Fnv1a hash;
  hash.add(checkpoint.config().dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    hash.add(name);
    hash.add(static_cast<std::uint64_t>(tensor.format));
    for (const std::int64_t size : tensor.shape) hash.add(static_cast<std::uint64_t>(size));
    const auto first = [&](std::span<const std::byte> data) {
      const std::size_t count = std::min(kBytes, data.size());
      hash.add(std::string_view(reinterpret_cast<const char*>(data.data()), count));
    };
    first(tensor.data);
    for (const auto& part : tensor.parts) first(part);
  }
  return fmt::format("{:016x}", hash.value());
}

}  // namespace millrace
