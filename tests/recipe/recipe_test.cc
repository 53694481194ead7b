#include "recipe/recipe.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>

namespace millrace {
namespace {

std::string message(const std::string& text) {
  const auto recipe = parse_recipe(text, "r.json");
  return recipe.ok() ? "" : recipe.error().message;
}

TEST(Recipe, TheSmallestIsLossless) {
  const auto recipe = parse_recipe(R"({"millrace_recipe": 1})", "r.json");
  ASSERT_TRUE(recipe.ok());
  EXPECT_TRUE(recipe->lossless());
  EXPECT_FALSE(recipe->weights_of("model.layers.0.mlp.down_proj"));
}

TEST(Recipe, TheLastPatternThatMatchesDecides) {
  const auto recipe = parse_recipe(R"({"millrace_recipe": 1, "weights": {
      "*.mlp.*": "int4.g32", "default": "int8", "model.layers.1.*": "stored", "*.down_proj": "int4.g64.sym"}})",
                                   "r.json");
  ASSERT_TRUE(recipe.ok()) << recipe.error().message;
  EXPECT_FALSE(recipe->lossless());
  const CodeFormat int8, g32{CodeKind::int4, 32, false}, g64{CodeKind::int4, 64, true};
  EXPECT_EQ(recipe->weights_of("model.layers.0.self_attn.q_proj"), int8);
  EXPECT_EQ(recipe->weights_of("model.layers.0.mlp.up_proj"), g32);
  EXPECT_EQ(recipe->weights_of("model.layers.0.mlp.down_proj"), g64);
  EXPECT_EQ(recipe->weights_of("model.layers.1.mlp.up_proj"), WeightFormat());
  EXPECT_EQ(recipe->weights_of("model.layers.1.mlp.down_proj"), g64);
  EXPECT_EQ(recipe->weights_of("lm_head"), int8);
}

TEST(Recipe, TheHeadKeepsEightBitsUnlessItIsNamed) {
  const auto four = parse_recipe(R"({"millrace_recipe": 1, "weights": {"default": "int4"}})", "r.json");
  EXPECT_EQ(four->weights_of("lm_head"), CodeFormat{});
  EXPECT_EQ(four->weights_of("model.layers.0.mlp.up_proj"), (CodeFormat{CodeKind::int4, 128, false}));
  const auto named = parse_recipe(R"({"millrace_recipe": 1, "weights": {"lm_head": "int4.g32"}})", "r.json");
  EXPECT_EQ(named->weights_of("lm_head"), (CodeFormat{CodeKind::int4, 32, false}));
  EXPECT_EQ(named->weights_of("model.layers.0.mlp.up_proj"), WeightFormat());
}

TEST(Recipe, FloatsAreFormatsToo) {
  const auto recipe = parse_recipe(
      R"({"millrace_recipe": 1, "weights": {"default": "nvfp4", "*.down_proj": "mxfp4", "*.o_proj": "fp8_e4m3"}})",
      "r.json");
  ASSERT_TRUE(recipe.ok()) << recipe.error().message;
  EXPECT_EQ(recipe->weights_of("a"), (CodeFormat{.kind = CodeKind::e2m1, .group = 16}));
  EXPECT_EQ(recipe->weights_of("a.o_proj"), CodeFormat{.kind = CodeKind::e4m3});
  EXPECT_EQ(recipe->weights_of("a.down_proj"), (CodeFormat{.kind = CodeKind::e2m1, .group = 32}));
  EXPECT_EQ(recipe->weights_of("lm_head"), CodeFormat{});
}

TEST(Recipe, KeysAndValuesHaveAFormat) {
  for (const char* name : {"f32", "bf16", "int8", "fp8_e4m3", "fp8_e4m3.unscaled", "fp8_e5m2", "int4"}) {
    const auto recipe =
        parse_recipe(fmt::format(R"({{"millrace_recipe": 1, "kv": {{"format": "{}"}}}})", name), "r.json");
    ASSERT_TRUE(recipe.ok()) << recipe.error().message;
    EXPECT_EQ(recipe->kv_format, kv_format_from_name(name));
    EXPECT_EQ(recipe->lossless(), std::string_view(name) == "f32");
  }
  EXPECT_FALSE(parse_recipe(R"({"millrace_recipe": 1, "kv": {}})", "r.json")->kv_format);
}

