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
    if (incarnation_ == 0) incarnation_ = revision;
    auto& entry = records_->records[record.node] = {record, revision};
    entry.first.incarnation = incarnation_;
    done(incarnation_);
  });
}

void SimRegistry::watch(Watcher watcher) {
  watcher_ = std::move(watcher);
  if (!std::exchange(looks_, true)) look();
}

void SimRegistry::watch_terms(TermsWatcher watcher) {
  terms_watcher_ = std::move(watcher);
  if (!std::exchange(looks_, true)) look();
}

void SimRegistry::quarantine(const std::string& node, const std::string& reason) {
  transport_->after(kAnswer, [this, node, reason] {
    if (transport_->connected()) records_->terms.emplace_back(node, Quarantine{reason});
  });
}

void SimRegistry::look() {
  if (transport_->connected()) {
    for (const auto& [node, entry] : records_->records) {
      if (watcher_ && std::exchange(seen_[node], entry.second) != entry.second) {
        watcher_(node, &entry.first, entry.first.incarnation);
      }
    }
    for (; terms_watcher_ && terms_seen_ < records_->terms.size(); ++terms_seen_) {
      const auto& [node, news] = records_->terms[terms_seen_];
      terms_watcher_(node, news);
    }
  }
  transport_->after(kLook, [this] { look(); });
}

}  // namespace millrace
