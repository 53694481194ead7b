#include "server/batch_run.h"

#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/check.h"
#include "server/api_answer.h"
#include "server/batch_call.h"

namespace millrace {

namespace {

/// A call that the engine accepts, or what the client is told.
ApiResult<ApiCall> prepare(const BatchLine& line, const ServedModel& model, const EngineCore& engine) {
  MILLRACE_TRY(ApiCall call, batch_call(line, model));
  for (Request& request : call.requests) {
    if (const Status prepared = engine.prepare(request); !prepared.ok()) return ApiError::from(prepared.error());
  }
  return call;
}

class BatchRun {
 public:
  BatchRun(EngineCore& engine, const ServedModel& model, BatchInput& input, BatchOutput& output,
           const BatchOptions& options)
      : engine_(&engine), model_(&model), input_(&input), output_(&output), options_(&options) {
    summary_.requests = input.requests();
    summary_.skipped = output.records();
  }

  ~BatchRun();
  BatchRun(const BatchRun&) = delete;
  BatchRun& operator=(const BatchRun&) = delete;

  Result<BatchSummary> run();

 private:
  /// A line whose answer is being made.
  struct Job {
    BatchKey key;
    std::optional<std::string> custom_id;
    AnswerBuilder builder;
    std::int64_t answers = 0;
    std::vector<RequestId> requests = {};
    bool ended = false;
  };

  Status fill();
  void start(BatchKey key, BatchLine line, ApiCall call);
  void on(Job& job, std::size_t request, const TokenEvent& event);
  void end(Job& job);
  void write(const BatchKey& key, const std::optional<std::string>& custom_id, const std::optional<ApiError>& error,
             std::string_view answer, const std::optional<ApiError>& problem);
  [[nodiscard]] bool told_to_stop() const { return options_->stop && options_->stop(); }

  EngineCore* engine_;
  const ServedModel* model_;
  BatchInput* input_;
  BatchOutput* output_;
  const BatchOptions* options_;
  BatchSummary summary_;
  std::unordered_map<std::uint64_t, std::unique_ptr<Job>> jobs_;  // by number of the request
  std::vector<std::uint64_t> ended_;                              // jobs to forget, when no sink is running
  std::int64_t open_ = 0;                                         // answers of jobs_
  bool all_read_ = false;
  RequestId next_id_ = 1;
  Status failure_ = Ok{};  // the first: of the output, or of a step
  std::string stream_;     // that nobody asked for: stays empty
};

BatchRun::~BatchRun() {
  for (const auto& [number, job] : jobs_) {
    job->ended = true;
    for (const RequestId id : job->requests) engine_->cancel(id);
  }
}

Result<BatchSummary> BatchRun::run() {
  const auto begin = EngineCore::Clock::now();
  const auto stopped = [&] { return summary_.stopped = told_to_stop(); };
  while (!stopped()) {
    MILLRACE_CHECK_OK(fill());
    const bool stepped = engine_->step();
    MILLRACE_CHECK_OK(failure_);
    for (const std::uint64_t number : std::exchange(ended_, {})) {
      const auto found = jobs_.find(number);
      open_ -= found->second->answers;
      jobs_.erase(found);
    }
    if (all_read_ && jobs_.empty()) break;
    MILLRACE_CHECK(stepped || jobs_.empty(), "{} requests that do not run", jobs_.size());
  }
  MILLRACE_CHECK_OK(output_->sync());
  summary_.seconds = std::chrono::duration<double>(EngineCore::Clock::now() - begin).count();
  return summary_;
}

Status BatchRun::fill() {
  while (!all_read_ && open_ < options_->max_open && !told_to_stop()) {
    MILLRACE_TRY(auto item, input_->next());
    if (!item) {
      all_read_ = true;
      break;
    }
    auto call = prepare(item->line, *model_, *engine_);
    if (call.ok()) {
      start(item->key, std::move(item->line), std::move(call).value());
    } else {
      write(item->key, item->line.custom_id, call.error(), {}, item->line.problem);
      MILLRACE_CHECK_OK(failure_);
    }
  }
  return Ok{};
}

void BatchRun::start(BatchKey key, BatchLine line, ApiCall call) {
  auto job = std::make_unique<Job>(Job{
      .key = key, .custom_id = std::move(line.custom_id), .builder = AnswerBuilder(*model_, std::move(call.answer))});
  const auto now = EngineCore::Clock::now();
  for (std::size_t i = 0; i < call.requests.size(); ++i) {
    job->answers += call.requests[i].choices;
    job->requests.push_back(next_id_++);
    engine_->submit(
        job->requests.back(), std::move(call.requests[i]),
        [this, job = job.get(), i](const TokenEvent& event) {
          on(*job, i, event);
          return Demand::more;
        },
        now);
  }
  open_ += job->answers;
  jobs_.emplace(key.number, std::move(job));
}

void BatchRun::on(Job& job, std::size_t request, const TokenEvent& event) {
  if (job.ended) return;  // a request that is taken back because another one of its line has failed
  if (event.of_step) {    // it stays unanswered
    if (failure_.ok()) failure_ = fail("{}", event.error);
    return;
  }
  job.builder.on(request, event, stream_);
  if (job.builder.done()) end(job);
}

void BatchRun::end(Job& job) {
  job.ended = true;
  ended_.push_back(job.key.number);
  const std::optional<ApiError>& error = job.builder.error();
  if (error) {
    for (const RequestId id : job.requests) engine_->cancel(id);
  } else {
    const Usage usage = job.builder.usage();
    summary_.prompt_tokens += usage.prompt_tokens;
    summary_.cached_tokens += usage.cached_tokens;
    summary_.output_tokens += usage.completion_tokens;
  }
  write(job.key, job.custom_id, error, error ? std::string() : job.builder.response(), std::nullopt);
}

void BatchRun::write(const BatchKey& key, const std::optional<std::string>& custom_id,
                     const std::optional<ApiError>& error, std::string_view answer,
                     const std::optional<ApiError>& problem) {
  if (!failure_.ok()) return;  // the next run answers it
  constexpr int kOk = 200;
  failure_ = output_->append(error ? batch_record(key, custom_id, error->status, error->json(), problem)
                                   : batch_record(key, custom_id, kOk, answer, problem));
  if (!failure_.ok()) return;
  ++(error ? summary_.failed : summary_.answered);
  if (options_->progress) options_->progress(output_->records(), summary_.requests);
}

}  // namespace

Result<BatchSummary> run_batch(EngineCore& engine, const ServedModel& model, BatchInput& input, BatchOutput& output,
                               const BatchOptions& options) {
  return BatchRun(engine, model, input, output, options).run();
}

}  // namespace millrace
