// The parts of batches that are pure: records, where blocks begin, how many lines may run.
#include "batches/batch_state.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "batches/batch_budget.h"
#include "batches/batch_validation.h"
#include "sim_batches.h"

namespace millrace::test {
namespace {

using nlohmann::json;

TEST(BatchState, ReadsWhatItWrites) {
  BatchRecord batch;
  batch.id = "batch_x";
  batch.owner = "who\n\"";
  batch.model = "m";
  batch.endpoint = "/v1/completions";
  batch.window = "24h";
  batch.input_file = "file-x";
  batch.input_blob = "data.x";
  batch.input_bytes = 5;
  batch.status = BatchStatus::finalizing;
  batch.deadline_passed = true;
  batch.blocks = 3;
  batch.counts = {9, 8, 1};
  batch.problems = {{"code", "message", 4}, {"other", "whole", 0}};
  batch.error_file = "file-e";
  batch.metadata = {{"b", "1"}, {"a", "2"}};
  batch.created_at = 1;
  batch.expires_at = 2;
  batch.cancelling_at = 7;
  const std::string text = stored_batch(batch);
  const auto back = read_batch(text);
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(stored_batch(*back), text);
  EXPECT_EQ(json::parse(batch_json(batch)).count("millrace"), 0u) << "what is the gateway's own is not shown";
  for (const char* bad : {"", "{}", "[]", "null", "1"}) {
    EXPECT_FALSE(read_batch(bad).ok()) << bad;
    EXPECT_FALSE(read_file_record(bad).ok()) << bad;
    EXPECT_FALSE(read_claim(bad).ok()) << bad;
    EXPECT_FALSE(read_result(bad).ok()) << bad;
  }
  for (std::size_t cut = 0; cut < text.size(); cut += 7) EXPECT_FALSE(read_batch(text.substr(0, cut)).ok());
  // Whatever is missing in it: it is read, or is not, and nothing else.
  const json whole = json::parse(text);
  for (const auto& [key, value] : whole.items()) {
    json damaged = whole;
    damaged.erase(key);
    const auto read = read_batch(damaged.dump());
    EXPECT_EQ(read.ok() ? read->problems.size() : 2u, key == "errors" ? 0u : 2u) << key;
  }
  for (const char* errors : {"{}", R"({"data":null})", R"({"data":[1]})", R"({"data":{"a":1}})"}) {
    json damaged = whole;
    damaged["errors"] = json::parse(errors);
    EXPECT_FALSE(read_batch(damaged.dump()).ok()) << errors;
  }
  const auto claim =
      read_claim(stored_claim({.life = "l", .done = true, .counts = {16, 15, 1}, .tokens = {15, 700, 90}}));
  ASSERT_TRUE(claim.ok());
  EXPECT_EQ(claim->counts.failed, 1);
  EXPECT_EQ(claim->tokens.lines, 15);
  EXPECT_EQ(claim->tokens.prompt, 700);
  EXPECT_EQ(claim->tokens.answer, 90);
  EXPECT_EQ(read_claim(stored_claim({.life = "l"}))->tokens.lines, 0);
  EXPECT_FALSE(read_claim(R"({"life":"l","done":true,"request_counts":{},"measured_lines":1})").ok());
  const LineResult result{.status = 400, .record = "{}\n", .bytes = 3};
  EXPECT_EQ(read_result(stored_result(result))->record, "{}\n");
  EXPECT_FALSE(read_result(stored_result(result).substr(0, 26)).ok());
  const std::vector<BlockStart> index{{0, 0}, {100, 16}, {250, 20}};
  EXPECT_EQ(*read_index(stored_index(index)), index);
  for (const char* bad : {"1", "1 ", "1 2", "x 2\n", "5 5\n5 6\n"}) EXPECT_FALSE(read_index(bad).ok()) << bad;
}

TEST(BatchValidation, FindsBlocksWhereverTheFileIsCut) {
  const std::string file = batch_file(100, false, true);
  std::vector<BlockStart> expected;
  for (const std::size_t piece : {file.size(), std::size_t{1}, std::size_t{7}, std::size_t{4096}}) {
    BatchValidator validator("/v1/completions");
    for (std::size_t at = 0; at < file.size(); at += piece) validator.put(std::string_view(file).substr(at, piece));
    validator.finish();
    EXPECT_TRUE(validator.problems().empty());
    EXPECT_EQ(validator.requests(), 100);
    if (expected.empty()) expected = validator.index();
    EXPECT_EQ(validator.index(), expected);
  }
  ASSERT_EQ(expected.size(), 8u);
  EXPECT_EQ(expected.back(), (BlockStart{file.size(), 100}));
  std::size_t seen = 0;
  for (std::size_t block = 0; block + 1 < expected.size(); ++block) {
    const auto bytes =
        std::string_view(file).substr(expected[block].offset, expected[block + 1].offset - expected[block].offset);
    for (const BlockLine& line : read_block(bytes, expected[block])) {
      EXPECT_EQ(line.key.number, seen);
      EXPECT_EQ(line.request.custom_id, fmt::format("c{}", seen++));
    }
  }
  EXPECT_EQ(seen, 100u);
}

TEST(BatchBudget, KeepsAQuarterFree) {
  const auto starts = [](NodeRoom room, std::int64_t gateways, LinesInFlight lines) {
    return batch_budget(room, gateways, lines).start;
  };
  EXPECT_EQ(starts({16, 0, 0, 0}, 1, {0, 0}), 12);
  EXPECT_EQ(starts({16, 0, 0, 0}, 2, {0, 0}), 6);
  EXPECT_EQ(starts({16, 12, 0, 0}, 1, {12, 12}), 0);
  EXPECT_EQ(starts({16, 12, 0, 0}, 1, {10, 12}), 2) << "what has ended is begun anew";
  EXPECT_EQ(starts({16, 15, 0, 0}, 1, {10, 12}), 0) << "unless others need the places";
  EXPECT_EQ(starts({1, 0, 0, 0}, 1, {0, 0}), 1) << "of a single place nothing is kept";
  EXPECT_EQ(starts({2, 0, 0, 0}, 1, {0, 0}), 1);
  EXPECT_EQ(starts({0, 0, 0, 0}, 1, {0, 0}), 0) << "there is no node";
  EXPECT_EQ(starts({16, 0, 1, 0}, 1, {0, 0}), 0) << "somebody waits";
  EXPECT_EQ(batch_budget({16, 16, 5, 0}, 2, {8, 8}).yield, 3);
  EXPECT_EQ(batch_budget({16, 16, 5, 0}, 2, {1, 8}).yield, 1);
}

}  // namespace
}  // namespace millrace::test
