#include "tenants/tenant_meter.h"

#include <algorithm>

namespace millrace {

std::string_view tenant_refusal_name(TenantRefusal why) {
  constexpr std::array<std::string_view, kTenantRefusals> kNames{
      "account", "requests", "tokens", "concurrent", "too_large", "spend", "lent", "store", "key"};
  return kNames[static_cast<std::size_t>(why)];
}

template <typename Change>
void TenantMeter::change(std::string_view tenant, Change change) {
  if (tenant.empty()) return;
  const std::lock_guard lock(mutex_);
  auto found = tallies_.find(tenant);
  if (found == tallies_.end()) {
    const bool is_full = tallies_.size() - tallies_.count(kOthers) >= kMostNamed;
    found = tallies_.try_emplace(is_full ? kOthers : std::string(tenant)).first;
  }
  change(found->second);
}

void TenantMeter::admitted(std::string_view tenant) {
  change(tenant, [](TenantTally& tally) { ++tally.admitted; });
}

void TenantMeter::replayed(std::string_view tenant) {
  change(tenant, [](TenantTally& tally) { ++tally.replayed; });
}

void TenantMeter::used(std::string_view tenant, std::int64_t tokens) {
  change(tenant, [tokens](TenantTally& tally) { tally.tokens += std::max<std::int64_t>(tokens, 0); });
}

void TenantMeter::charged(std::string_view tenant, NanoUsd amount) {
  change(tenant, [amount](TenantTally& tally) { tally.charged += std::max<NanoUsd>(amount, 0); });
}

void TenantMeter::refused(std::string_view tenant, TenantRefusal why) {
  change(tenant, [why](TenantTally& tally) { ++tally.refused[static_cast<std::size_t>(why)]; });
}

std::string TenantMeter::name_of(const std::string& tenant) const {
  const std::lock_guard lock(mutex_);
  return tallies_.contains(tenant) ? tenant : kOthers;
}

std::map<std::string, TenantTally> TenantMeter::tallies() const {
  const std::lock_guard lock(mutex_);
  return {tallies_.begin(), tallies_.end()};
}

}  // namespace millrace
