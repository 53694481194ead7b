// A draw of a token from a row of logits, in terms that a device can follow.
#pragma once

#include <cstdint>

namespace millrace {

/// What is left of sampling once a row needs no bias, penalty or mask. runtime/sampler.h defines the token that it
/// gives, to the bit.
struct TokenDraw {
  std::int32_t row = 0;    // of the logits
  bool greedy = false;     // the most likely token; all that follows is then without meaning
  std::int32_t top_k = 0;  // keep the k most likely tokens; 0: all
  float top_p = 1.0f;      // keep the fewest most likely tokens that have this much of the weight; 1: all
  float min_p = 0.0f;      // with top_p below 1: drop those that weigh less than this
  float scale = 0.0f;      // a token weighs 2^y, y = (logit - largest) * scale; and
  float floor = 0.0f;      // nothing where y is below `floor`
  float uniform = 0.0f;    // 0 to 1 - 2^-24, a multiple of 2^-24: how far along the weights the token lies
};

}  // namespace millrace
