// The files of a batch: that whatever a run leaves behind, the next one knows what is answered, and refuses what it
// does not know.

#include "server/batch_files.h"

#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <csignal>

namespace millrace::test {
namespace {

using Strings = std::vector<std::string>;

class BatchInputTest : public BatchFolder {};
class BatchOutputTest : public BatchFolder {
 protected:
  /// Three requests, "a" to "c".
  std::string requests_ = file("in", request_line("a") + request_line("b") + request_line("c"));

  /// Answers all that is left.
  static void answer_all(const std::string& in, const std::string& out) {
    BatchInput input = open_input(in);
    BatchOutput output = open_output(out, input);
    while (true) {
      const auto item = input.next();
      ASSERT_TRUE(item.ok());
      if (!*item) return;
      ASSERT_TRUE(output.append(record(**item)).ok());
    }
  }

  static std::string record(const BatchInput::Item& item) {
    return batch_record(item.key, item.line.custom_id, 200, R"({"choices":[]})", std::nullopt);
  }

  static std::string error(const std::string& in, const std::string& out) {
    BatchInput input = open_input(in);
    const auto output = BatchOutput::open(out, input);
    return output.ok() ? "none" : output.error().message;
  }
};

TEST_F(BatchInputTest, LinesInTheirOrder) {
  BatchInput input = open_input(
      file("in", "\n" + request_line("a") + " \t\r\n" + request_line("b") + "{\n" + R"({"custom_id":"last")"));
  EXPECT_EQ(input.requests(), 4);
  EXPECT_EQ(left(input), (Strings{"a", "b", "none", "none"}));
  BatchInput empty = open_input(file("empty", ""));
  EXPECT_EQ(empty.requests(), 0);
  EXPECT_EQ(left(empty), Strings{});
  EXPECT_FALSE(BatchInput::open(path("absent")).ok());
  EXPECT_FALSE(BatchInput::open(folder_.string()).ok());
}

TEST_F(BatchInputTest, LinesOfWindowsAndALastOneWithoutEnd) {
  std::string text = request_line("a");
  text.insert(text.size() - 1, "\r");
  std::string last = request_line("b");
  last.pop_back();
  BatchInput input = open_input(file("in", text + last));
  const auto first = input.next();
  ASSERT_TRUE(first.ok() && *first);
  EXPECT_FALSE((*first)->line.problem);
  EXPECT_EQ(left(input), Strings{"b"});
}

TEST_F(BatchInputTest, EqualNamesAreRefusedWithTheirLines) {
  const auto input = BatchInput::open(file(
      "in", request_line("x") + "\n" + request_line("a") + request_line("x") + request_line("a") + request_line("x")));
  ASSERT_FALSE(input.ok());
  EXPECT_NE(input.error().message.find("lines 1 and 4 have the same custom_id \"x\""), std::string::npos)
      << input.error().message;
  EXPECT_NE(input.error().message.find("3 and 5"), std::string::npos) << input.error().message;
  EXPECT_NE(input.error().message.find("4 and 6"), std::string::npos) << input.error().message;
}

TEST_F(BatchInputTest, ALineThatIsTooLongIsNoRequestAndTheNextOneIs) {
  std::string text = request_line("a") + "{\"custom_id\":\"long\",\"x\":\"";
  text.append(kBatchLineBytes, 'x');
  text += "\"}\n" + request_line("b");
  BatchInput input = open_input(file("in", text));
  ASSERT_TRUE(input.next().ok());
  const auto item = input.next();
  ASSERT_TRUE(item.ok() && *item);
  ASSERT_TRUE((*item)->line.problem);
  EXPECT_NE((*item)->line.problem->message.find(std::to_string(kBatchLineBytes)), std::string::npos);
  EXPECT_EQ(left(input), Strings{"b"});
}

TEST_F(BatchInputTest, AChangedFileIsNoticed) {
  const std::string in = file("in", request_line("a") + request_line("b"));
  BatchInput other = open_input(in);
  BatchInput shorter = open_input(in);
  ASSERT_EQ(file("in", request_line("a") + request_line("c")), in);
  ASSERT_TRUE(other.next().ok());
  EXPECT_NE(other.next().error().message.find("changed"), std::string::npos);
  ASSERT_EQ(file("in", request_line("a")), in);
  ASSERT_TRUE(shorter.next().ok());
  EXPECT_NE(shorter.next().error().message.find("changed"), std::string::npos);
}

TEST_F(BatchOutputTest, GoesOnAfterAnyByte) {
  const std::string two = file("two", request_line("a") + request_line("b"));
  answer_all(two, path("whole"));
  const std::string whole = read(path("whole"));
  ASSERT_EQ(lines(whole).size(), 2u);
  for (std::size_t length = 0; length <= whole.size(); ++length) {
    const std::string out = file("out", whole.substr(0, length));
    const auto complete = std::count(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length), '\n');
    {
      BatchInput input = open_input(two);
      BatchOutput output = open_output(out, input);
      ASSERT_EQ(output.records(), complete) << length;
      const std::size_t kept = length == 0 || complete == 0 ? 0 : whole.rfind('\n', length - 1) + 1;
      ASSERT_EQ(output.cut_bytes(), length - kept) << length;
      ASSERT_EQ(read(out), whole.substr(0, kept)) << length;
      ASSERT_EQ(left(input).size(), static_cast<std::size_t>(2 - complete));
    }
    if (length % 50 == 0) {
      answer_all(two, out);
      ASSERT_EQ(lines(read(out)).size(), 2u);
      ASSERT_EQ(error(two, out), "none") << "each is answered once";
    }
  }
}

TEST_F(BatchOutputTest, ZerosAfterALossOfPowerAreCutOff) {
  answer_all(requests_, path("whole"));
  const std::string whole = read(path("whole"));
  const std::size_t first = whole.find('\n') + 1;
  for (const std::size_t hole : {std::size_t{0}, std::size_t{9}, first - 1, first, first + 100}) {
    std::string damaged = whole;
    damaged.replace(hole, 40, 40, '\0');
    const std::string out = file("out", damaged);
    BatchInput input = open_input(requests_);
    const BatchOutput output = open_output(out, input);
    EXPECT_EQ(output.records(), hole < first ? 0 : 1) << hole;
    EXPECT_EQ(read(out), hole < first ? "" : whole.substr(0, first)) << hole;
  }
}

TEST_F(BatchOutputTest, RecordsInAnyOrder) {
  std::vector<BatchInput::Item> items;
  {
    BatchInput input = open_input(requests_);
    while (auto item = input.next().value()) items.push_back(*item);
  }
  {
    BatchInput input = open_input(requests_);
    BatchOutput output = open_output(path("out"), input);
    ASSERT_TRUE(output.append(record(items[2])).ok());
    ASSERT_TRUE(output.append(record(items[0])).ok());
  }
  BatchInput input = open_input(requests_);
  const BatchOutput output = open_output(path("out"), input);
  EXPECT_EQ(output.records(), 2);
  EXPECT_EQ(left(input), Strings{"b"});
}

TEST_F(BatchOutputTest, TheOutputOfOthersIsRefusedAndLeftAsItIs) {
  answer_all(requests_, path("out"));
  const std::string before = read(path("out"));
  const std::string other = file("other", request_line("a") + request_line("x") + request_line("c"));
  EXPECT_NE(error(other, path("out")).find("line 2 with custom_id \"b\" answers no line of"), std::string::npos);
  // The same names, and another question.
  std::string changed = read(requests_);
  changed.replace(changed.find("Hi"), 2, "Ho");
  EXPECT_NE(error(file("changed", changed), path("out")).find("line 1 with custom_id \"a\""), std::string::npos);
  EXPECT_NE(error(file("shorter", request_line("a")), path("out")).find("line 2"), std::string::npos);
  EXPECT_EQ(read(path("out")), before);
  // More questions at the end are no other file.
  EXPECT_EQ(error(file("longer", read(requests_) + request_line("d")), path("out")), "none");

  const std::string twice = file("twice", before + lines(before)[1] + "\n");
  EXPECT_NE(error(requests_, twice).find("line 4 answers the request with custom_id \"b\" a second time"),
            std::string::npos);
  for (const char* text : {"important notes", "important notes\n", "{\"id\":\"other\"}\n"}) {
    const std::string notes = file("notes", text);
    EXPECT_NE(error(requests_, notes).find("line 1 is no record"), std::string::npos) << text;
    EXPECT_EQ(read(notes), text);
  }
  EXPECT_NE(error(requests_, file("mixed", before + "notes\n")).find("line 4 is no record"), std::string::npos);
}

TEST_F(BatchOutputTest, OneWriterAtATime) {
  BatchInput input = open_input(requests_);
  {
    const BatchOutput output = open_output(path("out"), input);
    EXPECT_NE(error(requests_, path("out")).find("another run"), std::string::npos);
  }
  EXPECT_EQ(error(requests_, path("out")), "none");
}

TEST_F(BatchOutputTest, OnlyAFileOfItsOwn) {
  EXPECT_NE(error(requests_, requests_).find("this is the input"), std::string::npos);
  std::filesystem::create_symlink(requests_, path("link"));
  EXPECT_NE(error(requests_, path("link")).find("this is the input"), std::string::npos);
  EXPECT_NE(error(requests_, "/dev/null").find("not a regular file"), std::string::npos);
  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  EXPECT_NE(error(requests_, path("pipe")).find("not a regular file"), std::string::npos);
  EXPECT_FALSE(BatchInput::open(path("pipe")).ok());
  EXPECT_NE(error(requests_, path("no/folder")).find("No such file"), std::string::npos);
}

TEST_F(BatchOutputTest, AFullDiskLeavesWholeRecords) {
  BatchInput input = open_input(requests_);
  BatchOutput output = open_output(path("out"), input);
  ASSERT_TRUE(output.append(record(*input.next().value())).ok());
  const std::string before = read(path("out"));
  // The kernel then writes what fits, a part of the record, and refuses the rest.
  rlimit usual{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &usual), 0);
  const rlimit tight{.rlim_cur = before.size() + 10, .rlim_max = usual.rlim_max};
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &tight), 0);
  const auto item = input.next();
  const Status full = output.append(record(**item));
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &usual), 0);
  std::signal(SIGXFSZ, handler);
  ASSERT_FALSE(full.ok());
  EXPECT_NE(full.error().message.find("writing failed"), std::string::npos);
  EXPECT_EQ(read(path("out")), before);
  EXPECT_EQ(output.records(), 1);
  EXPECT_TRUE(output.append(record(**item)).ok()) << "there is room again";
  EXPECT_EQ(lines(read(path("out"))).size(), 2u);
}

}  // namespace
}  // namespace millrace::test
