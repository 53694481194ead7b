#include "bench/openai.h"

#include <fmt/format.h>

#include <charconv>
#include <nlohmann/json.hpp>

namespace millrace::bench {

namespace {

using nlohmann::json;

std::string dump(const nlohmann::ordered_json& value) {
  return value.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

/// The member, or null where there is none or it is null.
const json* member(const json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

bool has_text(const json& object, const char* key) {
  const json* const text = member(object, key);
  return text != nullptr && text->is_string() && !text->get_ref<const std::string&>().empty();
}

bool has_items(const json& object, const char* key) {
  const json* const list = member(object, key);
  return list != nullptr && list->is_array() && !list->empty();
}

std::int64_t new_tokens(const json& choice) {
  for (const char* key : {"token_ids", "tokens"}) {
    if (const json* const ids = member(choice, key); ids != nullptr && ids->is_array()) {
      return static_cast<std::int64_t>(ids->size());
    }
  }
  const bool goes_on = member(choice, "finish_reason") == nullptr;
  const json* const delta = member(choice, "delta");
  if (delta == nullptr) return has_text(choice, "text") || (goes_on && member(choice, "text") != nullptr) ? 1 : 0;
  const bool shown = has_text(*delta, "content") || has_text(*delta, "reasoning_content") ||
                     has_text(*delta, "reasoning") || has_text(*delta, "refusal") || has_items(*delta, "tool_calls");
  // A chunk that names the role comes before the first token.
  return shown || (goes_on && member(*delta, "content") != nullptr && member(*delta, "role") == nullptr) ? 1 : 0;
}

std::optional<std::int64_t> count(const json& object, const char* key) {
  const json* const value = member(object, key);
  if (value == nullptr || !value->is_number_integer() || *value < 0 || *value > (std::int64_t{1} << 40)) {
    return std::nullopt;
  }
  return value->get<std::int64_t>();
}

std::optional<double> number(const json& object, const char* key) {
  const json* const value = member(object, key);
  return value != nullptr && value->is_number() ? std::optional(value->get<double>()) : std::nullopt;
}

Result<Usage> read_usage(const json& object) {
  const auto prompt = count(object, "prompt_tokens");
  const auto completion = count(object, "completion_tokens");
  if (!prompt) return fail("usage without a count of prompt_tokens");
  Usage usage{*prompt, completion.value_or(0)};  // older servers leave out a count of 0
  if (const json* const details = member(object, "prompt_tokens_details"); details != nullptr) {
    if (details->is_object()) usage.cached_tokens = count(*details, "cached_tokens");
  }
  if (const json* const more = member(object, "millrace"); more != nullptr && more->is_object()) {
    usage.cost_usd = number(*more, "cost_usd");
    usage.energy_j = number(*more, "energy_j");
    if (has_text(*more, "node")) usage.node = member(*more, "node")->get<std::string>();
  }
  return usage;
}

std::string one_line(std::string_view text) {
  constexpr std::size_t kShown = 300;
  std::string line(text.substr(0, kShown));
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  return line;
}

/// The words of an "error" member, which servers write in several ways.
std::string words_of(const json& error) {
  if (error.is_string()) return one_line(error.get_ref<const std::string&>());
  if (error.is_object() && has_text(error, "message")) {
    return one_line(member(error, "message")->get_ref<const std::string&>());
  }
  return one_line(error.dump(-1, ' ', false, json::error_handler_t::replace));
}

}  // namespace

std::string quote_json(std::string_view text) {
  return dump(nlohmann::ordered_json(std::string(text)));
}

Result<RequestWriter> RequestWriter::make(const RequestTemplate& common) {
  nlohmann::ordered_json members{{"model", common.model},
                                 {"stream", true},
                                 {"stream_options", {{"include_usage", true}}},
                                 {"temperature", common.temperature}};
  if (common.top_p) members["top_p"] = *common.top_p;
  if (common.ignore_eos) members["ignore_eos"] = true;
  if (!common.extra.empty()) {
    const auto extra = nlohmann::ordered_json::parse(common.extra, nullptr, false);
    if (!extra.is_object())
      return fail("the extra members of requests are not a JSON object: {}", one_line(common.extra));
    for (const auto& [key, value] : extra.items()) members[key] = value;
  }
  RequestWriter writer;
  writer.endpoint_ = common.endpoint;
  writer.seed_ = common.seed;
  writer.common_ = dump(members);
  writer.common_.pop_back();
  return writer;
}

std::string_view RequestWriter::path() const {
  return endpoint_ == Endpoint::chat ? "/v1/chat/completions" : "/v1/completions";
}

std::string RequestWriter::opening(std::int64_t max_tokens, std::uint64_t number) const {
  std::string text = fmt::format("{},\"max_tokens\":{}", common_, max_tokens);
  // OpenAI's seed is a signed number; 2^53 is what JSON carries everywhere.
  if (seed_) text += fmt::format(",\"seed\":{}", (*seed_ + number) & ((std::uint64_t{1} << 53) - 1));
  return text;
}

std::string RequestWriter::body(std::span<const std::int32_t> prompt, std::int64_t max_tokens,
                                std::uint64_t number) const {
  constexpr std::size_t kLongest = 12;  // of an id with its comma
  std::string text = opening(max_tokens, number) + ",\"prompt\":[";
  text.reserve(text.size() + prompt.size() * 7 + 2);
  char digits[kLongest];
  for (std::size_t i = 0; i < prompt.size(); ++i) {
    if (i > 0) text += ',';
    text.append(digits, std::to_chars(digits, digits + kLongest, prompt[i]).ptr);
  }
  return text += "]}";
}

std::string RequestWriter::body(std::string_view prompt, std::int64_t max_tokens, std::uint64_t number) const {
  const std::string quoted = quote_json(prompt);
  std::string text = opening(max_tokens, number);
  if (endpoint_ == Endpoint::chat) {
    text += ",\"messages\":[{\"role\":\"user\",\"content\":" + quoted + "}]}";
  } else {
    text += ",\"prompt\":" + quoted + "}";
  }
  return text;
}

Result<StreamChunk> parse_chunk(std::string_view data) {
  const json object = json::parse(data, nullptr, false);
  if (!object.is_object()) return fail("an event that is no JSON object: \"{}\"", one_line(data.substr(0, 80)));
  StreamChunk chunk;
  if (const json* const error = member(object, "error"); error != nullptr) {
    chunk.error = words_of(*error);
    return chunk;
  }
  if (const json* const choices = member(object, "choices"); choices != nullptr) {
    if (!choices->is_array()) return fail("an event whose \"choices\" is no list");
    for (const json& choice : *choices) {
      if (!choice.is_object()) return fail("an event with a choice that is no object");
      const json* const delta = member(choice, "delta");
      if (delta != nullptr && !delta->is_object()) return fail("an event whose \"delta\" is no object");
      chunk.tokens += new_tokens(choice);
      chunk.finished = chunk.finished || member(choice, "finish_reason") != nullptr;
    }
  }
  if (const json* const usage = member(object, "usage"); usage != nullptr && usage->is_object()) {
    MILLRACE_TRY(chunk.usage, read_usage(*usage));
  }
  return chunk;
}

std::string error_message(std::string_view body) {
  const json object = json::parse(body, nullptr, false);
  if (object.is_object()) {
    if (const json* const error = member(object, "error"); error != nullptr) return words_of(*error);
    if (has_text(object, "message")) return words_of(object);
  }
  return one_line(body);
}

Result<ServedModel> parse_models(std::string_view body) {
  const json object = json::parse(body, nullptr, false);
  const json* const data = object.is_object() ? member(object, "data") : nullptr;
  if (data == nullptr || !data->is_array()) return fail("not a list of models: \"{}\"", one_line(body.substr(0, 80)));
  if (data->empty()) return fail("an empty list of models");
  const json& first = data->front();
  if (!first.is_object() || !has_text(first, "id")) return fail("the first model has no \"id\"");
  ServedModel model{member(first, "id")->get<std::string>()};
  model.vocab = count(first, "vocab_size").value_or(0);
  // llama.cpp's server puts it here.
  const json* const meta = member(first, "meta");
  if (model.vocab == 0 && meta != nullptr && meta->is_object()) model.vocab = count(*meta, "n_vocab").value_or(0);
  return model;
}

}  // namespace millrace::bench
