// TenantTable: all tenants, and whose key is whose, as a gateway knows it at the moment.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <shared_mutex>
#include <string>
#include <string_view>
#include <unordered_map>

#include "tenants/tenant.h"

namespace millrace {

/// Any thread.
class TenantTable {
 public:
  enum class State : std::uint8_t {
    unknown,  // not all has been read yet: nobody can be let in, or refused
    none,     // there never was a tenant: others decide who may ask
    some      // only tenants may ask
  };

  /// A record under the key `name`; none: it was removed. Error: what is wrong in it; the tenant is disabled then.
  Status set(const std::string& name, const std::optional<std::string>& record);
  /// All that is there has been told.
  void complete();

  [[nodiscard]] State state() const;
  /// Null: nobody has this name.
  [[nodiscard]] std::shared_ptr<const Tenant> find(std::string_view name) const;
  /// Whose key stands in the header "Bearer KEY"; null: nobody's.
  [[nodiscard]] std::shared_ptr<const Tenant> who(std::string_view authorization) const;

 private:
  mutable std::shared_mutex mutex_;
  std::map<std::string, std::shared_ptr<const Tenant>, std::less<>> tenants_;
  std::unordered_map<std::string, std::shared_ptr<const Tenant>> by_key_;  // by SHA-256
  bool any_ = false, complete_ = false;
};

}  // namespace millrace
