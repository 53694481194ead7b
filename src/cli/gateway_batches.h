// A gateway's batches: /v1/files, /v1/batches, and the work (docs/batches.md).
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "batches/batch_api.h"
#include "batches/batch_hours.h"
#include "batches/batch_routes.h"
#include "batches/batch_service.h"
#include "batches/nats_batch_store.h"
#include "cluster/event_loop.h"
#include "cluster/gateway_streams.h"
#include "cluster/route_picker.h"
#include "tenants/admission.h"

namespace millrace::cli {

struct GatewayBatchFlags {
  std::string start = "cheap";
};

void add_gateway_batch_flags(CLI::App& command, GatewayBatchFlags& flags);

class GatewayBatches {
 public:
  /// All but the flags must outlive it. `replicas`: servers that keep the bucket, where it is made here.
  GatewayBatches(const GatewayBatchFlags& flags, const NatsTransport& transport, const std::string& gateway,
                 const ServedModel& model, const EngineAccess& engine, Admission& admission,
                 std::function<void(const std::string&)> on_message, int replicas);

  void add_to(std::vector<HttpRoute>& routes) { routes_.add_to(routes); }
  /// Any thread.
  [[nodiscard]] BatchWorker::Figures figures() { return service_.figures(); }
  /// Any thread: the work goes to other gateways.
  void end() { service_.end(); }

  /// Before the loop runs, or on it: tells from now on what room the nodes have, what it costs and how fast they are.
  void watch(const GatewayStreams& streams, const RoutePicker& picker, EventLoop& loop);

 private:
  std::string model_;
  BatchHours hours_;
  std::uint64_t looks_ = 0;
  NatsBatchStore store_;
  BatchService service_;
  BatchApi api_;
  BatchRoutes routes_;
};

}  // namespace millrace::cli
