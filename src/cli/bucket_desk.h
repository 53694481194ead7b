// BucketDesk: a bucket, asked one thing after the other, by a command that waits for each answer.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "cluster/nats_bucket.h"
#include "cluster/nats_transport.h"

namespace millrace::cli {

/// Every call gives up after ten seconds.
class BucketDesk {
 public:
  static Result<std::unique_ptr<BucketDesk>> open(const NatsOptions& options, BucketOptions bucket);

  /// None: there is no such key.
  Result<std::optional<BucketEntry>> get(const std::string& key);
  /// All that is there, once.
  Result<std::map<std::string, BucketEntry>> read();
  /// Error kind busy: the key's revision is another one; 0: it is there.
  Status put(const std::string& key, const std::string& value, std::uint64_t revision);
  Status remove(const std::string& key);

 private:
  Status connect(const NatsOptions& options);
  Status written(const std::function<void(const NatsBucket::Written&)>& write);
  Status wait(const std::function<bool()>& done);

  EventLoop loop_;
  std::string told_;
  std::map<std::string, BucketEntry> entries_;
  bool complete_ = false;
  std::unique_ptr<NatsTransport> transport_;
  std::unique_ptr<NatsBucket> bucket_;
};

}  // namespace millrace::cli
