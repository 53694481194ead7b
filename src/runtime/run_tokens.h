// Running a given list of tokens, for those who want logits and no answer.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "core/result.h"
#include "runtime/model_runner.h"

namespace millrace {

/// Rows of prompts and of answers may each select what they read (AttendArgs in backend.h), and those of answers leave
/// out inputs. half_each: a prompt, and from about the middle on its answer.
enum class RowsAre : std::uint8_t { prompt, answer, half_each };

/// Error: an id outside the vocabulary, or more tokens than a prompt, or where all are an answer's, a sequence may have
/// here; with the figures.
Status check_tokens(ModelRunner& runner, std::span<const std::int32_t> tokens, RowsAre rows = RowsAre::prompt);

/// As what rows of a text show all that the runner's recipe does to them.
RowsAre rows_for_policy(const ModelRunner& runner);

/// Runs `tokens`, which check_tokens accepts for these rows, as one sequence, in steps as large as the runner's limits
/// allow. `take` is called for each position in order with its logits [vocab], valid during the call. Error: of a step
/// (ModelRunner::run); no position of it was taken.
Status run_tokens(ModelRunner& runner, std::span<const std::int32_t> tokens, RowsAre rows,
                  const std::function<void(std::int64_t position, std::span<const float> logits)>& take);

}  // namespace millrace
