// Files that are written in steps: whole ones, and ones that are gone on with.
#include "convert/safetensors_writer.h"

#include <gtest/gtest.h>

#include <fstream>

#include "core/mapped_file.h"
#include "model/checkpoint/safetensors.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

class Writer : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::temp_directory_path() / ("millrace_writer_" + std::to_string(::getpid()));
    fs::remove_all(directory_);
    fs::create_directories(directory_);
  }
  void TearDown() override { fs::remove_all(directory_); }

  [[nodiscard]] fs::path path() const { return directory_ / "model.safetensors"; }
  [[nodiscard]] SafetensorsWriter open(const std::string& fingerprint) const {
    auto writer = SafetensorsWriter::open(path(), tensors_, fingerprint);
    EXPECT_TRUE(writer.ok()) << writer.error().message;
    return std::move(*writer);
  }
  static std::span<const std::byte> bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

  fs::path directory_;
  std::vector<OutputTensor> tensors_{{"a", "I8", {2, 3}}, {"b \"quoted\"", "F32", {2}}, {"c", "U8", {4}}};
};

TEST_F(Writer, WritesWhatTheFormatsReaderReads) {
  {
    SafetensorsWriter writer = open("1");
    EXPECT_EQ(writer.finished(), 0u);
    ASSERT_TRUE(writer.write("c", 2, bytes("kl")).ok());
    ASSERT_TRUE(writer.write("c", 0, bytes("ij")).ok());
    ASSERT_TRUE(writer.write("a", 0, bytes("abcdef")).ok());
    ASSERT_TRUE(writer.finish("first", "{}").ok());
    EXPECT_FALSE(fs::exists(path()));
    ASSERT_TRUE(writer.commit().ok());
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(directory_), fs::directory_iterator()), 1);
  const auto file = MappedFile::open(path());
  ASSERT_TRUE(file.ok());
  const auto parsed = parse_safetensors(file->bytes(), "file");
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  ASSERT_EQ(parsed->tensors.size(), 3u);
  const StoredTensor& a = parsed->tensors[0];
  EXPECT_EQ(a.name, "a");
  EXPECT_EQ(a.shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(a.data.data()), a.data.size()), "abcdef");
  EXPECT_EQ(parsed->tensors[1].name, "b \"quoted\"");
  EXPECT_EQ(parsed->tensors[2].data[3], std::byte{'l'});
}

TEST_F(Writer, GoesOnWhereItWasStopped) {
  {
    SafetensorsWriter writer = open("x");
    ASSERT_TRUE(writer.write("a", 0, bytes("abcdef")).ok());
    ASSERT_TRUE(writer.finish("0", "one").ok());
    ASSERT_TRUE(writer.write("c", 0, bytes("?")).ok());  // and then it is killed
  }
  std::ofstream(path().string() + ".journal", std::ios::app) << "1\thalf a li";
  {
    SafetensorsWriter writer = open("x");
    EXPECT_EQ(writer.finished(), 1u);
    ASSERT_NE(writer.note("0"), nullptr);
    EXPECT_EQ(*writer.note("0"), "one");
    EXPECT_EQ(writer.note("1"), nullptr);
    ASSERT_TRUE(writer.write("c", 0, bytes("ijkl")).ok());
    ASSERT_TRUE(writer.finish("1", "two").ok());
  }
  SafetensorsWriter writer = open("x");
  EXPECT_EQ(writer.finished(), 2u);
  EXPECT_EQ(*writer.note("1"), "two");
  ASSERT_TRUE(writer.commit().ok());
  const auto file = MappedFile::open(path());
  const auto parsed = parse_safetensors(file->bytes(), "file");
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->tensors[0].data[5], std::byte{'f'});
  EXPECT_EQ(parsed->tensors[2].data[3], std::byte{'l'});
}

TEST_F(Writer, SomethingElseStartsAnew) {
  {
    SafetensorsWriter writer = open("x");
    ASSERT_TRUE(writer.finish("0", "one").ok());
  }
  const SafetensorsWriter writer = open("y");
  EXPECT_EQ(writer.finished(), 0u);
}

TEST_F(Writer, AJournalWithoutItsPartSaysNothing) {
  {
    SafetensorsWriter writer = open("x");
    ASSERT_TRUE(writer.finish("0", "one").ok());
  }
  fs::remove(path().string() + ".part");
  SafetensorsWriter writer = open("x");
  EXPECT_EQ(writer.finished(), 0u);
  ASSERT_TRUE(writer.commit().ok());
  const auto file = MappedFile::open(path());
  EXPECT_TRUE(parse_safetensors(file->bytes(), "file").ok());
}

TEST_F(Writer, IsAloneWithItsFile) {
  const SafetensorsWriter writer = open("x");
  const auto second = SafetensorsWriter::open(path(), tensors_, "x");
  ASSERT_FALSE(second.ok());
  EXPECT_NE(second.error().message.find("is being written by another process"), std::string::npos);
}

TEST_F(Writer, SaysWhatCannotBeMade) {
  const auto missing = SafetensorsWriter::open(directory_ / "no" / "file", tensors_, "x");
  ASSERT_FALSE(missing.ok());
  EXPECT_NE(missing.error().message.find("cannot make"), std::string::npos);
  tensors_.push_back({"huge", "F32", {std::int64_t{1} << 50}});
  const auto huge = SafetensorsWriter::open(path(), tensors_, "x");
  ASSERT_FALSE(huge.ok());
  EXPECT_NE(huge.error().message.find("the result takes"), std::string::npos) << huge.error().message;
  EXPECT_FALSE(fs::exists(path().string() + ".part"));
}

}  // namespace
}  // namespace millrace
