#include "eval/reference_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <system_error>
#include <thread>
#include <utility>

#include "core/check.h"

namespace millrace {

namespace {

constexpr std::string_view kMagic = "millrace reference 1\n";
constexpr double kCodes = 65535.0;

struct WindowHead {
  std::uint64_t bytes = 0;      // of what follows
  std::uint64_t positions = 0;  // 0: not complete
};

struct PositionHead {
  float lowest = 0.0f;  // log-probability of code 0, about; see unpack()
  float highest = 0.0f;
  std::int32_t top = 0;
  std::uint32_t compressed = 0;
};

std::string system_message() {
  return std::error_code(errno, std::generic_category()).message();
}

/// Another process holds its lock for an instant also where it only looks whether the file is complete.
bool lock_to_read(int file) {
  for (int attempt = 0; attempt < 20; ++attempt) {
    if (::flock(file, LOCK_SH | LOCK_NB) == 0) return true;
    if (errno != EWOULDBLOCK) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(25));
  }
  errno = EWOULDBLOCK;
  return false;
}

/// Log-probabilities as codes: first all high bytes, then all low ones, which compresses better.
PositionHead pack(std::span<const float> logits, std::vector<std::uint8_t>& codes) {
  const auto high = std::ranges::max_element(logits);
  const double lowest = *std::ranges::min_element(logits), highest = *high;
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(logit - highest);
  const double log_sum = highest + std::log(sum);
  const double scale = highest > lowest ? kCodes / (highest - lowest) : 0.0;
  codes.resize(2 * logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const auto code = static_cast<std::uint16_t>(std::lround((logits[i] - lowest) * scale));
    codes[i] = static_cast<std::uint8_t>(code >> 8);
    codes[logits.size() + i] = static_cast<std::uint8_t>(code & 0xff);
  }
  return {.lowest = static_cast<float>(lowest - log_sum),
          .highest = static_cast<float>(highest - log_sum),
          .top = static_cast<std::int32_t>(high - logits.begin())};
}

/// The codes' values, made to be a distribution again.
void unpack(const PositionHead& head, const std::vector<std::uint8_t>& codes, ReferencePosition& position) {
  const std::size_t vocab = codes.size() / 2;
  const double step = (static_cast<double>(head.highest) - head.lowest) / kCodes;
  // e^(step * code) as a product of two factors from tables. The highest code has probability about 1.
  std::array<double, 256> of_high{}, of_low{};
  for (int i = 0; i < 256; ++i) {
    of_high[static_cast<std::size_t>(i)] = std::exp(step * 256 * i - step * kCodes);
    of_low[static_cast<std::size_t>(i)] = std::exp(step * i);
  }
  double sum = 0.0;
  for (std::size_t i = 0; i < vocab; ++i) sum += of_high[codes[i]] * of_low[codes[vocab + i]];
  const double log_sum = std::log(sum);
  position.top = head.top;
  position.log_probability.resize(vocab);
  position.probability.resize(vocab);
  for (std::size_t i = 0; i < vocab; ++i) {
    const double code = 256.0 * codes[i] + codes[vocab + i];
    position.log_probability[i] = static_cast<float>(step * (code - kCodes) - log_sum);
    position.probability[i] = static_cast<float>(of_high[codes[i]] * of_low[codes[vocab + i]] / sum);
  }
}

}  // namespace

struct ReferenceFile::State {
  std::string path;
  int file = -1;
  std::int32_t vocab = 0;
  bool writable = false;
  std::uint64_t end = 0;  // of what is complete
  WindowHead head = {};   // of the window that is being written
  std::vector<std::uint8_t> codes = {}, compressed = {};

  ~State() {
    if (file >= 0) ::close(file);
  }

