#include "conformance/fixture_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "engine/engine_core.h"
#include "runtime/step_batch.h"

namespace millrace {

namespace {

std::filesystem::path fixture_root() {
  return std::filesystem::path(MILLRACE_SOURCE_DIR) / "tests/fixtures/logits";
}

}  // namespace

std::vector<std::string> fixture_names() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(fixture_root())) {
    if (entry.is_directory()) names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  MILLRACE_CHECK(!names.empty(), "no fixtures in {}", fixture_root().string());
  return names;
}

Fixture read_fixture(const std::string& name) {
  Fixture fixture;
  fixture.directory = fixture_root() / name;
  std::ifstream json_file(fixture.directory / "expected.json");
  const nlohmann::json expected = nlohmann::json::parse(json_file);
  fixture.prompt = expected.at("prompt").get<std::vector<std::int32_t>>();
  fixture.greedy = expected.at("greedy").get<std::vector<std::int32_t>>();
  fixture.vocab = expected.at("vocab").get<std::int64_t>();
  fixture.max_abs_logit = expected.at("max_abs_logit").get<float>();
  fixture.bf16_max_error = expected.at("bf16_max_error").get<float>();
  fixture.bf16_median_error = expected.at("bf16_median_error").get<float>();
  std::ifstream binary(fixture.directory / "expected.bin", std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(binary), {}};
  fixture.logits.resize(fixture.prompt.size() * static_cast<std::size_t>(fixture.vocab));
  MILLRACE_CHECK(bytes.size() == fixture.logits.size() * sizeof(float), "{}: {} bytes", name, bytes.size());
  std::memcpy(fixture.logits.data(), bytes.data(), bytes.size());
  return fixture;
}

LoadedModel load_fixture(const Fixture& fixture, const std::string& backend, DType compute, int threads,
                         std::int64_t max_rows) {
  LoadOptions options;
  options.path = fixture.directory;
  options.dummy = true;
  options.backend = backend;
  options.compute = compute;
  options.threads = threads;
  options.kv_memory = std::uint64_t{32} << 20;
  options.limits = {.max_rows = max_rows, .max_logit_rows = max_rows};
  auto model = load_model(options);
  if (!model.ok()) {
    ADD_FAILURE() << fixture.directory << ": " << model.error().message;
    std::abort();
  }
  return std::move(*model);
}

std::vector<float> prompt_logits(ModelRunner& runner, std::span<const std::int32_t> prompt, std::int64_t chunk,
                                 int others) {
  const auto vocab = static_cast<std::size_t>(runner.config().vocab);
  const auto total = static_cast<std::int64_t>(prompt.size());
  UnscheduledSequences sequences(kv_limits(runner.cache()));
  for (int s = 0; s <= others; ++s) {
    std::vector<std::int32_t> tokens(prompt.begin(), prompt.end());
    // The others say something else: same length regime, other tokens.
    for (std::size_t i = 0; s > 0 && i < tokens.size(); ++i) {
      tokens[i] = static_cast<std::int32_t>((prompt[i] + 17 * s + 3 * static_cast<int>(i)) % static_cast<int>(vocab));
    }
    sequences.add(std::move(tokens), total);
  }
  std::vector<float> result;
  for (std::int64_t start = 0; start < total; start += chunk) {
    const auto rows = static_cast<std::int32_t>(std::min(chunk, total - start));
    StepPlan plan;
    // Others run before and after the sequence that is looked at, which has id 0.
    const auto run = [&](int s) {
      plan.entries.push_back(
          {.id = static_cast<SequenceId>(s), .rows = rows, .first_position = start, .all_logits = true});
    };
    for (int s = 1; s <= others / 2; ++s) run(s);
    const std::size_t first_row = plan.entries.size() * static_cast<std::size_t>(rows);
    run(0);
    for (int s = others / 2 + 1; s <= others; ++s) run(s);
    const Result<std::span<float>> logits = runner.run(sequences.batch(plan));
    EXPECT_TRUE(logits.ok());
    const std::span<const float> wanted = logits->subspan(first_row * vocab, static_cast<std::size_t>(rows) * vocab);
    result.insert(result.end(), wanted.begin(), wanted.end());
  }
  return result;
}

std::vector<std::int32_t> run_alone(ModelRunner& runner, Request request) {
  EngineCore engine(runner, nullptr);
  const Status prepared = engine.prepare(request);
  if (!prepared.ok()) {
    ADD_FAILURE() << prepared.error().message;
    return {};
  }
  std::vector<std::int32_t> tokens;
  engine.submit(
      1, std::move(request),
      [&](const TokenEvent& event) {
        tokens.push_back(event.token);
        return Demand::more;
      },
      EngineCore::Clock::now());
  while (engine.step()) {
  }
  return tokens;
}

}  // namespace millrace
