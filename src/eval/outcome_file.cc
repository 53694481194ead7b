#include "eval/outcome_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

#include "core/fnv.h"
#include "core/mapped_file.h"

namespace millrace {

namespace {

std::string system_message() {
  return std::error_code(errno, std::generic_category()).message();
}

/// Paths are bytes, JSON is UTF-8: the key is there to be read, its hash tells keys apart.
std::string head_line(const std::string& key) {
  Fnv1a hash;
  hash.add(key);
  const nlohmann::ordered_json head{
      {"millrace_outcomes", 1}, {"key_hash", fmt::format("{:016x}", hash.value())}, {"key", key}};
  return head.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

/// Another process that only reads has it for an instant.
bool lock(int file) {
  for (int attempt = 0; attempt < 20; ++attempt) {
    if (::flock(file, LOCK_EX | LOCK_NB) == 0) return true;
    if (errno != EWOULDBLOCK) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(25));
  }
  errno = EWOULDBLOCK;
  return false;
}

std::optional<std::pair<std::uint64_t, std::vector<double>>> parse_line(std::string_view line) {
  const nlohmann::json json = nlohmann::json::parse(line, nullptr, false);
  if (!json.is_object() || !json.contains("document") || !json["document"].is_string() || !json.contains("values") ||
      !json["values"].is_array()) {
    return std::nullopt;
  }
  const auto& name = json["document"].get_ref<const std::string&>();
  std::uint64_t document = 0;
  const auto [end, code] = std::from_chars(name.data(), name.data() + name.size(), document, 16);
  if (code != std::errc() || end != name.data() + name.size()) return std::nullopt;
  std::vector<double> values;
  for (const auto& value : json["values"]) {
    if (!value.is_number()) return std::nullopt;
    values.push_back(value.get<double>());
  }
  if (values.empty()) return std::nullopt;  // every task has a metric
  return std::pair(document, std::move(values));
}

}  // namespace

OutcomeFile::Descriptor::~Descriptor() {
  if (number_ >= 0) ::close(number_);
}

Result<OutcomeFile> OutcomeFile::open(const std::filesystem::path& path, const std::string& key) {
  std::error_code error;
  std::filesystem::create_directories(path.parent_path(), error);
  if (error) {
    return fail("cannot make the folder {}: {}; name another with --reference-cache", path.parent_path().string(),
                error.message());
  }
  OutcomeFile file;
  file.path_ = path;
  file.file_ = Descriptor(::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  if (file.file_.number() < 0) {
    return fail("cannot open {}: {}; name another folder with --reference-cache", path.string(), system_message());
  }
  if (!lock(file.file_.number())) {
    if (errno != EWOULDBLOCK) return fail("cannot lock {}: {}", path.string(), system_message());
    return fail("another process is writing {}: wait for it, or name another folder with --reference-cache",
                path.string());
  }
  MILLRACE_CHECK_OK(file.read(key));
  return file;
}

Status OutcomeFile::read(const std::string& key) {
  MILLRACE_TRY(const std::string content, read_text_file(path_));
  const std::string head = head_line(key);
  if (!content.starts_with(head)) {
    if (::ftruncate(file_.number(), 0) != 0) return fail("cannot empty {}: {}", path_.string(), system_message());
    return write(head);
  }
  std::size_t at = head.size();
  while (at < content.size()) {
    const std::size_t end = content.find('\n', at);
    if (end == std::string::npos) break;
    auto line = parse_line(std::string_view(content).substr(at, end - at));
    if (!line) return damaged();
    values_[line->first] = std::move(line->second);
    at = end + 1;
  }
  if (at < content.size() && ::ftruncate(file_.number(), static_cast<off_t>(at)) != 0) {
    return fail("cannot shorten {}: {}", path_.string(), system_message());
  }
  return Ok{};
}

const std::vector<double>* OutcomeFile::find(std::uint64_t document) const {
  const auto found = values_.find(document);
  return found == values_.end() ? nullptr : &found->second;
}

Error OutcomeFile::damaged() const {
  return fail("{} is damaged: remove it", path_.string());
}

Status OutcomeFile::add(std::uint64_t document, const std::vector<double>& values) {
  values_[document] = values;
  if (file_.number() < 0) return Ok{};
  const nlohmann::ordered_json line{{"document", fmt::format("{:016x}", document)}, {"values", values}};
  return write(line.dump() + "\n");
}

Status OutcomeFile::write(const std::string& text) {
  std::string_view left = text;
  while (!left.empty()) {
    const ssize_t written = ::write(file_.number(), left.data(), left.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      return fail("cannot write {}: {}; free space or name another folder with --reference-cache", path_.string(),
                  system_message());
    }
    left.remove_prefix(static_cast<std::size_t>(written));
  }
  return Ok{};
}

void OutcomeFile::remove() {
  std::error_code error;  // what cannot be removed is found complete the next time
  if (file_.number() >= 0) std::filesystem::remove(path_, error);
  file_ = Descriptor();
}

}  // namespace millrace
