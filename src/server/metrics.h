// ServerMetrics: what Prometheus scrapes. Names and meanings are vLLM's where it has them, so that its dashboards and
// routers work; ours begin with millrace:.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/report.h"
#include "server/http_message.h"

namespace millrace {

/// What somebody else counts, told beside the series of ServerMetrics.
struct MetricFamily {
  struct Value {
    std::string label = {};  // what stands behind `label_name`; empty where the family has no such label
    double value = 0.0;
    std::vector<std::pair<std::string, std::string>> more = {};  // further labels, by name
  };
  std::string name, help;
  bool is_counter = false;  // it only grows; else it is a gauge
  std::string label_name = {};
  std::vector<Value> values = {};
};

class ServerMetrics {
 public:
  /// `model_name`: label of every series. `max_sequence_tokens`: the largest bucket of lengths.
  ServerMetrics(const std::string& model_name, std::int64_t max_sequence_tokens);
  ~ServerMetrics();
  ServerMetrics(const ServerMetrics&) = delete;
  ServerMetrics& operator=(const ServerMetrics&) = delete;

  // Any thread; the first two are meant for the stepping thread and look nothing up.
  void take(const StepReport& step);
  void take(const RequestReport& request);
  void take(const HttpRecord& exchange);
  /// Any thread. Tokens that were computed elsewhere, of which no step tells.
  void take_tokens(std::int64_t prompt, std::int64_t cached, std::int64_t generated);

  /// Text exposition format 0.0.4. Gauges are those of `now`, so that they are right also when nothing steps;
  /// `connections` are open. `more` comes behind, under the same model_name.
  [[nodiscard]] std::string text(const EngineSnapshot& now, std::int64_t connections,
                                 std::span<const MetricFamily> more = {});

 private:
  struct Series;
  std::unique_ptr<Series> series_;
};

}  // namespace millrace