  Status write(const void* data, std::size_t bytes, std::uint64_t at) const {
    const auto* p = static_cast<const std::byte*>(data);
    while (bytes > 0) {
      const ssize_t written = ::pwrite(file, p, bytes, static_cast<off_t>(at));
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) {
        return fail(
            "cannot write the reference {}: {}; what is complete of it is kept, free space or name another "
            "folder with --reference-cache",
            path, system_message());
      }
      p += written;
      at += static_cast<std::uint64_t>(written);
      bytes -= static_cast<std::size_t>(written);
    }
    return Ok{};
  }

  /// False: the file ends before. A disk that fails is no end: nothing may be cut off for it.
  [[nodiscard]] Result<bool> read(void* data, std::size_t bytes, std::uint64_t at) const {
    auto* p = static_cast<std::byte*>(data);
    while (bytes > 0) {
      const ssize_t got = ::pread(file, p, bytes, static_cast<off_t>(at));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return fail("cannot read the reference {}: {}", path, system_message());
      if (got == 0) return false;
      p += got;
      at += static_cast<std::uint64_t>(got);
      bytes -= static_cast<std::size_t>(got);
    }
    return true;
  }

  [[nodiscard]] std::uint64_t size() const {
    const off_t size = ::lseek(file, 0, SEEK_END);
    return size > 0 ? static_cast<std::uint64_t>(size) : 0;
  }

  /// Error also where the file ends before.
  [[nodiscard]] Status read_all(void* data, std::size_t bytes, std::uint64_t at) const {
    MILLRACE_TRY(const bool there, read(data, bytes, at));
    if (!there) return damaged();
    return Ok{};
  }

  [[nodiscard]] Error damaged() const { return fail("the reference {} is damaged; remove it", path); }
};

ReferenceFile::ReferenceFile(std::unique_ptr<State> state) : state_(std::move(state)) {}
ReferenceFile::ReferenceFile(ReferenceFile&&) noexcept = default;
ReferenceFile& ReferenceFile::operator=(ReferenceFile&&) noexcept = default;
ReferenceFile::~ReferenceFile() = default;

Result<ReferenceFile> ReferenceFile::open(const std::filesystem::path& path, const std::string& key,
                                          std::int32_t vocab) {
  std::error_code error;
  std::filesystem::create_directories(path.parent_path(), error);
  if (error) {
    return fail("cannot make the folder {}: {}; name another with --reference-cache", path.parent_path().string(),
                error.message());
  }
  auto state = std::make_unique<State>();
  state->path = path.string();
  state->vocab = vocab;
  state->file = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (state->file < 0) {
    return fail("cannot open the reference {}: {}; name another folder with --reference-cache", state->path,
                system_message());
  }
  state->writable = ::flock(state->file, LOCK_EX | LOCK_NB) == 0;
  if (!state->writable && !lock_to_read(state->file)) {
    if (errno != EWOULDBLOCK) return fail("cannot lock the reference {}: {}", state->path, system_message());
    return fail(
        "another process is writing the reference {}: wait for it, or name another folder with "
        "--reference-cache",
        state->path);
  }
  const std::string start = fmt::format("{}{} {}\n{}", kMagic, key.size(), vocab, key);
  std::string there(start.size(), '\0');
  ReferenceFile file(std::move(state));
  MILLRACE_TRY(const bool begun, file.state_->read(there.data(), there.size(), 0));
  if (!begun || there != start) {
    MILLRACE_CHECK_OK(file.begin(start));
  }
  file.state_->end = start.size();
  MILLRACE_CHECK_OK(file.find_windows());
  return file;
}

Status ReferenceFile::begin(const std::string& start) {
  if (!state_->writable)
    return fail("another process is reading the reference {}, which is of another run", state_->path);
  if (::ftruncate(state_->file, 0) != 0) return fail("cannot empty {}: {}", state_->path, system_message());
  return state_->write(start.data(), start.size(), 0);
}

