// Whatever a model's figures depend on changes the key under which they are kept, and nothing else does.
#include "eval/cache_key.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <fstream>

#include "checkpoint/file_builders.h"

namespace millrace {
namespace {

class CacheKeyTest : public ::testing::Test {
 protected:
  CacheKeyTest() {
    std::filesystem::copy(MILLRACE_SOURCE_DIR "/models/millrace-tiny", folder_.path() / "model");
    options_.path = folder_.path() / "model";
  }

  [[nodiscard]] ModelPlan plan() const {
    auto plan = plan_model(options_);
    EXPECT_TRUE(plan.ok()) << plan.error().message;
    return std::move(*plan);
  }
  [[nodiscard]] std::string key() const { return *stored_key(options_, plan()); }
  static void lengthen(const std::filesystem::path& file) { std::ofstream(file, std::ios::app) << "\n"; }

  TempDirectory folder_;
  LoadOptions options_;
};

TEST_F(CacheKeyTest, HasEachFileThatIsUsedAndNoOther) {
  std::string before = key();
  for (const char* name : {"training_log.jsonl", "recipe.json"}) lengthen(options_.path / name);
  EXPECT_EQ(key(), before);
  for (const char* name : {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"}) {
    const auto file = options_.path / name;
    const auto time = std::filesystem::last_write_time(file);
    std::filesystem::last_write_time(file, time + std::chrono::seconds(1));
    const std::string after = key();
    EXPECT_NE(after, before) << name;
    before = after;
  }
}

TEST_F(CacheKeyTest, HasAllPartsOfASplitFile) {
  const auto part = [](std::uint32_t number, const char* tensor) {
    GgufBuilder gguf("qwen2");
    if (number == 0) gguf.sizes("qwen2");
    gguf.u32("split.no", number).u32("split.count", 2).i32("split.tensors.count", 2);
    gguf.floats(tensor, {5, 8});
    return gguf.build();
  };
  ModelPlan of_parts = plan();
  options_.path = folder_.write("m-00001-of-00002.gguf", part(0, "token_embd.weight"));
  const auto second = folder_.write("m-00002-of-00002.gguf", part(1, "output.weight"));
  auto opened = Checkpoint::open(options_.path);
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  of_parts.checkpoint = std::move(*opened);
  const std::string before = *stored_key(options_, of_parts);
  EXPECT_EQ(std::ranges::count(before, '\n'), 3);
  lengthen(second);
  EXPECT_NE(*stored_key(options_, of_parts), before);
}

TEST_F(CacheKeyTest, ARunHasWhatItRounds) {
  const ModelPlan model = plan();
  const std::string before = *run_key(options_, model, "recipe");
  EXPECT_NE(*run_key(options_, model, "another"), before);
  EXPECT_TRUE(is_lossless(options_, model));
  options_.compute = DType::bf16;
  EXPECT_NE(*run_key(options_, model, "recipe"), before);
  EXPECT_FALSE(is_lossless(options_, model));
  EXPECT_TRUE(is_lossless(as_stored(options_), model));
}

/// A recipe has the name of its profile, and another may be behind it the next time.
TEST_F(CacheKeyTest, ARunHasWhatItsProfileSays) {
  const ModelPlan model = plan();
  NeuronProfiles profiles{.model = "m", .layers = {std::make_shared<const NeuronProfile>()}};
  options_.recipe.neurons.emplace();
  options_.recipe.neurons->profiles = std::make_shared<const NeuronProfiles>(profiles);
  const std::string before = *run_key(options_, model, "recipe");
  NeuronProfile other;
  other.bias = {1.0f};
  profiles.layers = {std::make_shared<const NeuronProfile>(other)};
  options_.recipe.neurons->profiles = std::make_shared<const NeuronProfiles>(profiles);
  EXPECT_NE(*run_key(options_, model, "recipe"), before);
}

TEST_F(CacheKeyTest, AsStoredNothingIsOnDisk) {
  options_.weight_directory = "/somewhere";
  EXPECT_EQ(as_stored(options_).weight_directory, "");
}

TEST_F(CacheKeyTest, AFileThatIsGoneIsAnError) {
  const ModelPlan model = plan();
  std::filesystem::remove(options_.path / "model.safetensors");
  const auto key = stored_key(options_, model);
  ASSERT_FALSE(key.ok());
  EXPECT_NE(key.error().message.find("model.safetensors"), std::string::npos);
}

TEST(CacheFile, IsNamedAfterTheKey) {
  EXPECT_EQ(cache_file("/a/b", "foobar", "tasks"), "/a/b/85944171f73967e8.tasks");
}

}  // namespace
}  // namespace millrace
