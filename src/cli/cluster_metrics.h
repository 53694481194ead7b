// What Prometheus is told of a gateway's and a node's part in the cluster.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "audits/auditor.h"
#include "batches/batch_worker.h"
#include "cluster/event_loop.h"
#include "cluster/gateway_engine.h"
#include "cluster/gateway_streams.h"
#include "cluster/nats_transport.h"
#include "cluster/node_streams.h"
#include "server/metrics.h"
#include "tenants/tenant_meter.h"

namespace millrace::cli {

/// On the loop's thread.
std::vector<MetricFamily> gateway_metrics(const GatewayStreams& streams, const NatsTransport& transport);
std::vector<MetricFamily> node_metrics(const NodeStreams& streams, const NatsTransport& transport);

/// Behind those of `families`.
void add_hedges(std::vector<MetricFamily>& families, const GatewayEngine::Counters& hedges);
/// A series for each tenant and figure; Admission::figures() bounds how many there are. Empty: none.
void add_tenants(std::vector<MetricFamily>& families, const std::map<std::string, TenantFigures>& tenants);
/// `open`: streams of audits that run.
void add_audits(std::vector<MetricFamily>& families, const Auditor::Counters& audits, std::size_t open);
void add_batches(std::vector<MetricFamily>& families, const BatchWorker::Figures& batches);

/// What only the loop's thread may look at, for those who ask on other threads: four times a second it makes a copy.
template <typename Value>
class LoopCopy {
 public:
  /// Before the loop runs. `look` is called on its thread, and now.
  LoopCopy(EventLoop& loop, std::function<Value()> look) : loop_(&loop), look_(std::move(look)) { copy(); }
  /// Once the loop has ended.
  ~LoopCopy() { loop_->cancel(timer_); }
  LoopCopy(const LoopCopy&) = delete;
  LoopCopy& operator=(const LoopCopy&) = delete;

  /// Any thread.
  [[nodiscard]] Value get() const {
    const std::lock_guard lock(mutex_);
    return value_;
  }

 private:
  void copy() {
    Value value = look_();
    {
      const std::lock_guard lock(mutex_);
      value_ = std::move(value);
    }
    timer_ = loop_->after(std::chrono::milliseconds(250), [this] { copy(); });
  }

  EventLoop* loop_;
  std::function<Value()> look_;
  EventLoop::TimerId timer_ = 0;
  mutable std::mutex mutex_;
  Value value_ = {};  // guarded by mutex_
};

}  // namespace millrace::cli
