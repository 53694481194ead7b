#include "tenants/gateway_tenants.h"

#include <random>
#include <utility>

namespace millrace {

namespace {

constexpr std::size_t kMostPiece = 512 << 10;              // bytes; a piece of an answer and what is about it
constexpr std::int64_t kMostKept = std::int64_t{1} << 30;  // bytes of all answers
constexpr std::chrono::hours kKeysAreKept{24};             // as long as ledgers know what was charged (ledger.cc)

std::string life_now() {
  const auto ms =
      std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch());
  return new_life(static_cast<std::uint64_t>(ms.count()), std::random_device{}());
}

}  // namespace

void NatsKeyStore::get(const std::string& key, Read done) {
  bucket_->get(key, [done = std::move(done)](const Result<std::optional<BucketEntry>>& read) {
    if (!read.ok()) return done(read.error());
    if (!*read || !(*read)->value) return done(std::optional<Stored>());
    done(std::optional(Stored{*(*read)->value, (*read)->revision}));
  });
}

BucketOptions tenants_bucket(bool makes, int replicas) {
  return {.name = kTenantsBucket, .most_bytes = kMaxTenantRecord, .makes = makes, .replicas = replicas};
}

BucketOptions spend_bucket(int replicas) {
  return {.name = kSpendBucket, .most_bytes = kMaxLedgerRecord, .makes = true, .replicas = replicas};
}

BucketOptions once_bucket(int replicas) {
  return {.name = kOnceBucket,
          .most_bytes = kMostPiece,
          .makes = true,
          .replicas = replicas,
          .oldest = kKeysAreKept,
          .most_stored = kMostKept};
}

GatewayTenants::GatewayTenants(NatsTransport& transport, EventLoop& loop, const std::string& gateway,
                               std::function<void(const std::string&)> on_message, int replicas)
    : tenants_(transport, loop, tenants_bucket(true, replicas), on_message),
      spend_(transport, loop, spend_bucket(replicas), on_message),
      once_(transport, loop, once_bucket(replicas), on_message),
      spend_store_(spend_),
      once_store_(once_),
      admission_(loop, transport, {spend_store_, once_store_}, gateway, life_now(), on_message) {
  tenants_.watch([this, on_message](const BucketEntry& entry) {
    if (!entry.key.empty()) {
      const Status status = admission_.tenants().set(entry.key, entry.value);
      if (!status.ok()) on_message(status.error().message);
      return;
    }
    admission_.tenants().complete();
    const std::lock_guard lock(mutex_);
    known_ = true;
    changed_.notify_all();
  });
}

bool GatewayTenants::wait_known(std::chrono::milliseconds most) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, most, [this] { return known_; });
}

void GatewayTenants::end() {
  constexpr std::chrono::seconds kMost{3};
  admission_.end([this] {
    const std::lock_guard lock(mutex_);
    ended_ = true;
    changed_.notify_all();
  });
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, kMost, [this] { return ended_; });
}

}  // namespace millrace
