#include "sched/random_load.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "sched/fake_node.h"

namespace millrace {

namespace {

class RandomLoad {
 public:
  RandomLoad(std::uint32_t seed, bool thorough, bool levels)
      : random_(seed), levels_(levels), limits_(draw_limits()), thorough_(thorough), node_(limits_, thorough) {
    depth_ = pick(3);
    for (std::vector<std::int32_t>& document : documents_) {
      document.resize(static_cast<std::size_t>(longest()));
      for (std::int32_t& token : document) token = static_cast<std::int32_t>(pick(3));
    }
    // Documents that part somewhere in the middle.
    std::copy_n(documents_[0].begin(), pick(longest()), documents_[1].begin());
  }

  RandomLoadReport run(std::int64_t steps) {
    const std::int64_t eager = 1 + pick(30);  // one arrival in so many steps, on average
    for (; report_.steps < steps; step()) {
      if (pick(eager) == 0 && node_.alive().size() < kAlive) arrive();
      if (pick(60) == 0) arrive_together();
      if (pick(120) == 0) cancel_any();
      if (pick(25) == 0) hold_any();
    }
    end();
    return report_;
  }

 private:
  static constexpr std::size_t kAlive = 40;

  struct Life {
    std::int64_t rank = 0, arrival = 0;
    std::int64_t ahead = 0;  // sequences that may go first
    std::int64_t steps = 0;  // since it came, without those in which it was held
    bool held = false;
  };

  std::int64_t pick(std::int64_t choices) {
    return static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(std::max<std::int64_t>(1, choices)));
  }

  SchedulerLimits draw_limits() {
    static const std::vector<std::vector<std::int64_t>> kWindows = {
        {0}, {0}, {0, 5}, {0, 20}, {7}, {1}, {40, 3}, {16, 0, 64}, {0, 0}, {0, 0, 0}, {0, 9, 0}, {0, 0, 0, 0}};
    SchedulerLimits limits;
    limits.kv.page_tokens = std::vector<std::int32_t>{1, 2, 4, 4, 8, 16}[static_cast<std::size_t>(pick(6))];
    limits.kv.pages = static_cast<std::int32_t>(3 + pick(pick(2) == 0 ? 12 : 80));
    const std::int64_t of_levels = 4;  // the last
    const auto all = static_cast<std::int64_t>(kWindows.size());
    const std::int64_t chosen = levels_ ? all - of_levels + pick(of_levels) : pick(all);
    limits.kv.windows = kWindows[static_cast<std::size_t>(chosen)];
    if (levels_ || pick(4) != 0) draw_pools(limits.kv);
    limits.kv.prefix_cache = pick(4) != 0;
    limits.share_answers = !levels_ && pick(3) != 0;
    limits.max_batch_tokens = static_cast<std::int32_t>(pick(3) == 0 ? 1 + pick(6) : 1 + pick(100));
    limits.max_sequences = static_cast<std::int32_t>(1 + pick(12));
    limits.max_logit_rows = limits.max_sequences + static_cast<std::int32_t>(pick(2) * pick(20));
    if (!limits.share_answers && pick(2) == 0) {
      limits.prompt_block = limits.kv.page_tokens * (1 + pick(5));
      if (limits.prompt_block > 1) {
        const std::int32_t least = static_cast<std::int32_t>(limits.prompt_block) + limits.max_sequences;
        limits.max_batch_tokens = std::max(limits.max_batch_tokens, least);
        limits.max_logit_rows = std::max(limits.max_logit_rows, least);
      }
    }
    if (levels_ || (!limits.share_answers && pick(2) == 0)) limits.keep = draw_retention(limits);
    if (limits.keep && pick(3) != 0) limits.kv.swap_pages = static_cast<std::int32_t>(pick(limits.kv.pages));
    return limits;
  }

  /// One for all groups without a window, or two.
  void draw_pools(KvLimits& limits) {
    const std::int64_t common = 1 + pick(2);
    std::vector<std::int64_t> names;  // by number
    for (std::size_t g = 0; g < limits.windows.size(); ++g) {
      const std::int64_t name = limits.windows[g] == 0 ? pick(common) : 2 + static_cast<std::int64_t>(g);
      const auto found = std::ranges::find(names, name);
      limits.pools.push_back(static_cast<std::int32_t>(found - names.begin()));
      if (found == names.end()) names.push_back(name);
    }
  }

  KvRetention draw_retention(const SchedulerLimits& limits) {
    const std::int64_t page = limits.kv.page_tokens;
    const auto whole = [page](std::int64_t tokens) { return (tokens + page - 1) / page * page; };
    KvRetention keep{.choice = static_cast<KeepChoice>(pick(4)),
                     .sink_tokens = pick(2 * page),
                     .recent_tokens = 1 + pick(2 * page),
                     .queries = 1 + pick(20)};
    keep.tokens = whole(keep.sink_tokens) + whole(keep.recent_tokens) + 2 * page + pick(6 * page);
    if (pick(3) != 0) {
      keep.last_tokens = keep.tokens;
      keep.tokens += pick(12 * page);
    }
    return keep;
  }

