#include "convert/step_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <system_error>
#include <utility>

#include "core/check.h"
#include "core/mapped_file.h"

namespace millrace {

namespace {

constexpr std::string_view kOwner = "millrace ";  // what journals begin with

std::string first_line(const std::string& fingerprint) {
  return std::string(kOwner) + fingerprint;
}

std::string system_message() {
  return std::error_code(errno, std::generic_category()).message();
}

Status write_all(int file, std::uint64_t offset, std::span<const std::byte> bytes, const std::filesystem::path& path) {
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(file, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      return fail("cannot write {}: {}; what is finished is kept, and the same command goes on from there",
                  path.string(), written < 0 ? system_message() : "nothing more fits");
    }
    bytes = bytes.subspan(static_cast<std::size_t>(written));
    offset += static_cast<std::uint64_t>(written);
  }
  return Ok{};
}

/// Gives a file another name that none has. False: errno says why, EEXIST where one has it.
bool rename_to_new(const std::string& from, const std::string& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return true;
  if (errno != EINVAL && errno != ENOSYS) return false;
  // The file system cannot do that in one step, but a second name never replaces another either.
  if (::link(from.c_str(), to.c_str()) != 0) return false;
  return ::unlink(from.c_str()) == 0;
}

}  // namespace

StepFile::StepFile(StepFile&& other) noexcept
    : path_(std::move(other.path_)),
      file_(std::exchange(other.file_, -1)),
      journal_file_(std::exchange(other.journal_file_, -1)),
      failed_(other.failed_),
      layout_(std::move(other.layout_)),
      notes_(std::move(other.notes_)) {}

StepFile::~StepFile() {
  if (file_ >= 0) ::close(file_);
  if (journal_file_ >= 0) ::close(journal_file_);
}

Result<StepFile> StepFile::open(const std::filesystem::path& path, StepFileLayout layout,
                                const std::string& fingerprint) {
  StepFile file;
  file.path_ = path;
  file.layout_ = std::move(layout);
  MILLRACE_CHECK_OK(file.lock_part());
  if (const Status ready = file.prepare(fingerprint); !ready.ok()) {
    std::error_code error;
    if (file.part_bytes() == 0) std::filesystem::remove(file.part(), error);
    return ready.error();
  }
  return file;
}

Status StepFile::lock_part() {
  // Whoever had the lock before may have given the file its name, or removed it, after it was opened here. What is
  // locked then is a finished result or nothing, and not the part.
  constexpr int kTries = 100;
  for (int i = 0; i < kTries; ++i) {
    file_ = ::open(part().c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file_ < 0) return fail("cannot make {}: {}", part().string(), system_message());
    if (::flock(file_, LOCK_EX | LOCK_NB) != 0) {
      if (errno == EWOULDBLOCK) break;
      return fail("cannot lock {}: {}", part().string(), system_message());
    }
    struct stat locked {
    }, named{};
    if (::fstat(file_, &locked) != 0) return fail("cannot read {}: {}", part().string(), system_message());
    if (!S_ISREG(locked.st_mode)) return fail("{} is there and is no regular file", part().string());
    const bool found = ::stat(part().c_str(), &named) == 0;
    if (found && named.st_dev == locked.st_dev && named.st_ino == locked.st_ino) return Ok{};
    ::close(std::exchange(file_, -1));
  }
  return fail("{} is being written by another process", part().string());
}

/// With the lock: goes on with what is there, or starts.
Status StepFile::prepare(const std::string& fingerprint) {
  std::error_code error;
  if (std::filesystem::exists(std::filesystem::symlink_status(path_, error))) {
    return fail("{} is there already: name a new file", path_.string());
  }
  std::string text;
  if (std::filesystem::exists(journal(), error)) {
    MILLRACE_TRY(text, read_text_file(journal()));
  }
  // Others give such names to files of their own: unfinished downloads, for one.
  const bool ours = text.starts_with(kOwner);
  if (part_bytes() > 0 && !ours) {
    return fail("{} is there, and is not what a stopped call left: move it, or name another output", part().string());
  }
  if (!ours && !kOwner.starts_with(text)) {
    return fail("{} is there, and is not what a stopped call left: move it, or name another output",
                journal().string());
  }
  // A journal without the part that it speaks of, or with a damaged one, says nothing.
  if (part_bytes() == layout_.bytes) MILLRACE_CHECK_OK(take_notes(text, fingerprint));
  return notes_.empty() ? start(fingerprint) : reserve();
}

std::uint64_t StepFile::part_bytes() const {
  struct stat found {};
  return ::fstat(file_, &found) == 0 ? static_cast<std::uint64_t>(found.st_size) : 0;
}

