// How fast a node is, measured by itself before it serves: what gateways go by until they have seen it work.
#pragma once

#include <cstdint>

#include "cluster/router.h"
#include "core/result.h"
#include "engine/engine.h"

namespace millrace {

/// Runs a prompt and a short answer alone, then several answers at once, as any requests; a second or so of work for
/// the built-in model, and as much more as a model is slower. `context`: tokens of a sequence; `sequences` that run at
/// once. Error: of the engine.
Result<NodeSpeed> measure_speed(Engine& engine, std::int64_t vocab, std::int64_t context, std::int64_t sequences);

}  // namespace millrace
