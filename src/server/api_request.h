// From the body of an HTTP request to what the engine is asked and how its answer is to be told.
//
// Field names and meanings are OpenAI's; beside them vLLM's additions (top_k, min_p, guided_json, ...). Unknown fields
// are tolerated, wrong types and values out of range are refused with 400 and the field's name in `param`.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/request.h"
#include "server/api_answer.h"
#include "server/api_error.h"
#include "server/api_model.h"

namespace millrace {

/// A request that may go to the engine: submit each of `requests` (usually one; one a prompt where a body has several),
/// and give their events to an AnswerBuilder made of `answer`.
struct ApiCall {
  std::vector<Request> requests;
  AnswerSpec answer;
  std::string user;         // as the client named its end user; may be empty
  bool names_seed = false;  // the body does; else the requests have one that was drawn
};

/// Each may be called from any thread. They render and tokenise: time grows with the length of the prompt.
/// POST /v1/chat/completions
ApiResult<ApiCall> parse_chat(std::string_view body, const ServedModel& model);
/// POST /v1/completions
ApiResult<ApiCall> parse_completion(std::string_view body, const ServedModel& model);
/// POST /v1/embeddings
ApiResult<ApiCall> parse_embeddings(std::string_view body, const ServedModel& model);

/// POST /tokenize and /detokenize need no engine: the body of the answer.
ApiResult<std::string> answer_tokenize(std::string_view body, const ServedModel& model);
ApiResult<std::string> answer_detokenize(std::string_view body, const ServedModel& model);

}  // namespace millrace
