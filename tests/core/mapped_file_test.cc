#include "core/mapped_file.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

namespace millrace {
namespace {

/// A file in the test's own temporary folder, gone with the object.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& content)
      : path_(std::filesystem::path(testing::TempDir()) /
              testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::ofstream(path_, std::ios::binary) << content;
  }
  ~TemporaryFile() { std::filesystem::remove(path_); }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

TEST(MappedFile, SeesTheBytesAlsoAfterAMoveAndARelease) {
  const std::string content(100000, 'x');
  const TemporaryFile file(content + "end");
  auto mapped = MappedFile::open(file.path());
  ASSERT_TRUE(mapped.ok());
  const MappedFile moved = std::move(*mapped);
  moved.release(moved.bytes());
  ASSERT_EQ(moved.bytes().size(), content.size() + 3);
  EXPECT_EQ(std::memcmp(moved.bytes().data() + content.size(), "end", 3), 0);
}

TEST(MappedFile, EmptyMissingAndNotAFile) {
  const TemporaryFile empty("");
  EXPECT_TRUE(MappedFile::open(empty.path())->bytes().empty());
  const auto missing = MappedFile::open("/nonexistent/file");
  ASSERT_FALSE(missing.ok());
  EXPECT_NE(missing.error().message.find("/nonexistent/file"), std::string::npos);
  const auto folder = MappedFile::open(testing::TempDir());
  ASSERT_FALSE(folder.ok());
  EXPECT_NE(folder.error().message.find("not a regular file"), std::string::npos);
}

TEST(ReadTextFile, HasALimit) {
  const TemporaryFile file("0123456789");
  EXPECT_EQ(*read_text_file(file.path()), "0123456789");
  EXPECT_FALSE(read_text_file(file.path(), 9).ok());
}

}  // namespace
}  // namespace millrace
