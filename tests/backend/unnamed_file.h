// The file of a NeuronStore as its disk has it: a test takes its end away, and brings it back.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace millrace {

/// The file of this process that lies in `directory` and has no name: there must be one at most.
class UnnamedFile {
 public:
  explicit UnnamedFile(const std::string& directory) {
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
      std::error_code none;
      const std::string target = std::filesystem::read_symlink(entry.path(), none).string();
      if (target.starts_with(directory) && target.ends_with("(deleted)")) path_ = entry.path().string();
    }
  }

  [[nodiscard]] bool found() const { return !path_.empty(); }

  /// Reads behind the first `bytes` come short from now on.
  bool cut(std::int64_t bytes) {
    std::ifstream file(path_, std::ios::binary);
    whole_.assign(std::istreambuf_iterator<char>(file), {});
    return file.is_open() && ::truncate(path_.c_str(), bytes) == 0;
  }

  /// The file is as it was before cut().
  bool restore() {
    std::fstream file(path_, std::ios::binary | std::ios::in | std::ios::out);
    return static_cast<bool>(file.write(whole_.data(), static_cast<std::streamsize>(whole_.size())).flush());
  }

 private:
  std::string path_;
  std::string whole_;
};

}  // namespace millrace
