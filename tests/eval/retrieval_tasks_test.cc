#include "eval/retrieval_tasks.h"

#include <gtest/gtest.h>

#include "eval/task_fixture.h"

namespace millrace {
namespace {

class RetrievalTasksTest : public ::testing::Test {
 protected:
  RetrievalTasksTest() : model_("millrace-tiny"), tasks_(model_.tasks()) {}

  [[nodiscard]] std::string text_of(const EvalDocument& document) const {
    return *model_.loaded.tokenizer->decode(document.continuations.front().tokens, false);
  }

  TestModel model_;
  TaskModel tasks_;
};

TEST_F(RetrievalTasksTest, HaveTheFormOfTraining) {
  const std::vector<std::int64_t> lengths{60};
  const EvalTask task = *make_key_value(tasks_, lengths, 1);
  const std::string text = text_of(task.documents.front());
  EXPECT_TRUE(text.starts_with("<|bos|><|user|>Remember: ")) << text;
  const std::size_t asked = text.find(".\nWhat about ");
  ASSERT_NE(asked, std::string::npos) << text;
  const std::size_t key = asked + std::string_view(".\nWhat about ").size();
  const std::string name = text.substr(key, text.find('?') - key);
  const std::size_t answer = text.find("?<|end|><|assistant|> " + name + " ");
  ASSERT_NE(answer, std::string::npos) << text;
  const std::string pair = text.substr(text.find("|assistant|> ") + 13);  // key and value, as they stand above
  EXPECT_LT(text.find(pair), asked) << text;
  EXPECT_EQ(task.documents.front().end_ids, tasks_.eos_ids);
}

TEST_F(RetrievalTasksTest, FillTheirLengthAndDoNotChange) {
  const std::vector<std::int64_t> lengths{100, 500, 2000};
  for (const auto& make :
       {+[](const TaskModel&model, std::span<const std::int64_t> of) { return make_key_value(model, of, 3); },
        +[](const TaskModel&model, std::span<const std::int64_t> of) {
          return make_needle(model, of, 3, std::nullopt);
        }}) {
    const auto task = make(tasks_, lengths), again = make(tasks_, lengths);
    ASSERT_TRUE(task.ok()) << task.error().message;
    ASSERT_EQ(task->documents.size(), 9u);
    for (std::size_t d = 0; d < 9; ++d) {
      const EvalDocument& document = task->documents[d];
      const auto tokens = static_cast<std::int64_t>(document.continuations.front().tokens.size());
      EXPECT_LE(tokens, lengths[d / 3]);
      EXPECT_GE(tokens, lengths[d / 3] - 40) << document.name;
      EXPECT_EQ(document.group, std::to_string(lengths[d / 3]));
      EXPECT_EQ(text_of(document), text_of(again->documents[d]));
    }
    EXPECT_NE(text_of(task->documents[0]), text_of(task->documents[1]));
  }
}

TEST_F(RetrievalTasksTest, InstructionsStandBeforeTheTextAndAreMarked) {
  const std::vector<std::int64_t> lengths{300};
  const auto task = make_instructions(tasks_, lengths, 5);
  ASSERT_TRUE(task.ok()) << task.error().message;
  const auto system = [&](std::size_t d) {
    const Continuation& continuation = task->documents[d].continuations.front();
    EXPECT_GT(continuation.pinned, 0u);
    EXPECT_LT(continuation.pinned, 60u);
    EXPECT_LT(continuation.pinned, continuation.context);
    return *tasks_.tokenizer->decode(std::span(continuation.tokens).first(continuation.pinned), false);
  };
  EXPECT_EQ(std::ranges::count(system(0), ','), 3) << system(0);
  EXPECT_TRUE(system(0).starts_with("<|bos|><|user|>Remember: ")) << system(0);
  std::vector<std::string> keys;
  for (std::size_t d = 0; d < 4; ++d) {
    EXPECT_EQ(system(d), system(0));
    const std::string text = text_of(task->documents[d]);
    const std::size_t asked = text.find("\nWhat about ") + 12;
    keys.push_back(text.substr(asked, text.find('?', asked) - asked));
    EXPECT_NE(system(d).find(keys.back()), std::string::npos) << text;
  }
  std::ranges::sort(keys);
  EXPECT_EQ(std::ranges::adjacent_find(keys), keys.end());
  EXPECT_NE(system(4), system(0));
}

TEST_F(RetrievalTasksTest, ANeedleStandsInTheTextOfAFile) {
  std::string text;
  for (int i = 0; i < 60; ++i) text += fmt::format("This is sentence {} of sixty. ", i);
  const std::vector<std::int64_t> lengths{120}, too_long{2000};
  const auto task = make_needle(tasks_, lengths, 2, TaskFile{"t.txt", text});
  ASSERT_TRUE(task.ok()) << task.error().message;
  const std::string read = text_of(task->documents.front());
  EXPECT_NE(read.find("of sixty."), std::string::npos) << read;
  EXPECT_NE(read.find(". Remember: "), std::string::npos) << read;
  const auto longer = make_needle(tasks_, too_long, 2, TaskFile{"t.txt", text});
  ASSERT_FALSE(longer.ok());
  EXPECT_NE(longer.error().message.find("shorter lengths"), std::string::npos) << longer.error().message;
}

TEST_F(RetrievalTasksTest, WorkWithoutAChatTemplate) {
  TaskModel plain = tasks_;
  plain.chat_template = nullptr;
  const std::vector<std::int64_t> lengths{60};
  const auto task = make_key_value(plain, lengths, 1);
  ASSERT_TRUE(task.ok()) << task.error().message;
  EXPECT_TRUE(text_of(task->documents[0]).starts_with("<|bos|>Remember: "));
  EXPECT_TRUE(task->documents[0].end_ids.empty());
}

TEST_F(RetrievalTasksTest, LengthsHaveLimits) {
  const auto error = [&](std::int64_t length) {
    const std::vector<std::int64_t> lengths{length};
    const auto task = make_key_value(tasks_, lengths, 1);
    EXPECT_FALSE(task.ok());
    return task.ok() ? std::string() : task.error().message;
  };
  EXPECT_NE(error(tasks_.longest + 1).find("may have 2048 here"), std::string::npos) << error(tasks_.longest + 1);
  EXPECT_NE(error(5).find("too few"), std::string::npos);
  EXPECT_EQ(usual_lengths(tasks_), (std::vector<std::int64_t>{256, 512, 1024, 2048}));
  tasks_.longest = 100000;
  EXPECT_NE(error(50000).find("shorter lengths"), std::string::npos);
}

}  // namespace
}  // namespace millrace
