#include "runtime/model_runner.h"

#include <utility>

#include "core/check.h"

namespace millrace {

Result<std::unique_ptr<ModelRunner>> ModelRunner::create(std::unique_ptr<Backend> backend,
                                                         std::unique_ptr<Decoder> decoder,
                                                         std::unique_ptr<KvCache> cache,
                                                         std::int64_t max_sequence_tokens) {
  std::unique_ptr<ModelRunner> runner(
      new ModelRunner(std::move(backend), std::move(decoder), std::move(cache), max_sequence_tokens));
  if (runner->backend_->host_memory()) return runner;
  const auto floats = static_cast<std::size_t>(runner->limits().max_logit_rows * runner->config().vocab);
  MILLRACE_TRY(runner->logits_, runner->backend_->allocate_host(floats * sizeof(float)));
  return runner;
}

std::span<float> ModelRunner::run(const ForwardBatch& batch) {
  for (const std::int32_t token : batch.token_ids) {
    MILLRACE_CHECK(token >= 0 && token < config().vocab, "token {} of {}", token, config().vocab);
  }
  rows_ = batch.rows();
  const Buffer& logits = decoder_->forward(batch, cache_->layers());
  const std::size_t count = batch.logit_rows.size() * static_cast<std::size_t>(config().vocab);
  if (backend_->host_memory()) return {logits.floats(), count};
  const std::span<float> on_host(logits_.floats(), count);
  backend_->read(logits, 0, std::as_writable_bytes(on_host));
  return on_host;
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
  const auto sequences = static_cast<std::int32_t>(std::min(limits.max_logit_rows, limits.max_rows));
  return {.max_batch_tokens = static_cast<std::int32_t>(limits.max_rows),
          .max_sequences = sequences,
          .max_logit_rows = static_cast<std::int32_t>(limits.max_logit_rows),
          .kv = {.pages = runner.cache().pages(),
                 .page_tokens = runner.cache().layout().page_tokens,
                 .windows = runner.cache().windows(),
                 .prefix_cache = prefix_cache}};
}

}  // namespace millrace