TEST(Recipe, AnswersMaySelectWhatTheyRead) {
  const auto recipe =
      parse_recipe(R"({"millrace_recipe": 1, "attention": {"decode": {"select": "quest", "tokens": 1024}}})", "r.json");
  ASSERT_TRUE(recipe.ok()) << recipe.error().message;
  EXPECT_FALSE(recipe->lossless());
  ASSERT_TRUE(recipe->attention.decode);
  EXPECT_EQ(recipe->attention.decode->choice, PageChoice::quest);
  EXPECT_EQ(recipe->attention.decode->tokens, 1024);
  EXPECT_EQ(recipe->attention.decode->sink_tokens, 16);
  EXPECT_EQ(recipe->attention.decode->recent_tokens, 64);
  EXPECT_EQ(recipe->attention.decode->dense_layers, 2);
  const auto other = parse_recipe(R"({"millrace_recipe": 1, "attention": {"decode": {"select": "recent", "tokens": 200,
      "sink_tokens": 0, "recent_tokens": 100, "dense_layers": 0}}})",
                                  "r.json");
  ASSERT_TRUE(other.ok()) << other.error().message;
  EXPECT_EQ(other->attention.decode->choice, PageChoice::recent);
  EXPECT_EQ(other->attention.decode->recent_tokens, 100);
  EXPECT_FALSE(parse_recipe(R"({"millrace_recipe": 1, "attention": {}})", "r.json")->attention.decode);
  const auto refused = [](const std::string& decode) {
    return message(R"({"millrace_recipe": 1, "attention": {"decode": )" + decode + "}}");
  };
  const std::string where = R"(r.json: "attention"."decode")";
  EXPECT_EQ(refused("7"), where + " is not an object");
  EXPECT_EQ(refused("{}"), where + R"(: "select" must be there, and "mass" or "tokens")");
  EXPECT_EQ(refused(R"({"select": "quest"})"), where + R"(: "select" must be there, and "mass" or "tokens")");
  EXPECT_EQ(refused(R"({"select": "recent", "mass": 0.5, "tokens": 512})"),
            where + R"(: "mass" is for quest: others do not know what attention a page has; give "tokens")");
  EXPECT_EQ(refused(R"({"select": "quest", "mass": 0})"),
            where + R"(."mass": 0 is not a part of attention, above 0 and up to 1)");
  EXPECT_EQ(refused(R"({"select": "best", "tokens": 512})"),
            where + R"(."select": "best" is not supported; this version has quest, recent, random)");
  EXPECT_EQ(refused(R"({"select": "quest", "tokens": 0.5})"),
            where + R"(."tokens": 0.5 is not a whole number from 1 on)");
  EXPECT_EQ(refused(R"({"select": "quest", "tokens": 18446744073709551615})"),
            where + R"(."tokens": 18446744073709551615 is not a whole number from 1 on)");
  EXPECT_EQ(refused(R"({"select": "quest", "tokens": 100})"),
            where + R"(: "tokens": 100 leaves nothing to choose beside 16 of "sink_tokens" and 64 of )"
                    R"("recent_tokens"; give 112 or more)");
  EXPECT_NE(refused(R"({"select": "quest", "tokens": 512, "pages": 3})").find(R"("pages" is not supported)"),
            std::string::npos);
  EXPECT_EQ(message(R"({"millrace_recipe": 1, "attention": {"encode": {}}})"),
            R"(r.json: "attention"."encode" is not supported by this version (it has "prefill", "decode", "keep" and )"
            R"("skip_softmax"))");
  const auto by_mass =
      parse_recipe(R"({"millrace_recipe": 1, "attention": {"decode": {"select": "quest", "mass": 0.75}}})", "r.json");
  ASSERT_TRUE(by_mass.ok()) << by_mass.error().message;
  EXPECT_EQ(by_mass->attention.decode->mass, 0.75);
}

