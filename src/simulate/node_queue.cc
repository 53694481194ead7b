#include "simulate/node_queue.h"

#include <algorithm>
#include <utility>

#include "core/check.h"

namespace millrace {

std::optional<std::int64_t> SimPrefixCache::reserve(std::span<const std::uint64_t> blocks, std::int64_t more) {
  std::size_t hits = 0;
  for (; hits < blocks.size(); ++hits) {
    const auto found = blocks_.find(blocks[hits]);
    if (found == blocks_.end()) break;
    if (found->second.users++ == 0) free_.erase(found->second.place);
  }
  const std::int64_t needed = static_cast<std::int64_t>(blocks.size() - hits) * block_tokens_ + more;
  const std::int64_t evictable = static_cast<std::int64_t>(free_.size()) * block_tokens_;
  if (used_ - evictable + needed > capacity_) {
    for (std::size_t b = hits; b-- > 0;) {
      Block& block = blocks_.at(blocks[b]);
      if (--block.users == 0) block.place = free_.insert(free_.end(), blocks[b]);
    }
    return std::nullopt;
  }
  while (used_ + needed > capacity_) {
    blocks_.erase(free_.front());
    news_.removed.push_back(free_.front());
    free_.pop_front();
    used_ -= block_tokens_;
  }
  // Behind the first that is missing others may be there: one that lost its beginning.
  std::int64_t there = 0;
  for (std::size_t b = hits; b < blocks.size(); ++b) {
    const auto [at, is_new] = blocks_.try_emplace(blocks[b]);
    if (is_new) {
      news_.added.push_back(blocks[b]);
    } else {
      ++there;
      if (at->second.users == 0) free_.erase(at->second.place);
    }
    ++at->second.users;
  }
  used_ += needed - there * block_tokens_;
  return static_cast<std::int64_t>(hits);
}

void SimPrefixCache::release(std::span<const std::uint64_t> blocks, std::int64_t more) {
  used_ -= more;
  // The deepest goes first: without its beginning a block is of no use.
  for (std::size_t b = blocks.size(); b-- > 0;) {
    Block& block = blocks_.at(blocks[b]);
    if (--block.users == 0) block.place = free_.insert(free_.end(), blocks[b]);
  }
}

SimPrefixCache::News SimPrefixCache::take_news() {
  // What came and went in between is no news.
  std::erase_if(news_.added, [this](std::uint64_t block) { return !blocks_.contains(block); });
  std::erase_if(news_.removed, [this](std::uint64_t block) { return blocks_.contains(block); });
  return std::exchange(news_, {});
}

std::int64_t NodeQueue::more_than_blocks(const NodeJob& job) const {
  return job.prompt - static_cast<std::int64_t>(job.blocks.size()) * block_tokens_ + job.answer;
}

bool NodeQueue::admit(std::deque<NodeJob>& waiting) {
  if (waiting.empty() || decoding_ + static_cast<std::int64_t>(begun_.size()) >= places_) return false;
  NodeJob& job = waiting.front();
  const auto hits = cache_.reserve(job.blocks, more_than_blocks(job));
  if (!hits) return false;
  job.cached = *hits * block_tokens_;
  job.left = static_cast<double>(job.prompt - job.cached);
  waiting_tokens_ -= job.prompt;
  begun_.push_back(job);
  waiting.pop_front();
  return true;
}

NodeJob* NodeQueue::prefill() {
  if (begun_.empty()) {
    if (!admit(waiting_)) admit(waiting_batch_);
  } else if (begun_.back().batch) {
    admit(waiting_);
  }
  return begun_.empty() ? nullptr : &begun_.back();
}

NodeJob NodeQueue::take_prefilled() {
  MILLRACE_CHECK(!begun_.empty(), "nobody's prompt is computed");
  NodeJob job = begun_.back();
  begun_.pop_back();
  job.left = 0.0;
  ++decoding_;
  return job;
}

void NodeQueue::end(const NodeJob& job) {
  --decoding_;
  cache_.release(job.blocks, more_than_blocks(job));
}

bool NodeQueue::cancel(std::uint64_t id) {
  for (std::deque<NodeJob>* waiting : {&waiting_, &waiting_batch_}) {
    const auto job = std::ranges::find(*waiting, id, &NodeJob::id);
    if (job == waiting->end()) continue;
    waiting_tokens_ -= job->prompt;
    waiting->erase(job);
    return true;
  }
  const auto job = std::ranges::find(begun_, id, &NodeJob::id);
  if (job == begun_.end()) return false;
  cache_.release(job->blocks, more_than_blocks(*job));
  begun_.erase(job);
  return true;
}

NodeLoad NodeQueue::load() const {
  NodeLoad load{.running = decoding_ + static_cast<std::int64_t>(begun_.size()),
                .waiting = static_cast<std::int64_t>(waiting_.size() + waiting_batch_.size())};
  auto tokens = static_cast<double>(waiting_tokens_);
  for (const NodeJob& job : begun_) tokens += job.left;
  load.waiting_tokens = static_cast<std::int64_t>(tokens);
  load.kv_free = cache_.free();
  return load;
}

std::vector<NodeJob> NodeQueue::undecoded() const {
  std::vector<NodeJob> jobs(begun_.begin(), begun_.end());
  jobs.insert(jobs.end(), waiting_.begin(), waiting_.end());
  jobs.insert(jobs.end(), waiting_batch_.begin(), waiting_batch_.end());
  return jobs;
}

StepWork plan_step(NodeQueue& queue, double chunk) {
  StepWork work;
  while (chunk > work.rows) {
    NodeJob* job = queue.prefill();
    if (job == nullptr) break;
    const double part = std::min(chunk - work.rows, job->left);
    job->left -= part;
    work.rows += part;
    if (job->batch) work.batch_rows += part;
    if (job->left > 0.0) break;
    work.ended.push_back(queue.take_prefilled());
  }
  return work;
}

double step_seconds(const NodeSpeed& speed, double rows, std::int64_t decoding) {
  return std::max(speed.step, rows / speed.prefill) +
         speed.step_per_sequence * static_cast<double>(std::max<std::int64_t>(0, decoding - 1));
}

double batch_share(const NodeSpeed& speed, const StepWork& work, std::int64_t decoding, std::int64_t batch) {
  const double decode_s = decoding > 0 ? step_seconds(speed, 0.0, decoding) : 0.0;
  const double all = work.rows / speed.prefill + decode_s;
  if (all <= 0.0) return 0.0;
  const double of_decoding = decoding > 0 ? static_cast<double>(batch) / static_cast<double>(decoding) : 0.0;
  return (work.batch_rows / speed.prefill + decode_s * of_decoding) / all;
}

}  // namespace millrace
