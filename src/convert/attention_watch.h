// What attention gives to which part of the past on a text, and how large keys and values are.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "backend/forwarding_backend.h"
#include "recipe/attention_profile.h"

namespace millrace {

/// A backend that looks at attention, keys and values while a model runs: at keys and values of all rows as they are
/// stored, and at the attention of some rows, computed once more over everything that they may see. Device memory must
/// be the host's. Sequences that have dropped pages are passed over.
class AttentionWatch final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  void rope_store(const ForwardBatch& batch, const RopeStoreArgs& args) override;
  void attend(const ForwardBatch& batch, const AttendArgs& args) override;

  /// Nothing where some layer has seen no row at position 136 (the first that is looked at) or later, or attention that
  /// is no number.
  [[nodiscard]] std::optional<AttentionProfile> attention() const;
  /// Nothing where nothing was stored.
  [[nodiscard]] std::optional<KvProfile> kv() const;

 private:
  /// Sums over rows, for each query head.
  struct Patterns {
    std::int64_t rows = 0;
    std::vector<double> sinks, recent, between, pages;
  };
  /// Of each channel of each kv head.
  struct Sizes {
    std::vector<double> largest, squares;
  };
  struct Layer {
    Patterns patterns;
    std::int64_t stored = 0;  // rows
    std::int32_t head_dim = 0;
    Sizes keys, values;
  };

  static void look_at_stored(const SequenceRows& sequence, const AttendArgs& args, Layer& layer);
  void look_at_patterns(const SequenceRows& sequence, const AttendArgs& args, Patterns& patterns);
  /// What the query of a row gives to `count` positions from `first` of keys_ [head_dim][stride] on: fills masses_.
  void weigh(const AttendArgs& args, const float* q, std::int32_t head, std::int64_t first, std::int64_t count,
             std::int64_t stride);

  std::map<std::uint32_t, Layer> layers_;
  bool stores_ = true;  // the layer whose rope_store() came last
  std::vector<float> keys_;
  std::vector<double> masses_, of_pages_;
};

}  // namespace millrace
