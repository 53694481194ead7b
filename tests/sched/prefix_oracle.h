// What a prefix cache could reach: one that knows the future, and one without a scheduler's losses.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sched/trace_run.h"

namespace millrace {

/// What goes when a page is needed: what is used again last, or what was used longest ago.
enum class Replacement : std::uint8_t { optimal, least_recently_used };

/// Tokens of prompts that an ideal cache of `pages` pages finds when requests begin and end as in `events`.
///
/// The model: a prompt is a path of rows (page_tokens tokens, one page each; equal rows behind equal rows are one
/// page). When a request begins, the rows of its prompt that are in memory are hits, as far as they are whole and leave
/// one token to compute; then all its rows are in memory and stay until it ends. From then on a row may be dropped at
/// any time.
///
/// Optimal: it is always the row that is used again last that goes (Belady, "A study of replacement algorithms", 1966).
/// An ancestor is used whenever a descendant is, so it is used again no later: with ties going to the deeper row, what
/// is in memory is always a tree, and hits are always beginnings of prompts. Each span between two uses of a row either
/// keeps a page or does not, all count the same, and memory is a bound on the spans that overlap: dropping the one that
/// ends last is optimal for that (interval scheduling), also with the pages that running requests take away. It knows
/// the future, so what does not may stay far below it wherever memory is short.
///
/// Both are given more than a real cache: answers take no pages, a request has the rows of another from the moment that
/// one begins, and nothing is lost to rows that are partly filled.
std::int64_t oracle_hits(const bench::Trace& trace, std::span<const TraceEvent> events, std::int64_t pages,
                         std::int32_t page_tokens, Replacement replacement);

}  // namespace millrace
