// Files that may be too large for memory, a line at a time.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace millrace {

/// An open regular file; movable, not copyable.
class OpenFile {
 public:
  /// `flags`: of open(2). Errors name the path: it cannot be opened, or is no regular file.
  static Result<OpenFile> open(const std::string& path, int flags);

  OpenFile(OpenFile&& other) noexcept;
  ~OpenFile();

  [[nodiscard]] int descriptor() const { return descriptor_; }
  [[nodiscard]] const std::string& path() const { return path_; }
  /// Whether both are the same file, by whatever names.
  [[nodiscard]] bool is(const OpenFile& other) const { return device_ == other.device_ && inode_ == other.inode_; }

  /// "PATH: what failed: why", of errno.
  [[nodiscard]] Error failure(std::string_view what) const;

 private:
  OpenFile(int descriptor, std::string path) : descriptor_(descriptor), path_(std::move(path)) {}

  int descriptor_ = -1;
  std::string path_;
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

/// Reads a file from its beginning, wherever others read or write it.
class LineReader {
 public:
  struct Line {
    std::int64_t number = 1;     // from 1
    std::uint64_t offset = 0;    // of its first byte
    std::string_view text = {};  // without its newline; of a longer line the first `limit` bytes. Valid until next()
    std::uint64_t bytes = 0;     // without its newline
    bool ended = false;          // by a newline; only the last line may have none
    bool has_null = false;       // a byte that is zero
    [[nodiscard]] bool whole() const { return bytes == text.size(); }
  };

  /// Holds at most `limit` bytes of a line. `file` must outlive it.
  LineReader(const OpenFile& file, std::size_t limit) : file_(&file), limit_(limit) {}

  /// Empty after the last line. Error: reading fails.
  Result<std::optional<Line>> next();

 private:
  const OpenFile* file_;
  std::size_t limit_;
  std::vector<char> buffer_;
  std::size_t at_ = 0, end_ = 0;  // what is left in buffer_
  std::uint64_t offset_ = 0;      // of buffer_[at_] in the file
  std::int64_t number_ = 0;
  std::string text_;
};

}  // namespace millrace
