// What is asked of an OpenAI-compatible server, and how its answers are read. Pure.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "core/result.h"

namespace millrace::bench {

enum class Endpoint : std::uint8_t { completions, chat };

/// What all requests of a run have in common.
struct RequestTemplate {
  Endpoint endpoint = Endpoint::completions;
  std::string model = {};
  double temperature = 0.0;
  std::optional<double> top_p = {};
  std::optional<std::uint64_t> seed = {};  // of the server's sampling; request i sends seed + i
  bool ignore_eos = true;                  // answers of the full length, from servers that know the field
  std::string extra = {};                  // a JSON object whose members are added to each request; empty: none
};

/// Writes requests that differ in prompt and length only.
class RequestWriter {
 public:
  /// Error: `extra` is not a JSON object.
  static Result<RequestWriter> make(const RequestTemplate& common);

  /// The JSON body that asks for a stream of `max_tokens` tokens with usage at its end, for a prompt of ids
  /// (completions only) or of text.
  [[nodiscard]] std::string body(std::span<const std::int32_t> prompt, std::int64_t max_tokens,
                                 std::uint64_t number) const;
  [[nodiscard]] std::string body(std::string_view prompt, std::int64_t max_tokens, std::uint64_t number) const;

  /// "/v1/completions" or "/v1/chat/completions".
  [[nodiscard]] std::string_view path() const;

 private:
  [[nodiscard]] std::string opening(std::int64_t max_tokens, std::uint64_t number) const;

  Endpoint endpoint_ = Endpoint::completions;
  std::optional<std::uint64_t> seed_;
  std::string common_;  // the members that all requests share, without the closing brace
};

/// The counts that a server reports with an answer.
struct Usage {
  std::int64_t prompt_tokens = 0;
  std::int64_t completion_tokens = 0;
  std::optional<std::int64_t> cached_tokens = {};
  // Of Millrace's gateways: what the answer costs, $, what it took, J, and the node that ended it; empty elsewhere.
  std::optional<double> cost_usd = {}, energy_j = {};
  std::string node = {};
};

/// One event of a stream.
struct StreamChunk {
  /// Tokens that are new in it, as far as it shows: the length of "token_ids" (or llama.cpp's "tokens") where it has
  /// such a list; else 1 where it has new text, or where its text is empty although the answer goes on (half a
  /// character, a special token). 0: a role, a reason to finish, or usage alone.
  std::int64_t tokens = 0;
  bool finished = false;  // it has a finish_reason
  std::optional<Usage> usage = {};
  std::string error = {};  // the server's own words for what went wrong
};

/// Reads the data of an event; "[DONE]" is the caller's. Error: not a JSON object, or members of another type than
/// OpenAI's.
Result<StreamChunk> parse_chunk(std::string_view data);

/// The message of an error body: OpenAI's {"error": {"message": …}}, {"error": "…"}, {"message": …}, or else its
/// beginning. One line.
std::string error_message(std::string_view body);

/// What GET /v1/models tells about the first model.
struct ServedModel {
  std::string name;
  std::int64_t vocab = 0;  // 0: not told
};

/// Errors: not a list of models as OpenAI has it, or an empty one.
Result<ServedModel> parse_models(std::string_view body);

/// `text` as JSON with its quotes; bytes that are not UTF-8 are replaced.
std::string quote_json(std::string_view text);

}  // namespace millrace::bench
