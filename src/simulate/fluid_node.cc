#include "simulate/fluid_node.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace millrace {

namespace {

constexpr double kAlmost = 1e-9;  // tokens, that rounding may lose
constexpr double kNever = std::numeric_limits<double>::infinity();

}  // namespace

FluidNode::FluidNode(const SimNode& node, std::int64_t block_tokens)
    : node_(&node),
      block_tokens_(block_tokens),
      queue_(node.places, node.kv_tokens, block_tokens),
      meter_(node.terms) {}

double FluidNode::decode_step() const {
  return node_->speed.step + node_->speed.step_per_sequence * static_cast<double>(running_ - 1);
}

void FluidNode::start(const NodeJob& job) {
  queue_.add(job);
  prefill_ = queue_.prefill();
}

double FluidNode::prefill_end() const {
  if (prefill_ == nullptr) return kNever;
  const double per_chunk = node_->speed.chunk / node_->speed.prefill + (running_ > 0 ? decode_step() : 0.0);
  return now_ + std::max(0.0, prefill_->left) / node_->speed.chunk * per_chunk;
}

double FluidNode::token_due() const {
  if (due_.empty()) return kNever;
  const double per_token = decode_step() + (prefill_ != nullptr ? node_->speed.chunk / node_->speed.prefill : 0.0);
  return now_ + std::max(0.0, due_.top().tokens - tokens_) * per_token;
}

double FluidNode::next_event() const {
  return std::min(prefill_end(), token_due());
}

void FluidNode::flow(double seconds) {
  if (seconds <= 0.0) return;
  if (!up_) return;
  if (is_idle()) {
    meter_.idle(seconds);
    return;
  }
  const double chunk_s = prefill_ != nullptr ? node_->speed.chunk / node_->speed.prefill : 0.0;
  const double decode_s = running_ > 0 ? decode_step() : 0.0;
  const double step = chunk_s + decode_s;
  // Who waits for KV memory while nobody runs does not exist: a job that fits no empty node is not placed on it.
  if (step <= 0.0) return;
  const double steps = seconds / step;
  if (prefill_ != nullptr) prefill_->left -= steps * node_->speed.chunk;
  if (running_ > 0) tokens_ += steps;
  const double batch =
      (prefill_ != nullptr && prefill_->batch ? chunk_s : 0.0) +
      (running_ > 0 ? decode_s * static_cast<double>(running_batch_) / static_cast<double>(running_) : 0.0);
  meter_.work(seconds, batch / step);
}

void FluidNode::join() {
  const NodeJob job = queue_.take_prefilled();
  std::uint32_t slot = 0;
  if (free_slots_.empty()) {
    slot = static_cast<std::uint32_t>(slots_.size());
    slots_.emplace_back();
  } else {
    slot = free_slots_.back();
    free_slots_.pop_back();
  }
  slots_[slot] = {job, tokens_};
  ++running_;
  if (job.batch) ++running_batch_;
  due_.push({tokens_ + 1.0, slot, FluidEvent::Kind::first_token});
  due_.push({tokens_ + static_cast<double>(job.answer), slot, FluidEvent::Kind::ended});
}

void FluidNode::advance(double now, std::vector<FluidEvent>& events) {
  for (;;) {
    const double prefilled = prefill_end(), token = token_due(), next = std::min(prefilled, token);
    if (next > now || next == kNever) break;
    flow(next - now_);
    now_ = std::max(now_, next);
    // By name and not by what is left: late in a long time what is left of a prompt may be less than time has digits.
    if (token == next) tokens_ = std::max(tokens_, due_.top().tokens);
    if (prefilled == next) {
      join();
      prefill_ = queue_.prefill();
    }
    bool ended = false;
    while (!due_.empty() && due_.top().tokens <= tokens_ + kAlmost) {
      const Due due = due_.top();
      due_.pop();
      const NodeJob& job = slots_[due.slot].job;
      events.push_back({due.kind, job.id, now_, job.cached});
      if (due.kind == FluidEvent::Kind::first_token) continue;
      queue_.end(job);
      --running_;
      if (job.batch) --running_batch_;
      free_slots_.push_back(due.slot);
      ended = true;
    }
    if (ended) prefill_ = queue_.prefill();
  }
  flow(now - now_);
  now_ = std::max(now_, now);
  if (running_ == 0) tokens_ = 0.0;  // small numbers are exact ones
}

std::vector<FluidNode::Lost> FluidNode::fail() {
  std::vector<Lost> lost;
  while (!due_.empty()) {
    const Due due = due_.top();
    due_.pop();
    if (due.kind != FluidEvent::Kind::ended) continue;
    const Decoding& decoding = slots_[due.slot];
    lost.push_back({decoding.job.id, static_cast<std::int64_t>(std::floor(tokens_ - decoding.joined + kAlmost))});
  }
  for (const NodeJob& job : queue_.undecoded()) lost.push_back({job.id, 0});
  queue_ = NodeQueue(node_->places, node_->kv_tokens, block_tokens_);
  prefill_ = nullptr;
  tokens_ = 0.0;
  running_ = running_batch_ = 0;
  slots_.clear();
  free_slots_.clear();
  up_ = false;
  return lost;
}

}  // namespace millrace
