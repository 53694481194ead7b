// A model of the repository with what its tasks need.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "eval/task_model.h"
#include "runtime/load_model.h"

namespace millrace {

struct TestModel {
  LoadedModel loaded;

  /// `rows`: of a step, so that a test can say what shares one. Refers to this.
  explicit TestModel(const std::string& name, const std::string& recipe = "", std::int64_t rows = 256)
      : loaded(load(name, recipe, rows)) {}

  [[nodiscard]] TaskModel tasks() const {
    return {.tokenizer = &*loaded.tokenizer,
            .chat_template = loaded.chat_template ? &*loaded.chat_template : nullptr,
            .eos_ids = loaded.runner->config().eos_ids,
            .longest = loaded.runner->max_sequence_tokens(),
            .vocab = loaded.runner->config().vocab};
  }

 private:
  static LoadedModel load(const std::string& name, const std::string& recipe, std::int64_t rows) {
    LoadOptions options;
    options.path = MILLRACE_SOURCE_DIR "/models/" + name;
    options.limits = {.max_rows = rows, .max_logit_rows = rows};
    if (!recipe.empty()) options.recipe = *parse_recipe(recipe, "test");
    auto model = load_model(options);
    EXPECT_TRUE(model.ok()) << model.error().message;
    return std::move(*model);
  }
};

}  // namespace millrace
