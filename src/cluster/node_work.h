// NodeWork: what one node did for a stream, as its gateway saw it. What is charged, and what speeds are learned from.
#pragma once

#include <cstdint>
#include <string>

#include "cluster/transport.h"

namespace millrace {

struct NodeWork {
  std::string node;
  std::string recipe = {};         // that it serves the model with
  std::int64_t prompt_tokens = 0;  // to be had before the first new one: the prompt, and what each answer had already
  std::int64_t cached_tokens = 0;  // of these, that it had, as far as it has said so
  std::int64_t tokens = 0;         // of answers, that came from it
  std::int64_t choices = 1;        // answers that it worked on
  std::int64_t beside = 0;         // sequences of others that it ran when the first token came
  bool queued = false;             // others waited there when it was placed
  Instant placed{0}, first{0}, last{0};  // when it was placed, when the first and the latest token came; first 0: none
};

}  // namespace millrace
