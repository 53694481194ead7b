#include "eval/outcome_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

namespace millrace {
namespace {

class OutcomeFileTest : public ::testing::Test {
 protected:
  OutcomeFileTest()
      : folder_(std::filesystem::path(::testing::TempDir()) / fmt::format("millrace_outcomes_{}", ::getpid())) {}
  ~OutcomeFileTest() override { std::filesystem::remove_all(folder_); }

  [[nodiscard]] std::filesystem::path path() const { return folder_ / "within" / "a.tasks"; }
  OutcomeFile open(const std::string& key = "a key\nof two lines") {
    auto file = OutcomeFile::open(path(), key);
    EXPECT_TRUE(file.ok()) << file.error().message;
    return file.ok() ? std::move(*file) : OutcomeFile();
  }

 private:
  std::filesystem::path folder_;
};

constexpr std::uint64_t kSome = 0xfedcba9876543210u;

TEST_F(OutcomeFileTest, GivesBackWhatWasAdded) {
  {
    OutcomeFile file = open();
    EXPECT_EQ(file.find(kSome), nullptr);
    ASSERT_TRUE(file.add(kSome, {1.0, -3.0 / 7.0}).ok());
    ASSERT_TRUE(file.add(7, {0.0}).ok());
    EXPECT_EQ(file.find(7)->front(), 0.0);
  }
  const OutcomeFile file = open();
  ASSERT_NE(file.find(kSome), nullptr);
  EXPECT_EQ(*file.find(kSome), (std::vector{1.0, -3.0 / 7.0}));  // to the bit
  EXPECT_EQ(file.find(8), nullptr);
}

TEST_F(OutcomeFileTest, ALineThatWasCutOffIsDoneAgain) {
  {
    OutcomeFile file = open();
    ASSERT_TRUE(file.add(1, {1.0}).ok());
    ASSERT_TRUE(file.add(2, {2.0}).ok());
  }
  std::filesystem::resize_file(path(), std::filesystem::file_size(path()) - 3);
  {
    OutcomeFile file = open();
    EXPECT_NE(file.find(1), nullptr);
    EXPECT_EQ(file.find(2), nullptr);
    ASSERT_TRUE(file.add(2, {2.0}).ok());
  }
  EXPECT_NE(open().find(2), nullptr);
}

TEST_F(OutcomeFileTest, AnotherKeyBeginsAnew) {
  ASSERT_TRUE(open().add(1, {1.0}).ok());
  EXPECT_EQ(open("another").find(1), nullptr);
  EXPECT_EQ(open().find(1), nullptr);
}

TEST_F(OutcomeFileTest, KeysAreBytes) {
  ASSERT_TRUE(open("a/\xff").add(1, {1.0}).ok());
  EXPECT_NE(open("a/\xff").find(1), nullptr);
  EXPECT_EQ(open("a/\xfe").find(1), nullptr);  // though JSON shows both the same
}

TEST_F(OutcomeFileTest, DamageIsAnError) {
  ASSERT_TRUE(open().add(1, {1.0}).ok());
  for (const char* line : {"{\"document\": \"xyz\", \"values\": [1]}", "[]", "nonsense", "{\"document\": \"1\"}",
                           "{\"document\": \"1\", \"values\": []}", "{\"document\": \"1\", \"values\": [null]}"}) {
    const auto before = std::filesystem::file_size(path());
    std::ofstream(path(), std::ios::app) << line << "\n";
    const auto file = OutcomeFile::open(path(), "a key\nof two lines");
    ASSERT_FALSE(file.ok()) << line;
    EXPECT_NE(file.error().message.find("remove it"), std::string::npos);
    std::filesystem::resize_file(path(), before);
  }
}

TEST_F(OutcomeFileTest, OneProcessAtATime) {
  const OutcomeFile file = open();
  const auto second = OutcomeFile::open(path(), "a key\nof two lines");
  ASSERT_FALSE(second.ok());
  EXPECT_NE(second.error().message.find("--reference-cache"), std::string::npos);
}

TEST_F(OutcomeFileTest, WhatIsRemovedIsStillKnown) {
  OutcomeFile file = open();
  ASSERT_TRUE(file.add(1, {1.0}).ok());
  file.remove();
  EXPECT_FALSE(std::filesystem::exists(path()));
  EXPECT_NE(file.find(1), nullptr);
  EXPECT_TRUE(file.add(2, {1.0}).ok());  // in memory
}

TEST_F(OutcomeFileTest, AFolderThatCannotBeMadeIsAnError) {
  const auto file = OutcomeFile::open("/proc/millrace/a.tasks", "key");
  ASSERT_FALSE(file.ok());
  EXPECT_NE(file.error().message.find("--reference-cache"), std::string::npos);
}

}  // namespace
}  // namespace millrace
