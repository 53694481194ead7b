// AuditTest: a sequential test of one node by the scores of its answers, valid at any time (docs/audits.md). Pure.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/result.h"

namespace millrace {

/// What the test bets on being too little for an honest node's scores. A bet is a share of what it has: e-values
/// 1 - share + share * score / bound, whose mean is at most 1 where the mean score is at most the bound, whatever came
/// before (Waudby-Smith and Ramdas 2023, "Estimating means of bounded random variables by betting"). Their running
/// product exceeds 1/alpha with a probability of at most alpha, ever (Ville 1939).
///
/// A node that turns dishonest after a thousand answers has by then lost all bets that began with the first. So new
/// ones begin with each answer k, with the share 1 / (k (k + 1)) of the capital (the mixture over moments of change in
/// Shin, Ramdas and Rinaldo 2023, "E-detectors"); what is not yet in a bet is kept. The whole is a martingale still.
class AuditTest {
 public:
  static constexpr double kAlpha = 0.01;  // of false alarms, over the life of a node
  static constexpr std::array<double, 3> kShares{0.02, 0.1, 0.5};

  /// One answer. `score`: at least 0. `bound` (above 0): what the mean score of honest nodes does not exceed.
  void add(double score, double bound);

  [[nodiscard]] std::int64_t answers() const { return answers_; }
  /// Logarithm of the capital now, that began with 1.
  [[nodiscard]] double log_evidence() const;
  /// Whether the capital has ever reached 1/alpha.
  [[nodiscard]] bool alarmed() const { return alarmed_; }

  /// As JSON text, and back. Error: what is wrong in it.
  [[nodiscard]] std::string json() const;
  static Result<AuditTest> parse(std::string_view json);

  friend bool operator==(const AuditTest&, const AuditTest&) = default;

 private:
  std::int64_t answers_ = 0;
  std::array<double, kShares.size()> log_capital_ = {kNothing, kNothing, kNothing};  // in bets, for each share
  bool alarmed_ = false;

  static constexpr double kNothing = -1e300;
};

/// What honest answers score, learnt from nodes that are trusted.
class AuditBaseline {
 public:
  static constexpr std::int64_t kEnough = 16;  // answers

  void add(double score);
  [[nodiscard]] std::int64_t answers() const { return answers_; }
  [[nodiscard]] double mean() const { return mean_; }
  /// Twice the mean and three standard errors; only with enough answers, and never less than `least`.
  [[nodiscard]] double bound(double least) const;

  [[nodiscard]] std::string json() const;
  static Result<AuditBaseline> parse(std::string_view json);

  friend bool operator==(const AuditBaseline&, const AuditBaseline&) = default;

 private:
  std::int64_t answers_ = 0;
  double mean_ = 0.0, squares_ = 0.0;  // of deviations from the mean (Welford 1962)
};

}  // namespace millrace
