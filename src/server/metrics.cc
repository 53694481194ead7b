#include "server/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <array>
#include <sstream>

namespace millrace {

namespace {

using prometheus::Counter;
using prometheus::Gauge;
using prometheus::Histogram;
using Buckets = Histogram::BucketBoundaries;

constexpr std::array kFinishes{FinishReason::stop, FinishReason::length, FinishReason::cancelled, FinishReason::error};

/// As vLLM calls it.
std::string_view finished_reason(FinishReason reason) {
  return reason == FinishReason::cancelled ? "abort" : finish_reason_name(reason);
}

// Bounds in seconds, close enough to vLLM's that quantiles of both can be compared, with more of them at the fast end.
const Buckets kFirstToken{0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
                          1,     2.5,   5,    7.5,  10,   20,   40,   80,  160,  640, 2560};
const Buckets kBetweenTokens{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3,
                             0.4,   0.5,    0.75,  1,    2.5,   5,    7.5,   10,  20,   40,  80};
const Buckets kWholeRequest{0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1,   1.5, 2,   2.5, 5,    10,
                            15,   20,   30,  40,  50,  60,  120, 240, 480, 960, 1920, 7680};
const Buckets kStepPart{0.00001, 0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10};
const Buckets kBatch{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096};

/// 1, 2, 5, 10, 20, 50, ... up to `most`.
Buckets lengths_up_to(std::int64_t most) {
  Buckets buckets;
  for (double decade = 1.0;; decade *= 10.0) {
    for (const double digit : {1.0, 2.0, 5.0}) {
      if (!buckets.empty() && digit * decade > static_cast<double>(most)) return buckets;
      buckets.push_back(digit * decade);
    }
  }
}

double ratio(std::int64_t part, std::int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0.0;
}

}  // namespace

struct ServerMetrics::Series {
  Series(const std::string& model_name, std::int64_t max_sequence_tokens) : labels{{"model_name", model_name}} {
    const Buckets lengths = lengths_up_to(max_sequence_tokens);
    running = &gauge("vllm:num_requests_running", "Requests in the running batch.");
    waiting = &gauge("vllm:num_requests_waiting", "Requests that wait for their first step.");
    kv_usage = &gauge("vllm:kv_cache_usage_perc", "KV pages in use; 1 is all of them.");
    preemptions = &counter("vllm:num_preemptions_total", "Sequences that lost their KV pages for a while.");
    swaps = &counter("millrace:swapped_sequences_total", "Of those, the ones whose pages were swapped out.");
    dropped = &counter("millrace:kv_dropped_pages_total", "KV pages that sequences did not keep.");
    freed = &counter("millrace:kv_freed_pages_total", "Of those, the ones that nobody else had: memory given back.");
    prefix_queries = &counter("vllm:prefix_cache_queries_total", "Prompt tokens looked for in shared context.");
    prefix_hits = &counter("vllm:prefix_cache_hits_total", "Prompt tokens found in shared context.");
    prompt_tokens = &counter("vllm:prompt_tokens_total", "Prompt tokens computed.");
    generation_tokens = &counter("vllm:generation_tokens_total", "Tokens generated.");
    first_token = &histogram("vllm:time_to_first_token_seconds", "From submission to the first token.", kFirstToken);
    inter_token = &histogram("vllm:inter_token_latency_seconds", "Between two tokens of an answer.", kBetweenTokens);
    per_token =
        &histogram("vllm:time_per_output_token_seconds",
                   "Between two tokens of an answer: the older name of inter_token_latency_seconds.", kBetweenTokens);
    request_per_token = &histogram("vllm:request_time_per_output_token_seconds",
                                   "Mean time per token after the first, of a request.", kBetweenTokens);
    whole_request = &histogram("vllm:e2e_request_latency_seconds", "From submission to the last token.", kWholeRequest);
    queued = &histogram("vllm:request_queue_time_seconds", "From submission to the first step.", kWholeRequest);
    request_prompt = &histogram("vllm:request_prompt_tokens", "Tokens of a request's prompt.", lengths);
    request_generated = &histogram("vllm:request_generation_tokens", "Tokens of a request's answers.", lengths);
    auto& success = prometheus::BuildCounter()
                        .Name("vllm:request_success_total")
                        .Help("Requests that ended, by how.")
                        .Register(registry);
    for (std::size_t i = 0; i < kFinishes.size(); ++i) {
      finished[i] = &success.Add(with("finished_reason", std::string(finished_reason(kFinishes[i]))));
    }

    kv_waste = &gauge("millrace:kv_waste_ratio", "KV slots that are allocated and hold no token, of those allocated.");
    batch = &histogram("millrace:batch_size", "Sequences in a step.", kBatch);
    auto& step =
        prometheus::BuildHistogram().Name("millrace:step_seconds").Help("Time of a step, by part.").Register(registry);
    for (const auto& [part, name] :
         {std::pair(&schedule, "schedule"), std::pair(&prepare, "prepare"), std::pair(&forward, "forward"),
          std::pair(&sample, "sample"), std::pair(&stream, "stream")}) {
      *part = &step.Add(with("part", name), kStepPart);
    }
    failed_steps =
        &counter("millrace:failed_steps_total", "Steps that could not be computed, with all that were in them.");
    connections = &gauge("millrace:http_connections", "Open connections.");
    exchanges = &prometheus::BuildCounter()
                     .Name("millrace:http_requests_total")
                     .Help("HTTP requests answered, by route and status.")
                     .Register(registry);
    sent = &counter("millrace:http_sent_bytes_total", "Bytes of HTTP answers.");
  }

