#include "simulate/step_runner.h"

#include <algorithm>
#include <utility>

namespace millrace {

namespace {

Duration duration_of(double seconds) {
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
}

}  // namespace

StepRunner::StepRunner(Transport& transport, const SimClock& clock, UnixSeconds zero, const SimNode& node,
                       const Workload& work, NodeMeter& meter)
    : transport_(&transport),
      clock_(&clock),
      zero_(zero),
      node_(&node),
      work_(&work),
      meter_(&meter),
      queue_(node.places, node.kv_tokens, work.block_tokens),
      counted_(clock.now()) {
  set_prices();
}

StepRunner::~StepRunner() {
  count_idle();
  transport_->cancel(timer_);
}

void StepRunner::set_prices() {
  meter_->set_time(zero_ + std::chrono::duration_cast<UnixSeconds>(clock_->now()));
}

void StepRunner::count_idle() {
  if (!stepping_) meter_->idle(std::chrono::duration<double>(clock_->now() - counted_).count());
  counted_ = clock_->now();
  set_prices();
}

void StepRunner::start(RunId id, Placement placement, Sink sink) {
  const SimRequest& asked = work_->requests[placement.sampling.seed];
  const auto emitted = static_cast<std::int64_t>(placement.choices.front().tokens.size());
  const NodeJob job{.id = id,
                    .prompt = static_cast<std::int64_t>(placement.prompt.size()) + emitted,
                    .answer = placement.max_new_tokens - emitted,
                    .blocks = work_->blocks_of(asked),
                    .batch = asked.batch};
  runs_[id] = {.sink = std::move(sink), .job = job, .left = job.answer};
  transport_->after(Duration{0}, [this, id] {
    const auto run = runs_.find(id);
    if (run == runs_.end()) return;
    queue_.add(run->second.job);
    run->second.sink({Accepted{}});
    if (!stepping_) step();
  });
}

void StepRunner::set_paused(RunId id, bool paused) {
  const auto run = runs_.find(id);
  if (run == runs_.end()) return;
  run->second.paused = paused;
  if (!paused && !stepping_) step();
}

void StepRunner::cancel(RunId id) {
  const auto run = runs_.find(id);
  if (run == runs_.end()) return;
  if (run->second.decoding) {
    queue_.end(run->second.job);
  } else {
    queue_.cancel(id);
  }
  runs_.erase(run);
}

void StepRunner::step() {
  count_idle();
  std::int64_t running = 0, batch = 0;
  for (auto& [id, run] : runs_) {
    run.in_step = run.decoding && !run.paused;
    if (!run.in_step) continue;
    ++running;
    batch += run.job.batch ? 1 : 0;
  }
  const StepWork work = plan_step(queue_, node_->chunk);
  if (running == 0 && work.rows <= 0.0) return;
  for (const NodeJob& done : work.ended) {
    Run& run = runs_.at(done.id);
    run.job = done;
    run.decoding = run.in_step = true;  // its first token is this step's
  }
  const double seconds = step_seconds(node_->speed, work.rows, running);
  stepping_ = true;
  timer_ = transport_->after(
      duration_of(seconds),
      [this, seconds, share = batch_share(node_->speed, work, running, batch)] { stepped(seconds, share); });
}

void StepRunner::stepped(double seconds, double batch_share) {
  meter_->work(seconds, batch_share);
  counted_ = clock_->now();
  set_prices();
  std::vector<RunId> ids;
  for (const auto& [id, run] : runs_) {
    if (run.in_step) ids.push_back(id);
  }
  for (const RunId id : ids) {
    const auto at = runs_.find(id);
    if (at == runs_.end()) continue;
    Run& run = at->second;
    std::vector<StreamEvent> events{TokenCame{.choice = 0, .token = 1}};
    const Sink tell = run.sink;
    if (--run.left == 0) {
      events.emplace_back(ChoiceEnd{.choice = 0, .reason = FinishReason::length, .cached_tokens = run.job.cached});
      queue_.end(run.job);
      runs_.erase(at);
    }
    tell(std::move(events));
  }
  stepping_ = false;
  step();
}

}  // namespace millrace
