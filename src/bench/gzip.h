// Files that may be compressed.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

#include "core/result.h"

namespace millrace::bench {

/// The file's content, decompressed where it begins as gzip (RFC 1952) does; several members in a row are joined.
/// Errors name the path: missing, unreadable, damaged or cut short, more than `limit` bytes of content.
Result<std::string> read_maybe_gzip(const std::filesystem::path& path, std::size_t limit);

/// Decompresses gzip. `name` is for messages. Errors as above.
Result<std::string> gunzip(std::string_view compressed, const std::string& name, std::size_t limit);

}  // namespace millrace::bench
