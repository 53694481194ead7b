// JSON of foreign origin, and foreign strings in messages.
#pragma once

#include <cstddef>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "core/result.h"

namespace millrace {

/// Limits that no honest file comes near; they keep parsing and destroying within small stack and memory.
constexpr std::size_t kJsonMaxDepth = 64;
constexpr std::size_t kJsonMaxValues = 2'000'000;

/// Parses a whole JSON text. `what` names it in messages (a path). Errors: not JSON, nested deeper than kJsonMaxDepth,
/// more than about kJsonMaxValues values.
Result<nlohmann::json> parse_json(std::string_view text, std::string_view what);

/// parse_json of a file of at most `limit` bytes that has to hold an object.
Result<nlohmann::json> read_json_object(const std::filesystem::path& path, std::size_t limit = std::size_t{64} << 20);

/// `text` with everything but printable ASCII shown as '?'.
std::string printable(std::string_view text);
/// A name from a file for a message: printable, in single quotes, cut to a readable length.
std::string shown(std::string_view text);

}  // namespace millrace
