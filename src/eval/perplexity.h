// Perplexity of a model on a text.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "core/result.h"
#include "runtime/model_runner.h"

namespace millrace {

struct PerplexityOptions {
  std::int64_t window = 0;               // tokens of a window; 0: the longest sequence that the model can run here
  std::optional<std::int32_t> bos = {};  // put before every window; it is not predicted
};

struct Perplexity {
  std::int64_t tokens = 0;      // predicted tokens
  double mean_nll = 0.0;        // nats a token
  std::int64_t windows = 0;     // with fewer than two there is no spread to tell the error from
  double standard_error = 0.0;  // of mean_nll, from the spread between windows

  [[nodiscard]] double perplexity() const;
  /// The 95 % interval of the perplexity: exp(mean_nll -+ 1.96 standard errors).
  [[nodiscard]] std::pair<double, double> interval() const;
};

/// Cuts `ids` into windows that do not overlap, runs each on its own and averages -ln p(token) over every token but the
/// first of a window (which has no context, unless there is a BOS before it). Windows, not tokens, are the independent
/// samples of the standard error: neighbours in a text are correlated. `progress` gets (done, all) tokens; may be
/// empty.
Result<Perplexity> measure_perplexity(ModelRunner& runner, std::span<const std::int32_t> ids,
                                      const PerplexityOptions& options,
                                      const std::function<void(std::int64_t, std::int64_t)>& progress);

}  // namespace millrace
