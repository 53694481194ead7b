#include "runtime/shared_prefix.h"

#include <algorithm>

#include "backend/backend.h"

namespace millrace {

namespace {

// A backend's task takes some rows at a time, so rows beyond these read a prefix again anyway, and a sequence that has
// as many by itself gains nothing from company.
constexpr std::int64_t kTaskRows = 16;
// More sequences in one set save next to nothing more, and longer sets take longer to find.
constexpr std::size_t kMostSequences = 64;
// Tokens not read that make up for the second round of tasks. With AVX2 on 2 cores, two sequences behind 64 tokens took
// 1 % more to 20 % less time in attention, by the shape of the heads; behind 128, 5 to 35 % less.
constexpr std::int64_t kLeastSaved = 128;

/// Pages at the start of both, at most `limit`, that are the same.
std::int64_t common_pages(std::span<const std::int32_t> a, std::span<const std::int32_t> b, std::int64_t limit) {
  constexpr std::int64_t kBlock = 64;  // compared at memory's speed
  limit = std::min({limit, static_cast<std::int64_t>(a.size()), static_cast<std::int64_t>(b.size())});
  std::int64_t pages = 0;
  while (pages + kBlock <= limit && std::equal(a.begin() + pages, a.begin() + pages + kBlock, b.begin() + pages)) {
    pages += kBlock;
  }
  return std::mismatch(a.begin() + pages, a.begin() + limit, b.begin() + pages).first - a.begin();
}

/// What is known of a sequence before sets are chosen.
struct Candidate {
  std::int64_t rows = 0;      // of this sequence and those before it
  std::int64_t reads = 0;     // of a prefix by these, were each alone
  std::int64_t tokens = 0;    // in common with the sequence before, and before the rows of both
  std::int64_t saved = 0;     // by the best sets up to here
  std::size_t sequences = 1;  // in the last of those sets; 1: none ends here
};

std::vector<Candidate> compare_neighbours(const ForwardBatch& batch, std::size_t group, std::int32_t page_tokens) {
  std::vector<Candidate> candidates(batch.sequences.size());
  Candidate before;
  for (std::size_t s = 0; s < candidates.size(); ++s) {
    const SequenceRows& sequence = batch.sequences[s];
    Candidate& candidate = candidates[s];
    candidate.rows = before.rows + sequence.rows;
    candidate.reads = before.reads + (sequence.rows + kTaskRows - 1) / kTaskRows;
    if (s > 0) {
      const SequenceRows& other = batch.sequences[s - 1];
      const auto of_group = static_cast<std::int32_t>(group);
      const std::int64_t limit = std::min(sequence.first_place(of_group), other.first_place(of_group)) / page_tokens;
      const std::int64_t pages = common_pages(sequence.page_tables[group], other.page_tables[group], limit);
      candidate.tokens = pages * page_tokens / kAttentionChunk * kAttentionChunk;
    }
    before = candidate;
  }
  return candidates;
}

/// Fills in `saved` and `sequences`: the best division of the first s + 1 sequences ends with the best set that ends
/// there, or with a sequence by itself.
void choose_sets(std::vector<Candidate>& candidates) {
  for (std::size_t s = 1; s < candidates.size(); ++s) {
    Candidate& last = candidates[s];
    last.saved = candidates[s - 1].saved;
    std::int64_t tokens = last.tokens;
    for (std::size_t count = 2; count <= std::min(s + 1, kMostSequences) && tokens > 0; ++count) {
      const std::size_t first = s + 1 - count;
      const Candidate before = first > 0 ? candidates[first - 1] : Candidate{};
      const std::int64_t reads_together = (last.rows - before.rows + kTaskRows - 1) / kTaskRows;
      const std::int64_t saved = tokens * (last.reads - before.reads - reads_together);
      if (saved >= kLeastSaved && before.saved + saved >= last.saved) {
        last.saved = before.saved + saved;
        last.sequences = count;
      }
      tokens = std::min(tokens, candidates[first].tokens);
    }
  }
}

}  // namespace

std::vector<SharedPrefix> find_shared_prefixes(const ForwardBatch& batch, std::int32_t page_tokens,
                                               std::span<const std::int64_t> windows) {
  std::vector<SharedPrefix> sets;
  for (std::size_t group = 0; group < windows.size(); ++group) {
    if (windows[group] > 0) continue;
    std::vector<Candidate> candidates = compare_neighbours(batch, group, page_tokens);
    choose_sets(candidates);
    const std::size_t first_set = sets.size();
    for (std::size_t end = candidates.size(); end > 0;) {
      const std::size_t count = candidates[end - 1].sequences;
      if (count > 1) {
        std::int64_t tokens = candidates[end - 1].tokens;
        for (std::size_t s = end - count + 1; s < end; ++s) tokens = std::min(tokens, candidates[s].tokens);
        sets.push_back({.group = static_cast<std::int32_t>(group),
                        .first_sequence = static_cast<std::int32_t>(end - count),
                        .sequences = static_cast<std::int32_t>(count),
                        .tokens = tokens});
      }
      end -= count;
    }
    std::reverse(sets.begin() + static_cast<std::ptrdiff_t>(first_set), sets.end());
  }
  return sets;
}

}  // namespace millrace
