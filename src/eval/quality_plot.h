// The charts of what `millrace eval` measures.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "eval/svg_plot.h"
#include "eval/task.h"
#include "eval/text_quality.h"

namespace millrace {

/// Of a text, with a reference: the divergence over the percentiles of positions, and each window's perplexity beside
/// the reference's. Without one: each window's perplexity.
std::vector<Chart> charts_of(std::span<const WindowQuality> windows, const TextQuality& quality);

/// Of tasks: shares in one chart, perplexities in another.
std::vector<Chart> charts_of(std::span<const TaskFigure> figures);

}  // namespace millrace