/// Walks over the windows that are complete and cuts off what follows.
Status ReferenceFile::find_windows() {
  const std::uint64_t size = state_->size();
  WindowHead head;
  while (true) {
    MILLRACE_TRY(const bool more, state_->read(&head, sizeof head, state_->end));
    if (!more) break;
    const std::uint64_t left = size - state_->end - sizeof head;
    if (head.positions == 0 || head.bytes > left) break;
    starts_.push_back(state_->end);
    state_->end += sizeof head + head.bytes;
  }
  if (state_->writable && state_->end != size && ::ftruncate(state_->file, static_cast<off_t>(state_->end)) != 0) {
    return fail("cannot shorten {}: {}", state_->path, system_message());
  }
  return Ok{};
}

Status ReferenceFile::begin_window() {
  if (!state_->writable)
    return fail("another process is reading the reference {}, which is not complete", state_->path);
  state_->head = {};
  return state_->write(&state_->head, sizeof state_->head, state_->end);
}

Status ReferenceFile::add(std::span<const float> logits) {
  State& s = *state_;
  MILLRACE_CHECK(logits.size() == static_cast<std::size_t>(s.vocab), "{} logits, {} tokens", logits.size(), s.vocab);
  if (!std::ranges::all_of(logits, [](float logit) { return std::isfinite(logit); })) {
    return fail("the model computes logits that are not finite: there is nothing to compare with");
  }
  PositionHead head = pack(logits, s.codes);
  uLongf size = compressBound(static_cast<uLong>(s.codes.size()));
  s.compressed.resize(size);
  const int code = compress2(s.compressed.data(), &size, s.codes.data(), static_cast<uLong>(s.codes.size()), 1);
  MILLRACE_CHECK(code == Z_OK, "zlib: {}", code);
  head.compressed = static_cast<std::uint32_t>(size);
  std::uint64_t at = s.end + sizeof s.head + s.head.bytes;
  MILLRACE_CHECK_OK(s.write(&head, sizeof head, at));
  MILLRACE_CHECK_OK(s.write(s.compressed.data(), size, at + sizeof head));
  s.head.bytes += sizeof head + size;
  ++s.head.positions;
  return Ok{};
}

Status ReferenceFile::end_window() {
  State& s = *state_;
  MILLRACE_CHECK_OK(s.write(&s.head, sizeof s.head, s.end));
  starts_.push_back(s.end);
  s.end += sizeof s.head + s.head.bytes;
  return Ok{};
}

void ReferenceFile::finish() {
  ::flock(state_->file, LOCK_SH);
  state_->writable = false;
}

Result<ReferenceFile::Cursor> ReferenceFile::start_of(std::size_t window) {
  WindowHead head;
  const std::uint64_t at = starts_.at(window);
  MILLRACE_CHECK_OK(state_->read_all(&head, sizeof head, at));
  return Cursor{at + sizeof head, head.positions};
}

Status ReferenceFile::next(Cursor& cursor, ReferencePosition& position) {
  State& s = *state_;
  MILLRACE_CHECK(cursor.left > 0, "the window has no more positions");
  s.codes.resize(2 * static_cast<std::size_t>(s.vocab));
  PositionHead head;
  MILLRACE_CHECK_OK(s.read_all(&head, sizeof head, cursor.at));
  if (head.compressed > compressBound(static_cast<uLong>(s.codes.size()))) return s.damaged();
  if (head.top < 0 || head.top >= s.vocab) return s.damaged();
  if (!std::isfinite(head.lowest) || !std::isfinite(head.highest) || head.highest < head.lowest) return s.damaged();
  s.compressed.resize(head.compressed);
  MILLRACE_CHECK_OK(s.read_all(s.compressed.data(), head.compressed, cursor.at + sizeof head));
  auto size = static_cast<uLongf>(s.codes.size());
  if (uncompress(s.codes.data(), &size, s.compressed.data(), head.compressed) != Z_OK || size != s.codes.size()) {
    return s.damaged();
  }
  unpack(head, s.codes, position);
  cursor.at += sizeof head + head.compressed;
  --cursor.left;
  return Ok{};
}

}  // namespace millrace
