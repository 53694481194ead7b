// What Router (router.h) predicts, by the numbers that it keeps of nodes: one column for each, so that all nodes are
// gone through side by side, as many at once as the processor takes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace millrace {

/// In floats: what these are made of is not known to four digits. Rows are nodes.
struct RouterColumns {
  std::vector<float> inverse_prefill, step, step_per_sequence, usd_per_prompt_token, usd_per_answer_token, places,
      inverse_places;
  std::vector<float> sequences, queued;         // and tokens of prompts, as was told last
  std::vector<float> kv_free, inverse_kv_used;  // tokens, the same; as much as anybody wants where it is not known
  std::vector<float> cached;                    // tokens of the request

  void resize(std::size_t count);
};

/// What a request is for a router.
struct AskedFor {
  AskedFor(std::int64_t prompt_tokens, double answer_tokens);
  float prompt, answer;  // tokens
};

struct Prediction {
  float ttft, tpot;  // seconds
  float usd;
};

Prediction predict(const RouterColumns& columns, std::size_t node, const AskedFor& asked);

/// Writes what the request costs at each node: dollars; where it would miss the SLO, more than that by how far, behind
/// all dollars. `inverse_ttft`, `inverse_tpot`: 1 / seconds that may pass, 0 for any.
void score_by_cost(const RouterColumns& columns, const AskedFor& asked, float inverse_ttft, float inverse_tpot,
                   std::vector<float>& scores);
/// Writes each node's TTFT.
void score_by_ttft(const RouterColumns& columns, const AskedFor& asked, std::vector<float>& scores);

}  // namespace millrace
