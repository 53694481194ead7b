#include "tenants/ledger.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace millrace {

namespace {

using nlohmann::json;

constexpr std::size_t kMostClosed = 64, kMostLeases = 512, kMostPaid = 512, kMostText = 128;
constexpr std::int64_t kKeysAreKept = 24 * 3600;  // seconds; as long as the records of keys (once.h)

bool is_amount(const json& value) {
  return value.is_number_integer() && value >= 0;
}

bool is_text(const json& value) {
  return value.is_string() && value.get_ref<const std::string&>().size() <= kMostText;
}

/// Null: it is no object, or has no such member.
const json* member(const json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(key);
  return found == object.end() ? nullptr : &*found;
}

}  // namespace

const SpendLease* SpendLedger::lease(std::string_view holder) const {
  const auto found = std::ranges::find(leases, holder, &SpendLease::holder);
  return found == leases.end() ? nullptr : &*found;
}

SpendLease& SpendLedger::lease_of(std::string_view holder) {
  const auto found = std::ranges::find(leases, holder, &SpendLease::holder);
  if (found != leases.end()) return *found;
  return leases.emplace_back(SpendLease{std::string(holder)});
}

NanoUsd SpendLedger::lent() const {
  NanoUsd sum = 0;
  for (const SpendLease& lease : leases) sum += lease.left;
  return sum;
}

bool SpendLedger::has_paid(std::string_view key) const {
  return std::ranges::find(paid, key, &PaidKey::key) != paid.end();
}

void SpendLedger::charge(SpendLease& from, NanoUsd amount, const std::string& key, std::int64_t unix_now) {
  if (!key.empty()) {
    if (has_paid(key)) return;
    paid.push_back({key, unix_now});
  }
  spent += amount;
  from.left = std::max<NanoUsd>(from.left - amount, 0);
}

void SpendLedger::forget(std::string_view key) {
  std::erase_if(paid, [&](const PaidKey& one) { return one.key == key; });
}

void SpendLedger::tidy(std::int64_t unix_now) {
  std::erase_if(paid, [&](const PaidKey& one) { return one.at < unix_now - kKeysAreKept; });
  if (paid.size() > kMostPaid) paid.erase(paid.begin(), paid.end() - kMostPaid);
  auto closed = std::ranges::count_if(leases, &SpendLease::closed);
  std::erase_if(leases, [&](const SpendLease& lease) {
    return lease.closed && closed-- > static_cast<std::ptrdiff_t>(kMostClosed);
  });
}

std::string ledger_json(const SpendLedger& ledger) {
  json leases = json::array(), paid = json::array();
  for (const SpendLease& lease : ledger.leases) {
    json object{{"holder", lease.holder}, {"left", lease.left}, {"turn", lease.turn}};
    if (lease.closed) object["closed"] = true;
    leases.push_back(std::move(object));
  }
  for (const PaidKey& key : ledger.paid) paid.push_back({{"key", key.key}, {"at", key.at}});
  return json{{"spent", ledger.spent}, {"leases", std::move(leases)}, {"paid", std::move(paid)}}.dump();
}

Result<SpendLedger> parse_ledger(std::string_view text) {
  if (text.size() > kMaxLedgerRecord) return fail("a ledger of {} bytes", text.size());
  const json object = json::parse(text, nullptr, false);
  const json *spent = member(object, "spent"), *leases = member(object, "leases"), *paid = member(object, "paid");
  if (spent == nullptr || !is_amount(*spent)) return fail("\"spent\": expected billionths of a dollar");
  if (leases == nullptr || !leases->is_array() || leases->size() > kMostLeases) return fail("\"leases\": no such list");
  if (paid == nullptr || !paid->is_array()) return fail("\"paid\": no such list");
  SpendLedger ledger{.spent = spent->get<NanoUsd>()};
  for (const json& lease : *leases) {
    const json *holder = member(lease, "holder"), *left = member(lease, "left"), *turn = member(lease, "turn");
    const json* closed = member(lease, "closed");
    if (holder == nullptr || !is_text(*holder) || left == nullptr || !is_amount(*left) || turn == nullptr ||
        !is_amount(*turn) || (closed != nullptr && !closed->is_boolean())) {
      return fail("\"leases\": one has no \"holder\", \"left\" or \"turn\"");
    }
    ledger.leases.push_back({holder->get<std::string>(), left->get<NanoUsd>(), turn->get<std::uint64_t>(),
                             closed != nullptr && closed->get<bool>()});
  }
  for (const json& one : *paid) {
    const json *key = member(one, "key"), *at = member(one, "at");
    if (key == nullptr || !is_text(*key) || at == nullptr || !is_amount(*at)) {
      return fail("\"paid\": one has no \"key\" or \"at\"");
    }
    ledger.paid.push_back({key->get<std::string>(), at->get<std::int64_t>()});
  }
  return ledger;
}

}  // namespace millrace
