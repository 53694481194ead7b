// The promise of the house, as tests ask it: a request gets the same tokens alone and in any company, however its KV
// memory came about.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine_core.h"
#include "recipe/activation_profile.h"
#include "runtime/load_model.h"

namespace millrace {

/// With made-up models; the parameter names one.
class Identity : public testing::TestWithParam<const char*> {
 protected:
  static LoadedModel load(std::int64_t rows, std::int32_t pages, DType compute = DType::f32,
                          const std::string& recipe = R"({"millrace_recipe": 1})", std::int32_t swap_pages = 0,
                          std::optional<std::int64_t> max_model_len = {});

  /// Of the model: each layer needs twice as many pages as the one before.
  static std::shared_ptr<const ActivationProfile> made_up_profile(LoadOptions options);

  /// 64 requests of mixed lengths and settings; half of them begin with one of three common prompts, which are `longer`
  /// times as long.
  static std::vector<Request> requests(std::int64_t vocab, std::size_t longer = 1);

  using Answers = std::map<std::pair<int, int>, std::vector<std::int32_t>>;  // by request and choice

  /// Submits in this order, with so many steps between two of them.
  static Answers run(EngineCore& engine, const std::vector<Request>& all, const std::vector<int>& order,
                     int steps_between);
  /// Of every `step`-th request.
  static Answers each_alone(const LoadedModel& model, const std::vector<Request>& all, int step);

  /// Every fourth request alone without the prefix cache, and all at once, last come first, with it.
  static void expect_the_same_alone_and_together(const LoadedModel& model);
  static void expect_the_same_in_all_settings(const std::string& recipe, std::size_t longer = 1);
  /// Slow readers lose their place, and their pages are swapped or computed again.
  static void expect_the_same_preempted(const char* recipe);
};

}  // namespace millrace
