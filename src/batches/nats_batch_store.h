// NatsBatchStore: batches in JetStream, bucket `mr_batches`.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "batches/batch_store.h"
#include "cluster/nats_transport.h"

namespace millrace {

/// The bucket is made where there is none. A key that is erased leaves nothing behind, no marker either.
class NatsBatchStore : public BatchStore {
 public:
  /// `transport` must outlive it. `replicas`: servers that keep the bucket, where it is made here.
  explicit NatsBatchStore(const NatsTransport& transport, int replicas = 1);
  ~NatsBatchStore() override;

  Result<std::optional<StoredEntry>> get(const std::string& key) override;
  Result<std::optional<std::uint64_t>> create(const std::string& key, std::string_view value) override;
  Result<std::optional<std::uint64_t>> update(const std::string& key, std::string_view value,
                                              std::uint64_t revision) override;
  Status put(const std::string& key, std::string_view value) override;
  Status erase(const std::string& key) override;
  Status erase_below(const std::string& prefix) override;
  Result<std::vector<StoredEntry>> list(const std::string& prefix) override;

 private:
  struct Shared;

  std::unique_ptr<Shared> shared_;
};

}  // namespace millrace
