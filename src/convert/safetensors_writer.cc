#include "convert/safetensors_writer.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "core/check.h"
#include "core/mapped_file.h"

namespace millrace {

namespace {

std::string system_message() {
  return std::error_code(errno, std::generic_category()).message();
}

std::uint64_t dtype_bits(std::string_view dtype) {
  if (dtype == "F32" || dtype == "I32") return 32;
  if (dtype == "F16" || dtype == "BF16") return 16;
  if (dtype == "I64") return 64;
  MILLRACE_CHECK(dtype == "U8" || dtype == "I8" || dtype == "F8_E4M3", "dtype {}", dtype);
  return 8;
}

/// Length and JSON, filled with spaces to whole cache lines so that tensors are aligned.
std::string header_of(const std::vector<OutputTensor>& tensors) {
  nlohmann::ordered_json header;
  header["__metadata__"] = {{"format", "pt"}};
  std::uint64_t offset = 0;
  for (const OutputTensor& tensor : tensors) {
    header[tensor.name] = {
        {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {offset, offset + tensor.bytes()}}};
    offset += tensor.bytes();
  }
  std::string text = header.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  while ((sizeof(std::uint64_t) + text.size()) % 64 != 0) text += ' ';
  const std::uint64_t length = text.size();
  std::string result(sizeof length, '\0');
  std::memcpy(result.data(), &length, sizeof length);
  return result + text;
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

}  // namespace

std::uint64_t OutputTensor::bytes() const {
  std::uint64_t count = 1;
  for (const std::int64_t size : shape) count *= static_cast<std::uint64_t>(size);
  return count * dtype_bits(dtype) / 8;
}

SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&& other) noexcept
    : path_(std::move(other.path_)),
      file_(std::exchange(other.file_, -1)),
      journal_file_(std::exchange(other.journal_file_, -1)),
      places_(std::move(other.places_)),
      notes_(std::move(other.notes_)) {}

SafetensorsWriter::~SafetensorsWriter() {
  if (file_ >= 0) ::close(file_);
  if (journal_file_ >= 0) ::close(journal_file_);
}

Result<SafetensorsWriter> SafetensorsWriter::open(const std::filesystem::path& path,
                                                  const std::vector<OutputTensor>& tensors,
                                                  const std::string& fingerprint) {
  SafetensorsWriter writer;
  writer.path_ = path;
  const std::string header = header_of(tensors);
  std::uint64_t place = header.size();
  for (const OutputTensor& tensor : tensors) {
    writer.places_.emplace(tensor.name, std::pair(place, tensor.bytes()));
    place += tensor.bytes();
  }
  writer.file_ = ::open(writer.part().c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (writer.file_ < 0) return fail("cannot make {}: {}", writer.part().string(), system_message());
  if (::flock(writer.file_, LOCK_EX | LOCK_NB) != 0) {
    return fail("{} is being written by another process", writer.part().string());
  }
  // A journal without the part that it speaks of, or with a damaged one, says nothing.
  std::error_code error;
  if (std::filesystem::file_size(writer.part(), error) == place && !error) {
    MILLRACE_CHECK_OK(writer.read_journal(fingerprint));
  }
  if (writer.notes_.empty()) MILLRACE_CHECK_OK(writer.start(header, fingerprint, place));
  return writer;
}

Status SafetensorsWriter::read_journal(const std::string& fingerprint) {
  std::error_code error;
  if (!std::filesystem::exists(journal(), error)) return Ok{};
  MILLRACE_TRY(const std::string text, read_text_file(journal()));
  // A line that the process did not live to end says nothing.
  std::size_t begin = 0, lines = 0;
  std::map<std::string, std::string> notes;
  for (std::size_t end = text.find('\n'); end != std::string::npos; begin = end + 1, end = text.find('\n', begin)) {
    const std::string line = text.substr(begin, end - begin);
    if (lines++ == 0) {
      if (line != fingerprint) return Ok{};
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

Status SafetensorsWriter::start(std::string_view header, const std::string& fingerprint, std::uint64_t total) {
  if (::ftruncate(file_, 0) != 0) return fail("cannot write {}: {}", part().string(), system_message());
  std::error_code error;
  const auto space = std::filesystem::space(part(), error);
  if (!error && space.available < total) {
    std::filesystem::remove(part(), error);
    return fail("the result takes {} bytes, and {} has {} left", total, path_.parent_path().string(), space.available);
  }
  if (::ftruncate(file_, static_cast<off_t>(total)) != 0) {
    return fail("cannot write {}: {}", part().string(), system_message());
  }
  MILLRACE_CHECK_OK(write_all(file_, 0, std::as_bytes(std::span(header)), part()));
  journal_file_ = ::open(journal().c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (journal_file_ < 0) return fail("cannot make {}: {}", journal().string(), system_message());
  const std::string line = fingerprint + '\n';
  return write_all(journal_file_, 0, std::as_bytes(std::span(line)), journal());
}

const std::string* SafetensorsWriter::note(const std::string& step) const {
  const auto found = notes_.find(step);
  return found == notes_.end() ? nullptr : &found->second;
}

Status SafetensorsWriter::write(const std::string& tensor, std::uint64_t offset, std::span<const std::byte> bytes) {
  const auto [place, size] = places_.at(tensor);
  MILLRACE_CHECK(offset + bytes.size() <= size, "bytes {} to {} of {} in {}", offset, offset + bytes.size(), size,
                 tensor);
  return write_all(file_, place + offset, bytes, part());
}

Status SafetensorsWriter::finish(const std::string& step, const std::string& note) {
  if (::fdatasync(file_) != 0) return fail("cannot write {}: {}", part().string(), system_message());
  const std::string line = step + '\t' + note + '\n';
  const off_t end = ::lseek(journal_file_, 0, SEEK_END);
  if (end < 0) return fail("cannot write {}: {}", journal().string(), system_message());
  MILLRACE_CHECK_OK(
      write_all(journal_file_, static_cast<std::uint64_t>(end), std::as_bytes(std::span(line)), journal()));
  notes_[step] = note;
  return Ok{};
}

Status SafetensorsWriter::commit() {
  if (::fsync(file_) != 0) return fail("cannot write {}: {}", part().string(), system_message());
  std::error_code error;
  std::filesystem::rename(part(), path_, error);
  if (error) return fail("cannot give {} its name: {}", part().string(), error.message());
  std::filesystem::remove(journal(), error);
  return Ok{};
}

}  // namespace millrace
