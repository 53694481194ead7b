// What a profile says of attention, keys and values: what was written is read, and nothing else.
#include "recipe/attention_profile.h"

#include <gtest/gtest.h>

#include "recipe/activation_profile.h"

namespace millrace {
namespace {

ActivationProfile with_sections() {
  ActivationProfile profile{.model = "0123456789abcdef", .tokens = 17, .inputs = {}, .gates = {}};
  profile.attention = AttentionProfile{
      {{.layer = 0, .rows = 5, .sinks = {0.5, 0.25}, .recent = {0.5, 0.5}, .between = {0, 0.25}, .pages = {1, 2.5}},
       {.layer = 3, .rows = 5, .sinks = {0.1}, .recent = {0.2}, .between = {0.3}, .pages = {7}}}};
  const KvProfile::Numbers keys{.largest = {4, 5}, .rms = {1, 1.5}, .largest_ratio = {3, 2}, .rms_ratio = {1, 9}},
      values{.largest = {0, 5}, .rms = {0, 1.5}, .largest_ratio = {1, 2}, .rms_ratio = {1, 3}};
  profile.kv = KvProfile{{{.layer = 3, .rows = 17, .keys = keys, .values = values}}};
  return profile;
}

std::string refusal(const std::string& text) {
  const auto result = parse_activation_profile(text, "p.json");
  return result.ok() ? std::string() : result.error().message;
}

/// The file's text with one thing changed, as a user might.
std::string refused_with(const std::string& what, const std::string& by) {
  std::string text = activation_profile_text(with_sections());
  const std::size_t place = text.find(what);
  EXPECT_NE(place, std::string::npos) << what;
  return refusal(text.replace(place, what.size(), by));
}

TEST(AttentionProfile, IsWhatWasWritten) {
  const ActivationProfile profile = with_sections();
  const auto parsed = parse_activation_profile(activation_profile_text(profile), "p.json");
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  EXPECT_EQ(activation_profile_text(*parsed), activation_profile_text(profile));
  ASSERT_TRUE(parsed->attention && parsed->kv);
  ASSERT_NE(parsed->attention->of_layer(3), nullptr);
  EXPECT_EQ(parsed->attention->of_layer(3)->pages, std::vector{7.0});
  EXPECT_EQ(parsed->attention->of_layer(0)->sinks, (std::vector{0.5, 0.25}));
  EXPECT_EQ(parsed->attention->of_layer(1), nullptr);
  EXPECT_EQ(parsed->attention->of_layer(4), nullptr);
  EXPECT_EQ(parsed->kv->layers[0].keys.rms_ratio, (std::vector{1.0, 9.0}));
  EXPECT_EQ(parsed->kv->layers[0].values.largest, (std::vector{0.0, 5.0}));
}

TEST(AttentionProfile, FilesWithoutTheSectionsStillLoad) {
  const auto old = parse_activation_profile(
      R"({"millrace_activations": 1, "model": "m", "tokens": 1, "inputs": [], "gates": []})", "p.json");
  ASSERT_TRUE(old.ok()) << old.error().message;
  EXPECT_FALSE(old->attention);
  EXPECT_FALSE(old->kv);
  EXPECT_EQ(activation_profile_text(*old).find("attention"), std::string::npos);
}

TEST(AttentionProfile, WhatIsNotUnderstoodIsRefusedWithItsPlace) {
  const std::string attention = R"(p.json: "attention")", layer = attention + R"(."layers"[0])";
  EXPECT_EQ(refused_with(R"("gates":[])", R"("gates":[],"more":1)"), R"(p.json: "more" is not known to this version)");
  EXPECT_EQ(refused_with(R"("version":1)", R"("version":2)"),
            attention + R"(: "version" is 2; this version of the program knows 1)");
  EXPECT_EQ(refused_with(R"("version":1)", R"("version":1,"mass":0.9)"),
            attention + R"(."mass" is not known to this version)");
  EXPECT_EQ(refused_with(R"("version":1,)", ""), attention + R"(: "version" must be there)");
  EXPECT_EQ(refused_with(R"("rows":5)", R"("rows":5,"row":5)"), layer + R"(."row" is not known to this version)");
  EXPECT_EQ(refused_with(R"("rows":5,)", ""), layer + R"(: "rows" must be there)");
  EXPECT_EQ(refused_with(R"("rows":5)", R"("rows":0)"), layer + R"(: "rows" is not a whole number from 1 on)");
  EXPECT_EQ(refused_with(R"("layer":0)", R"("layer":18446744073709551615)"),
            layer + R"(: "layer" is not a whole number from 0 on)");
  EXPECT_EQ(refused_with(R"("layer":0)", R"("layer":3)"), attention + R"(."layers"[1]: layers must ascend)");
  EXPECT_EQ(refused_with("[1.0,2.5]", "[1.0]"), layer + R"(: "pages" is no list of 2 numbers, one for each head)");
  EXPECT_EQ(refused_with("[0.5,0.25]", "[]"), layer + R"(: "sinks" is no list of numbers, one for each head)");
  EXPECT_EQ(refused_with("[0.5,0.25]", "7"), layer + R"(: "sinks" is no list of numbers, one for each head)");
  EXPECT_EQ(refused_with("[0.5,0.25]", R"(["a",0.25])"),
            layer + R"(: "sinks" holds no number where numbers from 0 to 1.001 are expected)");
  EXPECT_NE(refused_with("[1.0,2.5]", "[0.5,2.5]").find(R"("pages" holds 0.5)"), std::string::npos);
  EXPECT_EQ(refused_with(R"("between":[0.0,0.25])", R"("between":[0.5,0.25])"),
            layer + ": the shares of head 0 come to more than 1");
  const std::string keys = R"(p.json: "kv"."layers"[0]."keys")";
  EXPECT_EQ(refused_with(R"("largest":[4.0,5.0],)", ""), keys + R"(: "largest" must be there)");
  EXPECT_EQ(refused_with(R"("rms":[1.0,1.5])", R"("rms":[1.0])"),
            keys + R"(: "rms" is no list of 2 numbers, one for each head)");
  EXPECT_NE(refused_with(R"("rms_ratio":[1.0,9.0])", R"("rms_ratio":[0.5,9.0])").find(R"("rms_ratio" holds 0.5)"),
            std::string::npos);
  EXPECT_NE(refused_with(R"("largest":[4.0,5.0])", R"("largest":[1e40,5.0])").find(R"("largest" holds 1e+40)"),
            std::string::npos);
  EXPECT_NE(refused_with(R"("largest":[0.0,5.0])", R"("largest":[0.0,5.0,6.0])").find("list of 2 numbers"),
            std::string::npos);
}

}  // namespace
}  // namespace millrace
