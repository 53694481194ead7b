// Memory of the CPU backend: zeroed, aligned, and on huge pages where it is large.
#pragma once

#include <cstddef>
#include <memory>

#include "core/result.h"

namespace millrace {

/// At least `bytes` zeroed bytes, aligned to 64, freed with the last copy of the pointer. From 2 MiB on it is a mapping
/// of its own, aligned to huge pages and advised to use them; it takes physical memory as it is touched. `purpose` is
/// for the message: "cannot allocate 1.50 GiB for a weight".
Result<std::shared_ptr<void>> allocate_device_memory(std::size_t bytes, const char* purpose);

/// The same for much that stays together, such as weights: pieces follow each other in huge pages, of which each alone
/// would fill its last one in part. A piece's memory is free when its neighbours are gone too. Used from one thread.
class DeviceArena {
 public:
  Result<std::shared_ptr<void>> allocate(std::size_t bytes, const char* purpose);

 private:
  std::weak_ptr<void> chunk_;
  std::size_t used_ = 0;
};

}  // namespace millrace
