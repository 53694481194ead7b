#include "server/batch_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace millrace {

Result<OpenFile> OpenFile::open(const std::string& path, int flags) {
  constexpr mode_t kMode = 0644;
  // Without O_NONBLOCK the open of a pipe could wait for ever. It means nothing to a regular file.
  OpenFile file(::open(path.c_str(), flags | O_CLOEXEC | O_NONBLOCK, kMode), path);
  if (file.descriptor_ < 0) return fail("{}: {}", path, std::strerror(errno));
  struct stat status {};
  if (::fstat(file.descriptor_, &status) != 0) return file.failure("its kind cannot be found out");
  if (!S_ISREG(status.st_mode)) return fail("{}: not a regular file, which a run that goes on later needs", path);
  file.device_ = status.st_dev;
  file.inode_ = status.st_ino;
  return file;
}

OpenFile::OpenFile(OpenFile&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)),
      path_(std::move(other.path_)),
      device_(other.device_),
      inode_(other.inode_) {}

OpenFile::~OpenFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

Error OpenFile::failure(std::string_view what) const {
  return fail("{}: {}: {}", path_, what, std::strerror(errno));
}

Result<std::optional<LineReader::Line>> LineReader::next() {
  constexpr std::size_t kBuffer = 1 << 18;
  Line line{.number = number_ + 1, .offset = offset_};
  text_.clear();
  while (!line.ended) {
    if (at_ == end_) {
      buffer_.resize(kBuffer);
      const ssize_t got = ::pread(file_->descriptor(), buffer_.data(), kBuffer, static_cast<off_t>(offset_));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return file_->failure("reading failed");
      if (got == 0) break;
      at_ = 0;
      end_ = static_cast<std::size_t>(got);
    }
    const char* const start = buffer_.data() + at_;
    const auto* newline = static_cast<const char*>(std::memchr(start, '\n', end_ - at_));
    const std::size_t bytes = newline != nullptr ? static_cast<std::size_t>(newline - start) : end_ - at_;
    line.ended = newline != nullptr;
    line.bytes += bytes;
    line.has_null = line.has_null || std::memchr(start, '\0', bytes) != nullptr;
    text_.append(start, std::min(bytes, limit_ - text_.size()));
    at_ += bytes + (line.ended ? 1 : 0);
    offset_ += bytes + (line.ended ? 1 : 0);
  }
  if (!line.ended && line.bytes == 0) return std::optional<Line>();
  ++number_;
  line.text = text_;
  return std::optional(line);
}

}  // namespace millrace
