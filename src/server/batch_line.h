// Lines of batch files, as OpenAI's batch API has them: requests on the way in, records of their answers on the way
// out.
//
//   {"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{...}}
//   {"id":"batch_req_...","custom_id":"a","response":{"status_code":200,"request_id":"req_...","body":{...}},"error":null}
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "server/api_answer.h"
#include "server/api_error.h"

namespace millrace {

/// A line of the input.
struct BatchLine {
  std::optional<std::string> custom_id;  // none: the line has none that is a string
  Endpoint endpoint = Endpoint::chat;
  std::string body;                 // JSON, for parse_chat and its siblings
  std::optional<ApiError> problem;  // the line is no request, and why; then `endpoint` and `body` say nothing
};

/// Reads a line without its newline. A body that generates and names no seed gets batch_seed(), so that its answer is
/// the same however often a run is cut off.
BatchLine read_batch_line(std::string_view line);

/// The seed of a request that names none: the first 63 bits of SHA-256 of its custom_id.
std::int64_t batch_seed(std::string_view custom_id);

/// Which line of the input a record answers. It is what a run that goes on finds out from what it finds in the output.
struct BatchKey {
  std::uint64_t number = 0;  // of the request in its file, from 0; blank lines do not count. Less than 2^48
  std::uint64_t hash = 0;    // batch_line_hash() of its line

  /// "batch_req_" and 28 hexadecimal digits.
  [[nodiscard]] std::string id() const;
};

/// The first 64 bits of SHA-256.
std::uint64_t batch_line_hash(std::string_view line);

/// A record with its newline. `body`: a JSON document without line breaks. `problem`: set where the line was no
/// request; it is told in "error" too, since no request was made.
std::string batch_record(const BatchKey& key, const std::optional<std::string>& custom_id, int status,
                         std::string_view body, const std::optional<ApiError>& problem);

/// A record, with its newline, of a request that was never made: OpenAI's codes are "batch_expired" and
/// "batch_cancelled".
std::string unanswered_record(const BatchKey& key, const std::optional<std::string>& custom_id, std::string_view code,
                              std::string_view message);

/// What the beginning of a record says; empty for whatever batch_record() has not written.
std::optional<BatchKey> read_batch_record(std::string_view line);
/// Whether `beginning` could be that of a record.
bool may_be_batch_record(std::string_view beginning);
/// The "custom_id" of such a record, as it stands there (JSON), cut off where it is long.
std::string_view batch_record_custom_id(std::string_view line);

}  // namespace millrace
