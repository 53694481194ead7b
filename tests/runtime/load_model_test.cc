// What is refused before any memory is taken.
#include "runtime/load_model.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "backend/forwarding_backend.h"
#include "backend/unnamed_file.h"
#include "runtime/model_fingerprint.h"
#include "runtime/run_tokens.h"

namespace millrace {
namespace {

/// A backend that knows fewer formats of keys and values than the one inside, and cannot select pages nor leave out
/// inputs.
class PlainBackend final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  [[nodiscard]] std::string numeric_class() const override { return "plain/1"; }
  [[nodiscard]] std::span<const KvFormat> kv_formats() const override {
    static constexpr KvFormat kFormats[] = {KvFormat::f32, KvFormat::bf16};
    return kFormats;
  }
  [[nodiscard]] bool selects_pages() const override { return false; }
  [[nodiscard]] bool skips_inputs() const override { return false; }
  [[nodiscard]] bool chooses_neurons() const override { return false; }
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

TEST(LoadModel, ApproximateAttentionIsRefusedWhereTheBackendHasNone) {
  LoadOptions options = options_with(
      R"({"millrace_recipe": 1, "attention": {"prefill": {"select": "hyper", "dense_layers": 1, "seed": 9}}})");
  const auto plan = plan_model(options);
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  // Layers that approximate have buckets, and these alone.
  EXPECT_EQ(plan->layout.layers[0].key_buckets, -1);
  EXPECT_EQ(plan->layout.layers[1].key_buckets, 0);
  EXPECT_EQ(plan->layout.layers[1].hash.seed, 9u);
  EXPECT_TRUE(plan->layout.key_bounds.empty());
  options.wrap_backend = [](std::unique_ptr<Backend> inner) -> std::unique_ptr<Backend> {
    return std::make_unique<PlainBackend>(std::move(inner));
  };
  EXPECT_EQ(load_model(options).error().message,
            "the recipe's \"attention\": the backend plain cannot select what attention reads");
}

TEST(LoadModel, WhatChoosesNeuronsIsCheckedAgainstBackendActivationAndModel) {
  const auto options_of = [](const std::string& activations) {
    return options_with((R"({"millrace_recipe": 1, "activations": )" + activations + "}").c_str());
  };
  const auto refused = [](const LoadOptions& options) {
    const auto plan = plan_model(options);
    return plan.ok() ? std::string() : plan.error().message;
  };
  LoadOptions imposed = options_of(R"({"method": "hot_cold", "imposed": 0.5})");
  EXPECT_EQ(refused(imposed), "");
  LoadOptions real = imposed;
  real.dummy = false;
  real.path = MILLRACE_SOURCE_DIR "/models/millrace-tiny";
  EXPECT_EQ(refused(real), "the recipe's \"imposed\" neurons are made up: they are for --dummy weights alone");
  imposed.wrap_backend = [](std::unique_ptr<Backend> inner) -> std::unique_ptr<Backend> {
    return std::make_unique<PlainBackend>(std::move(inner));
  };
  EXPECT_EQ(refused(imposed), "the recipe's \"activations\": the backend plain cannot choose neurons");
  EXPECT_NE(refused(options_of(R"({"method": "relu"})")).find("gives no zeros"), std::string::npos);

  LoadOptions options = options_of(R"({"method": "hot_cold", "profile": "n"})");
  EXPECT_EQ(refused(options), "the profile n was not read");
  options.path = MILLRACE_SOURCE_DIR "/models/millrace-tiny-relu2";
  options.dummy = false;
  const auto checkpoint = Checkpoint::open(options.path);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
  NeuronProfiles profiles{.model = "another", .layers = {}};
  const auto with = [&](const NeuronProfiles& given) {
    options.recipe.neurons->profiles = std::make_shared<const NeuronProfiles>(given);
    return refused(options);
  };
  EXPECT_NE(with(profiles).find("is of another model (another)"), std::string::npos);
  profiles.model = model_fingerprint(*checkpoint);
  EXPECT_EQ(with(profiles), "the profile n has nothing of model.layers.0.mlp");
  for (int l = 0; l < 5; ++l) {
    NeuronProfile layer;
    layer.layer = fmt::format("model.layers.{}.mlp", l);
    layer.inputs = 192;
    layer.rank = 1;
    layer.frequency.assign(512, 0.0f);
    layer.in.assign(192, 0);
    layer.out.assign(512, 0);
    layer.bias.assign(512, 0.0f);
    layer.density = 0.1 * l;
    profiles.layers.push_back(std::make_shared<const NeuronProfile>(layer));
  }
  EXPECT_EQ(with(profiles), "");
  // Layers whose density is larger are as they are without the method: they need no memory for predictors.
  const std::uint64_t all = plan_model(options)->weight_bytes;
  options.recipe.neurons->dense_above = 0.15;
  const std::uint64_t some = plan_model(options)->weight_bytes;
  EXPECT_EQ(all - some, 3u * (192 + 512) * 4);
  NeuronProfile narrow = *profiles.layers[1];
  narrow.inputs = 100;
  narrow.in.resize(100);
  profiles.layers[1] = std::make_shared<const NeuronProfile>(narrow);
  EXPECT_NE(with(profiles).find("has 512 neurons of 100 inputs, the model 512 of 192"), std::string::npos);
}

/// The sibling's shape with made-up weights, of which rows of answers compute a fifth.
LoadOptions neurons_on_disk() {
  LoadOptions options =
      options_with(R"({"millrace_recipe": 1, "activations": {"method": "hot_cold", "imposed": 0.2}})");
  options.path = MILLRACE_SOURCE_DIR "/models/millrace-tiny-relu2";
  options.backend = "cpu";
  options.threads = 2;
  options.max_model_len = 64;
  options.weight_directory = std::filesystem::current_path().string();
  options.weight_memory = std::uint64_t{5} << 20;
  return options;
}

TEST(LoadModel, NeuronsGoToDiskWhereAskedFor) {
  const auto refused = [](const LoadOptions& options) {
    const auto plan = plan_model(options);
    return plan.ok() ? std::string() : plan.error().message;
  };
  LoadOptions options = neurons_on_disk();
  const auto plan = plan_model(options);
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  EXPECT_LE(plan->weight_bytes + plan->neuron_store.cache_bytes, *options.weight_memory);
  EXPECT_EQ(plan->neuron_store.cache_bytes, 256u * 4096);
  std::int64_t resident = 0;
  ASSERT_EQ(plan->resident_neurons.size(), 5u);
  for (const std::int64_t count : plan->resident_neurons) {
    resident += count;
    EXPECT_GE(count, 16);
    EXPECT_LT(count, 512);
  }
  EXPECT_EQ(plan->neuron_store.file_bytes, static_cast<std::uint64_t>(5 * 512 - resident) * 4096);

  options.weight_memory = std::uint64_t{1} << 30;
  EXPECT_TRUE(plan_model(options)->resident_neurons.empty()) << "all have room";
  options.weight_memory.reset();
  EXPECT_EQ(refused(options), "--weight-file is for the neurons that --weight-memory does not hold: give that too");
  options.weight_memory = 1 << 20;
  EXPECT_NE(refused(options).find("weights other than neurons take"), std::string::npos) << refused(options);
  options = neurons_on_disk();
  options.recipe = {};
  EXPECT_NE(refused(options).find("predict neurons (hot_cold)"), std::string::npos);
  options = neurons_on_disk();
  options.weight_directory = "/no/such/place";
  EXPECT_EQ(load_model(options).error().message, "the file for weights in /no/such/place: No such file or directory");
}

TEST(LoadModel, NeuronsOnDiskGiveTheLogitsOfThoseInMemory) {
  LoadOptions options = neurons_on_disk();
  const auto on_disk = load_model(options);
  if (!on_disk.ok() && on_disk.error().message.find("this file system") != std::string::npos)
    GTEST_SKIP() << on_disk.error().message;
  ASSERT_TRUE(on_disk.ok()) << on_disk.error().message;
  options.weight_directory.clear();
  options.weight_memory.reset();
  const auto in_memory = load_model(options);
  ASSERT_TRUE(in_memory.ok()) << in_memory.error().message;
  std::vector<std::int32_t> tokens;
  for (std::int32_t t = 0; t < 40; ++t) tokens.push_back(7 + 91 * t % 4000);
  std::string message;
  const auto logits = [&](const LoadedModel& model) {
    std::vector<float> all;
    const Status ran =
        run_tokens(*model.runner, tokens, RowsAre::half_each,
                   [&](std::int64_t, std::span<const float> row) { all.insert(all.end(), row.begin(), row.end()); });
    if (!ran.ok()) message = ran.error().message;
    return all;
  };
  const std::vector<float> right = logits(*in_memory);
  EXPECT_TRUE(logits(*on_disk) == right);
  EXPECT_EQ(message, "");
  EXPECT_GT(on_disk->runner->backend().skip_counts().disk_bytes, 0);
  EXPECT_EQ(in_memory->runner->backend().skip_counts().disk_bytes, 0);
  // A disk that fails is told of, and gives no logits.
  UnnamedFile file(std::filesystem::current_path().string());
  ASSERT_TRUE(file.found() && file.cut(0));
  EXPECT_TRUE(logits(*on_disk).empty());
  EXPECT_TRUE(message.starts_with("weights could not be read from the file in ")) << message;
  ASSERT_TRUE(file.restore());
  EXPECT_TRUE(logits(*on_disk) == right);
}

TEST(LoadModel, WhatLeavesOutInputsIsCheckedAgainstBackendLayersAndModel) {
  const auto refused = [](const std::string& activations) {
    const auto plan =
        plan_model(options_with((R"({"millrace_recipe": 1, "activations": )" + activations + "}").c_str()));
    return plan.ok() ? std::string() : plan.error().message;
  };
  const std::string teal = R"({"method": "teal", "thresholds": {"*": 0.1}})";
  EXPECT_EQ(refused(teal), "");
  LoadOptions options = options_with((R"({"millrace_recipe": 1, "activations": )" + teal + "}").c_str());
  options.wrap_backend = [](std::unique_ptr<Backend> inner) -> std::unique_ptr<Backend> {
    return std::make_unique<PlainBackend>(std::move(inner));
  };
  EXPECT_EQ(plan_model(options).error().message,
            "the recipe's \"activations\": the backend plain cannot leave out inputs");
  EXPECT_NE(refused(R"({"method": "down", "thresholds": {"*.q_proj": 0.1}})").find("matches no layer"),
            std::string::npos);
  EXPECT_NE(refused(R"({"method": "teal", "thresholds": {"lm_head": 0.1}})").find("matches no layer"),
            std::string::npos);
  EXPECT_NE(refused(R"({"method": "teal", "thresholds": {"*": 0.1, "*.k_proj": 0.2}})").find("read the same inputs"),
            std::string::npos);
  // A profile: of the model, and with all of its layers.
  options =
      options_with(R"({"millrace_recipe": 1, "activations": {"method": "down", "profile": "p", "density": 0.5}})");
  ActivationProfile profile{.model = "0123456789abcdef", .tokens = 1, .inputs = {}, .gates = {}};
  const auto with_profile = [&] {
    options.recipe.activations->profile = std::make_shared<const ActivationProfile>(profile);
    const auto plan = plan_model(options);
    return plan.ok() ? std::string() : plan.error().message;
  };
  EXPECT_NE(with_profile().find("is of another model (0123456789abcdef)"), std::string::npos);
  const auto plain = plan_model(options_with(R"({"millrace_recipe": 1})"));
  profile.model = model_fingerprint(plain->checkpoint);
  EXPECT_NE(with_profile().find("has nothing of model.layers.0.mlp.down_proj"), std::string::npos);
  for (std::size_t l = 0; l < plain->config.layers.size(); ++l) {
    profile.inputs.push_back({{fmt::format("model.layers.{}.mlp.down_proj", l)}, {0.0f, 1.0f}});
  }
  EXPECT_EQ(with_profile(), "");
}

TEST(LoadModel, LayersHaveBudgetsByTheProfileOfTheModel) {
  LoadOptions options;
  options.path = MILLRACE_SOURCE_DIR "/models/millrace-tiny";
  const auto plain = plan_model(options);
  ASSERT_TRUE(plain.ok()) << plain.error().message;
  options.recipe = *parse_recipe(
      R"({"millrace_recipe": 1, "attention": {"decode": {"select": "quest", "tokens": 256, "dense_layers": 2,
          "profile": "p"}}})",
      "r.json");
  const auto refused = [&] {
    const auto plan = plan_model(options);
    return plan.ok() ? std::string() : plan.error().message;
  };
  EXPECT_EQ(refused(), "the profile p was not read");
  ActivationProfile profile{.model = "0123456789abcdef", .tokens = 1, .inputs = {}, .gates = {}};
  const auto with_profile = [&] {
    options.recipe.attention.budgets.profile = std::make_shared<const ActivationProfile>(profile);
    return refused();
  };
  EXPECT_NE(with_profile().find("is of another model (0123456789abcdef)"), std::string::npos);
  profile.model = model_fingerprint(plain->checkpoint);
  EXPECT_NE(with_profile().find("has no \"attention\""), std::string::npos);
  profile.attention = AttentionProfile();
  EXPECT_EQ(with_profile(), "the profile p has nothing of the attention of layer 2");
  // Layers that are dense need not be in it.
  const auto heads = static_cast<std::size_t>(plain->config.layers[2].attention.heads);
  for (std::int64_t l = 2; l < 5; ++l) {
    const std::vector<double> shares(heads, 0.1), pages(heads, static_cast<double>(l));
    profile.attention->layers.push_back({l, 1, shares, shares, shares, pages});
  }
  EXPECT_EQ(with_profile(), "");
  const auto plan = plan_model(options);
  const std::vector<std::int64_t>& tokens = plan->attention.budgets.tokens;
  ASSERT_EQ(tokens.size(), 5u);
  EXPECT_EQ(tokens[2] + tokens[3] + tokens[4], 3 * 256);
  EXPECT_EQ(tokens[2], 176);  // 11 pages, 16 and 21: by 2, 3 and 4
  EXPECT_EQ(tokens[4], 336);
  EXPECT_FALSE(layer_policy(plan->config, plan->attention, 1).decode);
  EXPECT_EQ(layer_policy(plan->config, plan->attention, 4).decode->tokens, 336);
  profile.attention->layers[1].pages.pop_back();
  EXPECT_NE(with_profile().find("layer 3 has "), std::string::npos);
}

}  // namespace
}  // namespace millrace
