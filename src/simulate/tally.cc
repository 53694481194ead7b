#include "simulate/tally.h"

#include <algorithm>

namespace millrace {

void SimTally::first_token(std::size_t request, double at) {
  Seen& seen = seen_[request];
  if (seen.first < 0.0) seen.first = at;
}

void SimTally::ended(std::size_t request, double at, NodeIndex node, std::int64_t cached) {
  seen_[request].end = at;
  seen_[request].node = node;
  seen_[request].cached = static_cast<std::int32_t>(cached);
  last_end_ = std::max(last_end_, at);
  ++closed_;
}

void SimTally::failed(std::size_t request) {
  seen_[request].failed = true;
  ++closed_;
}

SimResult SimTally::result(const std::vector<SimNode>& nodes, const std::vector<const NodeMeter*>& meters) const {
  SimResult result{.options = *options_,
                   .nodes = static_cast<std::int64_t>(nodes.size()),
                   .billed_usd = billed_usd_,
                   .node_failures = node_failures_,
                   .arrivals_s = work_->requests.empty() ? 0.0 : work_->requests.back().arrival,
                   .ended_s = last_end_};
  std::vector<double> ttft[2], tpot[2];
  for (std::size_t i = 0; i < seen_.size(); ++i) {
    const Seen& seen = seen_[i];
    const SimRequest& asked = work_->requests[i];
    SimAnswers& answers = asked.batch ? result.batch : result.interactive;
    ++answers.requests;
    result.migrations += seen.migrations;
    if (seen.failed) {
      ++answers.failed;
      ++answers.late;
      continue;
    }
    if (seen.end < 0.0) continue;
    ++answers.done;
    answers.input_tokens += asked.prompt;
    answers.output_tokens += asked.answer;
    answers.cached_tokens += seen.cached;
    const double first = seen.first - asked.arrival;
    const double each = asked.answer > 1 ? (seen.end - seen.first) / (asked.answer - 1) : 0.0;
    ttft[asked.batch].push_back(first);
    if (asked.answer > 1) tpot[asked.batch].push_back(each);
    SimTypeUse& use = result.by_type[nodes[seen.node].type];
    ++use.requests;
    if (first <= options_->ttft_slo && each <= options_->tpot_slo) {
      ++answers.in_slo;
      ++use.in_slo;
    }
    if (seen.end > asked.deadline) ++answers.late;
  }
  for (const bool batch : {false, true}) {
    SimAnswers& answers = batch ? result.batch : result.interactive;
    answers.ttft_s = bench::distribution(std::move(ttft[batch]));
    answers.tpot_s = bench::distribution(std::move(tpot[batch]));
  }
  for (std::size_t n = 0; n < nodes.size(); ++n) {
    result.interactive_work += meters[n]->interactive();
    result.batch_work += meters[n]->batch();
    result.idle_work += meters[n]->idle();
    SimTypeUse& use = result.by_type[nodes[n].type];
    ++use.nodes;
    use.busy_s += meters[n]->interactive().busy_s + meters[n]->batch().busy_s;
    use.usd += meters[n]->interactive().usd + meters[n]->batch().usd;
  }
  const double busy = result.interactive_work.busy_s + result.batch_work.busy_s;
  const double up = busy + result.idle_work.busy_s;
  result.busy_share = up > 0.0 ? busy / up : 0.0;
  return result;
}

}  // namespace millrace
