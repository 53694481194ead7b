#include "bench/load_test.h"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <ctime>
#include <exception>
#include <memory>
#include <numeric>
#include <utility>

#include "bench/answer.h"
#include "bench/http_client.h"

namespace millrace::bench {

namespace asio = boost::asio;
using Clock = std::chrono::steady_clock;

namespace {

double seconds(Clock::duration time) {
  return std::chrono::duration<double>(time).count();
}

double process_cpu_seconds() {
  timespec time{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

/// What escapes a coroutine (memory ran out) leaves io_context::run() and reaches main().
void rethrow(std::exception_ptr escaped) {  // NOLINT(performance-unnecessary-value-param): asio's signature
  if (escaped) std::rethrow_exception(escaped);
}

/// Sends a list of requests; one for the warmup, one for the run.
class Run {
 public:
  Run(asio::io_context& context, HttpClient& client, const RequestWriter& writer, const LoadPlan& plan,
      const std::vector<PlannedRequest>& requests, std::function<void(std::int64_t, std::int64_t)> progress)
      : context_(&context),
        client_(&client),
        writer_(&writer),
        plan_(&plan),
        requests_(&requests),
        progress_(std::move(progress)),
        records_(requests.size()) {}

  LoadResult go() {
    const double cpu = process_cpu_seconds();
    const std::int64_t connections = client_->connections();
    const std::int64_t retries = client_->retries();
    start_ = end_ = Clock::now();
    if (plan_->concurrency == 0) {
      asio::co_spawn(*context_, start_when_due(), rethrow);
    } else {
      const auto workers = std::min<std::size_t>(static_cast<std::size_t>(plan_->concurrency), requests_->size());
      for (std::size_t i = 0; i < workers; ++i) asio::co_spawn(*context_, one_after_another(), rethrow);
    }
    context_->restart();
    context_->run();
    return {std::move(records_),
            seconds(end_ - start_),
            {process_cpu_seconds() - cpu, client_->retries() - retries, client_->connections() - connections}};
  }

 private:
  asio::awaitable<void> start_when_due() {
    asio::steady_timer timer(*context_);
    for (std::size_t i = 0; i < requests_->size(); ++i) {
      const auto due =
          start_ + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>((*requests_)[i].due_s));
      if (due > Clock::now()) {
        boost::system::error_code ignored;  // nobody cancels this timer
        timer.expires_at(due);
        co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
      }
      records_[i].due_s = (*requests_)[i].due_s;
      asio::co_spawn(*context_, send(i), rethrow);
    }
  }

  asio::awaitable<void> one_after_another() {
    while (next_ < requests_->size()) {
      const std::size_t i = next_++;
      records_[i].due_s = seconds(Clock::now() - start_);
      co_await send(i);
    }
  }

  [[nodiscard]] std::string body(const PlannedRequest& request, std::size_t number) const {
    if (plan_->text)
      return writer_->body(plan_->text->prompt(request.prompt, plan_->seed), request.output_tokens, number);
    return writer_->body(prompt_ids(request.prompt, plan_->seed, plan_->range), request.output_tokens, number);
  }

  asio::awaitable<void> send(std::size_t number) {
    const PlannedRequest& planned = (*requests_)[number];
    const std::string message = client_->request("POST", writer_->path(), body(planned, number));
    RequestRecord& record = records_[number];
    record.number = static_cast<std::int64_t>(number);
    record.input_tokens = planned.input_tokens();
    const Clock::time_point started = Clock::now();
    record.start_s = seconds(started - start_);
    Answer answer;
    const BodySink sink = [&](std::string_view piece) { return answer.take(piece, seconds(Clock::now() - started)); };
    const Exchange exchange = co_await client_->send(message, sink);
    end_ = Clock::now();
    answer.finish(exchange, seconds(end_ - started), record);
    ++done_;
    if (progress_) progress_(done_, static_cast<std::int64_t>(requests_->size()));
  }

  asio::io_context* context_;
  HttpClient* client_;
  const RequestWriter* writer_;
  const LoadPlan* plan_;
  const std::vector<PlannedRequest>* requests_;
  std::function<void(std::int64_t, std::int64_t)> progress_;
  std::vector<RequestRecord> records_;
  Clock::time_point start_, end_;
  std::size_t next_ = 0;
  std::int64_t done_ = 0;
};

}  // namespace

std::int64_t PlannedRequest::input_tokens() const {
  return std::accumulate(prompt.begin(), prompt.end(), std::int64_t{0},
                         [](std::int64_t sum, const PromptPart& part) { return sum + part.tokens; });
}

Result<ServedModel> ask_model(const Target& target) {
  asio::io_context context(1);
  MILLRACE_TRY(const std::unique_ptr<HttpClient> client, HttpClient::make(context.get_executor(), target));
  const std::string request = client->request("GET", "/v1/models", "");
  const BodySink no_stream = [](std::string_view) { return BodyDemand::stop; };
  Exchange exchange;
  asio::co_spawn(
      context, [&]() -> asio::awaitable<void> { exchange = co_await client->send(request, no_stream); }, rethrow);
  context.run();
  if (!exchange.failure.empty()) return fail("{}", exchange.detail);
  if (exchange.status != 200) {
    return fail("{}{}/v1/models: status {}: {}", target.url.authority(), target.url.path, exchange.status,
                error_message(exchange.body));
  }
  Result<ServedModel> model = parse_models(exchange.body);
  if (!model.ok()) return fail("{}{}/v1/models: {}", target.url.authority(), target.url.path, model.error().message);
  return model;
}

Result<LoadResult> run_load(const Target& target, const RequestTemplate& common, const LoadPlan& plan,
                            const std::function<void(std::int64_t, std::int64_t)>& progress) {
  asio::io_context context(1);
  MILLRACE_TRY(const RequestWriter writer, RequestWriter::make(common));
  MILLRACE_TRY(const std::unique_ptr<HttpClient> client, HttpClient::make(context.get_executor(), target));
  if (!plan.warmup.empty()) {
    const LoadResult warmed = Run(context, *client, writer, plan, plan.warmup, {}).go();
    for (const RequestRecord& record : warmed.records) {
      if (!record.ok()) return fail("a warmup request failed ({}): {}", record.failure, record.detail);
    }
  }
  return Run(context, *client, writer, plan, plan.requests, progress).go();
}

}  // namespace millrace::bench
