// What a request asks of whoever serves it, from its headers.
#pragma once

#include "engine/request.h"
#include "server/api_error.h"
#include "server/http_message.h"

namespace millrace {

/// Headers, all optional: x-slo-ttft-ms and x-slo-tpot-ms (milliseconds above 0), x-millrace-region,
/// x-millrace-labels (separated by commas), x-millrace-data-class (open or trusted). Error: 400, names the header.
ApiResult<ServiceWish> parse_wish(const HttpRequest& request);

}  // namespace millrace
