#include "runtime/model_runner.h"

#include "core/check.h"

namespace millrace {

std::span<float> ModelRunner::run(const ForwardBatch& batch) {
  for (const std::int32_t token : batch.token_ids) {
    MILLRACE_CHECK(token >= 0 && token < config().vocab, "token {} of {}", token, config().vocab);
  }
  rows_ = batch.rows();
  const Buffer& logits = decoder_->forward(batch, cache_->layers());
  const std::size_t count = batch.logit_rows.size() * static_cast<std::size_t>(config().vocab);
  if (backend_->host_memory()) return {logits.floats(), count};
  logits_.resize(count);
  backend_->read(logits, 0, std::as_writable_bytes(std::span(logits_)));
  return logits_;
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