TEST(Recipe, SaysWhichChunksAreNotWorthTheirValues) {
  const auto refused = [](const std::string& skip) {
    return message(R"({"millrace_recipe": 1, "attention": {"skip_softmax": )" + skip + "}}");
  };
  const auto recipe = parse_recipe(
      R"({"millrace_recipe": 1, "attention": {"skip_softmax": {"threshold": 0.001, "dense_layers": 2}}})", "r.json");
  ASSERT_TRUE(recipe.ok()) << recipe.error().message;
  EXPECT_FALSE(recipe->lossless());
  EXPECT_FALSE(recipe->attention.reads_all());
  EXPECT_TRUE(recipe->attention.reads_alike());
  EXPECT_NEAR(recipe->attention.skip->margin(), 6.9078f, 1e-4f);
  EXPECT_EQ(recipe->attention.skip->dense_layers, 2);
  EXPECT_TRUE(std::isinf(ChunkSkipping{}.margin()));
  const std::string where = R"(r.json: "attention"."skip_softmax")";
  EXPECT_EQ(refused("1"), where + " is not an object");
  EXPECT_EQ(refused("{}"), where + R"(: "threshold" must be there)");
  EXPECT_EQ(refused(R"({"threshold": 1})"),
            where + R"(."threshold": 1 is not a part of the largest weight, from 0 to below 1)");
  EXPECT_EQ(refused(R"({"threshold": 0.1, "tokens": 5})"),
            where + R"(."tokens" is not supported by this version (it has "threshold" and "dense_layers"))");
  EXPECT_EQ(message(R"({"millrace_recipe": 1, "attention": {"skip_softmax": {"threshold": 0.1},
                        "prefill": {"select": "hyper"}}})"),
            R"(r.json: "attention": "skip_softmax" looks at one chunk after the other, hyper reads in another order)");
}

TEST(Recipe, SaysWhatBlocksPromptsRead) {
  const auto recipe = parse_recipe(
      R"({"millrace_recipe": 1, "attention": {"prefill": {"select": "xattention", "mass": 0.9}}})", "r.json");
  ASSERT_TRUE(recipe.ok()) << recipe.error().message;
  ASSERT_TRUE(recipe->attention.prefill);
  EXPECT_FALSE(recipe->attention.decode);
  EXPECT_FALSE(recipe->lossless());
  EXPECT_EQ(recipe->attention.prefill->choice, BlockChoice::xattention);
  EXPECT_EQ(recipe->attention.prefill->mass, 0.9);
  EXPECT_GT(recipe->attention.prefill->tokens, std::int64_t{1} << 40);
  EXPECT_EQ(recipe->attention.prefill->dense_layers, 2);
  const auto other = parse_recipe(R"({"millrace_recipe": 1, "attention": {"prefill": {"select": "random", "tokens": 448,
      "sink_tokens": 65, "recent_tokens": 200, "dense_layers": 1}}})",
                                  "r.json");
  ASSERT_TRUE(other.ok()) << other.error().message;
  EXPECT_EQ(other->attention.prefill->choice, BlockChoice::random);
  EXPECT_EQ(other->attention.prefill->tokens, 448);
  EXPECT_EQ(other->attention.prefill->sink_tokens, 65);
  EXPECT_EQ(other->attention.prefill->recent_tokens, 200);
  EXPECT_EQ(other->attention.prefill->dense_layers, 1);
  const auto refused = [](const std::string& prefill) {
    return message(R"({"millrace_recipe": 1, "attention": {"prefill": )" + prefill + "}}");
  };
  const std::string where = R"(r.json: "attention"."prefill")";
  EXPECT_EQ(refused("3"), where + " is not an object");
  EXPECT_EQ(refused("{}"), where + R"(: "select" must be there, and "mass" or "tokens")");
  EXPECT_EQ(refused(R"({"select": "xattention"})"), where + R"(: "select" must be there, and "mass" or "tokens")");
  EXPECT_EQ(refused(R"({"select": "quest", "tokens": 512})"),
            where + R"(."select": "quest" is not supported; this version has xattention, recent, random, hyper)");
  for (const char* mass : {"0", "-1", "1.01", "\"all\"", "null"}) {
    EXPECT_EQ(refused(fmt::format(R"({{"select": "xattention", "mass": {}}})", mass)),
              fmt::format(R"({}."mass": {} is not a part of attention, above 0 and up to 1)", where, mass));
  }
  EXPECT_NE(refused(R"({"select": "recent", "mass": 0.5})").find("give \"tokens\""), std::string::npos);
  EXPECT_NE(refused(R"({"select": "recent", "mass": 0.5, "tokens": 1024})").find("\"mass\" is for xattention"),
            std::string::npos);
  EXPECT_EQ(refused(R"({"select": "xattention", "tokens": 255})"),
            where + R"(: "tokens": 255 leaves nothing to choose beside 64 of "sink_tokens" and 128 of )"
                    R"("recent_tokens"; give 256 or more)");
}

