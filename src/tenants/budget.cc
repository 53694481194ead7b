#include "tenants/budget.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace millrace {

namespace {

constexpr NanoUsd kLeastSlice = 10'000'000;  // a cent
constexpr NanoUsd kSlices = 20;              // a slice is so much of the rest: 5 %
constexpr std::size_t kMostCharges = 128;    // of a turn: with those the record stays below kMaxLedgerRecord
constexpr NanoUsd kTopUp = 4;                // a lease grows when less than this part of a slice is free

}  // namespace

NanoUsd SpendBook::Account::unwritten() const {
  NanoUsd sum = 0;
  for (const Charge& charge : charges) sum += charge.cost;
  return sum;
}

SpendBook::SpendBook(KeyStore& store, std::string holder, Clock clock,
                     std::function<void(const std::string&)> on_message, const SpendTiming& timing)
    : store_(&store),
      holder_(std::move(holder)),
      clock_(std::move(clock)),
      on_message_(std::move(on_message)),
      timing_(timing) {}

SpendBook::~SpendBook() {
  *alive_ = false;
}

SpendBook::Account* SpendBook::find(const std::string& name) {
  const auto found = accounts_.find(name);
  return found == accounts_.end() ? nullptr : &found->second;
}

bool SpendBook::may_reserve(const Account& account) const {
  return !ending_ && account.was_confirmed && clock_.now() - account.confirmed < timing_.hold;
}

bool SpendBook::is_idle(const Account& account) const {
  return ending_ || (account.wants.empty() && clock_.now() - account.used >= timing_.idle);
}

bool SpendBook::is_lost(const Account& account, const SpendLease& lease) const {
  if (lease.closed || lease.holder == holder_) return false;
  const auto seen = account.others.find(lease.holder);
  return seen != account.others.end() && seen->second.turn == lease.turn &&
         clock_.now() - seen->second.since >= timing_.reclaim;
}

void SpendBook::reserve(const std::string& name, std::optional<NanoUsd> limit, NanoUsd amount, Reserved done) {
  Account& account = accounts_[name];
  account.limit = limit;
  account.used = clock_.now();
  if (!limit) return done(Verdict::granted);
  if (ending_) return done(Verdict::unavailable);
  if (account.wants.empty() && may_reserve(account) && account.free() >= amount) {
    account.reserved += amount;
    return done(Verdict::granted);
  }
  account.wants.push_back({amount, std::move(done), clock_.now()});
  go_on(name, account);
}

void SpendBook::settle(const std::string& name, NanoUsd reserved, NanoUsd cost, const std::string& key,
                       std::function<void()> written) {
  Account& account = accounts_[name];
  account.used = clock_.now();
  account.reserved -= reserved;
  if (cost > 0 || !key.empty()) {
    account.charges.push_back({std::max<NanoUsd>(cost, 0), key, std::move(written)});
  } else if (written) {
    written();
  }
  go_on(name, account);
}

void SpendBook::forget(const std::string& name, const std::string& key) {
  Account& account = accounts_[name];
  account.forgets.push_back(key);
  go_on(name, account);
}

bool SpendBook::has_work(const Account& account) const {
  if (account.turn || !account.charges.empty() || !account.forgets.empty() || !account.wants.empty()) return true;
  const bool holds = account.left > 0 || account.reserved > 0;
  if (holds && clock_.now() - account.written >= timing_.renew) return true;
  if (account.left > account.reserved && is_idle(account)) return true;
  return std::ranges::any_of(account.ledger.leases,
                             [&](const SpendLease& lease) { return lease.left > 0 && is_lost(account, lease); });
}

void SpendBook::go_on(const std::string& name, Account& account) {
  if (account.busy || clock_.now() < account.not_before) return;
  if (!account.known) {
    read(name, account);
  } else if (has_work(account)) {
    write(name, account);
  }
}

