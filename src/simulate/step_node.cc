#include "simulate/step_node.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace millrace {

namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr double kRounding = 1e-9;  // of a step: a time that is so near its end is its end

}  // namespace

StepNode::StepNode(const SimNode& node, std::int64_t block_tokens)
    : node_(&node),
      block_tokens_(block_tokens),
      queue_(node.places, node.kv_tokens, block_tokens),
      meter_(node.terms) {}

double StepNode::next_event() const {
  return steps_ > 0 ? begun_ + step_s_ * static_cast<double>(steps_) : kNever;
}

void StepNode::plan() {
  work_ = plan_step(queue_, node_->chunk);
  if (running_ == 0 && work_.rows <= 0.0) return;
  begun_ = now_;
  step_s_ = millrace::step_seconds(node_->speed, work_.rows, running_);
  steps_ = 1;
  if (!work_.ended.empty()) return;
  drop_cancelled();
  // All alike until an answer ends, or the prompt's last part comes.
  std::int64_t alike = running_ > 0 ? due_.top().token - token_ : std::numeric_limits<std::int64_t>::max();
  if (const NodeJob* job = work_.rows > 0.0 ? queue_.computed() : nullptr) {
    alike = std::min(alike, static_cast<std::int64_t>(std::ceil(job->left / node_->chunk)));
  }
  steps_ = std::max<std::int64_t>(1, alike);
}

void StepNode::start(const NodeJob& job) {
  queue_.add(job);
  if (!up_) return;
  if (steps_ == 0) {
    plan();
    return;
  }
  // Steps that are full already, of prompts that it does not pass, stay as they are.
  if (work_.ended.empty() && work_.rows >= node_->chunk && work_.batch_rows <= 0.0) return;
  steps_ = 1;  // those before now have been taken
}

void StepNode::take(std::int64_t steps) {
  if (steps <= 0) return;
  const auto count = static_cast<double>(steps);
  meter_.work(count * step_s_, batch_share(node_->speed, work_, running_, running_batch_));
  if (running_ > 0) token_ += steps;
  // The prompt's part in the step that runs next has left it already, as that of the first one had.
  const double parts = steps == steps_ ? count - 1.0 : count;
  if (parts > 0.0 && work_.rows > 0.0) queue_.computed()->left -= parts * work_.rows;
  begun_ += count * step_s_;
  steps_ -= steps;
}

void StepNode::join(const NodeJob& job, std::vector<NodeEvent>& events) {
  events.push_back({NodeEvent::Kind::first_token, job.id, now_, job.cached});
  if (job.answer <= 1) {
    events.push_back({NodeEvent::Kind::ended, job.id, now_, job.cached});
    queue_.end(job);
    return;
  }
  std::uint32_t slot = 0;
  if (free_slots_.empty()) {
    slot = static_cast<std::uint32_t>(slots_.size());
    slots_.emplace_back();
  } else {
    slot = free_slots_.back();
    free_slots_.pop_back();
  }
  slots_[slot] = {job, token_, slots_[slot].use};
  slot_of_[job.id] = slot;
  ++running_;
  if (job.batch) ++running_batch_;
  due_.push({token_ + job.answer - 1, slot, slots_[slot].use});
}

void StepNode::leave(std::uint32_t slot) {
  const NodeJob& job = slots_[slot].job;
  queue_.end(job);
  --running_;
  if (job.batch) --running_batch_;
  slot_of_.erase(job.id);
  ++slots_[slot].use;
  free_slots_.push_back(slot);
}

void StepNode::drop_cancelled() {
  while (!due_.empty() && due_.top().use != slots_[due_.top().slot].use) due_.pop();
}

std::int64_t StepNode::emitted(std::uint64_t id) const {
  const auto slot = slot_of_.find(id);
  return slot == slot_of_.end() ? 0 : token_ - slots_[slot->second].joined + 1;
}

void StepNode::cancel(std::uint64_t id) {
  steps_ = std::min<std::int64_t>(steps_, 1);  // what comes behind this one is another step
  const auto ended = std::ranges::find(work_.ended, id, &NodeJob::id);
  if (const auto slot = slot_of_.find(id); slot != slot_of_.end()) {
    leave(slot->second);
  } else if (ended != work_.ended.end()) {
    queue_.end(*ended);
    work_.ended.erase(ended);
  } else {
    queue_.cancel(id);
  }
}

void StepNode::end_steps(std::vector<NodeEvent>& events) {
  for (drop_cancelled(); !due_.empty() && due_.top().token <= token_; drop_cancelled()) {
    const std::uint32_t slot = due_.top().slot;
    due_.pop();
    events.push_back({NodeEvent::Kind::ended, slots_[slot].job.id, now_, slots_[slot].job.cached});
    leave(slot);
  }
  for (const NodeJob& job : std::exchange(work_.ended, {})) join(job, events);
  if (running_ == 0) token_ = 0;
  plan();
}

void StepNode::advance(double now, std::vector<NodeEvent>& events) {
  while (steps_ > 0 && next_event() <= now) {
    now_ = next_event();
    take(steps_);
    end_steps(events);
  }
  if (steps_ > 0) {
    // Whole steps that are over; the one that runs is counted when it ends.
    const auto over = static_cast<std::int64_t>(std::floor((now - begun_) / step_s_ + kRounding));
    take(std::clamp<std::int64_t>(over, 0, steps_ - 1));
  } else if (up_) {
    meter_.idle(std::max(0.0, now - now_));
  }
  now_ = std::max(now_, now);
}

std::vector<StepNode::Lost> StepNode::fail() {
  std::vector<Lost> lost;
  for (drop_cancelled(); !due_.empty(); drop_cancelled()) {
    const Decoding& decoding = slots_[due_.top().slot];
    due_.pop();
    lost.push_back({decoding.job.id, token_ - decoding.joined + 1});
  }
  for (const NodeJob& job : std::exchange(work_.ended, {})) lost.push_back({job.id, 0});
  for (const NodeJob& job : queue_.undecoded()) lost.push_back({job.id, 0});
  queue_ = NodeQueue(node_->places, node_->kv_tokens, block_tokens_);
  steps_ = token_ = running_ = running_batch_ = 0;
  slots_.clear();
  free_slots_.clear();
  slot_of_.clear();
  up_ = false;
  return lost;
}

}  // namespace millrace
