#include "server/metrics.h"

#include <gtest/gtest.h>

#include <array>
#include <thread>

#include "server/access_log.h"

namespace millrace {
namespace {

bool has_line(const std::string& text, const std::string& line) {
  return ("\n" + text).find("\n" + line + "\n") != std::string::npos;
}

TEST(ServerMetrics, CountsUnderTheNamesOfVllm) {
  ServerMetrics metrics("m", 3000);
  const std::array gaps{0.004, 0.2};
  StepReport step;
  step.schedule = 0.00002;
  step.prepare = 0.0002;
  step.forward = 0.02;
  step.sample = 0.002;
  step.stream = 0.0005;
  step.sequences = 3;
  step.prompt_tokens = 10;
  step.generated_tokens = 3;
  step.preemptions = 1;
  step.swaps = 1;
  step.dropped_pages = 5;
  step.freed_pages = 4;
  step.prefix_queries = 64;
  step.prefix_hits = 48;
  step.inter_token = gaps;
  metrics.take(step);
  step.failure = "why";
  metrics.take(step);
  RequestReport request;
  request.summary = {.prompt_tokens = 100,
                     .cached_tokens = 48,
                     .generated_tokens = 20,
                     .queued = 0.01,
                     .ttft = 0.05,
                     .tpot = 0.02,
                     .total = 0.5};
  request.finish = FinishReason::length;
  metrics.take(request);
  request.finish = FinishReason::cancelled;
  request.summary.generated_tokens = 0;
  metrics.take(request);
  metrics.take(HttpRecord{.route = "/v1/models", .status = 200, .bytes = 300});
  metrics.take(HttpRecord{.route = "/v1/models", .status = 200, .bytes = 300});

  EngineSnapshot now;
  now.running = 2;
  now.waiting = 5;
  now.kv.pages = 100;
  now.kv.used_pages = 25;
  now.kv.allocated_slots = 400;
  now.kv.unused_slots = 10;
  const std::string text = metrics.text(now, 7);
  for (const char* line : {
           R"(vllm:num_requests_running{model_name="m"} 2)",
           R"(vllm:num_requests_waiting{model_name="m"} 5)",
           R"(vllm:kv_cache_usage_perc{model_name="m"} 0.25)",
           R"(vllm:prefix_cache_queries_total{model_name="m"} 128)",
           R"(vllm:prefix_cache_hits_total{model_name="m"} 96)",
           R"(vllm:prompt_tokens_total{model_name="m"} 20)",
           R"(vllm:generation_tokens_total{model_name="m"} 6)",
           R"(vllm:num_preemptions_total{model_name="m"} 2)",
           R"(millrace:swapped_sequences_total{model_name="m"} 2)",
           R"(millrace:kv_dropped_pages_total{model_name="m"} 10)",
           R"(millrace:kv_freed_pages_total{model_name="m"} 8)",
           R"(millrace:failed_steps_total{model_name="m"} 1)",
           R"(vllm:time_to_first_token_seconds_count{model_name="m"} 1)",
           R"(vllm:inter_token_latency_seconds_count{model_name="m"} 4)",
           R"(vllm:inter_token_latency_seconds_bucket{model_name="m",le="0.005"} 2)",
           R"(vllm:time_per_output_token_seconds_count{model_name="m"} 4)",
           R"(vllm:request_time_per_output_token_seconds_count{model_name="m"} 1)",
           R"(vllm:e2e_request_latency_seconds_sum{model_name="m"} 1)",
           R"(vllm:request_queue_time_seconds_count{model_name="m"} 2)",
           R"(vllm:request_prompt_tokens_bucket{model_name="m",le="100"} 2)",
           R"(vllm:request_prompt_tokens_bucket{model_name="m",le="2000"} 2)",
           R"(vllm:request_generation_tokens_sum{model_name="m"} 20)",
           R"(vllm:request_success_total{finished_reason="length",model_name="m"} 1)",
           R"(vllm:request_success_total{finished_reason="abort",model_name="m"} 1)",
           R"(vllm:request_success_total{finished_reason="stop",model_name="m"} 0)",
           R"(millrace:kv_waste_ratio{model_name="m"} 0.025)",
           R"(millrace:batch_size_sum{model_name="m"} 6)",
           R"(millrace:step_seconds_sum{model_name="m",part="forward"} 0.04)",
           R"(millrace:step_seconds_count{model_name="m",part="schedule"} 2)",
           R"(millrace:http_requests_total{model_name="m",route="/v1/models",status="200"} 2)",
           R"(millrace:http_sent_bytes_total{model_name="m"} 600)",
           R"(millrace:http_connections{model_name="m"} 7)",
       }) {
    EXPECT_TRUE(has_line(text, line)) << line << "\n" << text;
  }
  EXPECT_EQ(text.find("le=\"5000\""), std::string::npos);  // no sequence is that long
  EXPECT_NE(text.find("# TYPE vllm:prompt_tokens_total counter"), std::string::npos);
}

TEST(ServerMetrics, TellWhatOthersCount) {
  ServerMetrics metrics("m", 100);
  metrics.take_tokens(10, 4, 0);
  metrics.take_tokens(0, 0, 7);
  const std::vector<MetricFamily> more{
      {.name = "millrace:cluster_nodes",
       .help = "Nodes.",
       .label_name = "state",
       .values = {{"ready", 3}, {"dead", 1}, {"dead", 4, {{"zone", "a"}}}}},
      {.name = "millrace:moves_total", .help = "Moves.", .is_counter = true, .values = {{.value = 5}}}};
  const std::string text = metrics.text({}, 0, more);
  for (const char* line :
       {R"(vllm:prompt_tokens_total{model_name="m"} 6)", R"(vllm:prefix_cache_queries_total{model_name="m"} 10)",
        R"(vllm:prefix_cache_hits_total{model_name="m"} 4)", R"(vllm:generation_tokens_total{model_name="m"} 7)",
        "# TYPE millrace:cluster_nodes gauge", R"(millrace:cluster_nodes{model_name="m",state="ready"} 3)",
        R"(millrace:cluster_nodes{model_name="m",state="dead"} 1)", "# TYPE millrace:moves_total counter",
        R"(millrace:cluster_nodes{model_name="m",state="dead",zone="a"} 4)",
        R"(millrace:moves_total{model_name="m"} 5)"}) {
    EXPECT_TRUE(has_line(text, line)) << line << "\n" << text;
  }
}

TEST(ServerMetrics, MayBeReadWhileTheEngineSteps) {
  ServerMetrics metrics("m", 100);
  std::thread stepping([&] {
    for (int i = 0; i < 2000; ++i) {
      StepReport step;
      step.generated_tokens = 1;
      metrics.take(step);
      metrics.take(HttpRecord{.route = "/health", .status = 200 + i % 3});
    }
  });
  for (int i = 0; i < 20; ++i) EXPECT_FALSE(metrics.text({}, 0).empty());
  stepping.join();
  EXPECT_TRUE(has_line(metrics.text({}, 0), R"(vllm:generation_tokens_total{model_name="m"} 2000)"));
}

TEST(AccessLog, OneLineWhateverAClientSends) {
  HttpRecord record{.peer = "127.0.0.1:5",
                    .method = "GET",
                    .path = "/x\r\n2026 peer=evil status=200 \"\\\x1b[31m\xff",
                    .route = "other",
                    .status = 404,
                    .bytes = 120,
                    .seconds = 0.25,
                    .id = "req-1",
                    .tokens = {10, 4, 7}};
  const std::string line = access_line(record);
  EXPECT_EQ(
      line,
      "peer=127.0.0.1:5 method=GET path=/x\\x0d\\x0a2026\\x20peer=evil\\x20status=200\\x20\\x22\\x5c\\x1b[31m\\xff "
      "status=404 bytes=120 seconds=0.2500 id=req-1 prompt=10 cached=4 generated=7");
  record.path = std::string(5000, 'a');
  record.tokens = {};
  EXPECT_LT(access_line(record).size(), 500U);
  EXPECT_NE(access_line(record).find("prompt=- cached=- generated=-"), std::string::npos);
}

}  // namespace
}  // namespace millrace
