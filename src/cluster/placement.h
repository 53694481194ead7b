// Placement: all that a node must know to begin a stream, or to go on with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cluster/wire.h"
#include "core/result.h"
#include "engine/request.h"
#include "runtime/sampler.h"
#include "text/grammar.h"

namespace millrace {

/// One answer to the prompt, as far as it has come.
struct PlacedChoice {
  std::vector<std::int32_t> tokens;  // that came already: rows of the answer, computed again as such
  std::int64_t prompt_reported = 0;  // tokens of the prompt whose log-probabilities were told
  bool ended = false;

  [[nodiscard]] bool has_begun() const { return ended || !tokens.empty() || prompt_reported > 0; }
  friend bool operator==(const PlacedChoice&, const PlacedChoice&) = default;
};

struct Placement {
  std::string model = {};          // as the node's record names it
  std::string numeric_class = {};  // that the node must be of, for the same tokens; empty: any
  Task task = Task::generate;      // an embedding has one choice, and begins anew on each node
  std::vector<std::int32_t> prompt = {};
  std::vector<PlacedChoice> choices{1};
  SamplingParams sampling = {};     // of all choices; its `choice` is not sent
  std::int64_t max_new_tokens = 1;  // of each choice, those that came included
  std::vector<std::int32_t> stop_ids = {};
  std::vector<std::string> stop = {};  // stop strings; the gateway looks for them too, and believes itself
  bool special_text = false;           // stop strings may stand in the text of special tokens
  std::int32_t logprobs = -1;          // as Request has it
  bool prompt_logprobs = false;
  std::optional<GrammarSpec> grammar = {};  // what the answers must match
  std::int64_t pinned_tokens = 0;
  std::int32_t priority = 0;
  std::string cache_salt = {};
  std::int64_t allowed = 0;  // frames that may be sent before there is other credit
};

constexpr std::size_t kMaxPlacement = 16 << 20;  // bytes
constexpr std::size_t kMaxPlacedChoices = 128;

Bytes encode(const Placement& placement);
/// Error: one line that says which field is wrong. What the model allows (ids within the vocabulary) is not checked.
Result<Placement> decode_placement(std::span<const std::byte> bytes);

}  // namespace millrace