void SpendBook::read(const std::string& name, Account& account) {
  account.busy = true;
  store_->get(name, [this, alive = alive_, name](const Result<std::optional<Stored>>& answer) {
    if (!*alive) return;
    Account* found = find(name);
    if (found == nullptr) return;
    found->busy = false;
    Result<SpendLedger> ledger = SpendLedger{};
    if (!answer.ok()) {
      ledger = answer.error();
    } else if (*answer) {
      ledger = parse_ledger((*answer)->value);
      // What cannot be read is not overwritten: a person has to look.
      if (!ledger.ok()) on_message_(fmt::format("the ledger {} is damaged: {}", name, ledger.error().message));
    }
    if (!ledger.ok()) {
      found->not_before = clock_.now() + timing_.try_again;
      return;
    }
    found->read = clock_.now();
    take(*found, std::move(*ledger), answer.ok() && *answer ? (*answer)->revision : 0);
    const SpendLease* mine = found->ledger.lease(holder_);
    if (found->turn && mine != nullptr && mine->turn == found->turn->number) {
      found->turn->wants = 0;  // when it was made nobody knows, so that nothing is reserved on its word
      turn_made(*found);
    }
    go_on(name, *found);
  });
}

void SpendBook::write(const std::string& name, Account& account) {
  if (!account.turn) {
    account.turn = Turn{++account.turns, std::min(account.charges.size(), kMostCharges), account.forgets.size()};
  }
  SpendLedger ledger = next(account);
  const std::string text = ledger_json(ledger);
  const Instant sent = clock_.now();
  account.busy = true;
  store_->update(name, text, account.revision,
                 [this, alive = alive_, name, ledger = std::move(ledger), sent](const Result<std::uint64_t>& answer) {
                   if (!*alive) return;
                   Account* found = find(name);
                   if (found == nullptr) return;
                   found->busy = false;
                   if (answer.ok()) {
                     found->written = found->confirmed = sent;
                     found->was_confirmed = true;
                     take(*found, ledger, *answer);
                     turn_made(*found);
                   } else {
                     found->known = false;
                     if (answer.error().kind != ErrorKind::busy) found->not_before = clock_.now() + timing_.try_again;
                   }
                   go_on(name, *found);
                 });
}

SpendLedger SpendBook::next(Account& account) const {
  SpendLedger ledger = account.ledger;
  for (SpendLease& lease : ledger.leases) {
    if (!is_lost(account, lease)) continue;
    lease.left = 0;
    lease.closed = true;
  }
  ledger.tidy(clock_.today());
  SpendLease& mine = ledger.lease_of(holder_);
  mine.turn = account.turn->number;
  mine.closed = false;
  for (std::size_t i = 0; i < account.turn->charges; ++i) {
    ledger.charge(mine, account.charges[i].cost, account.charges[i].key, clock_.today());
  }
  for (std::size_t i = 0; i < account.turn->forgets; ++i) ledger.forget(account.forgets[i]);
  lend(account, ledger, mine, account.turn->wants);
  return ledger;
}

/// Sets what the lease is to have left. Money that the turn's charges do not take stays reserved for the later ones.
void SpendBook::lend(const Account& account, SpendLedger& ledger, SpendLease& mine, std::size_t& wants) const {
  wants = account.wants.size();
  NanoUsd need = account.reserved;
  for (std::size_t i = account.turn->charges; i < account.charges.size(); ++i) need += account.charges[i].cost;
  if (!account.limit || is_idle(account)) {
    mine.left = std::min(mine.left, need);
    return;
  }
  const NanoUsd rest = *account.limit - ledger.spent - ledger.lent();
  if (rest < 0) {  // the limit is lower than it was
    mine.left = std::max(std::min(mine.left, need), mine.left + rest);
    return;
  }
  for (const Want& want : account.wants) {
    if (need + want.amount <= mine.left + rest) need += want.amount;
  }
  const NanoUsd slice = std::max(kLeastSlice, rest / kSlices);
  if (mine.left - need < slice / kTopUp) mine.left = std::max(mine.left, std::min(mine.left + rest, need + slice));
}

