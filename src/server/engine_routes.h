// The routes of the API: from HTTP to the engine and back. What bodies and answers mean is in api_*.h.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "engine/request.h"
#include "server/api_model.h"
#include "server/api_request.h"
#include "server/http_answer.h"
#include "server/http_router.h"

namespace millrace {

/// What the routes need of an engine; as Engine's functions of these names. Any thread.
struct EngineAccess {
  std::function<Result<RequestId>(Request, Sink)> submit;
  std::function<void(RequestId)> cancel;
  std::function<void(RequestId, std::int32_t choice)> resume;
  bool refuses_late = false;  // a request that submit() has taken may be refused before its first token comes
};

/// An answer that the engine produces. All its engine requests are submitted by start(); when one is refused, the
/// others are taken back. Requests share KV memory only with those of the same `salt`. `model` and `engine` must
/// outlive it. `queue_bytes`: what waits for a slow reader before the engine is asked to pause.
std::unique_ptr<HttpAnswer> make_engine_answer(const ServedModel& model, const EngineAccess& engine, ApiCall call,
                                               const std::string& salt, std::size_t queue_bytes);

/// Makes the answer of a call that may be answered; its requests share KV memory with those of the same salt.
using MakeAnswer = std::function<std::unique_ptr<HttpAnswer>(ApiCall call, const std::string& salt)>;

struct ApiRoutesOptions {
  std::string version;
  std::size_t queue_bytes = 256 << 10;
  std::function<std::string_view()> state;  // what /ready says, with 503 where it is not "ready"
  std::function<std::string()> metrics;     // text for /metrics
  /// Whether a call that was understood is answered, and how. Empty: it is, as `make` does. Any thread.
  std::function<HttpOutcome(const HttpRequest&, ApiCall, const MakeAnswer& make)> admit = {};
};

/// /health, /ready and /metrics: what everything has that is operated.
std::vector<HttpRoute> operation_routes(std::function<std::string_view()> state, std::function<std::string()> metrics);

/// All routes. `model` and `engine` must outlive the server that uses them.
std::vector<HttpRoute> api_routes(const ServedModel& model, const EngineAccess& engine, ApiRoutesOptions options);

}  // namespace millrace
