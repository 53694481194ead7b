#include "cli/generate.h"

#include <charconv>
#include <cmath>
#include <cstdio>
#include <random>

#include "cli/interrupt.h"

namespace millrace::cli {

namespace {

/// A number of generation_config.json; `fallback` where the key is absent or not a number that a float can hold.
float configured(const nlohmann::json& config, const char* key, float fallback) {
  const auto found = config.find(key);
  if (found == config.end() || !found->is_number()) return fallback;
  const auto number = found->get<double>();
  return std::fabs(number) < 1e9 ? static_cast<float>(number) : fallback;
}

std::vector<std::int32_t> end_tokens(const LoadedModel& model) {
  return model.runner->config().eos_ids;
}

Status parse_logit_bias(const std::vector<std::string>& flags, SamplingParams& params) {
  for (const std::string& text : flags) {
    std::int32_t token = 0;
    float bias = 0.0f;
    const char* const end = text.data() + text.size();
    const auto id = std::from_chars(text.data(), end, token);
    const bool separated = id.ec == std::errc() && id.ptr != end && *id.ptr == ':';
    const char* const number = separated && id.ptr + 1 != end && id.ptr[1] == '+' ? id.ptr + 2 : id.ptr + 1;
    if (!separated || std::from_chars(number, end, bias).ec != std::errc()) {
      return fail("--logit-bias: \"{}\" is not ID:BIAS, such as 15:-100", text);
    }
    params.logit_bias[token] = bias;
  }
  return Ok{};
}

}  // namespace

void add_generation_flags(CLI::App& command, GenerationFlags& flags) {
  command.add_option("-n,--max-tokens", flags.max_new_tokens, "The most tokens to generate")
      ->check(CLI::PositiveNumber);
  command.add_option("--temperature", flags.temperature, "0: greedy");
  command.add_option("--top-p", flags.top_p, "Keep the most likely tokens up to this probability");
  command.add_option("--top-k", flags.top_k, "Keep the k most likely tokens; 0: all");
  command.add_option("--min-p", flags.min_p, "Drop tokens less likely than this share of the most likely one");
  command.add_option("--repetition-penalty", flags.repetition_penalty, "Divides the logits of tokens seen before");
  command.add_option("--presence-penalty", flags.presence_penalty, "Subtracted once for a token of the answer");
  command.add_option("--frequency-penalty", flags.frequency_penalty, "Subtracted for each time a token was generated");
  command.add_option("--logit-bias", flags.logit_bias, "ID:BIAS, added to a token's logit; may be repeated")
      ->allow_extra_args(false);
  command.add_option("--seed", flags.seed, "Makes sampling repeatable; absent: a random one");
  command.add_option("--stop", flags.stop, "Stop string; may be repeated")->allow_extra_args(false);
  command.add_flag("--ignore-eos", flags.ignore_eos, "Do not stop at an end-of-sequence token");
}

Result<Request> make_request(const GenerationFlags& flags, const LoadedModel& model) {
  const nlohmann::json& config = model.generation_config;
  const auto sample = config.find("do_sample");
  const bool samples = sample != config.end() && sample->is_boolean() && sample->get<bool>();
  Request request;
  SamplingParams& sampling = request.sampling;
  // Who cuts the distribution's tail wants to draw from it.
  const bool cuts = flags.top_p || flags.top_k || flags.min_p;
  const float configured_temperature = samples ? configured(config, "temperature", 1.0f) : cuts ? 1.0f : 0.0f;
  sampling.temperature = flags.temperature.value_or(configured_temperature);
  sampling.top_p = flags.top_p.value_or(configured(config, "top_p", 1.0f));
  sampling.top_k = flags.top_k.value_or(static_cast<std::int32_t>(configured(config, "top_k", 0.0f)));
  sampling.min_p = flags.min_p.value_or(configured(config, "min_p", 0.0f));
  sampling.repetition_penalty = flags.repetition_penalty.value_or(configured(config, "repetition_penalty", 1.0f));
  sampling.presence_penalty = flags.presence_penalty;
  sampling.frequency_penalty = flags.frequency_penalty;
  sampling.seed = flags.seed ? *flags.seed : (std::uint64_t{std::random_device{}()} << 32 | std::random_device{}());
  MILLRACE_CHECK_OK(parse_logit_bias(flags.logit_bias, sampling));
  MILLRACE_CHECK_OK(validate(sampling, model.runner->config().vocab));
  request.max_new_tokens = flags.max_new_tokens;
  if (!flags.ignore_eos) request.stop_ids = end_tokens(model);
  if (!flags.stop.empty() && !model.tokenizer) return fail("--stop needs a tokenizer, and {} has none", model.path);
  request.stop = flags.stop;
  return request;
}

Result<Generated> generate(EngineCore& engine, Request request,
                           const std::function<void(const TokenEvent&)>& on_event) {
  Generated answer;
  std::string error;
  const auto sink = [&](const TokenEvent& event) {
    if (event.token >= 0) answer.token_ids.push_back(event.token);
    answer.text += event.text;
    if (event.finish != FinishReason::none) answer.finish = event.finish;
    if (event.finish == FinishReason::error) error = event.error;
    if (event.summary != nullptr) answer.summary = *event.summary;
    on_event(event);
    return Demand::more;
  };
  Interrupts::take();  // one that came before this answer does not concern it
  MILLRACE_CHECK_OK(engine.prepare(request));
  constexpr RequestId kOnly = 1;
  engine.submit(kOnly, std::move(request), sink, EngineCore::Clock::now());
  while (engine.step()) {
    if (Interrupts::take()) engine.cancel(kOnly);
  }
  if (answer.finish == FinishReason::error) return fail("{}", error);
  return answer;
}

void print_now(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

void print_closing_line(std::size_t prompt_tokens, const Generated& answer) {
  const double rate = answer.summary.tpot > 0.0 ? 1.0 / answer.summary.tpot : 0.0;
  std::fprintf(stderr, "[%zu prompt tokens, %zu generated (%.*s); TTFT %.1f ms, TPOT %.2f ms, %.1f tokens/s]\n",
               prompt_tokens, answer.token_ids.size(), static_cast<int>(finish_reason_name(answer.finish).size()),
               finish_reason_name(answer.finish).data(), answer.summary.ttft * 1e3, answer.summary.tpot * 1e3, rate);
}

}  // namespace millrace::cli
