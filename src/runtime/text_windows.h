// A text cut into pieces that a model can run one by one.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "core/result.h"

namespace millrace {

using TokenWindow = std::vector<std::int32_t>;

/// Pieces of `window` tokens that do not overlap, each with `bos` in front where there is one; the last may be shorter.
/// What cannot be predicted (a single token without anything before it) is left out. Errors: windows too short to
/// predict anything; a text that has nothing to predict.
Result<std::vector<TokenWindow>> cut_windows(std::span<const std::int32_t> ids, std::int64_t window,
                                             std::optional<std::int32_t> bos);

}  // namespace millrace