  /// The longest sequence that fits.
  [[nodiscard]] std::int64_t longest() const {
    return std::min<std::int64_t>(200, std::int64_t{limits_.kv.pages} * limits_.kv.page_tokens);
  }

  SequenceSpec draw_spec() {
    SequenceSpec spec;
    const std::int64_t most = pick(8) == 0 ? longest() : 1 + pick(longest());
    if (!histories_.empty() && pick(4) == 0) {  // the next turn of a conversation
      spec.tokens = histories_[static_cast<std::size_t>(pick(static_cast<std::int64_t>(histories_.size())))];
    } else {
      const std::vector<std::int32_t>& document = documents_[static_cast<std::size_t>(pick(3))];
      spec.tokens.assign(document.begin(), document.begin() + pick(longest()));
    }
    const std::int64_t own = pick(3) == 0 ? 0 : pick(10);
    for (std::int64_t i = 0; i < own; ++i) spec.tokens.push_back(static_cast<std::int32_t>(pick(3)));
    const std::int64_t prompt = std::clamp<std::int64_t>(static_cast<std::int64_t>(spec.tokens.size()), 1, most);
    spec.tokens.resize(static_cast<std::size_t>(prompt), 1);
    if (pick(4) == 0) {  // whole pages
      spec.tokens.resize(
          static_cast<std::size_t>(std::max(prompt / limits_.kv.page_tokens, std::int64_t{1}) * limits_.kv.page_tokens),
          2);
    }
    spec.max_tokens = std::max(most, static_cast<std::int64_t>(spec.tokens.size()));
    if (pick(20) == 0) spec.max_tokens = static_cast<std::int64_t>(spec.tokens.size());
    spec.priority = pick(3) == 0 ? static_cast<std::int32_t>(pick(3) - 1) : 0;
    spec.cache_name = pick(3) == 0 ? "other" : "";
    spec.samples = pick(10) != 0;
    spec.all_logits = pick(10) == 0;
    spec.shares = pick(12) != 0;
    if (limits_.keep && pick(3) == 0) {
      spec.pinned_tokens = pick(2 * limits_.kv.page_tokens);
      spec.max_tokens += pick(100);  // more than there is memory for
    }
    return spec;
  }

  void arrive() { add(draw_spec(), pick(2)); }

  /// Answers to one prompt, with the same or with different random numbers.
  void arrive_together() {
    const SequenceSpec spec = draw_spec();
    for (std::int64_t n = 2 + pick(4); n > 0 && node_.alive().size() < kAlive; --n) add(spec, pick(3));
  }

  void add(const SequenceSpec& spec, std::int64_t seed) {
    const SequenceId id = next_id_++;
    const std::int64_t tokens = std::int64_t{limits_.kv.pages} * limits_.kv.page_tokens;
    const bool added = node_.add(id, spec, static_cast<std::uint64_t>(seed));
    MILLRACE_CHECK(added || (limits_.keep && spec.max_tokens > tokens), "sequence {} of {} tokens was refused", id,
                   spec.max_tokens);
    if (!added) return;
    longest_ = std::max(longest_, spec.max_tokens);
    Life life{.rank = arrivals_ + Scheduler::kOvertaking * spec.priority, .arrival = arrivals_};
    ++arrivals_;
    for (auto& [other_id, other] : lives_) {
      ++(std::pair(other.rank, other.arrival) < std::pair(life.rank, life.arrival) ? life : other).ahead;
    }
    lives_.emplace(id, life);
  }

  SequenceId any() {
    auto it = lives_.begin();
    std::advance(it, pick(static_cast<std::int64_t>(lives_.size())));
    return it->first;
  }

  void cancel_any() {
    if (lives_.empty()) return;
    ++report_.cancelled;
    remove(any());
  }

  void remove(SequenceId id) {
    if (pick(3) == 0) {
      histories_.push_back(node_.alive().at(id)->tokens);
      if (histories_.size() > 8) histories_.erase(histories_.begin() + pick(8));
    }
    node_.finish(id);
    lives_.erase(id);
  }

  void hold_any() {
    if (lives_.empty()) return;
    const SequenceId id = any();
    Life& life = lives_.at(id);
    life.held = !life.held;
    node_.hold(id, life.held);
  }

  /// A step fails, and with it some of those that it was for; or they go on.
  void fail() {
    ++report_.failures;
    const bool with_them = pick(2) == 0;
    for (const SequenceId id : node_.fail()) {
      if (with_them || pick(4) == 0) remove(id);
    }
    for (auto& [id, life] : lives_) life.steps = 0;  // all may have to begin once more
  }

