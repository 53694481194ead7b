#include "sched/prefix_oracle.h"

#include <algorithm>
#include <limits>
#include <queue>
#include <tuple>
#include <unordered_map>
#include <utility>

namespace millrace {

namespace {

constexpr std::int32_t kNever = std::numeric_limits<std::int32_t>::max();

struct Row {
  std::int32_t users = 0;      // requests that run
  std::int32_t next = kNever;  // the use after the last one so far, counted in requests that begin
  std::int32_t depth = 0;
  std::int32_t key = 0;  // what goes first has the highest
  bool present = false;
};

class Oracle {
 public:
  Oracle(const bench::Trace& trace, std::int64_t pages, std::int32_t page_tokens, Replacement replacement)
      : trace_(trace),
        pages_(pages),
        page_tokens_(page_tokens),
        replacement_(replacement),
        paths_(trace.records.size()) {}

  std::int64_t run(std::span<const TraceEvent> events) {
    find_next_uses(events);
    std::int64_t hits = 0;
    for (const TraceEvent& event : events) {
      const auto request = static_cast<std::size_t>(event.request);
      ++now_;
      if (event.ended) {
        for (const std::int32_t row : paths_[request]) unpin(row);
      } else {
        hits += begin(request);
      }
      // Rows that run are not to be had, however many they are.
      while (present_ > pages_ && drop_one()) {
      }
    }
    return hits;
  }

 private:
  /// The rows of a prompt, whole ones only: equal hash ids stand for equal tokens behind equal tokens.
  std::vector<std::int32_t> path(const bench::TraceRecord& record) {
    std::vector<std::int32_t> path;
    const std::int32_t in_block = trace_.block_tokens / page_tokens_;
    for (std::int32_t row = 0; (row + 1) * page_tokens_ <= record.input_tokens; ++row) {
      const std::int64_t key = record.hash_ids[static_cast<std::size_t>(row / in_block)] * in_block + row % in_block;
      const auto [found, added] = numbers_.emplace(key, static_cast<std::int32_t>(rows_.size()));
      if (added) rows_.push_back({.users = 0, .next = kNever, .depth = row, .key = 0, .present = false});
      path.push_back(found->second);
    }
    return path;
  }

  void find_next_uses(std::span<const TraceEvent> events) {
    for (std::size_t i = 0; i < paths_.size(); ++i) paths_[i] = path(trace_.records[i]);
    next_.resize(paths_.size());
    std::vector<std::int32_t> next(rows_.size(), kNever);
    auto index = static_cast<std::int32_t>(events.size());
    for (auto event = events.rbegin(); event != events.rend(); ++event) {
      --index;
      if (event->ended) continue;
      const auto request = static_cast<std::size_t>(event->request);
      for (const std::int32_t row : paths_[request]) {
        next_[request].push_back(std::exchange(next[static_cast<std::size_t>(row)], index));
      }
    }
  }

  std::int64_t begin(std::size_t request) {
    const std::vector<std::int32_t>& path = paths_[request];
    const std::int64_t most = (trace_.records[request].input_tokens - 1) / page_tokens_;
    std::int64_t hits = 0;
    while (hits < most && rows_[static_cast<std::size_t>(path[static_cast<std::size_t>(hits)])].present) ++hits;
    for (std::size_t i = 0; i < path.size(); ++i) {
      Row& row = rows_[static_cast<std::size_t>(path[i])];
      present_ += row.present ? 0 : 1;
      row.present = true;
      ++row.users;
      row.next = next_[request][i];
    }
    return hits * page_tokens_;
  }

  void unpin(std::int32_t index) {
    Row& row = rows_[static_cast<std::size_t>(index)];
    if (--row.users > 0) return;
    row.key = replacement_ == Replacement::optimal ? row.next : -now_;
    droppable_.emplace(row.key, row.depth, index);
  }

  bool drop_one() {
    while (!droppable_.empty()) {
      const auto [key, depth, index] = droppable_.top();
      droppable_.pop();
      Row& row = rows_[static_cast<std::size_t>(index)];
      if (!row.present || row.users > 0 || row.key != key) continue;  // used again since
      row.present = false;
      --present_;
      return true;
    }
    return false;
  }

  const bench::Trace& trace_;
  std::int64_t pages_;
  std::int32_t page_tokens_;
  Replacement replacement_;
  std::unordered_map<std::int64_t, std::int32_t> numbers_;
  std::vector<Row> rows_;
  std::vector<std::vector<std::int32_t>> paths_, next_;                                  // [requests][rows]
  std::priority_queue<std::tuple<std::int32_t, std::int32_t, std::int32_t>> droppable_;  // key, depth, row
  std::int64_t present_ = 0;
  std::int32_t now_ = 0;
};

}  // namespace

std::int64_t oracle_hits(const bench::Trace& trace, std::span<const TraceEvent> events, std::int64_t pages,
                         std::int32_t page_tokens, Replacement replacement) {
  return Oracle(trace, pages, page_tokens, replacement).run(events);
}

}  // namespace millrace
