// How much memory there is, and sizes as people write them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "core/result.h"

namespace millrace {

/// Bytes that a new allocation may take without pushing the machine (or the control group that the process runs in) out
/// of memory: MemAvailable, cut by what is left under the cgroup's memory.max.
std::uint64_t available_memory();

/// "512M", "2G", "1.5GiB", "4096": binary multiples, as memory is counted. Error: not a size.
Result<std::uint64_t> parse_size(std::string_view text);

/// "1.50 GiB", "12.0 MiB", "640 bytes".
std::string format_size(std::uint64_t bytes);

}  // namespace millrace