TEST(Recipe, PromptsMayApproximateWhatIsFar) {
  const auto recipe =
      parse_recipe(R"({"millrace_recipe": 1, "attention": {"prefill": {"select": "hyper"}}})", "r.json");
  ASSERT_TRUE(recipe.ok()) << recipe.error().message;
  ASSERT_TRUE(recipe->attention.hyper);
  EXPECT_FALSE(recipe->attention.prefill);
  EXPECT_FALSE(recipe->lossless());
  EXPECT_EQ(recipe->attention.hyper->block, 256);
  EXPECT_EQ(recipe->attention.hyper->samples, 256);
  EXPECT_EQ(recipe->attention.hyper->chunk, 1024);
  EXPECT_EQ(recipe->attention.hyper->min_tokens, 4096);
  EXPECT_EQ(recipe->attention.hyper->sink_tokens, 64);
  EXPECT_EQ(recipe->attention.hyper->recent_tokens, 128);
  EXPECT_EQ(recipe->attention.hyper->dense_layers, 2);
  EXPECT_EQ(recipe->attention.hyper->seed, 0u);
  const auto other = parse_recipe(R"({"millrace_recipe": 1, "attention": {"prefill": {"select": "hyper", "block": 33,
      "samples": 0, "chunk": 128, "min_tokens": 300, "sink_tokens": 0, "recent_tokens": 64, "dense_layers": 1,
      "seed": 18446744073709551615}, "decode": {"select": "quest", "tokens": 1024}}})",
                                  "r.json");
  ASSERT_TRUE(other.ok()) << other.error().message;
  EXPECT_TRUE(other->attention.decode);
  EXPECT_EQ(other->attention.hyper->block, 33);
  EXPECT_EQ(other->attention.hyper->samples, 0);
  EXPECT_EQ(other->attention.hyper->chunk, 128);
  EXPECT_EQ(other->attention.hyper->min_tokens, 300);
  EXPECT_EQ(other->attention.hyper->sink_tokens, 0);
  EXPECT_EQ(other->attention.hyper->recent_tokens, 64);
  EXPECT_EQ(other->attention.hyper->dense_layers, 1);
  EXPECT_EQ(other->attention.hyper->seed, ~std::uint64_t{0});
  const auto refused = [](const std::string& rest) {
    return message(R"({"millrace_recipe": 1, "attention": {"prefill": {"select": "hyper", )" + rest + "}}}");
  };
  const std::string where = R"(r.json: "attention"."prefill".)";
  for (const char* key : {"block", "chunk"}) {
    for (const char* value : {"0", "-1", "1.5", "\"all\"", "null", "18446744073709551615"}) {
      EXPECT_NE(refused(fmt::format(R"("{}": {})", key, value)).find(" is not a whole number from "), std::string::npos)
          << key << value;
    }
  }
  EXPECT_EQ(refused(R"("block": 16385)"), where + R"("block": 16385 is more than 16384)");
  EXPECT_EQ(refused(R"("samples": 16385)"), where + R"("samples": 16385 is more than 16384)");
  EXPECT_EQ(refused(R"("samples": -1)"), where + R"("samples": -1 is not a whole number from 0 on)");
  EXPECT_EQ(refused(R"("chunk": 100)"), where + R"("chunk": 100 is not a multiple of 64)");
  EXPECT_EQ(refused(R"("sink_tokens": 16)"), where + R"("sink_tokens": 16 is not a multiple of 64)");
  EXPECT_EQ(refused(R"("recent_tokens": 1)"), where + R"("recent_tokens": 1 is not a multiple of 64)");
  EXPECT_EQ(refused(R"("min_tokens": -1)"), where + R"("min_tokens": -1 is not a whole number from 0 on)");
  EXPECT_EQ(refused(R"("dense_layers": 0.5)"), where + R"("dense_layers": 0.5 is not a whole number from 0 on)");
  EXPECT_EQ(refused(R"("seed": -1)"), where + R"("seed": -1 is not a whole number from 0 on)");
  EXPECT_NE(refused(R"("mass": 0.9)").find(R"("mass" is not supported by this version (hyper has "block")"),
            std::string::npos);
}

