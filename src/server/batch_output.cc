#include "server/batch_output.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>
#include <utility>

namespace millrace {

namespace {

constexpr std::chrono::seconds kSyncInterval(5);
constexpr std::size_t kRecordBytes = 4096;  // what is looked at of a record

/// Makes the name of a new file last. File systems that cannot do it are left alone: the file's own sync has to do.
void sync_folder(const std::string& path) {
  std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (folder.empty()) folder = ".";
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;
  ::fsync(descriptor);
  ::close(descriptor);
}

}  // namespace

BatchOutput::BatchOutput(OpenFile file) : file_(std::move(file)), synced_(std::chrono::steady_clock::now()) {}

Result<BatchOutput> BatchOutput::open(const std::string& path, BatchInput& input) {
  MILLRACE_TRY(OpenFile file, OpenFile::open(path, O_RDWR | O_CREAT | O_APPEND));
  if (file.is(input.file())) return fail("{}: this is the input; name another file for the output", path);
  while (::flock(file.descriptor(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return fail("{}: another run is writing this file", path);
    if (errno != EINTR) return file.failure("it cannot be locked");
  }
  BatchOutput output(std::move(file));
  MILLRACE_CHECK_OK(output.recover(input));
  if (output.records() == 0) sync_folder(path);
  return output;
}

Status BatchOutput::recover(BatchInput& input) {
  const std::string& path = file_.path();
  LineReader reader(file_, kRecordBytes);
  while (true) {
    MILLRACE_TRY(const auto line, reader.next());
    if (!line) break;
    const bool complete = line->ended && !line->has_null;
    const auto key = read_batch_record(line->text);
    // Whoever names a file of another kind by mistake does not want it to be cut.
    if (complete ? !key : !may_be_batch_record(line->text.substr(0, line->text.find('\0')))) {
      return fail("{}: line {} is no record of a batch; name another file for the output", path, line->number);
    }
    if (!complete) break;
    switch (input.mark_answered(*key)) {
      case BatchInput::Mark::done:
        break;
      case BatchInput::Mark::twice:
        return fail("{}: line {} answers the request with custom_id {} a second time; the file is damaged", path,
                    line->number, batch_record_custom_id(line->text));
      case BatchInput::Mark::unknown:
        return fail(
            "{}: line {} with custom_id {} answers no line of {}: it is the output of another batch, or the input was "
            "changed; name another file for the output",
            path, line->number, batch_record_custom_id(line->text), input.file().path());
    }
    bytes_ = line->offset + line->bytes + 1;
    ++records_;
  }
  struct stat status {};
  if (::fstat(file_.descriptor(), &status) != 0) return file_.failure("its size cannot be found out");
  cut_bytes_ = static_cast<std::uint64_t>(status.st_size) - bytes_;
  if (cut_bytes_ > 0 && ::ftruncate(file_.descriptor(), static_cast<off_t>(bytes_)) != 0) {
    return file_.failure("what a killed run left unfinished cannot be cut off");
  }
  return Ok{};
}

Error BatchOutput::take_back(Error error) {
  // Where even this fails, the next run cuts it off.
  if (::ftruncate(file_.descriptor(), static_cast<off_t>(bytes_)) != 0) error.message += " (a part of a line is left)";
  return error;
}

Status BatchOutput::append(std::string_view record) {
  std::string_view left = record;
  while (!left.empty()) {
    const ssize_t wrote = ::write(file_.descriptor(), left.data(), left.size());
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return take_back(file_.failure("writing failed"));
    left.remove_prefix(static_cast<std::size_t>(wrote));
  }
  bytes_ += record.size();
  ++records_;
  if (std::chrono::steady_clock::now() - synced_ >= kSyncInterval) return sync();
  return Ok{};
}

Status BatchOutput::sync() {
  while (::fdatasync(file_.descriptor()) != 0) {
    if (errno != EINTR) return file_.failure("writing to the disk failed");
  }
  synced_ = std::chrono::steady_clock::now();
  return Ok{};
}

}  // namespace millrace
