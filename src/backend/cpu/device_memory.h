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

}  // namespace millrace