TEST(Recipe, AnswersMayLeaveOutInputs) {
  const auto parsed = [](const std::string& activations) {
    auto recipe = parse_recipe(R"({"millrace_recipe": 1, "activations": )" + activations + "}", "r.json");
    EXPECT_TRUE(recipe.ok()) << recipe.error().message;
    EXPECT_FALSE(recipe->lossless());
    return *recipe->activations;
  };
  const std::string layer = "model.layers.3.";
  const InputSkipping teal = parsed(R"({"method": "teal", "thresholds": {"*": 0.25, "*.mlp.down_proj": 0.5}})");
  EXPECT_EQ(teal.of_layer(layer + "self_attn.q_proj"), (InputSkip{.threshold = 0.25f, .gate_threshold = {}}));
  EXPECT_EQ(teal.of_layer(layer + "mlp.down_proj"), (InputSkip{.threshold = 0.5f, .gate_threshold = {}}));
  EXPECT_EQ(teal.of_layer("lm_head"), InputSkip{});
  EXPECT_EQ(teal.of_layer(layer + "mlp.experts.down_proj"), InputSkip{});
  const InputSkipping down = parsed(R"({"method": "down", "thresholds": {"*": 0.25}})");
  EXPECT_EQ(down.of_layer(layer + "self_attn.q_proj"), InputSkip{});
  EXPECT_EQ(down.of_layer(layer + "mlp.down_proj"), (InputSkip{.threshold = 0.25f, .gate_threshold = {}}));
  const InputSkipping cats = parsed(R"({"method": "cats", "thresholds": {"*": 0.25}})");
  const InputSkip gate = cats.of_layer(layer + "mlp.down_proj");
  EXPECT_EQ(gate.gate_threshold, 0.25f);
  EXPECT_FALSE(gate.threshold);
  EXPECT_EQ(gate.of_inputs(), 0.0f) << "what the gate has made zero";
  EXPECT_FALSE(InputSkip{}.of_inputs());
  for (const char* name : {"gate_proj", "up_proj", "gate_up_proj"}) {
    EXPECT_TRUE(cats.chooses_neurons_of(layer + "mlp." + name));
    EXPECT_FALSE(down.chooses_neurons_of(layer + "mlp." + name));
    EXPECT_FALSE(parsed(R"({"method": "cats", "thresholds": {"*": 0}})").chooses_neurons_of(layer + "mlp." + name))
        << "who leaves out nothing";
    EXPECT_FALSE(parsed(R"({"method": "cats", "imposed": 0.5})").chooses_neurons_of(layer + "mlp." + name));
  }
  EXPECT_FALSE(cats.chooses_neurons_of(layer + "mlp.down_proj"));
  EXPECT_FALSE(cats.chooses_neurons_of(layer + "mlp.experts.up_proj"));
  const InputSkipping drawn = parsed(R"({"method": "teal", "imposed": 0.5})");
  const InputSkip query = drawn.of_layer(layer + "self_attn.q_proj"),
                  down_proj = drawn.of_layer(layer + "mlp.down_proj");
  EXPECT_EQ(query.drawn->density, 0.5);
  EXPECT_EQ(query.of_inputs(), 0.0f);
  EXPECT_EQ(query, drawn.of_layer(layer + "self_attn.v_proj")) << "which reads the same inputs";
  EXPECT_NE(query, drawn.of_layer(layer + "self_attn.o_proj"));
  EXPECT_NE(query, drawn.of_layer("model.layers.4.self_attn.q_proj"));
  EXPECT_NE(down_proj, drawn.of_layer(layer + "mlp.gate_proj"));
  EXPECT_EQ(parsed(R"({"method": "down", "imposed": 0.5})").of_layer(layer + "mlp.down_proj"), down_proj);

  // From a density and quantiles; a threshold by name goes before.
  InputSkipping density =
      parsed(R"({"method": "cats", "profile": "p.json", "density": 0.25, "thresholds": {"*.4.*": 7}})");
  EXPECT_EQ(density.profile_file, "p.json");
  density.profile = std::make_shared<const ActivationProfile>(
      ActivationProfile{.model = "m",
                        .inputs = {{{layer + "mlp.down_proj"}, {0.0f, 100.0f}}},
                        .gates = {{{layer + "mlp.down_proj"}, {0.0f, 1.0f, 4.0f}}}});
  EXPECT_EQ(density.of_layer(layer + "mlp.down_proj").gate_threshold, 2.5f);  // halfway from 1 to 4
  EXPECT_EQ(density.of_layer("model.layers.4.mlp.down_proj").gate_threshold, 7.0f);
  EXPECT_EQ(density.of_layer("model.layers.5.mlp.down_proj"), InputSkip{});
  density.method = SkipMethod::down;
  EXPECT_EQ(density.of_layer(layer + "mlp.down_proj").threshold, 75.0f);
  density.density = 1.0;
  EXPECT_EQ(density.of_layer(layer + "mlp.down_proj").threshold, 0.0f) << "nothing but zeros, whatever the smallest";

  const auto refused = [](const std::string& activations) {
    return message(R"({"millrace_recipe": 1, "activations": )" + activations + "}");
  };
  const std::string where = R"(r.json: "activations")";
  EXPECT_EQ(refused("7"), where + " is not an object");
  EXPECT_EQ(refused("{}"), where + R"(: "method" must be there)");
  EXPECT_EQ(refused(R"({"method": "best"})"),
            where + R"(."method": "best" is not supported; this version has teal, down, cats, hot_cold and relu)");
  EXPECT_EQ(refused(R"({"method": "teal"})"), where + R"(: give "profile" and "density", "thresholds", or "imposed")");
  EXPECT_EQ(refused(R"({"method": "teal", "imposed": 0.5, "thresholds": {"*": 1}})"),
            where + R"(: with "imposed", which draws inputs by lot, there is nothing else to say)");
  EXPECT_EQ(refused(R"({"method": "teal", "density": 0.5})"), where + R"(: "profile" and "density" go together)");
  EXPECT_EQ(refused(R"({"method": "teal", "profile": "p"})"), where + R"(: "profile" and "density" go together)");
  EXPECT_EQ(refused(R"({"method": "teal", "profile": "p", "density": 0})"),
            where + R"(."density": 0 is not a number above 0 and up to 1)");
  EXPECT_EQ(refused(R"({"method": "teal", "thresholds": {"*": -1}})"),
            where + R"(."thresholds"."*": -1 is not a number from 0 on)");
  EXPECT_NE(refused(R"({"method": "teal", "sparsity": 0.5})").find(R"("sparsity" is not supported)"),
            std::string::npos);
}

