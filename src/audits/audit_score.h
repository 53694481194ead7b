// How far an answer lies from the one that a trusted node would have drawn (docs/audits.md). Pure.
#pragma once

#include <cstdint>
#include <span>

#include "cluster/placement.h"
#include "runtime/sampler.h"

namespace millrace {

/// Log-probabilities at each place that a trusted node is asked for.
constexpr std::int32_t kAuditTop = 128;

/// Whether answers of this placement can be scored: what its draws depend on is in the log-probabilities of a place. No
/// grammar, no penalty, no bias.
bool can_score(const Placement& placement);

/// Where the random number of this place falls in the reference's distribution, and how far from there the token lies:
/// 0 where the reference would have drawn the token, or may have (what it does not say of the tail counts for the
/// node), else the share of the distribution's mass in between, and where a cut excludes the token, the mass by which
/// that has to be moved as well; at most 1. Greedy: how much less likely than the most likely token it is, as a
/// difference of probabilities.
///
/// `reference`: of `token` at its place, with the kAuditTop most likely tokens or, where there are fewer, all of
/// `vocab`. `sampling.choice` must be set; `position`: of the token in its sequence.
double token_distance(const TokenLogprobs& reference, std::int32_t token, const SamplingParams& sampling,
                      std::int64_t position, std::int64_t vocab);

/// A token of an answer, and what a trusted node said of it.
struct ReferredToken {
  std::int32_t token = 0;
  TokenLogprobs logprobs = {};
};

/// The score of an answer, 0 to 1: the mean of its tokens' distances. `first_position`: of tokens[0], of which there is
/// one at least.
double answer_score(std::span<const ReferredToken> tokens, const SamplingParams& sampling, std::int64_t first_position,
                    std::int64_t vocab);

}  // namespace millrace
