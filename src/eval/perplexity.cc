#include "eval/perplexity.h"

#include <algorithm>
#include <cmath>

#include "runtime/run_tokens.h"

namespace millrace {

namespace {

/// -ln softmax(logits)[token], in double: the sum over a vocabulary of small terms.
double negative_log_likelihood(std::span<const float> logits, std::int32_t token) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(logit - largest);
  return largest + std::log(sum) - logits[static_cast<std::size_t>(token)];
}

struct WindowSum {
  double nll = 0.0;
  std::int64_t tokens = 0;
};

WindowSum run_window(ModelRunner& runner, const std::vector<std::int32_t>& tokens) {
  WindowSum sum;
  run_tokens(runner, tokens, [&](std::int64_t position, std::span<const float> logits) {
    const auto next = static_cast<std::size_t>(position) + 1;
    if (next == tokens.size()) return;
    sum.nll += negative_log_likelihood(logits, tokens[next]);
    ++sum.tokens;
  });
  return sum;
}

}  // namespace

double Perplexity::perplexity() const {
  return std::exp(mean_nll);
}

std::pair<double, double> Perplexity::interval() const {
  return {std::exp(mean_nll - 1.96 * standard_error), std::exp(mean_nll + 1.96 * standard_error)};
}

Result<Perplexity> measure_perplexity(ModelRunner& runner, std::span<const std::int32_t> ids,
                                      const PerplexityOptions& options,
                                      const std::function<void(std::int64_t, std::int64_t)>& progress) {
  const std::int64_t longest = runner.max_sequence_tokens();
  const std::int64_t window = options.window > 0 ? options.window : longest;
  if (window > longest) return fail("windows of {} tokens, but a sequence may have {} here", window, longest);
  const std::int64_t fresh = window - (options.bos ? 1 : 0);  // tokens of the text in a window
  if (fresh < 2) return fail("windows of {} tokens are too short to predict anything", window);
  for (const std::int32_t id : ids) {
    if (id < 0 || id >= runner.config().vocab) {
      return fail("token id {} is outside the vocabulary of {} tokens", id, runner.config().vocab);
    }
  }
  std::vector<WindowSum> sums;
  Perplexity result;
  double nll = 0.0;
  const auto total = static_cast<std::int64_t>(ids.size());
  for (std::int64_t start = 0; start < total; start += fresh) {
    std::vector<std::int32_t> tokens;
    if (options.bos) tokens.push_back(*options.bos);
    const std::int64_t end = std::min(total, start + fresh);
    tokens.insert(tokens.end(), ids.begin() + start, ids.begin() + end);
    if (tokens.size() < 2) break;
    sums.push_back(run_window(runner, tokens));
    nll += sums.back().nll;
    result.tokens += sums.back().tokens;
    if (progress) progress(end, total);
  }
  if (result.tokens == 0) return fail("the text has {} tokens: nothing to predict", total);
  result.windows = static_cast<std::int64_t>(sums.size());
  result.mean_nll = nll / static_cast<double>(result.tokens);
  if (sums.size() > 1) {
    // Ratio estimator: windows differ in length only at the end of the text.
    double squares = 0.0;
    for (const WindowSum& sum : sums) {
      const double deviation = sum.nll - result.mean_nll * static_cast<double>(sum.tokens);
      squares += deviation * deviation;
    }
    const auto count = static_cast<double>(sums.size());
    result.standard_error = std::sqrt(squares * count / (count - 1.0)) / static_cast<double>(result.tokens);
  }
  return result;
}

}  // namespace millrace
