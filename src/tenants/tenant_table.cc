#include "tenants/tenant_table.h"

#include <algorithm>
#include <mutex>
#include <utility>

namespace millrace {

Status TenantTable::set(const std::string& name, const std::optional<std::string>& record) {
  std::shared_ptr<const Tenant> tenant;
  Status status = Ok{};
  if (record) {
    auto parsed = parse_tenant(*record);
    if (parsed.ok() && parsed->name != name) parsed = fail("the record of {} stands under another key", parsed->name);
    if (!parsed.ok()) {
      status = fail("the tenant {} is refused until its record is right: {}", name, parsed.error().message);
      parsed = Tenant{.name = name, .disabled = true};
    }
    tenant = std::make_shared<const Tenant>(std::move(*parsed));
  }
  const std::unique_lock lock(mutex_);
  any_ = true;
  if (const auto old = tenants_.find(name); old != tenants_.end()) {
    for (const TenantKey& key : old->second->keys) {
      const auto mine = by_key_.find(key.sha256);
      if (mine != by_key_.end() && mine->second == old->second) by_key_.erase(mine);
    }
    tenants_.erase(old);
  }
  if (tenant == nullptr) return status;
  for (const TenantKey& key : tenant->keys) by_key_[key.sha256] = tenant;
  tenants_[name] = std::move(tenant);
  return status;
}

void TenantTable::complete() {
  const std::unique_lock lock(mutex_);
  complete_ = true;
}

TenantTable::State TenantTable::state() const {
  const std::shared_lock lock(mutex_);
  if (!complete_) return State::unknown;
  return any_ ? State::some : State::none;
}

std::shared_ptr<const Tenant> TenantTable::find(std::string_view name) const {
  const std::shared_lock lock(mutex_);
  const auto found = tenants_.find(name);
  return found == tenants_.end() ? nullptr : found->second;
}

std::shared_ptr<const Tenant> TenantTable::who(std::string_view authorization) const {
  constexpr std::string_view kScheme = "bearer ", kBlanks = " \t";
  const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; };
  const std::string_view head = authorization.substr(0, kScheme.size());
  if (!std::ranges::equal(head, kScheme, {}, lower)) return nullptr;
  authorization.remove_prefix(kScheme.size());
  authorization.remove_prefix(std::min(authorization.find_first_not_of(kBlanks), authorization.size()));
  authorization = authorization.substr(0, authorization.find_last_not_of(kBlanks) + 1);
  // The time that the look-up takes depends on the digest, from which nobody comes closer to a key.
  const std::string digest = sha256_hex(authorization);
  const std::shared_lock lock(mutex_);
  const auto found = by_key_.find(digest);
  return found == by_key_.end() ? nullptr : found->second;
}

}  // namespace millrace
