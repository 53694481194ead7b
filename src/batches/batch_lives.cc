#include "batches/batch_lives.h"

#include <algorithm>

namespace millrace {

namespace {

constexpr Duration kMostBetweenLooks = std::chrono::seconds(3);  // that count; more was an interruption
constexpr Duration kForget = std::chrono::minutes(10);

}  // namespace

Status BatchLives::renew(Duration now) {
  if (ever_renewed_ && now - renewed_ < kRenew) return Ok{};
  MILLRACE_CHECK_OK(store_->put("life." + own_, std::to_string(++count_)));
  renewed_ = now;
  ever_renewed_ = true;
  return Ok{};
}

Status BatchLives::look(Duration now) {
  MILLRACE_TRY(const auto entries, store_->list("life"));
  const Duration missed = ever_looked_ ? std::max(Duration{0}, now - looked_ - kMostBetweenLooks) : Duration{0};
  looked_ = now;
  ever_looked_ = true;
  for (auto& [life, seen] : seen_) seen.changed += missed;
  for (const StoredEntry& entry : entries) {
    const std::string life = entry.key.substr(entry.key.find('.') + 1);
    const auto [seen, is_new] = seen_.try_emplace(life);
    if (is_new || seen->second.revision != entry.revision) seen->second = {entry.revision, now};
    if (life != own_ && now - seen->second.changed > kForget) {
      MILLRACE_CHECK_OK(store_->erase(entry.key));
      seen->second.revision = 0;  // it stays dead
    }
  }
  return Ok{};
}

bool BatchLives::is_dead(std::string_view life, Duration now) {
  if (life.empty()) return true;  // it was handed back
  if (life == own_) return false;
  const auto [seen, is_new] = seen_.try_emplace(std::string(life), Seen{0, now});
  return now - seen->second.changed >= kDead;
}

std::int64_t BatchLives::count(Duration now) const {
  std::int64_t others = 0;
  for (const auto& [life, seen] : seen_)
    others += life != own_ && seen.revision > 0 && now - seen.changed < kDead ? 1 : 0;
  return others + 1;
}

Status BatchLives::leave() {
  return store_->erase("life." + own_);
}

}  // namespace millrace