/// What the ledger is known to be.
void SpendBook::take(Account& account, SpendLedger ledger, std::uint64_t revision) {
  account.ledger = std::move(ledger);
  account.revision = revision;
  account.known = true;
  account.left = 0;
  std::map<std::string, Seen> others;
  for (const SpendLease& lease : account.ledger.leases) {
    if (lease.holder == holder_) {
      account.left = lease.left;
      account.turns = std::max(account.turns, lease.turn);
    } else if (!lease.closed) {
      const auto before = account.others.find(lease.holder);
      const bool same = before != account.others.end() && before->second.turn == lease.turn;
      others[lease.holder] = same ? before->second : Seen{lease.turn, clock_.now()};
    }
  }
  account.others = std::move(others);
}

void SpendBook::turn_made(Account& account) {
  const Turn turn = *std::exchange(account.turn, std::nullopt);
  std::vector<std::function<void()>> told;
  for (std::size_t i = 0; i < turn.charges; ++i) {
    if (account.charges.front().written) told.push_back(std::move(account.charges.front().written));
    account.charges.pop_front();
  }
  account.forgets.erase(account.forgets.begin(), account.forgets.begin() + static_cast<std::ptrdiff_t>(turn.forgets));
  // Whoever is told may ask again at once; the store is not asked before this is over.
  account.busy = true;
  answer_wants(account, turn.wants);
  for (const auto& tell : told) tell();
  account.busy = false;
}

void SpendBook::answer_wants(Account& account, std::size_t count) {
  for (; count > 0 && !account.wants.empty(); --count) {
    Want want = std::move(account.wants.front());
    account.wants.pop_front();
    if (may_reserve(account) && account.free() >= want.amount) {
      account.reserved += want.amount;
      want.done(Verdict::granted);
    } else {
      const bool ever = account.limit && want.amount <= *account.limit - account.ledger.spent;
      want.done(ever ? Verdict::lent : Verdict::used_up);
    }
  }
}

void SpendBook::tick() {
  const Instant now = clock_.now();
  std::vector<std::string> names;
  for (const auto& [name, account] : accounts_) names.push_back(name);
  for (const std::string& name : names) {
    Account& account = accounts_[name];
    while (!account.wants.empty() && now - account.wants.front().since >= timing_.patience) {
      Want want = std::move(account.wants.front());
      account.wants.pop_front();
      if (account.turn && account.turn->wants > 0) --account.turn->wants;
      want.done(Verdict::unavailable);
    }
    const bool lends = std::ranges::any_of(account.ledger.leases, [&](const SpendLease& lease) {
      return lease.holder != holder_ && !lease.closed && lease.left > 0;
    });
    if (!account.busy && lends && now - account.read >= timing_.read_again) account.known = false;
    const bool unused = account.known && !account.busy && !has_work(account) && account.left == 0 &&
                        account.reserved == 0 && now - account.used >= timing_.forgotten;
    if (unused) {
      accounts_.erase(name);
    } else if (account.known || has_work(account) || lends) {
      go_on(name, account);
    }
  }
}

void SpendBook::end() {
  ending_ = true;
  for (auto& [name, account] : accounts_) {
    for (Want& want : std::exchange(account.wants, {})) want.done(Verdict::unavailable);
    if (account.turn) account.turn->wants = 0;
    go_on(name, account);
  }
}

bool SpendBook::quiet() const {
  return std::ranges::all_of(accounts_, [&](const auto& entry) {
    const Account& account = entry.second;
    const bool holds = ending_ && account.left > account.reserved;
    return !account.busy && !account.turn && account.charges.empty() && account.forgets.empty() && !holds;
  });
}

SpendBook::View SpendBook::view(const std::string& name) const {
  const auto found = accounts_.find(name);
  return found == accounts_.end() ? View{} : found->second.view();
}

std::map<std::string, SpendBook::View> SpendBook::views() const {
  std::map<std::string, View> views;
  for (const auto& [name, account] : accounts_) views[name] = account.view();
  return views;
}

}  // namespace millrace
