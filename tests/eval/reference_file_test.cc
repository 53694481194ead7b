#include "eval/reference_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <numeric>

#include "core/philox.h"

namespace millrace {
namespace {

constexpr std::int32_t kVocab = 300;
constexpr std::int64_t kPositions = 5;

std::vector<float> logits_of(std::uint64_t window, std::int64_t position) {
  std::vector<float> logits;
  for (std::uint64_t i = 0; i < kVocab; ++i) {
    logits.push_back(40.0f * philox_uniform(window, static_cast<std::uint32_t>(position), i) - 25.0f);
  }
  return logits;
}

class ReferenceFileTest : public ::testing::Test {
 protected:
  ReferenceFileTest()
      : folder_(std::filesystem::path(::testing::TempDir()) / fmt::format("millrace_reference_{}", ::getpid())) {}
  ~ReferenceFileTest() override { std::filesystem::remove_all(folder_); }

  ReferenceFile open(const std::string& key = "key") {
    auto file = ReferenceFile::open(path(), key, kVocab);
    EXPECT_TRUE(file.ok()) << file.error().message;
    return std::move(*file);
  }
  [[nodiscard]] std::filesystem::path path() const { return folder_ / "within" / "a.reference"; }

  static void write_window(ReferenceFile& file, std::uint64_t window) {
    ASSERT_TRUE(file.begin_window().ok());
    for (std::int64_t p = 0; p < kPositions; ++p) ASSERT_TRUE(file.add(logits_of(window, p)).ok());
    ASSERT_TRUE(file.end_window().ok());
  }

  static void expect_window(ReferenceFile& file, std::size_t window) {
    auto cursor = file.start_of(window);
    ASSERT_TRUE(cursor.ok());
    ASSERT_EQ(cursor->left, static_cast<std::uint64_t>(kPositions));
    ReferencePosition position;
    for (std::int64_t p = 0; p < kPositions; ++p) {
      const Status read = file.next(*cursor, position);
      ASSERT_TRUE(read.ok()) << read.error().message;
      const std::vector<float> logits = logits_of(window, p);
      const auto top = std::ranges::max_element(logits);
      EXPECT_EQ(position.top, top - logits.begin());
      double sum = 0.0;
      for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
      const double step = (*top - *std::ranges::min_element(logits)) / 65535.0;
      for (std::size_t i = 0; i < logits.size(); ++i) {
        // Half a step of rounding, and what the rounding of the others has changed in the sum.
        EXPECT_NEAR(position.log_probability[i], logits[i] - std::log(sum), step + 1e-5);
        EXPECT_NEAR(position.probability[i], std::exp(position.log_probability[i]), 1e-5);
      }
      EXPECT_NEAR(std::accumulate(position.probability.begin(), position.probability.end(), 0.0), 1.0, 1e-5);
    }
    EXPECT_EQ(cursor->left, 0u);
  }

 private:
  std::filesystem::path folder_;
};

TEST_F(ReferenceFileTest, GivesBackWhatWasWritten) {
  {
    ReferenceFile file = open();
    for (std::uint64_t w = 0; w < 3; ++w) write_window(file, w);
    for (std::size_t w = 0; w < 3; ++w) expect_window(file, w);
  }
  ReferenceFile file = open();
  ASSERT_EQ(file.windows(), 3u);
  for (const std::size_t w : {2, 0, 1}) expect_window(file, w);
}

TEST_F(ReferenceFileTest, GoesOnWhereItWasCutOff) {
  {
    ReferenceFile file = open();
    write_window(file, 0);
    write_window(file, 1);
    ASSERT_TRUE(file.begin_window().ok());
    ASSERT_TRUE(file.add(logits_of(2, 0)).ok());  // and never ended
  }
  const auto whole = std::filesystem::file_size(path());
  {
    ReferenceFile file = open();
    ASSERT_EQ(file.windows(), 2u);
    EXPECT_LT(std::filesystem::file_size(path()), whole);
    write_window(file, 2);
    expect_window(file, 2);
  }
  std::filesystem::resize_file(path(), std::filesystem::file_size(path()) - 1);
  ReferenceFile file = open();
  EXPECT_EQ(file.windows(), 2u);
  expect_window(file, 1);
}

TEST_F(ReferenceFileTest, AnotherKeyBeginsAnew) {
  {
    ReferenceFile file = open();
    write_window(file, 0);
  }
  EXPECT_EQ(open("another key").windows(), 0u);
  EXPECT_EQ(open().windows(), 0u);
}

TEST_F(ReferenceFileTest, DamageIsAnError) {
  {
    ReferenceFile file = open();
    write_window(file, 0);
  }
  {
    std::fstream stream(path(), std::ios::in | std::ios::out | std::ios::binary);
    stream.seekp(-20, std::ios::end);
    stream.write("xxxxxxxx", 8);
  }
  ReferenceFile file = open();
  auto cursor = file.start_of(0);
  ASSERT_TRUE(cursor.ok());
  ReferencePosition position;
  Status read = Ok{};
  while (cursor->left > 0 && read.ok()) read = file.next(*cursor, position);
  ASSERT_FALSE(read.ok());
  EXPECT_NE(read.error().message.find("remove it"), std::string::npos);
}

TEST_F(ReferenceFileTest, OneWriterAndAnyNumberOfReaders) {
  ReferenceFile writer = open();
  write_window(writer, 0);
  EXPECT_FALSE(ReferenceFile::open(path(), "key", kVocab).ok());
  writer.finish();
  ReferenceFile reader = open();
  expect_window(reader, 0);
  EXPECT_FALSE(reader.begin_window().ok());
}

TEST_F(ReferenceFileTest, OfEqualTokensTheFirstIsOnTop) {
  ReferenceFile file = open();
  std::vector<float> logits = logits_of(0, 0);
  logits[20] = logits[40] = 30.0f;
  ASSERT_TRUE(file.begin_window().ok());
  ASSERT_TRUE(file.add(logits).ok());
  ASSERT_TRUE(file.end_window().ok());
  ReferencePosition position;
  auto cursor = file.start_of(0);
  ASSERT_TRUE(cursor.ok());
  ASSERT_TRUE(file.next(*cursor, position).ok());
  EXPECT_EQ(position.top, 20);
}

TEST_F(ReferenceFileTest, RefusesWhatIsNotFinite) {
  ReferenceFile file = open();
  ASSERT_TRUE(file.begin_window().ok());
  std::vector<float> logits = logits_of(0, 0);
  logits[7] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_FALSE(file.add(logits).ok());
}

TEST_F(ReferenceFileTest, AFolderThatCannotBeMadeIsAnError) {
  const auto file = ReferenceFile::open("/proc/millrace/a.reference", "key", kVocab);
  ASSERT_FALSE(file.ok());
  EXPECT_NE(file.error().message.find("--reference-cache"), std::string::npos);
}

}  // namespace
}  // namespace millrace
