#include "cluster/placement.h"

#include <cmath>
#include <limits>

namespace millrace {

namespace {

constexpr std::uint64_t kVersion = 1;
constexpr std::uint64_t kMostTokens = 1 << 22;  // a varint of one byte each fills no more
constexpr std::size_t kMostName = 256, kMostSalt = 4096, kMostBiases = 1024, kMostStops = 4096;
constexpr std::size_t kMostGrammar = 4 << 20;
constexpr std::int64_t kInt32Max = std::numeric_limits<std::int32_t>::max();

void put_tokens(WireWriter& out, const std::vector<std::int32_t>& tokens) {
  out.varint(tokens.size());
  for (const std::int32_t token : tokens) out.varint(static_cast<std::uint32_t>(token));
}

std::vector<std::int32_t> read_tokens(WireReader& in, std::size_t most, std::string_view what) {
  std::vector<std::int32_t> tokens(in.count(most, 1, what));
  for (std::int32_t& token : tokens) token = static_cast<std::int32_t>(in.varint(kInt32Max, what));
  return tokens;
}

void put_sampling(WireWriter& out, const SamplingParams& sampling) {
  out.f32(sampling.temperature);
  out.varint(static_cast<std::uint32_t>(sampling.top_k));
  for (const float value : {sampling.top_p, sampling.min_p, sampling.repetition_penalty, sampling.presence_penalty,
                            sampling.frequency_penalty}) {
    out.f32(value);
  }
  out.varint(sampling.logit_bias.size());
  for (const auto& [token, bias] : sampling.logit_bias) {
    out.varint(static_cast<std::uint32_t>(token));
    out.f32(bias);
  }
  out.u64(sampling.seed);
}

float read_real(WireReader& in, std::string_view what) {
  const float value = in.f32();
  if (!std::isfinite(value)) in.refuse(std::string(what) + " is no finite number");
  return value;
}

SamplingParams read_sampling(WireReader& in) {
  SamplingParams sampling;
  sampling.temperature = read_real(in, "temperature");
  sampling.top_k = static_cast<std::int32_t>(in.varint(kInt32Max, "top_k"));
  sampling.top_p = read_real(in, "top_p");
  sampling.min_p = read_real(in, "min_p");
  sampling.repetition_penalty = read_real(in, "repetition_penalty");
  sampling.presence_penalty = read_real(in, "presence_penalty");
  sampling.frequency_penalty = read_real(in, "frequency_penalty");
  const std::size_t biases = in.count(kMostBiases, 5, "logit_bias");
  for (std::size_t i = 0; i < biases && in.ok(); ++i) {
    const auto token = static_cast<std::int32_t>(in.varint(kInt32Max, "a token of logit_bias"));
    if (!sampling.logit_bias.empty() && token <= sampling.logit_bias.rbegin()->first) {
      in.refuse("the tokens of logit_bias do not ascend");
    }
    sampling.logit_bias[token] = read_real(in, "logit_bias");
  }
  sampling.seed = in.u64();
  return sampling;
}

void put_grammar(WireWriter& out, const std::optional<GrammarSpec>& grammar) {
  out.varint(grammar ? 1 : 0);
  if (!grammar) return;
  out.u8(static_cast<std::uint8_t>(grammar->kind));
  out.text(grammar->text);
  out.varint(grammar->choices.size());
  for (const std::string& choice : grammar->choices) out.text(choice);
}

std::optional<GrammarSpec> read_grammar(WireReader& in) {
  if (!in.flag("the sign of a grammar")) return std::nullopt;
  GrammarSpec grammar;
  const std::uint8_t kind = in.u8();
  if (kind > static_cast<std::uint8_t>(GrammarSpec::Kind::choice)) in.refuse("the grammar is of no known kind");
  grammar.kind = static_cast<GrammarSpec::Kind>(kind);
  grammar.text = in.text(kMostGrammar, "the grammar");
  grammar.choices.resize(in.count(kMostGrammar, 1, "choices of the grammar"));
  for (std::string& choice : grammar.choices) choice = in.text(kMostGrammar, "a choice of the grammar");
  return grammar;
}

}  // namespace

Bytes encode(const Placement& placement) {
  WireWriter out;
  out.varint(kVersion);
  out.text(placement.model);
  out.text(placement.numeric_class);
  out.u8(static_cast<std::uint8_t>(placement.task));
  put_tokens(out, placement.prompt);
  out.varint(placement.choices.size());
  for (const PlacedChoice& choice : placement.choices) {
    put_tokens(out, choice.tokens);
    out.varint(static_cast<std::uint64_t>(choice.prompt_reported));
    out.varint(choice.ended ? 1 : 0);
  }
  put_sampling(out, placement.sampling);
  out.varint(static_cast<std::uint64_t>(placement.max_new_tokens));
  put_tokens(out, placement.stop_ids);
  out.varint(placement.stop.size());
  for (const std::string& stop : placement.stop) out.text(stop);
  out.varint(placement.special_text ? 1 : 0);
  out.signed_varint(placement.logprobs);
  out.varint(placement.prompt_logprobs ? 1 : 0);
  put_grammar(out, placement.grammar);
  out.varint(static_cast<std::uint64_t>(placement.pinned_tokens));
  out.signed_varint(placement.priority);
  out.text(placement.cache_salt);
  out.varint(static_cast<std::uint64_t>(placement.allowed));
  return std::move(out).take();
}

Result<Placement> decode_placement(std::span<const std::byte> bytes) {
  WireReader in(bytes);
  Placement placement;
  if (in.varint(kVersion, "the placement's version") != kVersion) in.refuse("the placement's version is not known");
  placement.model = in.text(kMostName, "the model's name");
  placement.numeric_class = in.text(kMostName, "the numeric class");
  const std::uint8_t task = in.u8();
  if (task > static_cast<std::uint8_t>(Task::embed_last)) in.refuse("the task is of no known kind");
  placement.task = static_cast<Task>(task);
  placement.prompt = read_tokens(in, kMostTokens, "tokens of the prompt");
  if (in.ok() && placement.prompt.empty()) in.refuse("the prompt is empty");
  placement.choices.resize(in.count(kMaxPlacedChoices, 3, "choices"));
  if (in.ok() && placement.choices.empty()) in.refuse("there is no choice");
  for (PlacedChoice& choice : placement.choices) {
    choice.tokens = read_tokens(in, kMostTokens, "tokens of a choice");
    choice.prompt_reported = static_cast<std::int64_t>(in.varint(placement.prompt.size(), "reported prompt tokens"));
    choice.ended = in.flag("the end of a choice");
  }
  placement.sampling = read_sampling(in);
  placement.max_new_tokens = static_cast<std::int64_t>(in.varint(kMostTokens, "max_new_tokens"));
  placement.stop_ids = read_tokens(in, kMostStops, "stop tokens");
  placement.stop.resize(in.count(kMostStops, 1, "stop strings"));
  for (std::string& stop : placement.stop) stop = in.text(kMostName * 16, "a stop string");
  placement.special_text = in.flag("the sign of special tokens");
  placement.logprobs = static_cast<std::int32_t>(in.signed_varint(-1, kInt32Max, "logprobs"));
  placement.prompt_logprobs = in.flag("prompt_logprobs");
  placement.grammar = read_grammar(in);
  placement.pinned_tokens = static_cast<std::int64_t>(in.varint(placement.prompt.size(), "pinned tokens"));
  placement.priority = static_cast<std::int32_t>(in.signed_varint(-kInt32Max, kInt32Max, "priority"));
  placement.cache_salt = in.text(kMostSalt, "the salt");
  placement.allowed = static_cast<std::int64_t>(in.varint(kInt32Max, "allowed frames"));
  if (placement.task != Task::generate && (placement.choices.size() != 1 || placement.choices.front().has_begun())) {
    in.refuse("an embedding has choices, or has begun");
  }
  for (const PlacedChoice& choice : placement.choices) {
    if (static_cast<std::int64_t>(choice.tokens.size()) > placement.max_new_tokens) {
      in.refuse("a choice has more tokens than were asked for");
    }
  }
  MILLRACE_CHECK_OK(in.status());
  return placement;
}

}  // namespace millrace
