// GatewayTenants: a gateway's Admission over NATS: its buckets, and the records of tenants as operators change them.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>

#include "cluster/nats_bucket.h"
#include "tenants/admission.h"

namespace millrace {

/// A bucket as a KeyStore.
class NatsKeyStore : public KeyStore {
 public:
  explicit NatsKeyStore(NatsBucket& bucket) : bucket_(&bucket) {}

  void get(const std::string& key, Read done) override;
  void update(const std::string& key, const std::string& value, std::uint64_t revision, Written done) override {
    bucket_->update(key, value, revision, std::move(done));
  }
  void put(const std::string& key, const std::string& value, Written done) override {
    bucket_->put(key, value, std::move(done));
  }

 private:
  NatsBucket* bucket_;
};

/// The buckets as a gateway makes them where they are not there.
BucketOptions tenants_bucket(bool makes, int replicas = 1);
BucketOptions spend_bucket(int replicas = 1);
BucketOptions once_bucket(int replicas = 1);

class GatewayTenants {
 public:
  /// Made before the loop runs; `transport` and `loop` must outlive it. `on_message`: on the loop, one line of what is
  /// wrong.
  GatewayTenants(NatsTransport& transport, EventLoop& loop, const std::string& gateway,
                 std::function<void(const std::string&)> on_message, int replicas = 1);

  [[nodiscard]] Admission& admission() { return admission_; }

  /// Any thread but the loop's: waits until it is known who may ask. False: it is not, after so long.
  bool wait_known(std::chrono::milliseconds most);
  bool known() { return wait_known(std::chrono::milliseconds{0}); }
  /// Any thread but the loop's, which must run: gives back what is leased.
  void end();

 private:
  NatsBucket tenants_, spend_, once_;
  NatsKeyStore spend_store_, once_store_;
  Admission admission_;

  std::mutex mutex_;
  std::condition_variable changed_;
  bool known_ = false, ended_ = false;
};

}  // namespace millrace
