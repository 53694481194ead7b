#include "core/memory.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <fstream>
#include <limits>

namespace millrace {

namespace {

constexpr std::uint64_t kUnknown = std::numeric_limits<std::uint64_t>::max();

/// The first number in a file of one number ("max" and a missing file count as no limit).
std::uint64_t number_in(const char* path) {
  std::ifstream file(path);
  std::uint64_t value = 0;
  return file >> value ? value : kUnknown;
}

std::uint64_t system_available() {
  std::ifstream file("/proc/meminfo");
  std::string key;
  std::uint64_t kib = 0;
  std::string unit;
  while (file >> key >> kib) {
    if (key == "MemAvailable:") return kib * 1024;
    std::getline(file, unit);
  }
  return kUnknown;
}

std::uint64_t cgroup_available() {
  const std::uint64_t limit = number_in("/sys/fs/cgroup/memory.max");
  const std::uint64_t used = number_in("/sys/fs/cgroup/memory.current");
  if (limit == kUnknown || used == kUnknown) return kUnknown;
  return limit > used ? limit - used : 0;
}

}  // namespace

std::uint64_t available_memory() {
  return std::min(system_available(), cgroup_available());
}

Result<std::uint64_t> parse_size(std::string_view text) {
  double number = 0.0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), number);
  std::string unit(end, text.data() + text.size());
  std::transform(unit.begin(), unit.end(), unit.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  double scale = 0.0;
  if (unit.empty() || unit == "b") scale = 1.0;
  if (unit == "k" || unit == "kb" || unit == "kib") scale = 0x1p10;
  if (unit == "m" || unit == "mb" || unit == "mib") scale = 0x1p20;
  if (unit == "g" || unit == "gb" || unit == "gib") scale = 0x1p30;
  if (unit == "t" || unit == "tb" || unit == "tib") scale = 0x1p40;
  if (code != std::errc() || scale == 0.0 || !(number >= 0.0) || number * scale > 0x1p60) {
    return fail("\"{}\" is not a size; write a number with K, M, G or T, such as 512M or 1.5G", text);
  }
  return static_cast<std::uint64_t>(number * scale);
}

std::string format_size(std::uint64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (value >= 0x1p30) return fmt::format("{:.2f} GiB", value / 0x1p30);
  if (value >= 0x1p20) return fmt::format("{:.1f} MiB", value / 0x1p20);
  if (value >= 0x1p10) return fmt::format("{:.1f} KiB", value / 0x1p10);
  return fmt::format("{} bytes", bytes);
}

}  // namespace millrace
