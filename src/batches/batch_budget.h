// How much batch work may run now: what interactive requests leave free. Pure.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "batches/batch_state.h"
#include "cluster/node_table.h"
#include "cluster/transport.h"

namespace millrace {

/// All ready nodes of one model together, by their latest beats.
struct NodeRoom {
  std::int64_t places = 0;   // sequences that may run at once
  std::int64_t busy = 0;     // places of these that are taken, or will be by what waits
  std::int64_t blocked = 0;  // sequences that wait at a node that has no place for them
  std::int64_t starved = 0;  // sequences that wait at a node whose KV memory is used: perhaps by a cache that gives way

  bool operator==(const NodeRoom&) const = default;
};

NodeRoom node_room(const NodeTable& nodes, std::string_view model);

struct LinesInFlight {
  std::int64_t now = 0;       // of this gateway
  std::int64_t at_beats = 0;  // of this gateway, in the time of which the beats tell
};

struct BatchBudget {
  std::int64_t start = 0;  // lines that this gateway may begin
  std::int64_t yield = 0;  // lines that it takes back
};

/// A quarter of the places, at least one, but never all, is kept for interactive requests. What is free beside it is
/// shared by `gateways`; what the beats showed of this gateway's own lines it may fill again when they end. Nothing is
/// begun while requests are blocked; lines are taken back for them.
BatchBudget batch_budget(const NodeRoom& room, std::int64_t gateways, const LinesInFlight& lines);

/// A batch in progress, as one gateway knows it.
struct WaitingLines {
  std::string id;
  double seconds_left = 0.0;                        // until its deadline
  std::int64_t lines = 0;                           // that have no result, of all gateways, about
  double own = 0.0;                                 // of these: that this gateway has, and its part of those nobody has
  double prompt_tokens = 0.0, answer_tokens = 0.0;  // of a line, about
  std::int64_t sample = 0;  // lines that this gateway runs at once, as nobody knows yet how long answers are
};

/// What is asked of whoever plans when batch work is done.
struct StartQuery {
  Duration now{0};  // monotonic
  UnixTime wall = 0;
  std::int64_t gateways = 1;
  std::int64_t lines_at_beats = 0;  // of this gateway, in the time of which the beats tell
  NodeRoom room = {};
  std::vector<WaitingLines> batches = {};  // the most urgent first
};

/// How many lines of each of these batches this gateway may have running at once.
using BatchStartLimit = std::function<std::vector<std::int64_t>(const StartQuery&)>;

}  // namespace millrace
