// Files that are written in steps: whole ones, and ones that are gone on with.
#include "convert/safetensors_writer.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <fstream>
#include <thread>

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
  [[nodiscard]] StepFile open(const std::string& fingerprint) const {
    auto writer = open_safetensors(path(), tensors_, fingerprint);
    EXPECT_TRUE(writer.ok()) << writer.error().message;
    return std::move(*writer);
  }
  [[nodiscard]] std::string error_of(const std::string& fingerprint) const {
    const auto writer = open_safetensors(path(), tensors_, fingerprint);
    return writer.ok() ? "" : writer.error().message;
  }
  [[nodiscard]] fs::path part() const { return path().string() + ".part"; }
  [[nodiscard]] fs::path journal() const { return path().string() + ".journal"; }
  static std::string text_of(const fs::path& file) {
    std::ifstream stream(file);
    return {std::istreambuf_iterator<char>(stream), {}};
  }
  static std::span<const std::byte> bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

  fs::path directory_;
  std::vector<OutputTensor> tensors_{{"a", "I8", {2, 3}}, {"b \"quoted\"", "F32", {2}}, {"c", "U8", {4}}};
};

TEST_F(Writer, WritesWhatTheFormatsReaderReads) {
  {
    StepFile writer = open("1");
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
    StepFile writer = open("x");
    ASSERT_TRUE(writer.write("a", 0, bytes("abcdef")).ok());
    ASSERT_TRUE(writer.finish("0", "one").ok());
    ASSERT_TRUE(writer.write("c", 0, bytes("?")).ok());  // and then it is killed
  }
  std::ofstream(path().string() + ".journal", std::ios::app) << "1\thalf a li";
  {
    StepFile writer = open("x");
    EXPECT_EQ(writer.finished(), 1u);
    ASSERT_NE(writer.note("0"), nullptr);
    EXPECT_EQ(*writer.note("0"), "one");
    EXPECT_EQ(writer.note("1"), nullptr);
    ASSERT_TRUE(writer.write("c", 0, bytes("ijkl")).ok());
    ASSERT_TRUE(writer.finish("1", "two").ok());
  }
  StepFile writer = open("x");
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
    StepFile writer = open("x");
    ASSERT_TRUE(writer.finish("0", "one").ok());
  }
  const StepFile writer = open("y");
  EXPECT_EQ(writer.finished(), 0u);
}

TEST_F(Writer, AJournalWithoutItsPartSaysNothing) {
  {
    StepFile writer = open("x");
    ASSERT_TRUE(writer.finish("0", "one").ok());
  }
  fs::remove(path().string() + ".part");
  StepFile writer = open("x");
  EXPECT_EQ(writer.finished(), 0u);
  ASSERT_TRUE(writer.commit().ok());
  const auto file = MappedFile::open(path());
  EXPECT_TRUE(parse_safetensors(file->bytes(), "file").ok());
}

TEST_F(Writer, FilesOfOthersByTheseNamesAreLeftAlone) {
  std::ofstream(part()) << "half a download";
  EXPECT_NE(error_of("x").find(".part is there"), std::string::npos);
  std::ofstream(journal()) << "dear diary\n";
  EXPECT_NE(error_of("x").find(".part is there"), std::string::npos);
  EXPECT_EQ(text_of(part()), "half a download");
  fs::remove(part());
  EXPECT_NE(error_of("x").find(".journal is there"), std::string::npos);
  EXPECT_EQ(text_of(journal()), "dear diary\n");
  EXPECT_FALSE(fs::exists(part()));
  fs::remove(journal());
  std::ofstream(path()) << "mine";
  EXPECT_NE(error_of("x").find("is there already"), std::string::npos);
  EXPECT_EQ(std::distance(fs::directory_iterator(directory_), fs::directory_iterator()), 1);
}

TEST_F(Writer, AFileThatComesMeanwhileStays) {
  {
    StepFile writer = open("x");
    ASSERT_TRUE(writer.finish("0", "one").ok());
    std::ofstream(path()) << "mine";
    const Status done = writer.commit();
    ASSERT_FALSE(done.ok());
    EXPECT_NE(done.error().message.find("has come meanwhile"), std::string::npos) << done.error().message;
  }
  EXPECT_EQ(text_of(path()), "mine");
  fs::remove(path());
  EXPECT_EQ(open("x").finished(), 1u);
}

