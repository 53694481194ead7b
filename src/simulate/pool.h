// The nodes of a simulated cloud: kinds of machines, where they stand, what they cost there.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cluster/router.h"
#include "cluster/tariff.h"
#include "cluster/terms.h"
#include "core/result.h"

namespace millrace {

struct SimNode {
  std::string type = {}, site = {};
  NodeSpeed speed = {};
  double chunk = 512.0;  // tokens of prompts in a step
  std::int64_t places = 16;
  std::int64_t kv_tokens = 1 << 20;  // that fit its memory
  std::int64_t context = 1 << 20;
  NodeTerms terms = {};
  double mtbf_s = 0.0, mttr_s = 0.0;  // mean times between failures and to repair; 0: it never fails
};

/// What makes speeds and places of types that are given relative to another. Illustrative: an 8B model with weights of
/// 8 bits and 8 KV heads of 128 in 32 layers, on the machine that has 1.0.
struct PoolBase {
  NodeSpeed speed = {.prefill = 20000.0, .step = 0.007, .step_per_sequence = 0.0001};
  double chunk = 512.0;   // tokens of prompts in a step
  double chunk_s = 0.05;  // a chunk of prompts is to take no longer; smaller ones than .chunk then
  double weights_gb = 8.5;
  double kv_bytes_per_token = 131072.0;
  double memory_used = 0.9;              // share of a machine's memory
  std::int64_t tokens_per_place = 2048;  // a place for so many tokens of KV …
  std::int64_t max_places = 64;          // … at most so many
  std::int64_t max_context = 131072;
};

/// `count` nodes of a pool's text: an object with "node_types", "pue" and "availability". A type has a name,
/// usd_per_hour, idle_w, busy_w, and either prefill_rel, decode_rel and vram_gb (relative to `base`), or what was
/// measured: prefill_tokens_s, step_s, step_per_sequence_s, places, kv_tokens, and
/// chunk_tokens (512), those of prompts in a step. "share" (1) says how many there are of it
/// beside others, "site" and "tariff" where it stands and what power costs there; where a type does not say that, each
/// of its nodes draws one by lot. Error: names `name` and the type: not JSON, a key that is missing, unknown or out of
/// range, a site or a tariff that is not there, a machine that the model does not fit.
Result<std::vector<SimNode>> make_pool(std::string_view text, const std::string& name,
                                       const std::vector<Tariff>& tariffs, std::int64_t count, std::uint64_t seed,
                                       const PoolBase& base = {});

}  // namespace millrace
