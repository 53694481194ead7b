// One model in two kinds of file gives the same bits: tests/fixtures/checkpoint has directories and their GGUF twins.

#include <gtest/gtest.h>

#include <cstring>

#include "conformance/fixture_model.h"

namespace millrace {
namespace {

std::vector<float> logits_of(const std::filesystem::path& path, const std::string& backend) {
  LoadOptions options;
  options.path = path;
  options.backend = backend;
  options.threads = 1;
  options.kv_memory = std::uint64_t{16} << 20;
  options.limits = {.max_rows = 64, .max_logit_rows = 64};
  auto model = load_model(options);
  EXPECT_TRUE(model.ok()) << model.error().message;
  if (!model.ok()) return {};
  std::vector<std::int32_t> prompt;
  for (int i = 0; i < 40; ++i) prompt.push_back(static_cast<std::int32_t>(i * 29 % model->runner->config().vocab));
  return prompt_logits(*model->runner, prompt, 64);
}

TEST(Twins, GgufAndSafetensorsGiveTheSameBits) {
  const std::filesystem::path root = MILLRACE_SOURCE_DIR "/tests/fixtures/checkpoint";
  int twins = 0;
  for (const auto& entry : std::filesystem::directory_iterator(root)) {
    if (entry.path().extension() != ".gguf") continue;
    SCOPED_TRACE(entry.path().filename().string());
    for (const char* backend : {"reference", "cpu"}) {
      std::filesystem::path directory = entry.path();
      directory.replace_extension();
      const std::vector<float> expected = logits_of(directory, backend), logits = logits_of(entry.path(), backend);
      ASSERT_FALSE(expected.empty());
      ASSERT_EQ(logits.size(), expected.size());
      EXPECT_EQ(std::memcmp(logits.data(), expected.data(), logits.size() * sizeof(float)), 0);
    }
    ++twins;
  }
  EXPECT_GE(twins, 3);
}

}  // namespace
}  // namespace millrace
