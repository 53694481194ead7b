#include "server/batch_call.h"

#include "server/api_json.h"

namespace millrace {

namespace {

ApiResult<ApiCall> parse(const BatchLine& line, const ServedModel& model) {
  if (line.endpoint == Endpoint::chat) return parse_chat(line.body, model);
  if (line.endpoint == Endpoint::completion) return parse_completion(line.body, model);
  return parse_embeddings(line.body, model);
}

}  // namespace

ApiResult<ApiCall> batch_call(const BatchLine& line, const ServedModel& model) {
  if (line.problem) return *line.problem;
  MILLRACE_TRY(ApiCall call, parse(line, model));
  if (call.answer.stream) return invalid_value("stream", "a batch has no streams");
  return call;
}

}  // namespace millrace