TEST(DrawnInputs, AreTheShareThatIsWantedAndHaveNothingInCommon) {
  const DrawnInputs drawn{.density = 0.3, .key = 7}, other{.density = 0.3, .key = 8};
  int kept = 0, in_next_row = 0, in_other_layer = 0;
  constexpr int kInputs = 20000;
  for (std::int64_t k = 0; k < kInputs; ++k) {
    if (!drawn.keeps(5, k)) continue;
    ++kept;
    in_next_row += drawn.keeps(6, k) ? 1 : 0;
    in_other_layer += other.keeps(5, k) ? 1 : 0;
  }
  EXPECT_NEAR(kept, 0.3 * kInputs, 200);
  EXPECT_NEAR(in_next_row, 0.3 * kept, 100);
  EXPECT_NEAR(in_other_layer, 0.3 * kept, 100);
  EXPECT_TRUE((DrawnInputs{.density = 1.0, .key = 7}.keeps(5, 0)));
}

TEST(Recipe, SaysWhichNeuronsAreComputed) {
  const auto neurons = [](const std::string& activations) {
    const auto recipe = parse_recipe(R"({"millrace_recipe": 1, "activations": )" + activations + "}", "r.json");
    EXPECT_TRUE(recipe.ok()) << recipe.error().message;
    EXPECT_FALSE(recipe->activations);
    EXPECT_FALSE(recipe->lossless());
    return *recipe->neurons;
  };
  EXPECT_EQ(neurons(R"({"method": "relu"})").method, NeuronMethod::exact);
  const NeuronSkipping predicted = neurons(R"({"method": "hot_cold", "profile": "n", "dense_above": 0.5})");
  EXPECT_EQ(predicted.method, NeuronMethod::predicted);
  EXPECT_EQ(predicted.profile_file, "n");
  EXPECT_EQ(predicted.dense_above, 0.5);
  EXPECT_EQ(neurons(R"({"method": "hot_cold", "profile": "n"})").dense_above, 1.0);
  const NeuronSkipping imposed = neurons(R"({"method": "hot_cold", "imposed": 0.1})");
  EXPECT_EQ(imposed.method, NeuronMethod::imposed);
  EXPECT_EQ(imposed.density, 0.1);

  const auto refused = [](const std::string& activations) {
    return message(R"({"millrace_recipe": 1, "activations": )" + activations + "}");
  };
  const std::string where = R"(r.json: "activations")";
  const std::string choose = where + R"(: give "profile", and "dense_above" with it if you like, or "imposed" alone)";
  EXPECT_EQ(refused(R"({"method": "hot_cold"})"), choose);
  EXPECT_EQ(refused(R"({"method": "hot_cold", "profile": "n", "imposed": 0.1})"), choose);
  EXPECT_EQ(refused(R"({"method": "hot_cold", "imposed": 0.1, "dense_above": 0.5})"), choose);
  EXPECT_EQ(refused(R"({"method": "hot_cold", "imposed": 0})"),
            where + R"(."imposed": 0 is not a number above 0 and up to 1)");
  EXPECT_EQ(refused(R"({"method": "hot_cold", "profile": "n", "dense_above": "x"})"),
            where + R"(."dense_above": "x" is not a number above 0 and up to 1)");
  EXPECT_EQ(refused(R"({"method": "hot_cold", "profile": ""})"),
            where + R"(."profile" is not the name of a file that `millrace calibrate --predictor` has written)");
  EXPECT_NE(refused(R"({"method": "hot_cold", "density": 0.5})").find(R"("density" is not supported)"),
            std::string::npos);
  EXPECT_NE(refused(R"({"method": "relu", "profile": "n"})").find("there is nothing else to say"), std::string::npos);
}

