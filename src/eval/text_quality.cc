#include "eval/text_quality.h"

#include <algorithm>
#include <cmath>

#include "eval/bootstrap.h"
#include "eval/continuation.h"
#include "runtime/run_tokens.h"

namespace millrace {

namespace {

/// The sum over tokens of p (ln p - ln q). Rounding of p can leave it a little below zero.
double divergence(const ReferencePosition& p, std::span<const float> logits, double log_sum) {
  if (!std::isfinite(log_sum)) return log_sum;
  double sum = 0.0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    sum += static_cast<double>(p.probability[i]) * (p.log_probability[i] - (logits[i] - log_sum));
  }
  return std::max(sum, 0.0);
}

Error not_finite() {
  return fail("the model computes logits that are not finite: nothing can be said of them");
}

/// What the model says of the predicted tokens of a window, before anything is compared.
Result<WindowQuality> judge_alone(ModelRunner& runner, const TokenWindow& window) {
  WindowQuality quality;
  const Status ran =
      run_tokens(runner, window, rows_for_policy(runner), [&](std::int64_t position, std::span<const float> logits) {
        const auto next = static_cast<std::size_t>(position) + 1;
        if (next == window.size()) return;
        quality.nll += log_sum_exp(logits) - logits[static_cast<std::size_t>(window[next])];
        ++quality.tokens;
      });
  MILLRACE_CHECK_OK(ran);
  if (!std::isfinite(quality.nll)) return not_finite();
  return quality;
}

Result<WindowQuality> judge_beside(ModelRunner& runner, const TokenWindow& window, ReferenceFile& file,
                                   std::size_t index) {
  MILLRACE_TRY(ReferenceFile::Cursor cursor, file.start_of(index));
  if (cursor.left + 1 != window.size()) return fail("the reference is of another text; remove it");
  WindowQuality quality;
  ReferencePosition reference;
  Status read = Ok{};
  const Status ran =
      run_tokens(runner, window, rows_for_policy(runner), [&](std::int64_t position, std::span<const float> logits) {
        if (cursor.left == 0 || !read.ok()) return;
        read = file.next(cursor, reference);
        if (!read.ok()) return;
        const auto next = static_cast<std::size_t>(window[static_cast<std::size_t>(position) + 1]);
        const double log_sum = log_sum_exp(logits);
        quality.nll += log_sum - logits[next];
        quality.reference_nll -= reference.log_probability[next];
        quality.divergence.push_back(static_cast<float>(divergence(reference, logits, log_sum)));
        if (std::ranges::max_element(logits) - logits.begin() == reference.top) ++quality.agreeing;
        ++quality.tokens;
      });
  MILLRACE_CHECK_OK(ran);
  MILLRACE_CHECK_OK(read);
  const auto finite = [](float value) { return std::isfinite(value); };
  if (!std::isfinite(quality.nll) || !std::ranges::all_of(quality.divergence, finite)) return not_finite();
  return quality;
}

using Counts = std::span<const std::uint32_t>;

/// Sum of a figure over the windows of a sample, divided by that of another.
template <typename Over, typename Under>
double ratio(std::span<const WindowQuality> windows, Counts counts, Over over, Under under) {
  double above = 0.0, below = 0.0;
  for (std::size_t w = 0; w < windows.size(); ++w) {
    above += counts[w] * over(windows[w]);
    below += counts[w] * under(windows[w]);
  }
  return above / below;
}

double tokens_of(const WindowQuality& window) {
  return static_cast<double>(window.tokens);
}

Estimate estimate(std::size_t windows, const Statistic& statistic) {
  const std::vector<std::uint32_t> once(windows, 1);
  return {statistic(once), bootstrap_interval(windows, statistic)};
}

/// The divergence that 99 % of a sample's positions do not exceed. The positions are sorted once, for all samples.
class HighDivergence {
 public:
  explicit HighDivergence(std::span<const WindowQuality> windows) : windows_(windows) {
    for (std::size_t w = 0; w < windows.size(); ++w) {
      for (const float value : windows[w].divergence) falling_.push_back({value, w});
    }
    std::ranges::sort(falling_, std::greater(), &Position::value);
  }