  Gauge& gauge(const std::string& name, const std::string& help) {
    return prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add(labels);
  }
  Counter& counter(const std::string& name, const std::string& help) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add(labels);
  }
  Histogram& histogram(const std::string& name, const std::string& help, const Buckets& buckets) {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(registry).Add(labels, buckets);
  }
  [[nodiscard]] prometheus::Labels with(const std::string& name, const std::string& value) const {
    prometheus::Labels all = labels;
    all.emplace(name, value);
    return all;
  }

  [[nodiscard]] prometheus::MetricFamily collected(const MetricFamily& family) const {
    prometheus::MetricFamily all;
    all.name = family.name;
    all.help = family.help;
    all.type = family.is_counter ? prometheus::MetricType::Counter : prometheus::MetricType::Gauge;
    for (const MetricFamily::Value& value : family.values) {
      prometheus::ClientMetric metric;
      const prometheus::Labels own = family.label_name.empty() ? labels : with(family.label_name, value.label);
      for (const auto& [name, text] : own) metric.label.push_back({name, text});
      for (const auto& [name, text] : value.more) metric.label.push_back({name, text});
      metric.counter.value = metric.gauge.value = value.value;
      all.metric.push_back(std::move(metric));
    }
    return all;
  }

  prometheus::Labels labels;
  prometheus::Registry registry;
  Gauge *running, *waiting, *kv_usage, *kv_waste, *connections;
  Counter *preemptions, *swaps, *dropped, *freed, *prefix_queries, *prefix_hits, *prompt_tokens, *generation_tokens,
      *failed_steps, *sent;
  Histogram *first_token, *inter_token, *per_token, *request_per_token, *whole_request, *queued;
  Histogram *request_prompt, *request_generated, *batch;
  Histogram *schedule, *prepare, *forward, *sample, *stream;
  std::array<Counter*, kFinishes.size()> finished;
  prometheus::Family<Counter>* exchanges;
};

ServerMetrics::ServerMetrics(const std::string& model_name, std::int64_t max_sequence_tokens)
    : series_(std::make_unique<Series>(model_name, max_sequence_tokens)) {}

ServerMetrics::~ServerMetrics() = default;

void ServerMetrics::take(const StepReport& step) {
  Series& s = *series_;
  const auto add = [](Counter* counter, std::int64_t count) {
    if (count > 0) counter->Increment(static_cast<double>(count));
  };
  add(s.prompt_tokens, step.prompt_tokens);
  add(s.generation_tokens, step.generated_tokens);
  add(s.preemptions, step.preemptions);
  add(s.swaps, step.swaps);
  add(s.dropped, step.dropped_pages);
  add(s.freed, step.freed_pages);
  add(s.prefix_queries, step.prefix_queries);
  add(s.prefix_hits, step.prefix_hits);
  add(s.failed_steps, step.failure.empty() ? 0 : 1);
  for (const double seconds : step.inter_token) {
    s.inter_token->Observe(seconds);
    s.per_token->Observe(seconds);
  }
  s.batch->Observe(static_cast<double>(step.sequences));
  s.schedule->Observe(step.schedule);
  s.prepare->Observe(step.prepare);
  s.forward->Observe(step.forward);
  s.sample->Observe(step.sample);
  s.stream->Observe(step.stream);
}

void ServerMetrics::take(const RequestReport& request) {
  Series& s = *series_;
  const RequestSummary& summary = request.summary;
  for (std::size_t i = 0; i < kFinishes.size(); ++i) {
    if (kFinishes[i] == request.finish) s.finished[i]->Increment();
  }
  s.whole_request->Observe(summary.total);
  s.queued->Observe(summary.queued);
  s.request_prompt->Observe(static_cast<double>(summary.prompt_tokens));
  s.request_generated->Observe(static_cast<double>(summary.generated_tokens));
  if (summary.generated_tokens > 0) s.first_token->Observe(summary.ttft);
  if (summary.generated_tokens > 1) s.request_per_token->Observe(summary.tpot);
}

void ServerMetrics::take(const HttpRecord& exchange) {
  Series& s = *series_;
  auto labels = s.with("route", exchange.route);
  labels.emplace("status", std::to_string(exchange.status));
  s.exchanges->Add(labels).Increment();
  s.sent->Increment(static_cast<double>(exchange.bytes));
}

void ServerMetrics::take_tokens(std::int64_t prompt, std::int64_t cached, std::int64_t generated) {
  Series& s = *series_;
  s.prompt_tokens->Increment(static_cast<double>(prompt - cached));
  s.prefix_queries->Increment(static_cast<double>(prompt));
  s.prefix_hits->Increment(static_cast<double>(cached));
  s.generation_tokens->Increment(static_cast<double>(generated));
}

std::string ServerMetrics::text(const EngineSnapshot& now, std::int64_t connections,
                                std::span<const MetricFamily> more) {
  Series& s = *series_;
  s.running->Set(static_cast<double>(now.running));
  s.waiting->Set(static_cast<double>(now.waiting));
  s.kv_usage->Set(ratio(now.kv.used_pages, now.kv.pages));
  s.kv_waste->Set(ratio(now.kv.unused_slots, now.kv.allocated_slots));
  s.connections->Set(static_cast<double>(connections));
  std::vector<prometheus::MetricFamily> families = s.registry.Collect();
  for (const MetricFamily& family : more) families.push_back(s.collected(family));
  std::ostringstream out;
  prometheus::TextSerializer().Serialize(out, families);
  return out.str();
}

}  // namespace millrace
