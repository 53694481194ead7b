#include "runtime/model_runner.h"

#include <utility>

#include "core/check.h"

namespace millrace {

Result<std::unique_ptr<ModelRunner>> ModelRunner::create(std::unique_ptr<Backend> backend,
                                                         std::unique_ptr<Decoder> decoder,
                                                         std::unique_ptr<KvCache> cache, SequenceLimits lengths) {
  std::unique_ptr<ModelRunner> runner(
      new ModelRunner(std::move(backend), std::move(decoder), std::move(cache), lengths));
  if (runner->backend_->host_memory()) return runner;
  const auto floats = static_cast<std::size_t>(runner->limits().max_logit_rows * runner->config().vocab);
  MILLRACE_TRY(runner->logits_, runner->backend_->allocate_host(floats * sizeof(float)));
  return runner;
}

Result<std::span<float>> ModelRunner::run(const ForwardBatch& batch) {
  const std::size_t rows = batch.logit_rows.size();
  float* const logits = fetch(forward(batch), 0, rows);
  MILLRACE_CHECK_OK(backend_->take_failure());
  return std::span(logits, rows * static_cast<std::size_t>(config().vocab));
}

Result<ModelRunner::Outcome> ModelRunner::run(const ForwardBatch& batch,
                                              std::span<const std::optional<TokenDraw>> draws) {
  const std::size_t rows = batch.logit_rows.size();
  MILLRACE_CHECK(draws.size() == rows, "{} draws for {} rows", draws.size(), rows);
  const Buffer& logits = forward(batch);
  draws_.clear();
  for (std::size_t i = 0; i < rows; ++i) {
    if (!draws[i] || !backend_->draws(*draws[i], config().vocab)) continue;
    draws_.push_back(*draws[i]);
    draws_.back().row = static_cast<std::int32_t>(i);
  }
  drawn_.resize(draws_.size());
  if (!draws_.empty()) backend_->draw_tokens(logits.floats(), config().vocab, draws_, drawn_);
  tokens_.assign(rows, -1);
  for (std::size_t i = 0; i < draws_.size(); ++i) tokens_[static_cast<std::size_t>(draws_[i].row)] = drawn_[i];

  float* all = fetch(logits, 0, 0);             // which starts the step even where nothing is wanted of it
  for (std::size_t first = 0; first < rows;) {  // as many at once as lie side by side
    std::size_t end = first;
    while (end < rows && tokens_[end] < 0) ++end;
    all = fetch(logits, first, end - first);
    first = end + 1;
  }
  MILLRACE_CHECK_OK(backend_->take_failure());
  return Outcome{tokens_, {all, rows * static_cast<std::size_t>(config().vocab)}};
}

const Buffer& ModelRunner::forward(const ForwardBatch& batch) {
  for (const std::int32_t token : batch.token_ids) {
    MILLRACE_CHECK(token >= 0 && token < config().vocab, "token {} of {}", token, config().vocab);
  }
  rows_ = batch.rows();
  return decoder_->forward(batch, cache_->layers());
}

float* ModelRunner::fetch(const Buffer& logits, std::size_t first_row, std::size_t rows) {
  if (backend_->host_memory()) return logits.floats();
  const std::size_t row_bytes = static_cast<std::size_t>(config().vocab) * sizeof(float);
  backend_->read(logits, first_row * row_bytes, {logits_.data() + first_row * row_bytes, rows * row_bytes});
  return logits_.floats();
}

std::span<const float> ModelRunner::hidden() {
  if (backend_->host_memory()) {
    return {decoder_->hidden().floats(), static_cast<std::size_t>(rows_ * config().hidden)};
  }
  hidden_.resize(static_cast<std::size_t>(rows_ * config().hidden));
  backend_->read(decoder_->hidden(), 0, std::as_writable_bytes(std::span(hidden_)));
  return hidden_;
}

SchedulerLimits scheduler_limits(ModelRunner& runner, bool prefix_cache) {
  const Decoder::Limits& limits = runner.limits();
  const std::int64_t block = runner.prompt_block(), spare = block > 1 ? block : 0;
  const auto sequences = static_cast<std::int32_t>(std::min(limits.max_logit_rows, limits.max_rows) - spare);
  KvLimits kv = kv_limits(runner.cache());
  kv.prefix_cache = prefix_cache;
  return {.max_batch_tokens = static_cast<std::int32_t>(limits.max_rows),
          .max_sequences = sequences,
          .max_logit_rows = static_cast<std::int32_t>(limits.max_logit_rows),
          .kv = std::move(kv),
          .share_answers = !runner.answers_differ(),
          .prompt_block = block,
          .keep = runner.policy().keep};
}

}  // namespace millrace
