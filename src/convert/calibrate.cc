#include "convert/calibrate.h"

#include <algorithm>
#include <utility>

#include "convert/activation_watch.h"
#include "core/philox.h"
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

}  // namespace

Result<ActivationProfile> profile_activations(LoadOptions options, const CalibrationText& text,
                                              const std::function<void(std::int64_t, std::int64_t)>& progress) {
  ActivationWatch* watch = nullptr;
  options.limits = {.max_rows = kStepRows, .max_logit_rows = kStepRows};
  options.max_model_len = kCalibrationWindow + 1;
  options.wrap_backend = [&](std::unique_ptr<Backend> inner) -> std::unique_ptr<Backend> {
    auto wrapped = std::make_unique<ActivationWatch>(std::move(inner));
    watch = wrapped.get();
    return wrapped;
  };
  MILLRACE_TRY(const ModelPlan plan, plan_model(options));
  if (!plan.backend->host_memory()) return fail("activations are looked at on the cpu alone: give --device cpu");
  const std::string model = model_fingerprint(plan.checkpoint);
  MILLRACE_TRY(const LoadedModel loaded, load_model(options));
  std::vector<TokenWindow> windows;
  if (text.file.empty()) {
    windows = drawn_windows(*loaded.runner, text.tokens);
  } else {
    MILLRACE_TRY(windows, calibration_windows(loaded, text));
  }
  const RowsAre rows = rows_for_policy(*loaded.runner);
  std::int64_t tokens = 0;
  for (std::size_t w = 0; w < windows.size(); ++w) {
    MILLRACE_CHECK_OK(check_tokens(*loaded.runner, windows[w]));
    run_tokens(*loaded.runner, windows[w], rows, [](std::int64_t, std::span<const float>) {});
    tokens += static_cast<std::int64_t>(windows[w].size());
    if (progress) progress(static_cast<std::int64_t>(w) + 1, static_cast<std::int64_t>(windows.size()));
  }
  ActivationProfile profile = watch->profile();
  profile.model = model;
  profile.tokens = tokens;
  return profile;
}

}  // namespace millrace
