#include "runtime/memory_plan.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

constexpr std::uint64_t kMiB = 1u << 20;

MemoryNeeds small_model() {
  return {.weights = 100 * kMiB,
          .workspace = 10 * kMiB,
          .kv_page_row = 1 * kMiB,
          .max_position = 1600,
          .available = 1000 * kMiB};
}

std::string refusal(const MemoryNeeds& needs) {
  const auto plan = plan_memory(needs);
  return plan.ok() ? "" : plan.error().message;
}

TEST(MemoryPlan, OneLongestSequenceByDefault) {
  const auto plan = plan_memory(small_model());
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->kv_pages, 100);
  EXPECT_EQ(plan->max_sequence_tokens, 1600);
}

TEST(MemoryPlan, AtMostHalfOfWhatIsLeft) {
  MemoryNeeds needs = small_model();
  needs.max_position = 1 << 20;
  const auto plan = plan_memory(needs);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->kv_pages, 445);
  EXPECT_EQ(plan->max_sequence_tokens, 445 * 16);
}

TEST(MemoryPlan, WhatTheOperatorSets) {
  MemoryNeeds needs = small_model();
  needs.kv_memory = 7 * kMiB + 5;
  EXPECT_EQ(plan_memory(needs)->kv_pages, 7);
  EXPECT_EQ(plan_memory(needs)->max_sequence_tokens, 112);
  needs.max_model_len = 50;
  EXPECT_EQ(plan_memory(needs)->max_sequence_tokens, 50);
}

TEST(MemoryPlan, SomeIsForSequencesThatWait) {
  MemoryNeeds needs = small_model();
  needs.kv_memory = 40 * kMiB;
  needs.swap_memory = 10 * kMiB;
  EXPECT_EQ(plan_memory(needs)->kv_pages, 30);
  EXPECT_EQ(plan_memory(needs)->swap_pages, 10);
  EXPECT_EQ(plan_memory(needs)->kv, 40 * kMiB);
  EXPECT_EQ(plan_memory(needs)->max_sequence_tokens, 480);
  needs.swap_memory = MemoryNeeds::kAnEighth;
  EXPECT_EQ(plan_memory(needs)->swap_pages, 5);
  // What nobody asked for is not taken from the longest sequence.
  needs.max_model_len = 39 * 16;
  EXPECT_EQ(plan_memory(needs)->swap_pages, 1);
  needs.max_model_len = {};
  needs.kv_memory = {};
  EXPECT_EQ(plan_memory(needs)->swap_pages, 0);
  needs.sequences = 2;
  EXPECT_EQ(plan_memory(needs)->swap_pages, 25);
  needs.swap_memory = 1000 * kMiB;
  EXPECT_NE(refusal(needs).find("--swap-memory is 1000.0 MiB"), std::string::npos) << refusal(needs);
}

TEST(MemoryPlan, AnswersMayGoOnBeyondTheContextWhereSomePagesAreKept) {
  MemoryNeeds needs = small_model();
  needs.max_model_len = 100'000;
  EXPECT_EQ(plan_memory(needs)->max_sequence_tokens, 1600);
  needs.kept_tokens = 512;
  EXPECT_EQ(plan_memory(needs)->max_sequence_tokens, 100'000);
  EXPECT_EQ(plan_memory(needs)->max_prompt_tokens, 1600);
  EXPECT_EQ(plan_memory(needs)->kv_pages, 101);  // of a prompt as long as the context, and its answer
  needs.kv_memory = 100 * kMiB;
  EXPECT_FALSE(plan_memory(needs).ok());
  needs.kv_memory = {};
  needs.max_model_len = 800;
  EXPECT_EQ(plan_memory(needs)->max_sequence_tokens, 800);
  EXPECT_EQ(plan_memory(needs)->max_prompt_tokens, 800);
  needs.max_model_len = 1601;
  needs.kept_tokens = 1600;
  EXPECT_EQ(refusal(needs),
            "--max-model-len 1601 is more than the model's context of 1600 tokens: what stays of a sequence with this "
            "recipe, 1600 and a page of 16, must fit into it");
}

TEST(MemoryPlan, PagesOfAPoolHaveNumbers) {
  MemoryNeeds needs = small_model();
  needs.kv_page_row = 64;
  needs.available = std::uint64_t{1} << 50;
  needs.kv_memory = std::uint64_t{1} << 45;
  needs.groups_in_pool = 16;
  const auto plan = plan_memory(needs);
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  EXPECT_EQ(plan->kv_pages, (std::int32_t{1} << 27) - 1);
}

TEST(MemoryPlan, RefusalsHaveTheFigures) {
  MemoryNeeds needs = small_model();
  needs.available = 50 * kMiB;
  EXPECT_NE(refusal(needs).find("100.0 MiB of weights"), std::string::npos) << refusal(needs);
  EXPECT_NE(refusal(needs).find("only 50.0 MiB"), std::string::npos) << refusal(needs);
  needs = small_model();
  needs.weight_memory = 10 * kMiB;
  EXPECT_NE(refusal(needs).find("--weight-memory"), std::string::npos) << refusal(needs);
  needs = small_model();
  needs.kv_memory = 2000 * kMiB;
  EXPECT_NE(refusal(needs).find("1.95 GiB of KV memory"), std::string::npos) << refusal(needs);
  needs.kv_memory = 100;
  EXPECT_NE(refusal(needs).find("100 bytes of KV memory hold no page"), std::string::npos) << refusal(needs);
  needs.kv_memory = 2 * kMiB;
  needs.max_model_len = 100;
  EXPECT_NE(refusal(needs).find("--max-model-len 100"), std::string::npos) << refusal(needs);
}

}  // namespace
}  // namespace millrace
