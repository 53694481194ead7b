// NodeWork: what one node did for a stream, as its gateway saw it. What is charged, and what speeds are learned from.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "cluster/transport.h"

namespace millrace {

struct NodeWork {
  std::string node;
  std::string recipe = {};           // that it serves the model with
  std::int64_t prompt_tokens = 0;    // to be had before the first new one: the prompt, and what each answer had already
  std::int64_t cached_tokens = 0;    // of these, that it had, as far as it has said so
  std::int64_t expected_cached = 0;  // the same, as the router thought
  std::int64_t tokens = 0;           // of answers, that came from it
  std::int64_t choices = 1;          // answers that it worked on
  double beside = 0.0;               // sequences of others that it ran, between the first token and the last
  std::shared_ptr<const std::vector<std::uint64_t>> pages = {};  // of its prompt, where a router counts them
  double ttft = 0.0, tpot = 0.0;                                 // seconds, that the router predicted
  double ttft_slo = std::numeric_limits<double>::infinity();     // that it was picked for
  double tpot_slo = std::numeric_limits<double>::infinity();
  bool within_slo = false;               // that is what the router predicted
  bool trial = false;                    // of a node that had rested: no prediction that others could be made by
  bool queued = false;                   // others waited there when it was placed
  Instant placed{0}, first{0}, last{0};  // when it was placed, when the first and the latest token came; first 0: none
};

/// A stream's way through a node: placed there; its first token has come; it has left, perhaps without one.
enum class WorkStage : std::uint8_t { placed, began, left };

}  // namespace millrace
