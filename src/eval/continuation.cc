#include "eval/continuation.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "runtime/run_tokens.h"
#include "runtime/step_batch.h"

namespace millrace {

namespace {

/// One that is being run.
struct Running {
  const Continuation* asked = nullptr;
  SequenceId id = 0;
  std::size_t done = 0;          // positions
  std::size_t answer_begin = 0;  // rows before it are a prompt's
  ContinuationScore score = {};

  /// Positions to run: what the last token would be followed by matters only where it is asked for.
  [[nodiscard]] std::size_t positions() const { return asked->tokens.size() - (asked->asks_further ? 0 : 1); }
  [[nodiscard]] std::size_t first_judged() const { return asked->context - 1; }
};

/// What is said at `position`, of the token that stands behind it.
Status judge(Running& running, std::size_t position, std::span<const float> logits) {
  const std::vector<std::int32_t>& tokens = running.asked->tokens;
  const auto top = static_cast<std::int32_t>(std::ranges::max_element(logits) - logits.begin());
  if (position + 1 == tokens.size()) {
    running.score.next = top;
    return Ok{};
  }
  const std::int32_t token = tokens[position + 1];
  running.score.log_likelihood += logits[static_cast<std::size_t>(token)] - log_sum_exp(logits);
  running.score.greedy = running.score.greedy && token == top;
  if (!std::isfinite(running.score.log_likelihood)) {
    return fail("the model computes logits that are not finite: nothing can be said of them");
  }
  return Ok{};
}

/// Those that have room in KV memory at once.
class Group {
 public:
  explicit Group(ModelRunner& runner)
      : runner_(&runner), pages_(runner.cache().pages()), sequences_(kv_limits(runner.cache()), runner.policy().keep) {}

  /// False: no room, beside those that are there.
  bool add(const Continuation& asked) {
    const std::int64_t page = runner_->cache().layout().page_tokens;
    const std::int64_t wanted = (static_cast<std::int64_t>(asked.tokens.size()) + page - 1) / page;
    if (!all_.empty() && wanted > pages_) return false;
    pages_ -= static_cast<std::int32_t>(wanted);
    const auto context = static_cast<std::int64_t>(asked.context);
    Running running{.asked = &asked};
    std::int64_t answer_begin = context;
    switch (rows_for_policy(*runner_)) {
      case RowsAre::answer:  // the row that says the first token stands for one in the middle of an answer
        answer_begin = context - 1;
        break;
      case RowsAre::prompt:  // and the continuation for what a prompt says of its own past
        answer_begin = static_cast<std::int64_t>(running.positions());
        break;
      case RowsAre::half_each:
        break;
    }
    const std::optional<KvRetention>& keep = runner_->policy().keep;
    const std::size_t pinned = keep && keep->pin_system ? asked.pinned : 0;
    running.answer_begin = static_cast<std::size_t>(answer_begin);
    running.id = sequences_.add(asked.tokens, context, answer_begin, static_cast<std::int64_t>(pinned));
    all_.push_back(running);
    return true;
  }

  /// `first`: the index of the group's first.
  Status run(std::size_t first, const TakeScore& take) {
    std::size_t ended = 0;
    while (ended < all_.size()) {
      MILLRACE_CHECK_OK(step(ended));
      for (; ended < all_.size() && all_[ended].done == all_[ended].positions(); ++ended) {
        MILLRACE_CHECK_OK(take(first + ended, all_[ended].score));
      }
    }
    return Ok{};
  }

 private:
  /// Rows of the continuations from `begin` on, until a step is full.
  Status step(std::size_t begin) {
    struct Part {
      Running* of;
      std::size_t start, end, judged;  // positions
    };
    const auto block = static_cast<std::size_t>(runner_->prompt_block());
    StepPlan plan;
    std::vector<Part> parts;
    std::int64_t rows = runner_->limits().max_rows, logit_rows = runner_->limits().max_logit_rows;
    for (std::size_t i = begin; i < all_.size() && rows > 0 && logit_rows > 0; ++i) {
      Running& r = all_[i];
      std::size_t end = std::min(r.positions(), r.done + static_cast<std::size_t>(rows));
      end = std::min(end, static_cast<std::size_t>(sequences_.step_end(r.id)));
      std::size_t judged = std::max(r.done, std::min(r.first_judged(), end));
      end = std::min(end, judged + static_cast<std::size_t>(logit_rows));
      if (end < r.answer_begin) end = end / block * block;
      if (end <= r.done) continue;
      judged = std::min(judged, end);
      parts.push_back({&r, r.done, end, judged});
      plan.entries.push_back({.id = r.id,
                              .rows = static_cast<std::int32_t>(end - r.done),
                              .first_position = static_cast<std::int64_t>(r.done)});
      rows -= static_cast<std::int64_t>(end - r.done);
      logit_rows -= static_cast<std::int64_t>(end - judged);
      r.done = end;
    }
    MILLRACE_CHECK(!plan.entries.empty(), "no row of {} sequences can run", all_.size() - begin);
    ForwardBatch batch = sequences_.batch(plan);
    for (std::size_t p = 0; p < parts.size(); ++p) {  // a plan can ask for all logits of an entry, or for the last ones
      const auto row = [&](std::size_t position) {
        return batch.sequences[p].first_row + static_cast<std::int32_t>(position - parts[p].start);
      };
      for (std::size_t at = parts[p].judged; at < parts[p].end; ++at) batch.logit_rows.push_back(row(at));
    }
    MILLRACE_TRY(const std::span<const float> logits, runner_->run(batch));
    const auto vocab = static_cast<std::size_t>(runner_->config().vocab);
    std::size_t taken = 0;
    for (const Part& part : parts) {
      for (std::size_t at = part.judged; at < part.end; ++at, ++taken) {
        MILLRACE_CHECK_OK(judge(*part.of, at, logits.subspan(taken * vocab, vocab)));
      }
    }
    return Ok{};
  }

  ModelRunner* runner_;
  std::int32_t pages_;  // left
  UnscheduledSequences sequences_;
  std::vector<Running> all_;
};

}  // namespace

double log_sum_exp(std::span<const float> logits) {
  const double largest = *std::ranges::max_element(logits);
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(logit - largest);
  return largest + std::log(sum);
}

Status score_continuations(ModelRunner& runner, std::span<const Continuation* const> continuations,
                           const TakeScore& take) {
  for (const Continuation* asked : continuations) {
    MILLRACE_CHECK(asked->context >= 1 && asked->context < asked->tokens.size(), "context {} of {} tokens",
                   asked->context, asked->tokens.size());
    MILLRACE_CHECK_OK(check_tokens(runner, asked->tokens));
  }
  for (std::size_t first = 0; first < continuations.size();) {
    Group group(runner);
    std::size_t end = first;
    while (end < continuations.size() && group.add(*continuations[end])) ++end;
    MILLRACE_CHECK_OK(group.run(first, take));
    first = end;
  }
  return Ok{};
}

}  // namespace millrace
