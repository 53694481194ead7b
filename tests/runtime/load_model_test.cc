// What is refused before any memory is taken.
#include "runtime/load_model.h"

#include <gtest/gtest.h>

#include "backend/forwarding_backend.h"

namespace millrace {
namespace {

/// A backend that knows fewer formats of keys and values than the one inside, and cannot select pages.
class PlainBackend final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  [[nodiscard]] std::string numeric_class() const override { return "plain/1"; }
  [[nodiscard]] std::span<const KvFormat> kv_formats() const override {
    static constexpr KvFormat kFormats[] = {KvFormat::f32, KvFormat::bf16};
    return kFormats;
  }
  [[nodiscard]] bool selects_pages() const override { return false; }
};

LoadOptions options_with(const char* recipe) {
  LoadOptions options;
  options.path = MILLRACE_SOURCE_DIR "/tests/fixtures/logits/llama2";
  options.dummy = true;
  options.backend = "reference";
  options.recipe = std::move(*parse_recipe(recipe, "recipe"));
  options.limits = {.max_rows = 16, .max_logit_rows = 16};
  return options;
}

TEST(LoadModel, AFormatOfKeysAndValuesThatTheBackendLacksIsRefused) {
  LoadOptions options = options_with(R"({"millrace_recipe": 1, "kv": {"format": "int4"}})");
  EXPECT_TRUE(plan_model(options).ok()) << "the backend itself has all";
  options.wrap_backend = [](std::unique_ptr<Backend> inner) -> std::unique_ptr<Backend> {
    return std::make_unique<PlainBackend>(std::move(inner));
  };
  EXPECT_EQ(plan_model(options).error().message, "keys and values in int4: the backend plain has f32 and bf16");
  EXPECT_EQ(load_model(options).error().message, "keys and values in int4: the backend plain has f32 and bf16");
  options.recipe.kv_format.reset();
  EXPECT_TRUE(plan_model(options).ok());
}

TEST(LoadModel, SelectionIsRefusedWhereTheBackendHasNone) {
  LoadOptions options = options_with(
      R"({"millrace_recipe": 1, "attention": {"decode": {"select": "quest", "tokens": 256, "dense_layers": 1}}})");
  const auto plan = plan_model(options);
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  // Layers that select have bounds, and these alone.
  EXPECT_EQ(plan->layout.layers[0].key_bounds, -1);
  EXPECT_EQ(plan->layout.layers[1].key_bounds, 0);
  options.wrap_backend = [](std::unique_ptr<Backend> inner) -> std::unique_ptr<Backend> {
    return std::make_unique<PlainBackend>(std::move(inner));
  };
  EXPECT_EQ(load_model(options).error().message,
            "the recipe's \"attention\": the backend plain cannot select what attention reads");
}

}  // namespace
}  // namespace millrace
