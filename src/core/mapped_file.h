// A read-only memory-mapped file.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>

#include "core/result.h"

namespace millrace {

/// Owns a mapping; movable, not copyable. The bytes stay valid and in place until it is destroyed, also after a move.
/// An empty file maps to an empty span.
class MappedFile {
 public:
  /// Errors: the file is missing, is not a regular file, cannot be read or mapped. The message names the path.
  static Result<MappedFile> open(const std::filesystem::path& path);

  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  [[nodiscard]] std::span<const std::byte> bytes() const { return {data_, size_}; }
  [[nodiscard]] const std::string& path() const { return path_; }

  /// Tells the kernel that these bytes (a part of bytes()) will not be read again soon, so that their pages leave the
  /// resident set. They can still be read; they are then fetched from the file again.
  void release(std::span<const std::byte> part) const;

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  std::string path_;
};

/// Reads a small text file whole. Errors: missing, unreadable, larger than `limit` bytes.
Result<std::string> read_text_file(const std::filesystem::path& path, std::size_t limit = std::size_t{256} << 20);

}  // namespace millrace
