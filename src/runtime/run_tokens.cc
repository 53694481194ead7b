#include "runtime/run_tokens.h"

#include <algorithm>
#include <vector>

#include "runtime/step_batch.h"

namespace millrace {

Status check_tokens(ModelRunner& runner, std::span<const std::int32_t> tokens, RowsAre rows) {
  const std::int64_t vocab = runner.config().vocab;
  for (const std::int32_t token : tokens) {
    if (token < 0 || token >= vocab) return fail("token id {} is outside the vocabulary of {} tokens", token, vocab);
  }
  const std::int64_t most = rows == RowsAre::answer ? runner.max_sequence_tokens() : runner.max_prompt_tokens();
  if (static_cast<std::int64_t>(tokens.size()) > most) {
    return fail("{} ids, but a sequence may have {} tokens here (KV memory holds {}, the model's context is {})",
                tokens.size(), most, runner.cache().token_capacity(), runner.config().max_position);
  }
  return Ok{};
}

RowsAre rows_for_policy(const ModelRunner& runner) {
  if (!runner.policy().prefill && !runner.policy().hyper) return RowsAre::answer;
  const bool of_answers = runner.policy().decode || runner.policy().keep || runner.skips_inputs();
  return of_answers ? RowsAre::half_each : RowsAre::prompt;
}

Status run_tokens(ModelRunner& runner, std::span<const std::int32_t> tokens, RowsAre rows,
                  const std::function<void(std::int64_t, std::span<const float>)>& take) {
  const auto vocab = static_cast<std::size_t>(runner.config().vocab);
  const auto total = static_cast<std::int64_t>(tokens.size());
  const KvCache& cache = runner.cache();
  UnscheduledSequences sequences(kv_limits(cache), runner.policy().keep);
  const std::int64_t block = runner.prompt_block();
  const std::int64_t answer_begin = rows == RowsAre::prompt   ? total
                                    : rows == RowsAre::answer ? 0
                                                              : total / 2 / block * block;
  const SequenceId id = sequences.add({tokens.begin(), tokens.end()}, total, answer_begin);
  const std::int64_t step = std::min(runner.limits().max_rows, runner.limits().max_logit_rows) / block * block;
  for (std::int64_t start = 0, count = 0; start < total; start += count) {
    count = std::min(step, std::min(total, sequences.step_end(id)) - start);
    MILLRACE_TRY(
        const std::span<const float> logits,
        runner.run(sequences.batch(
            {{{.id = id, .rows = static_cast<std::int32_t>(count), .first_position = start, .all_logits = true}},
             {}})));
    for (std::int64_t r = 0; r < count; ++r)
      take(start + r, logits.subspan(static_cast<std::size_t>(r) * vocab, vocab));
  }
  return Ok{};
}

}  // namespace millrace
