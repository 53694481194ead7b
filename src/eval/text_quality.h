// How well a model predicts a text, alone and beside its own run as stored.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "core/result.h"
#include "eval/reference_file.h"
#include "runtime/model_runner.h"
#include "runtime/text_windows.h"

namespace millrace {

/// Of one window; sums over its predicted tokens.
struct WindowQuality {
  std::int64_t tokens = 0;
  double nll = 0.0;  // nats
  // With a reference only:
  double reference_nll = 0.0;
  std::int64_t agreeing = 0;           // positions at which both have the same most likely token
  std::vector<float> divergence = {};  // KL(reference || model) of each position, nats
};

/// A figure and its 95 % interval (eval/bootstrap.h), which one window alone does not have.
struct Estimate {
  double value = 0.0;
  std::optional<std::pair<double, double>> interval = {};
};

struct Comparison {
  Estimate reference_perplexity;
  Estimate perplexity_ratio;  // to the reference's, paired
  Estimate kl_mean, kl_p99;   // nats
  Estimate top1_agreement;    // a share
};

struct TextQuality {
  std::int64_t tokens = 0;
  std::int64_t windows = 0;
  double mean_nll = 0.0;  // nats a token
  Estimate perplexity;
  std::optional<Comparison> comparison = {};
};

/// (done, all) windows.
using WindowProgress = std::function<void(std::int64_t, std::int64_t)>;

/// Runs the windows that the file does not have yet, and adds what the model says of them.
Status write_reference(ModelRunner& runner, std::span<const TokenWindow> windows, ReferenceFile& file,
                       const WindowProgress& progress);

/// Runs every window on its own. Of each, every token but the first is predicted. `reference` may be null; it must have
/// all windows. Errors: a window that the model cannot run; a damaged reference.
Result<std::vector<WindowQuality>> judge_windows(ModelRunner& runner, std::span<const TokenWindow> windows,
                                                 ReferenceFile* reference, const WindowProgress& progress);

/// Of windows that were judged beside a reference: what summarize() says of it, without the rest, which takes longer.
Estimate mean_divergence(std::span<const WindowQuality> windows);

/// Windows, not tokens, are the independent units of the intervals: neighbours in a text are correlated.
TextQuality summarize(std::span<const WindowQuality> windows, bool compared);

}  // namespace millrace
