#include "convert/calibrate.h"

#include <algorithm>
#include <utility>

#include "convert/activation_watch.h"
#include "convert/attention_watch.h"
#include "convert/neuron_watch.h"
#include "core/memory.h"
#include "core/philox.h"
#include "core/thread_pool.h"
#include "runtime/model_fingerprint.h"
#include "runtime/run_tokens.h"
#include "runtime/text_windows.h"

namespace millrace {

namespace {

constexpr std::int64_t kStepRows = 128;

std::vector<TokenWindow> drawn_windows(const ModelRunner& runner, std::int64_t tokens) {
  std::vector<TokenWindow> windows;
  const std::int64_t window = std::min(kCalibrationWindow, runner.max_sequence_tokens());
  for (std::int64_t t = 0; t < tokens; ++t) {
    if (t % window == 0) windows.emplace_back();
    const PhiloxBlock block = philox4x32_10({static_cast<std::uint32_t>(t), 0, 0, 0}, {0, 0});
    windows.back().push_back(static_cast<std::int32_t>(block[0] % static_cast<std::uint64_t>(runner.config().vocab)));
  }
  return windows;
}

/// The text as windows, or tokens drawn by lot where there is none.
Result<std::vector<TokenWindow>> windows_of(const LoadedModel& model, const CalibrationText& text) {
  if (text.file.empty()) return drawn_windows(*model.runner, text.tokens);
  return calibration_windows(model, text);
}

void set_limits(LoadOptions& options) {
  options.limits = {.max_rows = kStepRows, .max_logit_rows = kStepRows};
  options.max_model_len = kCalibrationWindow + 1;
}

}  // namespace

Result<NeuronProfiles> profile_neurons(LoadOptions options, const CalibrationText& text,
                                       const PredictorOptions& predictor,
                                       const std::function<void(std::int64_t, std::int64_t)>& progress) {
  NeuronWatch* watch = nullptr;
  set_limits(options);
  options.wrap_backend = [&](std::unique_ptr<Backend> inner) -> std::unique_ptr<Backend> {
    auto wrapped = std::make_unique<NeuronWatch>(std::move(inner));
    watch = wrapped.get();
    return wrapped;
  };
  if (options.recipe.neurons || options.recipe.activations)
    return fail("predictors are trained on the model that computes all neurons: give a recipe without \"activations\"");
  NeuronProfiles profiles;
  {
    MILLRACE_TRY(const ModelPlan plan, plan_model(options));
    if (!plan.backend->host_memory()) return fail("activations are looked at on the cpu alone: give --device cpu");
    profiles.model = model_fingerprint(plan.checkpoint);
    std::uint64_t of_token = 0;
    for (const LayerSpec& layer : plan.config.layers) {
      if (layer.intermediate == 0) continue;
      if (!gives_zeros(layer.activation))
        return fail("{}: its activation gives no exact zeros, as relu or relu2 do: no neuron of it is ever still",
                    options.path.string());
      of_token += static_cast<std::uint64_t>(2 * plan.config.hidden + layer.intermediate / 8 + 1);
    }
    if (of_token == 0) return fail("{} has no dense feed-forward network", options.path.string());
    const std::uint64_t samples = of_token * static_cast<std::uint64_t>(text.tokens);
    if (samples > plan.backend->free_memory() / 2) {
      return fail(
          "samples of {} tokens take {}, more than half of the {} of memory that is available: give fewer --tokens",
          text.tokens, format_size(samples), format_size(plan.backend->free_memory()));
    }
  }
  MILLRACE_TRY(const LoadedModel loaded, load_model(options));
  MILLRACE_TRY(const std::vector<TokenWindow> windows, windows_of(loaded, text));
  const auto steps = static_cast<std::int64_t>(windows.size() + watch->samples().size());
  std::int64_t done = 0;
  const auto step = [&] {
    if (progress) progress(++done, steps);
  };
  for (const TokenWindow& window : windows) {
    MILLRACE_CHECK_OK(check_tokens(*loaded.runner, window));
    MILLRACE_CHECK_OK(run_tokens(*loaded.runner, window, RowsAre::prompt, [](std::int64_t, std::span<const float>) {}));
    step();
  }
  MILLRACE_TRY(const std::unique_ptr<ThreadPool> pool, ThreadPool::create(options.threads));
  for (const auto& samples : watch->samples()) {
    if (samples->rows() < kLeastSamples) {
      return fail("{} tokens are too few to train a predictor with: at least {}", samples->rows(), kLeastSamples);
    }
    profiles.layers.push_back(std::make_shared<const NeuronProfile>(train_predictor(*samples, predictor, *pool)));
    step();
  }
  return profiles;
}

Result<ActivationProfile> profile_activations(LoadOptions options, const CalibrationText& text,
                                              const std::function<void(std::int64_t, std::int64_t)>& progress) {
  ActivationWatch* watch = nullptr;
  AttentionWatch* attention = nullptr;
  set_limits(options);
  const bool keeps_all = !options.recipe.attention.keep;
  options.wrap_backend = [&](std::unique_ptr<Backend> inner) -> std::unique_ptr<Backend> {
    auto wrapped = std::make_unique<ActivationWatch>(std::move(inner));
    watch = wrapped.get();
    if (!keeps_all) return wrapped;
    auto outer = std::make_unique<AttentionWatch>(std::move(wrapped));
    attention = outer.get();
    return outer;
  };
  MILLRACE_TRY(const ModelPlan plan, plan_model(options));
  if (!plan.backend->host_memory()) return fail("activations are looked at on the cpu alone: give --device cpu");
  const std::string model = model_fingerprint(plan.checkpoint);
  MILLRACE_TRY(const LoadedModel loaded, load_model(options));
  MILLRACE_TRY(const std::vector<TokenWindow> windows, windows_of(loaded, text));
  const RowsAre rows = rows_for_policy(*loaded.runner);
  std::int64_t tokens = 0;
  for (std::size_t w = 0; w < windows.size(); ++w) {
    MILLRACE_CHECK_OK(check_tokens(*loaded.runner, windows[w]));
    MILLRACE_CHECK_OK(run_tokens(*loaded.runner, windows[w], rows, [](std::int64_t, std::span<const float>) {}));
    tokens += static_cast<std::int64_t>(windows[w].size());
    if (progress) progress(static_cast<std::int64_t>(w) + 1, static_cast<std::int64_t>(windows.size()));
  }
  ActivationProfile profile = watch->profile();
  profile.model = model;
  profile.tokens = tokens;
  if (attention != nullptr) {
    profile.attention = attention->attention();
    profile.kv = attention->kv();
  }
  return profile;
}

}  // namespace millrace
