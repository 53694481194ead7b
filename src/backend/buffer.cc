#include "backend/backend.h"
#include "core/check.h"

namespace millrace {

void check_range(const Buffer& buffer, std::size_t offset, std::size_t bytes) {
  MILLRACE_CHECK(offset <= buffer.bytes && bytes <= buffer.bytes - offset, "{} bytes at {} of a buffer of {}", bytes,
                 offset, buffer.bytes);
}

void check_copy(const Buffer& target, std::size_t target_offset, const Buffer& source, std::size_t source_offset,
                std::size_t bytes) {
  check_range(target, target_offset, bytes);
  check_range(source, source_offset, bytes);
  const std::size_t distance =
      target_offset > source_offset ? target_offset - source_offset : source_offset - target_offset;
  MILLRACE_CHECK(target.memory != source.memory || bytes <= distance, "{} bytes from {} to {} of one buffer overlap",
                 bytes, source_offset, target_offset);
}

Result<std::unique_ptr<PackedNeurons>> Backend::pack_neurons(const NeuronSource& /*source*/) {
  return fail("the backend {} cannot choose neurons", numeric_class());
}

Status Backend::open_neuron_store(const NeuronStoreOptions& /*options*/) {
  return fail("the backend {} keeps all weights in memory", numeric_class());
}

void Backend::draw_tokens(const float* /*logits*/, std::int64_t /*vocab*/, std::span<const TokenDraw> /*draws*/,
                          std::span<std::int32_t> /*tokens*/) {
  MILLRACE_CHECK(false, "this backend draws no tokens");
}

}  // namespace millrace
