#include "server/api_generation.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <random>

namespace millrace {

namespace {

constexpr std::int64_t kInt32Max = std::numeric_limits<std::int32_t>::max();

std::uint64_t random_seed() {
  std::random_device device;
  return std::uint64_t{device()} << 32 | device();
}

void read_logit_bias(Fields& fields, const ServedModel& model, SamplingParams& sampling) {
  const Json* biases = fields.object("logit_bias");
  if (biases == nullptr) return;
  if (biases->size() > kMaxBiases) {
    fields.refuse(
        invalid_value("logit_bias", fmt::format("{} tokens, at most {} are allowed", biases->size(), kMaxBiases)));
    return;
  }
  Fields entries(*biases, "logit_bias");
  for (const auto& [key, value] : biases->items()) {
    std::int32_t token = -1;
    const char* const end = key.data() + key.size();
    const auto [stopped, problem] = std::from_chars(key.data(), end, token);
    if (problem != std::errc() || stopped != end || token < 0 || token >= model.vocab) {
      fields.refuse(invalid_value(
          "logit_bias", fmt::format("'{}' is no token id, expected 0 to {}", key.substr(0, 64), model.vocab - 1)));
      return;
    }
    sampling.logit_bias[token] = static_cast<float>(entries.number(key, 0.0, -100.0, 100.0));
  }
  if (entries.error) fields.refuse(*entries.error);
}

SamplingParams read_sampling(Fields& fields, const ServedModel& model) {
  const SamplingDefaults& defaults = model.defaults;
  constexpr double kLeastPenalty = 0.001;
  SamplingParams sampling;
  const auto real = [&](const char* key, float fallback, double low, double high) {
    return static_cast<float>(fields.number(key, static_cast<double>(fallback), low, high));
  };
  sampling.temperature = real("temperature", defaults.temperature, 0.0, 2.0);
  // Zero keeps the most likely token alone, as does the smallest number above it.
  sampling.top_p = std::max(real("top_p", defaults.top_p, 0.0, 1.0), std::numeric_limits<float>::min());
  sampling.top_k =
      static_cast<std::int32_t>(std::max<std::int64_t>(0, fields.integer("top_k", defaults.top_k, -1, kInt32Max)));
  sampling.min_p = real("min_p", defaults.min_p, 0.0, 1.0);
  sampling.repetition_penalty = real("repetition_penalty", defaults.repetition_penalty, kLeastPenalty, 100.0);
  sampling.presence_penalty = real("presence_penalty", 0.0f, -2.0, 2.0);
  sampling.frequency_penalty = real("frequency_penalty", 0.0f, -2.0, 2.0);
  sampling.seed = fields.has("seed")
                      ? static_cast<std::uint64_t>(fields.integer("seed", 0, std::numeric_limits<std::int64_t>::min(),
                                                                  std::numeric_limits<std::int64_t>::max()))
                      : random_seed();
  read_logit_bias(fields, model, sampling);
  return sampling;
}

std::vector<std::string> read_stop(Fields& fields, const ServedModel& model) {
  const Json* value = fields.find("stop");
  if (value == nullptr) return {};
  std::vector<std::string> stops;
  const auto add = [&](const Json& stop, const std::string& param) {
    if (!stop.is_string()) {
      fields.refuse(invalid_type(param, value->is_array() ? "a string" : "a string or an array of strings", stop));
    } else if (const auto& text = stop.get_ref<const std::string&>(); text.size() > kMaxStopBytes) {
      fields.refuse(invalid_value(param, fmt::format("{} bytes, at most {} are allowed", text.size(), kMaxStopBytes)));
    } else if (!text.empty()) {
      stops.push_back(text);
    }
  };
  if (!value->is_array()) {
    add(*value, "stop");
  } else if (value->size() > kMaxStops) {
    fields.refuse(invalid_value("stop", fmt::format("{} strings, at most {} are allowed", value->size(), kMaxStops)));
  } else {
    for (std::size_t i = 0; i < value->size(); ++i) add((*value)[i], fmt::format("stop[{}]", i));
  }
  if (!stops.empty() && model.tokenizer == nullptr) {
    fields.refuse(invalid_value("stop", "this model has no tokenizer, so its answers have no text"));
  }
  return stops;
}

std::vector<std::int32_t> read_stop_ids(Fields& fields, const ServedModel& model) {
  std::vector<std::int32_t> ids;
  if (!fields.boolean("ignore_eos", false)) ids = model.eos_ids;
  const Json* extra = fields.array("stop_token_ids");
  if (extra == nullptr) return ids;
  if (extra->size() > kMaxBiases) {
    fields.refuse(invalid_value("stop_token_ids", fmt::format("at most {} tokens are allowed", kMaxBiases)));
    return ids;
  }
  for (std::size_t i = 0; i < extra->size(); ++i) {
    const Json& id = (*extra)[i];
    const std::string param = fmt::format("stop_token_ids[{}]", i);
    if (!id.is_number_integer()) {
      fields.refuse(invalid_type(param, "an integer", id));
    } else if (id.get<std::int64_t>() < 0 || id.get<std::int64_t>() >= model.vocab) {
      fields.refuse(
          invalid_value(param, fmt::format("{} is no token id, expected 0 to {}", id.dump(), model.vocab - 1)));
    } else {
      ids.push_back(id.get<std::int32_t>());
    }
  }
  return ids;
}

void read_stream(Fields& fields, AnswerSpec& answer) {
  answer.stream = fields.boolean("stream", false);
  const Json* options = fields.object("stream_options");
  if (options == nullptr) return;
  if (!answer.stream) {
    fields.refuse(invalid_value("stream_options", "only allowed when 'stream' is true"));
    return;
  }
  Fields stream(*options, "stream_options");
  answer.include_usage = stream.boolean("include_usage", false);
  answer.continuous_usage = stream.boolean("continuous_usage_stats", false) && answer.include_usage;
  if (stream.error) fields.refuse(*stream.error);
}

}  // namespace

ApiResult<std::string> read_model(Fields& fields, const ServedModel& model) {
  std::string name = fields.text("model", model.name());
  if (fields.error) return *fields.error;
  if (!model.answers_to(name)) return ApiError::unknown_model(name);
  return name;
}

Generation read_generation(Fields& fields, const ServedModel& model) {
  Generation generation;
  Request& request = generation.request;
  request.sampling = read_sampling(fields, model);
  generation.names_seed = fields.has("seed");
  request.choices = static_cast<std::int32_t>(fields.integer("n", 1, 1, kMaxChoices));
  request.stop = read_stop(fields, model);
  request.stop_ids = read_stop_ids(fields, model);
  request.priority = static_cast<std::int32_t>(fields.integer("priority", 0, -kInt32Max, kInt32Max));
  request.cache_salt = fields.text("cache_salt", "");
  if (request.cache_salt.size() > kMaxStopBytes) {
    fields.refuse(invalid_value("cache_salt", fmt::format("longer than {} bytes", kMaxStopBytes)));
  }
  AnswerSpec& answer = generation.answer;
  answer.n = answer.choices = request.choices;
  answer.stop_ids = request.stop_ids;
  read_stream(fields, answer);
  generation.keep_special = !fields.boolean("skip_special_tokens", true);
  generation.user = fields.text("user", "");
  return generation;
}

ApiStatus fit(Request& request, std::optional<std::int64_t> asked, std::int64_t fallback, const ServedModel& model,
              const std::string& param) {
  const auto prompt = static_cast<std::int64_t>(request.prompt.size());
  const std::int64_t room = model.max_sequence_tokens - prompt;
  const std::int64_t least = asked ? *asked : std::min<std::int64_t>(fallback, 1);
  if (model.max_prompt_tokens && prompt > *model.max_prompt_tokens) {
    return ApiError{.status = 400,
                    .message = fmt::format("This model's prompts have at most {} tokens; this one has {}.",
                                           *model.max_prompt_tokens, prompt),
                    .param = param,
                    .code = "context_length_exceeded"};
  }
  if (room >= least) {
    request.max_new_tokens = std::min(asked.value_or(fallback), room);
    return Ok{};
  }
  const std::string sum = asked && room > 0 ? fmt::format("{} were requested ({} in the prompt, {} for the answer)",
                                                          prompt + *asked, prompt, *asked)
                                            : fmt::format("the prompt has {}, which leaves none for an answer", prompt);
  return ApiError{
      .status = 400,
      .message = fmt::format("This model's maximum context length is {} tokens; {}.", model.max_sequence_tokens, sum),
      .param = param,
      .code = "context_length_exceeded"};
}

}  // namespace millrace
