#include "audits/audit_test.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/check.h"

namespace millrace {

namespace {

/// log(exp(a) + exp(b)).
double log_sum(double a, double b) {
  return std::max(a, b) + std::log1p(std::exp(-std::abs(a - b)));
}

}  // namespace

void AuditTest::add(double score, double bound) {
  MILLRACE_CHECK(score >= 0.0 && std::isfinite(score) && bound > 0.0, "a score of {} against {}", score, bound);
  ++answers_;
  const auto n = static_cast<double>(answers_);
  const double fresh = -std::log(n) - std::log(n + 1.0);
  for (std::size_t i = 0; i < kShares.size(); ++i) {
    const double e_value = 1.0 - kShares[i] + kShares[i] * (score / bound);
    log_capital_[i] = log_sum(log_capital_[i], fresh) + std::log(e_value);
  }
  if (log_evidence() >= -std::log(kAlpha)) alarmed_ = true;
}

double AuditTest::log_evidence() const {
  double capital = -std::log(static_cast<double>(answers_) + 1.0);  // not in a bet yet
  for (const double log_capital : log_capital_) {
    capital = log_sum(capital, log_capital - std::log(static_cast<double>(kShares.size())));
  }
  return capital;
}

std::string AuditTest::json() const {
  return nlohmann::json{{"answers", answers_}, {"log_capital", log_capital_}, {"alarmed", alarmed_}}.dump();
}

Result<AuditTest> AuditTest::parse(std::string_view text) {
  const auto object = nlohmann::json::parse(text, nullptr, false);
  if (!object.is_object()) return fail("the state of an audit is no JSON object");
  const auto answers = object.find("answers"), capital = object.find("log_capital"), alarmed = object.find("alarmed");
  if (answers == object.end() || !answers->is_number_unsigned()) return fail("\"answers\": expected a count");
  if (alarmed == object.end() || !alarmed->is_boolean()) return fail("\"alarmed\": expected true or false");
  if (capital == object.end() || !capital->is_array() || capital->size() != kShares.size()) {
    return fail("\"log_capital\": expected {} numbers", kShares.size());
  }
  AuditTest test;
  test.answers_ = answers->get<std::int64_t>();
  test.alarmed_ = alarmed->get<bool>();
  for (std::size_t i = 0; i < kShares.size(); ++i) {
    if (!(*capital)[i].is_number()) return fail("\"log_capital\": expected {} numbers", kShares.size());
    test.log_capital_[i] = (*capital)[i].get<double>();
  }
  if (test.answers_ < 0) return fail("\"answers\": expected a count");
  return test;
}

void AuditBaseline::add(double score) {
  ++answers_;
  const double before = score - mean_;
  mean_ += before / static_cast<double>(answers_);
  squares_ += before * (score - mean_);
}

double AuditBaseline::bound(double least) const {
  if (answers_ < kEnough) return least;
  const auto n = static_cast<double>(answers_);
  const double error = std::sqrt(squares_ / (n - 1.0) / n);
  return std::max(least, 2.0 * mean_ + 3.0 * error);
}

std::string AuditBaseline::json() const {
  return nlohmann::json{{"answers", answers_}, {"mean", mean_}, {"squares", squares_}}.dump();
}

Result<AuditBaseline> AuditBaseline::parse(std::string_view text) {
  const auto object = nlohmann::json::parse(text, nullptr, false);
  if (!object.is_object()) return fail("the baseline of an audit is no JSON object");
  const auto answers = object.find("answers"), mean = object.find("mean"), squares = object.find("squares");
  if (answers == object.end() || !answers->is_number_unsigned()) return fail("\"answers\": expected a count");
  for (const auto& number : {mean, squares}) {
    if (number == object.end() || !number->is_number() || !(number->get<double>() >= 0.0)) {
      return fail("\"mean\", \"squares\": expected numbers of 0 or more");
    }
  }
  AuditBaseline baseline;
  baseline.answers_ = answers->get<std::int64_t>();
  baseline.mean_ = mean->get<double>();
  baseline.squares_ = squares->get<double>();
  if (baseline.answers_ < 0) return fail("\"answers\": expected a count");
  return baseline;
}

}  // namespace millrace