  [[nodiscard]] double operator()(Counts counts) const {
    double left = 0.0;
    for (std::size_t w = 0; w < windows_.size(); ++w) left += 0.01 * counts[w] * tokens_of(windows_[w]);
    for (const Position& position : falling_) {
      left -= counts[position.window];
      if (left < 0.0) return position.value;
    }
    return falling_.back().value;
  }

 private:
  struct Position {
    float value;
    std::size_t window;
  };
  std::span<const WindowQuality> windows_;
  std::vector<Position> falling_;
};

Comparison compare(std::span<const WindowQuality> windows) {
  const std::size_t count = windows.size();
  Comparison result;
  result.reference_perplexity = estimate(count, [&](Counts counts) {
    return std::exp(ratio(
        windows, counts, [](const WindowQuality& w) { return w.reference_nll; }, tokens_of));
  });
  result.perplexity_ratio = estimate(count, [&](Counts counts) {
    return std::exp(ratio(
        windows, counts, [](const WindowQuality& w) { return w.nll - w.reference_nll; }, tokens_of));
  });
  result.kl_mean = mean_divergence(windows);
  result.kl_p99 = estimate(count, HighDivergence(windows));
  result.top1_agreement = estimate(count, [&](Counts counts) {
    return ratio(
        windows, counts, [](const WindowQuality& w) { return static_cast<double>(w.agreeing); }, tokens_of);
  });
  return result;
}

}  // namespace

Status write_reference(ModelRunner& runner, std::span<const TokenWindow> windows, ReferenceFile& file,
                       const WindowProgress& progress) {
  for (std::size_t w = file.windows(); w < windows.size(); ++w) {
    MILLRACE_CHECK_OK(check_tokens(runner, windows[w], rows_for_policy(runner)));
    MILLRACE_CHECK_OK(file.begin_window());
    Status added = Ok{};
    const Status ran = run_tokens(runner, windows[w], rows_for_policy(runner),
                                  [&](std::int64_t position, std::span<const float> logits) {
                                    if (added.ok() && static_cast<std::size_t>(position) + 1 < windows[w].size())
                                      added = file.add(logits);
                                  });
    MILLRACE_CHECK_OK(ran);
    MILLRACE_CHECK_OK(added);
    MILLRACE_CHECK_OK(file.end_window());
    if (progress) progress(static_cast<std::int64_t>(w) + 1, static_cast<std::int64_t>(windows.size()));
  }
  return Ok{};
}

Result<std::vector<WindowQuality>> judge_windows(ModelRunner& runner, std::span<const TokenWindow> windows,
                                                 ReferenceFile* reference, const WindowProgress& progress) {
  std::vector<WindowQuality> judged;
  for (std::size_t w = 0; w < windows.size(); ++w) {
    MILLRACE_CHECK_OK(check_tokens(runner, windows[w], rows_for_policy(runner)));
    MILLRACE_TRY(WindowQuality quality, reference == nullptr ? judge_alone(runner, windows[w])
                                                             : judge_beside(runner, windows[w], *reference, w));
    judged.push_back(std::move(quality));
    if (progress) progress(static_cast<std::int64_t>(w) + 1, static_cast<std::int64_t>(windows.size()));
  }
  return judged;
}

Estimate mean_divergence(std::span<const WindowQuality> windows) {
  std::vector<double> sums;
  for (const WindowQuality& window : windows) {
    double sum = 0.0;
    for (const float value : window.divergence) sum += value;
    sums.push_back(sum);
  }
  return estimate(windows.size(), [&](Counts counts) {
    return ratio(
        windows, counts, [&](const WindowQuality& w) { return sums[static_cast<std::size_t>(&w - windows.data())]; },
        tokens_of);
  });
}

TextQuality summarize(std::span<const WindowQuality> windows, bool compared) {
  TextQuality quality;
  quality.windows = static_cast<std::int64_t>(windows.size());
  double nll = 0.0;
  for (const WindowQuality& window : windows) {
    quality.tokens += window.tokens;
    nll += window.nll;
  }
  quality.mean_nll = nll / static_cast<double>(quality.tokens);
  quality.perplexity = estimate(windows.size(), [&](Counts counts) {
    return std::exp(ratio(
        windows, counts, [](const WindowQuality& w) { return w.nll; }, tokens_of));
  });
  if (compared) quality.comparison = compare(windows);
  return quality;
}

}  // namespace millrace
