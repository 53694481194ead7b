// Files of batches for tests: a folder that goes away, lines and records.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "server/batch_input.h"
#include "server/batch_output.h"

namespace millrace::test {

class BatchFolder : public testing::Test {
 protected:
  BatchFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "millrace-batch-XXXXXX").string();
    EXPECT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  ~BatchFolder() override { std::filesystem::remove_all(folder_); }

  [[nodiscard]] std::string path(std::string_view name) const { return (folder_ / name).string(); }

  /// Writes the file and returns its path.
  [[nodiscard]] std::string file(std::string_view name, std::string_view text) const {
    std::ofstream(path(name), std::ios::binary | std::ios::trunc)
        .write(text.data(), static_cast<std::streamsize>(text.size()));
    return path(name);
  }

  static std::string read(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }

  static std::vector<std::string> lines(const std::string& text) {
    std::vector<std::string> all;
    std::size_t at = 0;
    for (std::size_t end = text.find('\n'); end != std::string::npos; end = text.find('\n', at)) {
      all.push_back(text.substr(at, end - at));
      at = end + 1;
    }
    EXPECT_EQ(at, text.size()) << "the last line has no end";
    return all;
  }

  static BatchInput open_input(const std::string& path) {
    auto input = BatchInput::open(path);
    EXPECT_TRUE(input.ok()) << input.error().message;
    return std::move(input).value();
  }

  static BatchOutput open_output(const std::string& path, BatchInput& input) {
    auto output = BatchOutput::open(path, input);
    EXPECT_TRUE(output.ok()) << output.error().message;
    return std::move(output).value();
  }

  /// custom_ids of what is left to be answered.
  static std::vector<std::string> left(BatchInput& input) {
    std::vector<std::string> names;
    while (true) {
      const auto item = input.next();
      EXPECT_TRUE(item.ok()) << item.error().message;
      if (!item.ok() || !*item) return names;
      names.push_back((*item)->line.custom_id.value_or("none"));
    }
  }

  std::filesystem::path folder_;
};

inline std::string request_line(const std::string& custom_id) {
  return R"({"custom_id":")" + custom_id + R"(","method":"POST","url":"/v1/completions","body":{"prompt":"Hi"}})" +
         "\n";
}

}  // namespace millrace::test
