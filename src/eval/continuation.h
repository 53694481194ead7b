// How likely a model finds given continuations of given contexts: what most tasks come down to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "core/result.h"
#include "runtime/model_runner.h"

namespace millrace {

/// A context, and behind it what is to be judged. To the model the context is the prompt, the rest an answer to it.
struct Continuation {
  std::vector<std::int32_t> tokens;
  std::size_t context = 1;    // tokens that are given: at least 1, fewer than all
  bool asks_further = false;  // for what the model would say next, too
  std::size_t pinned = 0;     // tokens of the context, the first, that a chat would have from its system
};

struct ContinuationScore {
  double log_likelihood = 0.0;  // of all tokens behind the context together, nats
  bool greedy = true;           // greedy decoding would give just them: of equally likely tokens the lowest id
  std::int32_t next = -1;       // the most likely token behind the last one, if asked for
};

/// (index, score), in the order of the continuations. An error ends the work.
using TakeScore = std::function<Status(std::size_t, const ContinuationScore&)>;

/// Runs the continuations, each a sequence of its own, as many in a step as its limits and the KV memory allow. Scores
/// do not depend on which run together. Errors: tokens that the model cannot run, with the figures; logits that are not
/// finite; what `take` returns.
Status score_continuations(ModelRunner& runner, std::span<const Continuation* const> continuations,
                           const TakeScore& take);

/// ln of the sum of e^logit, in double. Not finite where a logit is not.
double log_sum_exp(std::span<const float> logits);

}  // namespace millrace