TEST_F(Writer, AFinishedFileIsNotEmptiedByOneWhoWaitedForThePart) {
  for (int round = 0; round < 200; ++round) {
    std::atomic<bool> done = false;
    // Opens the part again and again: at times just before it gets its name, and has the lock just after.
    std::thread other([&] {
      while (!done) (void)open_safetensors(path(), tensors_, "x");
    });
    while (!fs::exists(path())) {
      auto writer = open_safetensors(path(), tensors_, "x");
      if (writer.ok()) (void)writer->commit();
    }
    done = true;
    other.join();
    const auto file = MappedFile::open(path());
    ASSERT_TRUE(file.ok() && parse_safetensors(file->bytes(), "file").ok()) << "round " << round;
    fs::remove(path());
    fs::remove(part());
    fs::remove(journal());
  }
}

TEST_F(Writer, AnOldJournalDoesNotVouchForANewPart) {
  {
    StepFile writer = open("x");
    ASSERT_TRUE(writer.write("a", 0, bytes("abcdef")).ok());
    ASSERT_TRUE(writer.finish("0", "one").ok());
  }
  // A journal that can be read and not be written, not even by root, stops the next call where it would reset it.
  const std::string old = text_of(journal());
  const int sealed = ::memfd_create("journal", MFD_ALLOW_SEALING);
  ASSERT_EQ(::write(sealed, old.data(), old.size()), static_cast<ssize_t>(old.size()));
  ASSERT_EQ(::fcntl(sealed, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW), 0);
  fs::remove(journal());
  fs::create_symlink("/proc/self/fd/" + std::to_string(sealed), journal());
  EXPECT_NE(error_of("y"), "");
  fs::remove(journal());
  ::close(sealed);
  std::ofstream(journal()) << old;
  EXPECT_EQ(open("x").finished(), 0u);
}

TEST_F(Writer, AMovedOneKnowsWhatFailed) {
  StepFile writer = open("x");
  EXPECT_FALSE(writer.failed());
  struct rlimit before {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const struct rlimit nothing { 0, before.rlim_max };
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &nothing), 0);
  const bool written = writer.write("a", 0, bytes("abcdef")).ok();
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  (void)std::signal(SIGXFSZ, handler);
  EXPECT_FALSE(written);
  EXPECT_TRUE(writer.failed());
  const StepFile moved = std::move(writer);
  EXPECT_TRUE(moved.failed());
}

TEST_F(Writer, HasItsRoomFromTheStart) {
  tensors_.push_back({"large", "U8", {1 << 20}});
  const StepFile writer = open("x");
  struct stat found {};
  ASSERT_EQ(::stat(part().c_str(), &found), 0);
  const int probe = ::open((directory_ / "probe").c_str(), O_RDWR | O_CREAT, 0600);
  const bool reserves = ::fallocate(probe, 0, 0, 4096) == 0;
  ::close(probe);
  if (!reserves) GTEST_SKIP() << "this file system cannot reserve room";
  EXPECT_GE(found.st_blocks * 512, 1 << 20);
}

TEST_F(Writer, IsAloneWithItsFile) {
  const StepFile writer = open("x");
  const auto second = open_safetensors(path(), tensors_, "x");
  ASSERT_FALSE(second.ok());
  EXPECT_NE(second.error().message.find("is being written by another process"), std::string::npos);
}

TEST_F(Writer, SaysWhatCannotBeMade) {
  const auto missing = open_safetensors(directory_ / "no" / "file", tensors_, "x");
  ASSERT_FALSE(missing.ok());
  EXPECT_NE(missing.error().message.find("cannot make"), std::string::npos);
  tensors_.push_back({"huge", "F32", {std::int64_t{1} << 50}});
  const auto huge = open_safetensors(path(), tensors_, "x");
  ASSERT_FALSE(huge.ok());
  EXPECT_NE(huge.error().message.find("the result takes"), std::string::npos) << huge.error().message;
  EXPECT_FALSE(fs::exists(path().string() + ".part"));
}

}  // namespace
}  // namespace millrace
