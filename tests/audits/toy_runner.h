// ToyRunner: a node's engine with a made-up model, on any clock: logits are a hash of the last two tokens. It draws,
// and says log-probabilities, as engines do, so that audits have something to find.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "cluster/node_streams.h"

namespace millrace::test {

constexpr std::int32_t kToyVocab = 200;

struct ToyModel {
  std::uint64_t weights = 1;  // which model it is
  double error = 0.0;         // standard deviation of what each logit is off by
};

class ToyRunner : public StreamRunner {
 public:
  /// `numeric_class`: that it says it is of; `model`: what it runs.
  ToyRunner(Transport& transport, std::string numeric_class, ToyModel model)
      : transport_(&transport), class_(std::move(numeric_class)), model_(model) {}

  void start(RunId run, Placement placement, Sink sink) override;
  void pause(RunId) override {}
  void resume(RunId) override {}
  void cancel(RunId run) override { runs_.erase(run); }

  ToyModel& model() { return model_; }
  [[nodiscard]] std::size_t held() const { return runs_.size(); }
  /// Placements that asked for log-probabilities of their prompt.
  [[nodiscard]] int scorings() const { return scorings_; }

 private:
  struct Run {
    Placement placement;
    Sink sink;
  };

  void finish(RunId run);
  /// Logits behind these tokens.
  [[nodiscard]] std::vector<float> logits(const std::vector<std::int32_t>& tokens) const;

  Transport* transport_;
  std::string class_;
  ToyModel model_;
  std::map<RunId, Run> runs_;
  int scorings_ = 0;
};

}  // namespace millrace::test
