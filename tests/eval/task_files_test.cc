// Files of tasks with the built-in model's tokenizer: what becomes of a line, and what is said of a wrong one.
#include "eval/task_files.h"

#include <gtest/gtest.h>

#include "eval/greedy_answers.h"
#include "eval/task_fixture.h"

namespace millrace {
namespace {

class TaskFilesTest : public ::testing::Test {
 protected:
  TaskFilesTest() : model_("millrace-tiny"), tasks_(model_.tasks()) {}

  [[nodiscard]] std::string text_of(std::span<const std::int32_t> ids) const {
    return *model_.loaded.tokenizer->decode(ids, false);
  }
  [[nodiscard]] std::string context_of(const Continuation& c) const {
    return text_of(std::span(c.tokens).first(c.context));
  }
  [[nodiscard]] std::string rest_of(const Continuation& c) const {
    return text_of(std::span(c.tokens).subspan(c.context));
  }

  TestModel model_;
  TaskModel tasks_;
};

void expect_error(const Result<EvalTask>& task, std::initializer_list<const char*> parts) {
  ASSERT_FALSE(task.ok());
  EXPECT_EQ(task.error().message.find('\n'), std::string::npos);
  for (const char* part : parts) EXPECT_NE(task.error().message.find(part), std::string::npos) << task.error().message;
}

TEST_F(TaskFilesTest, BlimpHasAGroupForEachFile) {
  const std::vector<TaskFile> files{
      {"some/where/first.jsonl",
       "{\"sentence_good\": \"He sees.\", \"sentence_bad\": \"He see.\", \"UID\": \"u\"}\n\n"
       "{\"sentence_good\": \"She sees.\", \"sentence_bad\": \"She see.\"}\n"},
      {"second.jsonl", "{\"sentence_good\": \"They see.\", \"sentence_bad\": \"They sees.\"}"}};
  const auto task = read_blimp(tasks_, files, 0);
  ASSERT_TRUE(task.ok()) << task.error().message;
  ASSERT_EQ(task->documents.size(), 3u);
  EXPECT_EQ(task->documents[0].group, "first");
  EXPECT_EQ(task->documents[2].group, "second");
  EXPECT_EQ(context_of(task->documents[0].continuations[0]), "<|bos|>");
  EXPECT_EQ(rest_of(task->documents[0].continuations[0]), "He sees.");
  EXPECT_EQ(rest_of(task->documents[1].continuations[1]), "She see.");
  EXPECT_EQ(read_blimp(tasks_, files, 1)->documents.size(), 2u);  // one of each
}

TEST(FileNames, AreWithoutFolderAndEndings) {
  EXPECT_EQ(stem_of("some/where/first.jsonl"), "first");
  EXPECT_EQ(stem_of("some/where/first.jsonl.gz"), "first");
  EXPECT_EQ(stem_of("a.b.jsonl"), "a.b");
  EXPECT_EQ(stem_of("first"), "first");
}

TEST_F(TaskFilesTest, LambadaPartsTheLastWord) {
  const TaskFile file{"l.jsonl",
                      "{\"text\": \"Then Anna went home. It was late, said Anna to Ben, but home was Ben\"}"};
  const auto task = read_lambada(tasks_, file, 0);
  ASSERT_TRUE(task.ok()) << task.error().message;
  const EvalDocument& document = task->documents.front();
  EXPECT_EQ(context_of(document.continuations[0]),
            "<|bos|>Then Anna went home. It was late, said Anna to Ben, but home was");
  EXPECT_EQ(rest_of(document.continuations[0]), " Ben");
  ASSERT_EQ(document.baseline.size(), 2u);
  EXPECT_EQ(document.baseline[0], 0.0);  // guesses Anna
}

TEST(LikelyName, IsWhatTheTextSaysMostOften) {
  EXPECT_EQ(likely_name("He met Ben and Anna. Ben left. Ben's dog did, and Anna's."), "Anna");  // Ben starts one
  EXPECT_EQ(likely_name("He met Ben and Anna, and (Ben) left."), "Ben");
  EXPECT_EQ(likely_name("The end. Nobody came."), "");
  EXPECT_EQ(likely_name(""), "");
}

TEST_F(TaskFilesTest, PiqaTakesLabelsFromEitherPlace) {
  const std::string line = R"({"goal": "Open a door", "sol1": "Push it.", "sol2": "Eat \u00e9t\u00e9."})";
  const TaskFile file{"p.jsonl", line + "\n" + line};
  const auto task = read_piqa(tasks_, file, {"p.lst", "0\n1\n"}, 0);
  ASSERT_TRUE(task.ok()) << task.error().message;
  const EvalDocument& document = task->documents[1];
  EXPECT_EQ(task->documents[0].right, 0u);
  EXPECT_EQ(document.right, 1u);
  EXPECT_EQ(document.characters, (std::vector<double>{8, 8}));  // not bytes
  EXPECT_EQ(context_of(document.continuations[0]), "<|bos|>Question: Open a door\nAnswer:");
  EXPECT_EQ(rest_of(document.continuations[0]), " Push it.");
  const auto own = read_piqa(tasks_, {"p.jsonl", R"({"goal": "a", "sol1": "b", "sol2": "c", "label": 1})"}, {}, 0);
  ASSERT_TRUE(own.ok()) << own.error().message;
  EXPECT_EQ(own->documents[0].right, 1u);
  expect_error(read_piqa(tasks_, file, {}, 0), {"p.jsonl line 1", "piqa:FILE,LABELS"});
  expect_error(read_piqa(tasks_, file, {"p.lst", "0"}, 0), {"p.jsonl line 2", "p.lst has 1 labels"});
  expect_error(read_piqa(tasks_, file, {"p.lst", "0\n1\n1"}, 0), {"p.lst has 3 labels", "2 documents"});
  expect_error(read_piqa(tasks_, file, {"p.lst", "0\n2"}, 0), {"p.lst line 2", "0 or 1"});
  EXPECT_TRUE(read_piqa(tasks_, file, {"p.lst", "0\n1\n1"}, 2).ok());
}

TEST_F(TaskFilesTest, QuestionsByEitherName) {
  const TaskFile file{"q.jsonl",
                      "{\"prompt\": \"Say yes\", \"answer\": \"yes\", \"max_tokens\": 3, \"stop\": [\".\"]}\n"
                      "{\"input\": \"Say no\", \"outputs\": [\"no\", \"yes\"]}\n"
                      "{\"input\": \"Say no\", \"answer\": \"no\"}"};
  const auto task = read_questions(tasks_, file, 0);
  ASSERT_TRUE(task.ok()) << task.error().message;
  EXPECT_EQ(task->documents[0].question.max_new_tokens, 3);
  EXPECT_EQ(task->documents[0].question.stop, std::vector<std::string>{"."});
  EXPECT_EQ(text_of(task->documents[1].question.prompt), "<|bos|>Say no");
  EXPECT_EQ(task->documents[1].question.answers.size(), 2u);
  EXPECT_EQ(task->documents[1].question.stop_ids, tasks_.eos_ids);
  EXPECT_EQ(task->documents[0].baseline.front(), 0.0);  // that always says no
  EXPECT_EQ(task->documents[1].baseline.front(), 1.0);
  const auto wrong = [&](const char* line, const char* part) {
    expect_error(read_questions(tasks_, {"q.jsonl", line}, 0), {"q.jsonl line 1", part});
  };
  wrong("{\"answer\": \"a\"}", "no text \"prompt\"");
  wrong("{\"prompt\": \"p\"}", "no \"answer\"");
  wrong("{\"prompt\": \"p\", \"answer\": [1]}", "neither a text nor a list");
  wrong("{\"prompt\": \"p\", \"answer\": \" \"}", "empty answer");
  wrong("{\"prompt\": \"p\", \"answer\": \"a\", \"max_tokens\": 0}", "max_tokens");
}

TEST_F(TaskFilesTest, AnAnswerMustFitBehindItsPrompt) {
  const TaskFile file{"q.jsonl", "{\"prompt\": \"Say yes\", \"answer\": \"yes\", \"max_tokens\": 10}"};
  TaskModel model = tasks_;
  model.longest = static_cast<std::int64_t>(read_questions(tasks_, file, 0)->documents[0].question.prompt.size()) + 10;
  EXPECT_TRUE(read_questions(model, file, 0).ok());
  --model.longest;
  expect_error(read_questions(model, file, 0), {"q.jsonl line 1", "the answer up to 10", "--max-model-len"});
  const TaskFile most{"q.jsonl", R"({"prompt": "p", "answer": "a", "max_tokens": 9223372036854775807})"};
  expect_error(read_questions(model, most, 0), {"q.jsonl line 1"});
}

TEST_F(TaskFilesTest, WhatIsWrongIsNamedWithItsLine) {
  const std::vector<TaskFile> no_json{{"b.jsonl", "\n\nnot json"}};
  expect_error(read_blimp(tasks_, no_json, 0), {"b.jsonl line 3", "not a JSON object"});
  const std::vector<TaskFile> no_key{{"b.jsonl", "{\"sentence_good\": \"a b\"}"}};
  expect_error(read_blimp(tasks_, no_key, 0), {"b.jsonl line 1", "\"sentence_bad\""});
  const std::vector<TaskFile> empty{{"b.jsonl", "\n"}};
  expect_error(read_blimp(tasks_, empty, 0), {"b.jsonl has no documents"});
  expect_error(read_lambada(tasks_, {"l.jsonl", "{\"text\": \"word\"}"}, 0), {"l.jsonl line 1", "no last word"});
  expect_error(read_lambada(tasks_, {"l.jsonl", "{\"text\": 7}"}, 0), {"l.jsonl line 1", "no text \"text\""});
  TaskModel short_model = tasks_;
  short_model.longest = 4;
  expect_error(read_lambada(short_model, {"l.jsonl", "{\"text\": \"one two three four five\"}"}, 0),
               {"l.jsonl line 1", "a sequence may have 4"});
}

TEST(AnswerMatch, IgnoresSpaceAtTheEnds) {
  const std::vector<std::string> answers{" a lion ", "cat"};
  EXPECT_TRUE(match_answer("\n a lion\n", answers).exact);
  EXPECT_TRUE(match_answer("cat", answers).exact);
  const AnswerMatch within = match_answer("the cat.", answers);
  EXPECT_FALSE(within.exact);
  EXPECT_TRUE(within.contained);
  EXPECT_FALSE(match_answer("", answers).contained);
}

}  // namespace
}  // namespace millrace
