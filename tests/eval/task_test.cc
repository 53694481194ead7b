// Figures of tasks from made-up outcomes, and whole tasks on the built-in model.
#include "eval/task.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "eval/retrieval_tasks.h"
#include "eval/task_files.h"
#include "eval/task_fixture.h"

namespace millrace {
namespace {

/// Documents without any content, in groups a, a, b, ...
EvalTask bare_task(TaskKind kind, std::size_t documents, std::vector<double> baseline) {
  EvalTask task{.name = "t", .kind = kind, .documents = {}};
  for (std::size_t d = 0; d < documents; ++d) {
    task.documents.push_back({.name = "d", .group = d % 3 == 2 ? "b" : "a", .baseline = baseline});
  }
  return task;
}

TEST(TaskFigures, AreMeansOverDocumentsOfEachGroup) {
  const EvalTask task = bare_task(TaskKind::choice, 6, {0.5});
  const Outcomes outcomes{{1}, {0}, {0}, {1}, {1}, {1}};
  const auto figures = summarize(task, outcomes, nullptr);
  ASSERT_EQ(figures.size(), 3u);
  EXPECT_EQ(figures[0].task, "t");
  EXPECT_EQ(figures[0].metric, "acc");
  EXPECT_NEAR(figures[0].value.value, 4.0 / 6, 1e-12);
  EXPECT_EQ(figures[0].baseline, 0.5);
  EXPECT_FALSE(figures[0].reference);
  EXPECT_FALSE(figures[0].difference);
  EXPECT_EQ(figures[1].task, "t/a");
  EXPECT_NEAR(figures[1].value.value, 3.0 / 4, 1e-12);
  EXPECT_EQ(figures[2].documents, 2);
  EXPECT_NEAR(figures[2].value.value, 1.0 / 2, 1e-12);
}

TEST(TaskFigures, APerplexityIsThatOfTheMeanLogLikelihood) {
  EvalTask task = bare_task(TaskKind::last_word, 2, {0.0, -std::log(8.0)});
  for (EvalDocument& document : task.documents) document.group.clear();
  const auto figures = summarize(task, {{1, -1.0}, {0, -3.0}}, nullptr);
  ASSERT_EQ(figures.size(), 2u);
  EXPECT_EQ(figures[1].metric, "perplexity");
  EXPECT_NEAR(figures[1].value.value, std::exp(2.0), 1e-12);
  EXPECT_NEAR(figures[1].baseline, 8.0, 1e-12);
  EXPECT_NEAR(figures[1].value.interval->first, std::exp(1.0), 1e-12);
  EXPECT_NEAR(figures[1].value.interval->second, std::exp(3.0), 1e-12);
}

TEST(TaskFigures, DifferencesArePaired) {
  const EvalTask task = bare_task(TaskKind::choice, 200, {0.5});
  Outcomes outcomes, reference;
  for (std::size_t d = 0; d < 200; ++d) {
    reference.push_back({d % 2 == 0 ? 1.0 : 0.0});
    outcomes.push_back(reference.back());
  }
  const auto same = summarize(task, outcomes, &reference).front();
  EXPECT_EQ(same.difference->value, 0.0);
  EXPECT_EQ(same.difference->interval, std::pair(0.0, 0.0));  // unpaired it would be about -0.1 to 0.1
  EXPECT_LT(same.value.interval->first, 0.47);
  for (std::size_t d = 0; d < 8; ++d) outcomes[d] = {0.0};  // four that were right
  const auto lower = summarize(task, outcomes, &reference).front();
  EXPECT_NEAR(lower.difference->value, -0.02, 1e-12);
  EXPECT_LT(lower.difference->interval->second, 0.0);
  EXPECT_GT(lower.difference->interval->first, -0.06);
}

TEST(TaskDocuments, AreToldApartByWhatEndsAnAnswer) {
  const EvalTask task = bare_task(TaskKind::generation, 1, {0.0, 0.0});
  std::vector<std::uint64_t> hashes{hash_of(task, task.documents[0])};
  const auto add = [&](const std::function<void(GenerationQuestion&)>& change) {
    EvalDocument document = task.documents[0];
    change(document.question);
    hashes.push_back(hash_of(task, document));
  };
  add([](GenerationQuestion& question) { question.stop_ids = {2}; });
  add([](GenerationQuestion& question) { question.stop_ids = {2, 3}; });
  add([](GenerationQuestion& question) { question.max_new_tokens = 3; });
  add([](GenerationQuestion& question) { question.stop = {"a"}; });
  add([](GenerationQuestion& question) { question.answers = {"a"}; });
  std::ranges::sort(hashes);
  EXPECT_EQ(std::ranges::adjacent_find(hashes), hashes.end());
}

/// Ten sentence pairs and twice the same one; two questions of a number.
class TaskRunTest : public ::testing::Test {
 protected:
  TaskRunTest() : model_("millrace-tiny") {
    std::string lines;
    for (const char* name : {"Tom", "Anne", "Ben", "Jane", "Jim", "Mary", "Ned", "Meg", "Dan", "Amy", "Amy"}) {
      lines += fmt::format(
          "{{\"sentence_good\": \"{0} was very happy with the new dog.\", \"sentence_bad\": "
          "\"{0} were very happy with new the dog.\"}}\n",
          name);
    }
    const std::vector<TaskFile> files{{"pairs.jsonl", lines}};
    auto task = read_blimp(model_.tasks(), files, 0);
    EXPECT_TRUE(task.ok()) << task.error().message;
    pairs_ = std::move(*task);
  }