Status StepFile::take_notes(const std::string& text, const std::string& fingerprint) {
  // A line that the process did not live to end says nothing.
  std::size_t begin = 0, lines = 0;
  std::map<std::string, std::string> notes;
  for (std::size_t end = text.find('\n'); end != std::string::npos; begin = end + 1, end = text.find('\n', begin)) {
    const std::string line = text.substr(begin, end - begin);
    if (lines++ == 0) {
      if (line != first_line(fingerprint)) return Ok{};
      continue;
    }
    const std::size_t tab = line.find('\t');
    if (tab != std::string::npos) notes[line.substr(0, tab)] = line.substr(tab + 1);
  }
  if (notes.empty()) return Ok{};
  journal_file_ = ::open(journal().c_str(), O_WRONLY | O_CLOEXEC);
  if (journal_file_ < 0 || ::ftruncate(journal_file_, static_cast<off_t>(begin)) != 0 ||
      ::lseek(journal_file_, 0, SEEK_END) < 0) {
    return fail("cannot write {}: {}", journal().string(), system_message());
  }
  notes_ = std::move(notes);
  return Ok{};
}

Status StepFile::start(const std::string& fingerprint) {
  // An old journal would vouch for zeros if it were there beside a part of full size. So the part is empty until a new
  // journal is on disk; and never does a part with content lack one, by which it is known to be from here.
  if (::ftruncate(file_, 0) != 0) return fail("cannot write {}: {}", part().string(), system_message());
  std::error_code error;
  const auto space = std::filesystem::space(part(), error);
  if (!error && space.available < layout_.bytes) {
    abandon();
    return fail("the result takes {} bytes, and {} has {} left", layout_.bytes,
                path_.has_parent_path() ? path_.parent_path().string() : ".", space.available);
  }
  journal_file_ = ::open(journal().c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (journal_file_ < 0) return fail("cannot make {}: {}", journal().string(), system_message());
  const std::string line = first_line(fingerprint) + '\n';
  MILLRACE_CHECK_OK(write_all(journal_file_, 0, std::as_bytes(std::span(line)), journal()));
  if (::fsync(journal_file_) != 0) return fail("cannot write {}: {}", journal().string(), system_message());
  if (const Status reserved = reserve(); !reserved.ok()) {
    abandon();
    return reserved;
  }
  return write_all(file_, 0, std::as_bytes(std::span(layout_.header)), part());
}

/// Room on the disk for all that is still to be written; what is there stays.
Status StepFile::reserve() {
  const auto bytes = static_cast<off_t>(layout_.bytes);
  int done = -1;
  // Not posix_fallocate(), which writes a byte into each block where the file system cannot do it.
  do {
    done = ::fallocate(file_, 0, 0, bytes);
  } while (done != 0 && errno == EINTR);
  if (done != 0 && (errno == EOPNOTSUPP || errno == ENOSYS)) done = ::ftruncate(file_, bytes);
  if (done != 0) return fail("cannot get {} bytes for {}: {}", layout_.bytes, part().string(), system_message());
  return Ok{};
}

const std::string* StepFile::note(const std::string& step) const {
  const auto found = notes_.find(step);
  return found == notes_.end() ? nullptr : &found->second;
}

Status StepFile::write(const std::string& tensor, std::uint64_t offset, std::span<const std::byte> bytes) {
  const auto [place, size] = layout_.places.at(tensor);
  MILLRACE_CHECK(offset + bytes.size() <= size, "bytes {} to {} of {} in {}", offset, offset + bytes.size(), size,
                 tensor);
  const Status done = write_all(file_, place + offset, bytes, part());
  failed_ = failed_ || !done.ok();
  return done;
}

Status StepFile::finish(const std::string& step, const std::string& note) {
  MILLRACE_CHECK(step.find_first_of("\t\n") == std::string::npos && note.find('\n') == std::string::npos,
                 "step {} with the note {} is no line", step, note);
  if (::fdatasync(file_) != 0) return fail("cannot write {}: {}", part().string(), system_message());
  const std::string line = step + '\t' + note + '\n';
  const off_t end = ::lseek(journal_file_, 0, SEEK_END);
  if (end < 0) return fail("cannot write {}: {}", journal().string(), system_message());
  MILLRACE_CHECK_OK(
      write_all(journal_file_, static_cast<std::uint64_t>(end), std::as_bytes(std::span(line)), journal()));
  notes_[step] = note;
  return Ok{};
}

Status StepFile::commit() {
  if (::fsync(file_) != 0) return fail("cannot write {}: {}", part().string(), system_message());
  if (!rename_to_new(part().string(), path_.string())) {
    if (errno == EEXIST) return fail("{} has come meanwhile: the result stays in {}", path_.string(), part().string());
    return fail("cannot give {} its name: {}", part().string(), system_message());
  }
  std::error_code error;
  std::filesystem::remove(journal(), error);
  return Ok{};
}

void StepFile::abandon() {
  std::error_code error;
  std::filesystem::remove(part(), error);
  std::filesystem::remove(journal(), error);
}

}  // namespace millrace
