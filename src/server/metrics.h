// ServerMetrics: what Prometheus scrapes. Names and meanings are vLLM's where it has them, so that its dashboards and
// routers work; ours begin with millrace:.
#pragma once

#include <memory>
#include <string>

#include "engine/report.h"
#include "server/http_message.h"

namespace millrace {

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

  /// Text exposition format 0.0.4. Gauges are those of `now`, so that they are right also when nothing steps;
  /// `connections` are open.
  [[nodiscard]] std::string text(const EngineSnapshot& now, std::int64_t connections);

 private:
  struct Series;
  std::unique_ptr<Series> series_;
};

}  // namespace millrace