TEST(ActivationProfile, IsWhatWasWritten) {
  const ActivationProfile profile{.model = "0123456789abcdef",
                                  .tokens = 17,
                                  .inputs = {{{"a", "b"}, {0.0f, 0.1f, 0.7f}}},
                                  .gates = {{{"c"}, {0.5f, 0.5f}}}};
  const auto parsed = parse_activation_profile(activation_profile_text(profile), "p.json");
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  EXPECT_EQ(parsed->model, profile.model);
  EXPECT_EQ(parsed->tokens, 17);
  ASSERT_NE(parsed->inputs_of("b"), nullptr);
  EXPECT_EQ(*parsed->inputs_of("b"), profile.inputs.front().magnitudes);
  EXPECT_EQ(parsed->inputs_of("c"), nullptr);
  EXPECT_EQ(*parsed->gate_of("c"), profile.gates.front().magnitudes);
  const auto refused = [](const std::string& text) {
    const auto result = parse_activation_profile(text, "p.json");
    return result.ok() ? std::string() : result.error().message;
  };
  EXPECT_EQ(refused("{}"), "p.json: no profile of activations that `millrace calibrate` has written");
  EXPECT_EQ(refused(R"({"millrace_activations": 1})"), R"(p.json: "model" or "tokens" is missing)");
  const std::string head = R"({"millrace_activations": 1, "model": "m", "tokens": 1, "gates": [], "inputs": )";
  EXPECT_EQ(refused(head + "7}"), R"(p.json: "inputs" is not a list)");
  EXPECT_EQ(refused(head + "[{}]}"), R"(p.json: "inputs"[0]: "layers" is no list of names)");
  EXPECT_NE(refused(head + R"([{"layers": ["a"], "magnitudes": [2, 1]}]})").find("holds 1 where numbers"),
            std::string::npos);
  EXPECT_NE(refused(head + R"([{"layers": ["a"], "magnitudes": [0, 1e60]}]})").find("where numbers"),
            std::string::npos);
}

