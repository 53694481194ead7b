// Tokenizers as vocabularies of GGUF: those that have a counterpart give the same ids, the others are refused.
#include "convert/gguf_tokenizer.h"

#include <gtest/gtest.h>

#include <functional>

#include "core/check.h"
#include "core/mapped_file.h"
#include "text/tokenizer.h"

namespace millrace {
namespace {

const std::string kFixtures = MILLRACE_SOURCE_DIR "/tests/fixtures/text/";

nlohmann::json tokenizer(const std::string& name) {
  const auto text = read_text_file(kFixtures + name + "/tokenizer.json");
  MILLRACE_CHECK(text.ok(), "{}", text.error().message);
  return nlohmann::json::parse(*text);
}

std::int64_t size_of(const nlohmann::json& json) {
  return Tokenizer::from_json(json.dump())->vocab_size();
}

/// The vocabulary, or the message.
Result<GgufVocab> vocab(const nlohmann::json& json, std::int64_t more = 0) {
  std::vector<std::string> notes;
  return vocab_from_tokenizer(json.dump(), size_of(json) + more, notes);
}

void expect_same_ids(const nlohmann::json& json, const GgufVocab& vocab) {
  const auto read = tokenizer_json_from_gguf(vocab);
  ASSERT_TRUE(read.ok()) << read.error().message;
  const auto a = Tokenizer::from_json(json.dump()), b = Tokenizer::from_json(*read);
  ASSERT_TRUE(a.ok() && b.ok());
  for (const char* text : {"The quick brown fox's 12345 jumps!", "  two  spaces\n\n\tand lines", "caf\u00e9 [INST] x",
                           "<s>inner</s> <|im_start|>user", "\u4f60\u597d \U0001f600", ""}) {
    EXPECT_EQ(*a->encode(text, false), *b->encode(text, false)) << text;
  }
}

TEST(GgufTokenizer, ByteLevelBpeHasTheNameOfItsPreTokenizer) {
  nlohmann::json json = tokenizer("byte_level_bpe");
  json["added_tokens"].back()["normalized"] = false;
  const auto found = vocab(json);
  ASSERT_TRUE(found.ok()) << found.error().message;
  EXPECT_EQ(found->model, "gpt2");
  EXPECT_EQ(found->pre, "llama-bpe");
  EXPECT_TRUE(found->scores.empty());
  expect_same_ids(json, *found);
}

TEST(GgufTokenizer, SplitsAreRecognisedInAllTheirForms) {
  nlohmann::json json = tokenizer("byte_level_bpe");
  json["model"]["ignore_merges"] = false;
  const nlohmann::json bytes = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  const nlohmann::json digits = {{"type", "Digits"}, {"individual_digits", true}};
  json["pre_tokenizer"] = bytes;
  const auto pre_of = [](const nlohmann::json& of) {
    const auto found = vocab(of);
    return found.ok() ? found->pre : found.error().message;
  };
  EXPECT_EQ(pre_of(json), "gpt-2");
  json["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {digits, bytes}}};
  EXPECT_EQ(pre_of(json), "smollm");
  json["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = false;
  EXPECT_FALSE(vocab(json).ok());
  json["pre_tokenizer"] = {
      {"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
  EXPECT_FALSE(vocab(json).ok());
}

TEST(GgufTokenizer, SentencePieceBpeHasScores) {
  const nlohmann::json json = tokenizer("spm_bpe");
  const auto found = vocab(json, 3);
  ASSERT_TRUE(found.ok()) << found.error().message;
  EXPECT_EQ(found->model, "llama");
  EXPECT_TRUE(*found->add_space_prefix);
  EXPECT_EQ(found->unk, 0);
  EXPECT_EQ(found->types[0], 2);
  EXPECT_EQ(found->types.back(), 5);  // ids without a token
  expect_same_ids(json, *found);
}

TEST(GgufTokenizer, SpacesMayBeThePreTokenizersTask) {
  nlohmann::json json = tokenizer("spm_bpe");
  json["normalizer"] = nullptr;
  json["pre_tokenizer"] = {
      {"type", "Metaspace"}, {"replacement", "\u2581"}, {"prepend_scheme", "never"}, {"split", false}};
  const auto found = vocab(json);
  ASSERT_TRUE(found.ok()) << found.error().message;
  EXPECT_FALSE(*found->add_space_prefix);
  json["pre_tokenizer"]["split"] = true;
  EXPECT_FALSE(vocab(json).ok());
}

TEST(GgufTokenizer, WhatHasNoCounterpartIsRefused) {
  const auto expect = [](const std::string& name, const std::string& words,
                         const std::function<void(nlohmann::json&)>& change) {
    nlohmann::json json = tokenizer(name);
    const std::int64_t size = size_of(json);
    change(json);
    std::vector<std::string> notes;
    const auto found = vocab_from_tokenizer(json.dump(), size, notes);
    ASSERT_FALSE(found.ok()) << words;
    EXPECT_NE(found.error().message.find(words), std::string::npos) << words << " in: " << found.error().message;
  };
  expect("unigram", "Unigram", [](auto&) {});
  expect("spm_bpe", "no counterpart for the normalizer", [](auto& json) {
    json["normalizer"] = {{"type", "Lowercase"}};
  });
  expect("byte_level_bpe", "no counterpart for the normalizer", [](auto& json) {
    json["normalizer"] = {{"type", "Lowercase"}};
  });
  expect("byte_level_bpe", "no name for the way",
         [](auto& json) { json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "\\S+"; });
  expect("byte_level_bpe", "end_of_word_suffix", [](auto& json) { json["model"]["end_of_word_suffix"] = "</w>"; });
  expect("spm_bpe", "lstrip", [](auto& json) { json["added_tokens"][1]["lstrip"] = true; });
  expect("spm_bpe", "scores", [](auto& json) {  // the first to be joined joins two tokens: they are apart now
    auto& merges = json["model"]["merges"];
    merges.erase(merges.begin() + 5);
  });
  expect("spm_bpe", "but the model has", [](auto& json) { json["added_tokens"][2]["id"] = 100000; });
}

TEST(GgufTokenizer, LossesThatHardlyMatterAreNoted) {
  const nlohmann::json json = tokenizer("byte_level_bpe");
  std::vector<std::string> notes;
  ASSERT_TRUE(vocab_from_tokenizer(json.dump(), size_of(json), notes).ok());
  ASSERT_EQ(notes.size(), 1u);
  EXPECT_NE(notes[0].find("NFC"), std::string::npos);
}

}  // namespace
}  // namespace millrace
