// SpendBook: what a gateway's tenants spend, within limits that hold for all gateways together (docs/tenants.md).
//
// Of each ledger (an account: a tenant's day or month) it holds a lease. A request reserves from the lease what it may
// cost at most; when it has ended, what it did cost is written to the ledger at once, and the lease becomes smaller by
// as much. At every moment
//
//   spent + all that is lent <= limit,  and of each gateway:  reserved + not yet written <= lent to it
//
// so what is charged in all goes beyond the limit by no more than what gateways had reserved when they died or were cut
// off, and even of that only what their requests really cost: a lease whose holder was not heard of for `reclaim` is
// taken back. A holder stops reserving after `hold` without the ledger's word, long before.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cluster/transport.h"
#include "tenants/key_store.h"
#include "tenants/ledger.h"

namespace millrace {

struct SpendTiming {
  Duration renew = std::chrono::seconds(5);        // a holder shows that it is alive, while it holds or has reserved
  Duration hold = std::chrono::seconds(20);        // it reserves nothing after so long without the ledger's word
  Duration reclaim = std::chrono::seconds(60);     // others take back a lease that nothing was heard of for so long
  Duration idle = std::chrono::seconds(10);        // an unused lease is given back
  Duration read_again = std::chrono::seconds(10);  // how often others' leases are looked at
  Duration patience = std::chrono::seconds(3);     // a request waits for the ledger no longer than this
  Duration try_again = std::chrono::milliseconds(500);  // after the store was away
  Duration forgotten = std::chrono::minutes(10);        // an account that nobody uses
};

/// Pure: called from one thread, with times from outside; whatever it waits for is told to it by the store or tick().
class SpendBook {
 public:
  enum class Verdict : std::uint8_t {
    granted,
    used_up,  // it is more than the limit leaves in this period
    lent,     // what is left is reserved by other requests or lent to other gateways: some of it comes back in seconds
    unavailable  // the ledger did not answer in time
  };
  using Reserved = std::function<void(Verdict)>;

  struct Clock {
    std::function<Instant()> now;         // monotonic
    std::function<std::int64_t()> today;  // Unix time in seconds
  };

  /// `holder`: no other process's, in this life or another. `on_message`: one line of what is wrong with a ledger.
  SpendBook(KeyStore& store, std::string holder, Clock clock, std::function<void(const std::string&)> on_message,
            const SpendTiming& timing = {});
  ~SpendBook();
  SpendBook(const SpendBook&) = delete;
  SpendBook& operator=(const SpendBook&) = delete;

  /// `limit` none: granted, and nothing is lent. May answer from within.
  void reserve(const std::string& account, std::optional<NanoUsd> limit, NanoUsd amount, Reserved done);
  /// What a granted request did cost, once it has ended. `key`: not empty where it may be charged by others too, and
  /// only once in all. `written`: the ledger has it.
  void settle(const std::string& account, NanoUsd reserved, NanoUsd cost, const std::string& key = {},
              std::function<void()> written = {});
  /// The key's answer is kept: nobody will charge it again.
  void forget(const std::string& account, const std::string& key);

  /// Some times a second.
  void tick();
  /// Gives back what is not reserved, and goes on doing so; nothing is granted any more.
  void end();
  /// Nothing is to be written any more, and after end() nothing is held.
  [[nodiscard]] bool quiet() const;

  /// Of an account, as far as this gateway knows; for tests and metrics.
  struct View {
    NanoUsd spent = 0, left = 0, reserved = 0;
    NanoUsd free = 0;  // of `left`, that is neither reserved nor charged already
    std::optional<NanoUsd> limit = {};
  };
  [[nodiscard]] View view(const std::string& account) const;
  /// Those that were used lately.
  [[nodiscard]] std::map<std::string, View> views() const;

 private:
  struct Charge {
    NanoUsd cost = 0;
    std::string key;
    std::function<void()> written;
  };
  struct Want {
    NanoUsd amount = 0;
    Reserved done;
    Instant since{0};
  };
  struct Seen {
    std::uint64_t turn = 0;
    Instant since{0};
  };
  /// A change that is to be made exactly once, however often it must be tried: it bears a number.
  struct Turn {
    std::uint64_t number = 0;
    std::size_t charges = 0, forgets = 0;  // of the account's, the first
    std::size_t wants = 0;                 // that the last attempt asked money for
  };
  struct Account {
    std::optional<NanoUsd> limit;
    SpendLedger ledger;  // as last seen
    std::uint64_t revision = 0;
    bool known = false;  // what the ledger says has been read
    bool busy = false;   // the store is asked
    NanoUsd left = 0;    // of the lease, as the ledger has it
    NanoUsd reserved = 0;
    std::deque<Charge> charges;
    std::deque<std::string> forgets;
    std::deque<Want> wants;
    std::uint64_t turns = 0;
    std::optional<Turn> turn;  // under way, or nobody knows whether it was made
    Instant confirmed{0}, written{0}, read{0}, used{0}, not_before{0};
    bool was_confirmed = false;
    std::map<std::string, Seen> others;

    [[nodiscard]] NanoUsd unwritten() const;
    [[nodiscard]] NanoUsd free() const { return left - reserved - unwritten(); }
    [[nodiscard]] View view() const { return {ledger.spent, left, reserved, free(), limit}; }
  };

  void go_on(const std::string& name, Account& account);
  void read(const std::string& name, Account& account);
  void write(const std::string& name, Account& account);
  [[nodiscard]] SpendLedger next(Account& account) const;
  void lend(const Account& account, SpendLedger& ledger, SpendLease& mine, std::size_t& wants) const;
  [[nodiscard]] bool is_lost(const Account& account, const SpendLease& lease) const;
  [[nodiscard]] bool is_idle(const Account& account) const;
  void take(Account& account, SpendLedger ledger, std::uint64_t revision);
  void turn_made(Account& account);
  void answer_wants(Account& account, std::size_t count);
  [[nodiscard]] bool may_reserve(const Account& account) const;
  [[nodiscard]] bool has_work(const Account& account) const;
  Account* find(const std::string& name);

  KeyStore* store_;
  std::string holder_;
  Clock clock_;
  std::function<void(const std::string&)> on_message_;
  SpendTiming timing_;
  std::map<std::string, Account> accounts_;
  bool ending_ = false;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace millrace
