// ModelRunner: a model on a device, ready to run steps: decoder, KV memory, and the logits brought to the host.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "core/result.h"
#include "model/decoder.h"
#include "runtime/kv_cache.h"
#include "sched/scheduler.h"

namespace millrace {

/// The most tokens of a sequence, and of its prompt, which lies within the model's context and the cache's capacity;
/// an answer does too, where not some pages of it are kept only.
struct SequenceLimits {
  std::int64_t all = 0, prompt = 0;
};

class ModelRunner {
 public:
  /// Error: no memory for the logits of a step on the host, where the device has memory of its own.
  static Result<std::unique_ptr<ModelRunner>> create(std::unique_ptr<Backend> backend, std::unique_ptr<Decoder> decoder,
                                                     std::unique_ptr<KvCache> cache, SequenceLimits lengths);

  /// Runs one step; row i of the result, [vocab] floats, belongs to batch.logit_rows[i]. Scratch that the caller may
  /// change; valid until the next call. Error: the device could not do it (Backend::take_failure); the keys and values
  /// that the step was to store are not to be read.
  Result<std::span<float>> run(const ForwardBatch& batch);

  struct Outcome {
    std::span<const std::int32_t> tokens;  // [logit_rows]: what the device drew, or -1
    std::span<float> logits;               // as above, but undefined for rows with a token
  };
  /// The same. Where draws[i], for batch.logit_rows[i], says how and the device can, it draws the token, and the row of
  /// logits does not come to the host.
  Result<Outcome> run(const ForwardBatch& batch, std::span<const std::optional<TokenDraw>> draws);

  /// After a run() of a batch that wants_hidden: the final hidden states of its rows, [rows, hidden]. Valid until the
  /// next run().
  std::span<const float> hidden();

  [[nodiscard]] const ModelConfig& config() const { return decoder_->config(); }
  [[nodiscard]] const Decoder::Limits& limits() const { return decoder_->limits(); }
  /// What rows read, where not everything.
  [[nodiscard]] const AttentionPolicy& policy() const { return decoder_->policy(); }
  /// Steps that begin in a prompt at a multiple of this end at one, or behind the prompt.
  [[nodiscard]] std::int64_t prompt_block() const { return policy().prefill ? kQueryBlock : 1; }
  /// Rows of a prompt that a step has at most, from such a place on.
  [[nodiscard]] std::int64_t max_prompt_rows() const { return limits().max_rows / prompt_block() * prompt_block(); }
  /// Whether rows of answers compute what the same tokens would not as a prompt.
  [[nodiscard]] bool answers_differ() const { return skips_inputs() || !policy().reads_alike(); }
  [[nodiscard]] bool skips_inputs() const { return decoder_->skips_inputs(); }
  [[nodiscard]] std::int64_t max_sequence_tokens() const { return lengths_.all; }
  [[nodiscard]] std::int64_t max_prompt_tokens() const { return lengths_.prompt; }
  [[nodiscard]] KvCache& cache() { return *cache_; }
  [[nodiscard]] const Backend& backend() const { return *backend_; }

 private:
  ModelRunner(std::unique_ptr<Backend> backend, std::unique_ptr<Decoder> decoder, std::unique_ptr<KvCache> cache,
              SequenceLimits lengths)
      : backend_(std::move(backend)), decoder_(std::move(decoder)), cache_(std::move(cache)), lengths_(lengths) {}

  // In this order: the decoder and the cache hold memory of the backend.
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<KvCache> cache_;
  SequenceLimits lengths_;
  const Buffer& forward(const ForwardBatch& batch);
  /// Brings rows of logits to the host, where they are not; all of them as it sees them.
  float* fetch(const Buffer& logits, std::size_t first_row, std::size_t rows);

  Buffer logits_;  // on the host, where the device has memory of its own; and
  std::vector<float> hidden_;
  std::vector<TokenDraw> draws_;  // that the device does in this step; and
  std::vector<std::int32_t> drawn_, tokens_;
  std::int64_t rows_ = 0;  // of the last batch
};

/// What a scheduler may plan for the runner: as many sequences at once as a step has rows of logits.
SchedulerLimits scheduler_limits(ModelRunner& runner, bool prefix_cache);

}  // namespace millrace
