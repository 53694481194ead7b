// BatchStore: where batches lie: keys with values, each change of which has a number. JetStream's key-value store is
// one (nats_batch_store.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace millrace {

struct StoredEntry {
  std::string key, value;
  std::uint64_t revision = 0;  // of its last change; no two changes of the store have the same
};

/// Any thread; calls wait for the store. Keys are parts of a-z, A-Z, 0-9, '-' and '_' with dots between. An error says
/// that the store could not be asked: a change that failed so may have been made nevertheless.
class BatchStore {
 public:
  static constexpr std::size_t kMostValue = 512 << 10;  // bytes

  BatchStore() = default;
  BatchStore(const BatchStore&) = delete;
  BatchStore& operator=(const BatchStore&) = delete;
  virtual ~BatchStore() = default;

  virtual Result<std::optional<StoredEntry>> get(const std::string& key) = 0;
  /// Its revision; nothing, where the key is there already.
  virtual Result<std::optional<std::uint64_t>> create(const std::string& key, std::string_view value) = 0;
  /// Its new revision; nothing, where `revision` is not that of its last change.
  virtual Result<std::optional<std::uint64_t>> update(const std::string& key, std::string_view value,
                                                      std::uint64_t revision) = 0;
  /// Whatever was there.
  virtual Status put(const std::string& key, std::string_view value) = 0;
  /// Of a key that is not there: nothing.
  virtual Status erase(const std::string& key) = 0;
  /// All keys that begin with `prefix` and a dot.
  virtual Status erase_below(const std::string& prefix) = 0;
  /// All that begin with `prefix` and a dot, in the order of their keys.
  virtual Result<std::vector<StoredEntry>> list(const std::string& prefix) = 0;
};

}  // namespace millrace