TEST(MagnitudeAt, LiesBetweenTheQuantiles) {
  const MagnitudeQuantiles quantiles{1.0f, 2.0f, 6.0f};
  EXPECT_EQ(magnitude_at(quantiles, 0.0), 1.0f);
  EXPECT_EQ(magnitude_at(quantiles, 0.25), 1.5f);
  EXPECT_EQ(magnitude_at(quantiles, 0.75), 4.0f);
  EXPECT_EQ(magnitude_at(quantiles, 1.0), 6.0f);
}

TEST(Recipe, WhatIsNotUnderstoodIsRefusedWithItsPlace) {
  EXPECT_EQ(message("{"), "r.json: not a JSON object");
  EXPECT_EQ(message("[1]"), "r.json: not a JSON object");
  EXPECT_EQ(message("{}"), "r.json: \"millrace_recipe\" is not 1");
  EXPECT_EQ(message(R"({"millrace_recipe": 2})"), "r.json: \"millrace_recipe\" is not 1");
  EXPECT_EQ(message(R"({"millrace_recipe": 1, "sparsity": {}})"),
            "r.json: \"sparsity\" is not supported by this version (it has \"weights\", \"inputs\", \"kv\", "
            "\"attention\" and \"activations\")");
  EXPECT_EQ(message(R"({"millrace_recipe": 1, "kv": "int8"})"), "r.json: \"kv\" is not an object");
  EXPECT_EQ(message(R"({"millrace_recipe": 1, "kv": {"formt": "int8"}})"),
            "r.json: \"kv\".\"formt\" is not supported by this version (it has \"format\")");
  EXPECT_EQ(message(R"({"millrace_recipe": 1, "kv": {"format": "int3"}})"),
            "r.json: \"kv\".\"format\": \"int3\" is not supported; this version has f32, bf16, int8, fp8_e4m3, "
            "fp8_e4m3.unscaled, fp8_e5m2 and int4");
  EXPECT_NE(message(R"({"millrace_recipe": 1, "kv": {"format": 8}})").find("\"8\" is not supported"),
            std::string::npos);
  EXPECT_EQ(message(R"({"millrace_recipe": 1, "weights": []})"), "r.json: \"weights\" is not an object");
  EXPECT_EQ(message(R"({"millrace_recipe": 1, "weights": {"default": 8}})"),
            "r.json: \"weights\".\"default\" is not the name of a format, such as \"int8\"");
  EXPECT_NE(message(R"({"millrace_recipe": 1, "weights": {"a": "int3"}})").find("\"weights\".\"a\": \"int3\" is not"),
            std::string::npos);
  EXPECT_EQ(message(std::string(1000, '[')), "r.json: too large for a recipe");
}

TEST(Matches, StarsStandForAnyText) {
  EXPECT_TRUE(matches("", ""));
  EXPECT_TRUE(matches("*", ""));
  EXPECT_TRUE(matches("a*c", "abbbc"));
  EXPECT_TRUE(matches("*b*d", "abcbd"));
  EXPECT_TRUE(matches("a**", "a"));
  EXPECT_FALSE(matches("a", "ab"));
  EXPECT_FALSE(matches("ab", "a"));
  EXPECT_FALSE(matches("a*c", "abcd"));
  EXPECT_FALSE(matches("*.1.*", "model.layers.11.x"));
}

}  // namespace
}  // namespace millrace
