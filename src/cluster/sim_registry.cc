#include "cluster/sim_registry.h"

#include <utility>

namespace millrace {

namespace {

constexpr Duration kLook = std::chrono::milliseconds(200);
constexpr Duration kAnswer = std::chrono::milliseconds(1);

}  // namespace

SimRegistry::SimRegistry(Transport& transport, SimRecords& records) : transport_(&transport), records_(&records) {}

void SimRegistry::announce(const NodeRecord& record, std::function<void(Result<std::uint64_t>)> done) {
  transport_->after(kAnswer, [this, record, done = std::move(done)] {
    if (!transport_->connected()) {
      done(Error{"there is no server", ErrorKind::unavailable});
      return;
    }
    const std::uint64_t revision = ++records_->revision;
    records_->records[record.node] = {record, revision};
    done(revision);
  });
}

void SimRegistry::watch(Watcher watcher) {
  watcher_ = std::move(watcher);
  look();
}

void SimRegistry::look() {
  if (transport_->connected()) {
    for (const auto& [node, entry] : records_->records) {
      if (std::exchange(seen_[node], entry.second) != entry.second) watcher_(node, &entry.first, entry.second);
    }
  }
  transport_->after(kLook, [this] { look(); });
}

}  // namespace millrace
