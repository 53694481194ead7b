// From a line of a batch to what the engine is asked.
#pragma once

#include "server/api_request.h"
#include "server/batch_line.h"

namespace millrace {

/// What the line's endpoint makes of its body. Errors: those of the endpoint, the line's own problem, and that a batch
/// has no streams. Any thread.
ApiResult<ApiCall> batch_call(const BatchLine& line, const ServedModel& model);

}  // namespace millrace