  Status run(const EvalTask& task, OutcomeFile& file, std::vector<std::int64_t>* seen = nullptr) {
    return run_task(*model_.loaded.runner, *model_.loaded.tokenizer, task, file,
                    [&](std::int64_t done, std::int64_t all) {
                      EXPECT_EQ(all, static_cast<std::int64_t>(task.documents.size()));
                      if (seen != nullptr) seen->push_back(done);
                    });
  }

  TestModel model_;
  EvalTask pairs_;
};

TEST_F(TaskRunTest, TheBuiltInModelKnowsASentence) {
  OutcomeFile file;
  ASSERT_TRUE(run(pairs_, file).ok());
  const TaskFigure figure = summarize(pairs_, outcomes_in(file, pairs_), nullptr).front();
  EXPECT_EQ(figure.documents, 11);
  EXPECT_EQ(figure.value.value, 1.0);
  EvalTask turned = pairs_;
  for (EvalDocument& document : turned.documents) document.right = 1;
  ASSERT_TRUE(run(turned, file).ok());  // another question to the same documents
  EXPECT_EQ(summarize(turned, outcomes_in(file, turned), nullptr).front().value.value, 0.0);
}

TEST_F(TaskRunTest, GoesOnWhereItWasInterrupted) {
  const auto path = std::filesystem::path(::testing::TempDir()) / fmt::format("millrace_run_{}.tasks", ::getpid());
  {
    OutcomeFile file = *OutcomeFile::open(path, "key");
    ASSERT_TRUE(file.add(hash_of(pairs_, pairs_.documents[3]), {0.0}).ok());  // not what the model would say
  }
  OutcomeFile file = *OutcomeFile::open(path, "key");
  EXPECT_FALSE(*has_all(file, pairs_));
  std::vector<std::int64_t> seen;
  ASSERT_TRUE(run(pairs_, file, &seen).ok());
  EXPECT_EQ(seen.size(), 9u);  // ten different ones, but for the one that was there
  EXPECT_EQ(seen.back(), 11);
  EXPECT_TRUE(*has_all(file, pairs_));
  const Outcomes outcomes = outcomes_in(file, pairs_);
  EXPECT_EQ(outcomes[3].front(), 0.0);
  EXPECT_EQ(outcomes[4].front(), 1.0);
  EXPECT_EQ(outcomes[10], outcomes[9]);
  std::filesystem::remove(path);
}

TEST_F(TaskRunTest, AsManyValuesAsMetrics) {
  for (const std::vector<double>& values : {std::vector<double>{}, {1.0, 0.0}}) {
    OutcomeFile file;
    ASSERT_TRUE(file.add(hash_of(pairs_, pairs_.documents[5]), values).ok());
    const auto all = has_all(file, pairs_);
    ASSERT_FALSE(all.ok());
    EXPECT_NE(all.error().message.find("damaged: remove it"), std::string::npos);
    EXPECT_FALSE(run(pairs_, file).ok());
  }
}

TEST_F(TaskRunTest, LooksThingsUp) {
  const std::vector<std::int64_t> lengths{120, 400};
  OutcomeFile file;
  for (const auto& made : {make_key_value(model_.tasks(), lengths, 5), make_needle(model_.tasks(), lengths, 5, {})}) {
    ASSERT_TRUE(made.ok()) << made.error().message;
    ASSERT_EQ(made->documents.size(), 10u);
    ASSERT_TRUE(run(*made, file).ok());
    const auto figures = summarize(*made, outcomes_in(file, *made), nullptr);
    ASSERT_EQ(figures.size(), 3u);
    EXPECT_EQ(figures[2].task, made->name + "/400");
    EXPECT_EQ(figures[0].value.value, 1.0) << made->name;
    EXPECT_LT(figures[0].baseline, 0.1);
  }
}

TEST_F(TaskRunTest, AnAnswerMustBeRightToItsEnd) {
  const std::vector<std::int64_t> lengths{120};
  EvalTask task = *make_key_value(model_.tasks(), lengths, 3);
  task.documents[0].continuations[0].tokens.back() += 1;  // another value
  task.documents[1].end_ids = {3};                        // would have to end in another way
  OutcomeFile file;
  ASSERT_TRUE(run(task, file).ok());
  EXPECT_EQ(outcomes_in(file, task), (Outcomes{{0.0}, {0.0}, {1.0}}));
}

TEST_F(TaskRunTest, GeneratesWhatTheScoresSay) {
  const std::vector<std::int64_t> lengths{100};
  const EvalTask asked = *make_key_value(model_.tasks(), lengths, 4);
  EvalTask task{.name = "generate", .kind = TaskKind::generation, .documents = {}};
  for (const EvalDocument& document : asked.documents) {
    const Continuation& c = document.continuations.front();
    EvalDocument question{.name = "q", .group = {}};
    question.question.prompt.assign(c.tokens.begin(), c.tokens.begin() + static_cast<std::ptrdiff_t>(c.context));
    question.question.stop_ids = model_.tasks().eos_ids;
    question.question.answers = {*model_.loaded.tokenizer->decode(std::span(c.tokens).subspan(c.context), true)};
    task.documents.push_back(std::move(question));
  }
  task.documents[1].question.answers = {"nonsense"};
  OutcomeFile file;
  ASSERT_TRUE(run(task, file).ok());
  EXPECT_EQ(outcomes_in(file, task), (Outcomes{{1, 1}, {0, 0}, {1, 1}, {1, 1}}));
  task.documents[2].question.max_new_tokens = model_.loaded.runner->max_sequence_tokens();
  const Status cut = run(task, file);
  ASSERT_FALSE(cut.ok());
  EXPECT_TRUE(cut.error().message.starts_with("q: the prompt has ")) << cut.error().message;
}

}  // namespace
}  // namespace millrace