  void step() {
    ++report_.steps;
    const bool planned = node_.schedule();
    if (!planned && node_.outstanding() == 0) {
      for (const auto& [id, life] : lives_) MILLRACE_CHECK(life.held, "sequence {} could run, and nothing does", id);
    }
    if (thorough_ || report_.steps % 1000 == 0) node_.scheduler().check();
    if (node_.outstanding() > 0 && pick(100) == 0) {
      fail();
      if (thorough_) node_.scheduler().check();
    }
    while (node_.outstanding() > static_cast<std::size_t>(pick(depth_ + 1)) || (!planned && node_.outstanding() > 0)) {
      for (const SequenceId id : node_.run()) {
        complete(id);
        ++report_.completed;
      }
    }
    if (thorough_) node_.scheduler().check();
    for (auto& [id, life] : lives_) {
      if (life.held) continue;
      ++life.steps;
      // Whoever goes first needs at most a step for each of its tokens, after all who decode have ended.
      const std::int64_t decodes = (limits_.max_sequences + limits_.max_batch_tokens - 1) / limits_.max_batch_tokens;
      const std::int64_t allowed =
          (life.ahead + 1) * ((1 + decodes) * longest_ + Scheduler::kHoldPatience) * (depth_ + 1);
      report_.slowest = std::max(report_.slowest, static_cast<double>(life.steps) / static_cast<double>(allowed));
      MILLRACE_CHECK(life.steps <= allowed, "sequence {} has starved for {} steps behind {}", id, life.steps,
                     life.ahead);
    }
  }

  void complete(SequenceId id) {
    const FakeSequence& sequence = *node_.alive().at(id);
    MILLRACE_CHECK(sequence.tokens == fake_answer(sequence.spec, sequence.seed, fake_policy(limits_)),
                   "sequence {} has another answer", id);
    const auto prompt = static_cast<std::int64_t>(sequence.spec.tokens.size());
    MILLRACE_CHECK(!sequence.spec.all_logits || sequence.prompt_logits >= prompt, "{} of {} positions have logits",
                   sequence.prompt_logits, prompt);
    const std::int64_t cached = node_.scheduler().cached_tokens(id);
    MILLRACE_CHECK(
        cached >= 0 && cached < prompt && ((sequence.spec.shares && !sequence.spec.all_logits) || cached == 0),
        "{} of {} cached", cached, prompt);
    remove(id);
  }

  void end() {
    for (auto& [id, life] : lives_) {
      if (pick(2) == 0) node_.hold(id, life.held = false);
    }
    for (std::int64_t i = 0; i < 100000 && !lives_.empty(); ++i) {
      step();
      if (std::ranges::all_of(lives_, [](const auto& entry) { return entry.second.held; })) break;
    }
    while (!lives_.empty()) remove(lives_.begin()->first);
    while (node_.outstanding() > 0) node_.run();
    node_.scheduler().check();
    MILLRACE_CHECK(node_.scheduler().idle(), "{} wait, {} run", node_.scheduler().waiting(),
                   node_.scheduler().running());
    const Scheduler::KvUse use = node_.scheduler().kv_use();
    MILLRACE_CHECK(use.used_pages == 0 && use.allocated_slots == 0 && use.unused_slots == 0, "{} pages leaked",
                   use.used_pages);
    // Everything can be had by one.
    const std::int64_t all = std::int64_t{limits_.kv.pages} * limits_.kv.page_tokens;
    SequenceSpec whole;
    whole.tokens.assign(static_cast<std::size_t>(all), 1);
    whole.max_tokens = all;
    add(whole, 0);
    while (!lives_.empty()) step();
    report_.rows = node_.rows_run();
    report_.preemptions = node_.scheduler().counters().preemptions;
    report_.swaps = node_.scheduler().counters().swaps;
    report_.dropped_pages = node_.scheduler().counters().dropped_pages;
    report_.freed_pages = node_.scheduler().counters().freed_pages;
    report_.cached_tokens = node_.scheduler().counters().cached_tokens;
  }

  std::mt19937_64 random_;
  bool levels_;
  SchedulerLimits limits_;
  bool thorough_;
  FakeNode node_;
  std::int64_t depth_ = 0;
  std::int64_t longest_ = 1;  // of all sequences so far
  std::vector<std::int32_t> documents_[3];
  std::vector<std::vector<std::int32_t>> histories_;
  std::map<SequenceId, Life> lives_;
  SequenceId next_id_ = 1;
  std::int64_t arrivals_ = 0;
  RandomLoadReport report_;
};

}  // namespace

RandomLoadReport run_random_load(std::uint32_t seed, std::int64_t steps, bool thorough, bool levels) {
  return RandomLoad(seed, thorough, levels).run(steps);
}

}  // namespace millrace
