// Admission: what stands at a gateway between a request that was understood and its answer: whose it is, what that
// tenant may, what it is charged, and whether it is a retry (docs/tenants.md).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "cluster/event_loop.h"
#include "server/engine_routes.h"
#include "server/http_connection.h"
#include "tenants/budget.h"
#include "tenants/gateway_peers.h"
#include "tenants/key_store.h"
#include "tenants/line_charge.h"
#include "tenants/once.h"
#include "tenants/rate_limit.h"
#include "tenants/shared_answer.h"
#include "tenants/tenant_meter.h"
#include "tenants/tenant_table.h"

namespace millrace {

struct AdmissionTiming {
  Duration tick = std::chrono::milliseconds(200);
  Duration ask_again = std::chrono::milliseconds(500);  // how often an answer is looked for that another gateway makes
  Duration patience = std::chrono::minutes(10);         // … and how long
  Duration grace = std::chrono::seconds(20);            // a keyed answer goes on for so long after its client has left
  SpendTiming spend = {};
};

/// What a request takes of its tenant's limits, from its beginning to its end. Any thread.
class LimitTicket {
 public:
  LimitTicket() = default;
  explicit LimitTicket(std::function<void(std::int64_t used)> end) : end_(std::move(end)) {}
  LimitTicket(LimitTicket&& other) noexcept : end_(std::exchange(other.end_, nullptr)) {}
  LimitTicket& operator=(LimitTicket&& other) noexcept {
    end(0);
    end_ = std::exchange(other.end_, nullptr);
    return *this;
  }
  ~LimitTicket() { end(0); }

  /// It has used so many tokens. Once; what comes later counts for nothing.
  void end(std::int64_t used) {
    if (const auto end = std::exchange(end_, nullptr)) end(used);
  }

 private:
  std::function<void(std::int64_t)> end_;
};

/// An admitted request: what to answer, and for whom.
struct AdmittedCall {
  std::shared_ptr<const Tenant> tenant;  // null: nobody's; it has no limits, and is charged nothing
  ApiCall call;
  MakeAnswer make;
  std::string salt;
  std::string account;           // of the ledger
  std::optional<NanoUsd> limit;  // of the account
  NanoUsd reserve = 0;           // what it may cost at most
  LimitTicket ticket;
  std::vector<std::pair<std::string, std::string>> headers;

  std::string key, request;  // of a keyed one: once_key() and a hash of what it asks for
  bool stream = false;

  [[nodiscard]] std::unique_ptr<HttpAnswer> answer() { return make(std::move(call), salt); }
  /// What it is charged for this.
  [[nodiscard]] NanoUsd cost_of(const TokenUse& use) const;
};

/// Why a line of a batch is not begun.
struct LineRefusal {
  HttpReply reply;
  bool for_good = false;  // trying again cannot help
};

/// One of those who wait for a keyed answer. Its connection's thread and the loop share it.
struct KeyedReader {
  std::shared_ptr<AdmittedCall> call;
  std::shared_ptr<SharedAnswer::Reader> reader = std::make_shared<SharedAnswer::Reader>();

  std::mutex mutex;
  std::function<void()> wake;        // empty: it has left
  std::optional<HttpReply> refused;  // guarded by mutex, as all below
  std::shared_ptr<SharedAnswer> answer;
  bool replayed = false;

  void refuse(HttpReply reply);
  void give(std::shared_ptr<SharedAnswer> shared, bool is_replay);
  [[nodiscard]] bool has_left();
};

/// 429 or 503: what a tenant is told when it may not try again soon, in so long, or nobody knows.
HttpReply final_reply(int status, std::string_view message, std::string_view type, std::string_view code);
HttpReply limited_reply(std::string_view message, Duration wait, std::string_view code = "rate_limit_exceeded");
HttpReply away_reply(std::string_view message);
/// None: it may run.
std::optional<HttpReply> spend_reply(SpendBook::Verdict verdict);
/// Of one that is not granted.
TenantRefusal refusal_of(SpendBook::Verdict verdict);

class Admission {
 public:
  struct Stores {
    KeyStore& spend;
    KeyStore& once;
  };

  /// Everything must outlive it; the loop must not run without it any more once it has ended. Made before the loop
  /// runs.
  Admission(EventLoop& loop, Transport& transport, Stores stores, std::string gateway, std::string life,
            std::function<void(const std::string&)> on_message, const AdmissionTiming& timing = {});
  ~Admission();
  Admission(const Admission&) = delete;
  Admission& operator=(const Admission&) = delete;

  // Any thread.

  [[nodiscard]] TenantTable& tenants() { return tenants_; }
  /// As WhoAsks.
  std::optional<std::variant<std::string, HttpReply>> who(std::string_view authorization) const;
  /// As ApiRoutesOptions::admit.
  HttpOutcome admit(const HttpRequest& request, ApiCall call, const MakeAnswer& make);
  /// 403 where the tenant of this request may have no batches.
  [[nodiscard]] std::optional<HttpReply> refuse_batches(const HttpRequest& request) const;

  /// A line of a batch, for its tenant as it is now. Rates do not count it: it runs where places are free (batches.md).
  [[nodiscard]] Result<AdmittedCall, LineRefusal> admit_line(const std::string& tenant, ApiCall call,
                                                             MakeAnswer make) const;
  /// Reserves for a line. `done` comes on the loop, or from within.
  void hold(const AdmittedCall& line, std::function<void(std::optional<HttpReply> refused, LineCharge charge)> done);
  /// Of a line for which so much was reserved.
  [[nodiscard]] LineCharge charge_of(const AdmittedCall& line, NanoUsd reserved);

  /// Reserves for an unkeyed call. `done` comes on the loop, or from within.
  void reserve(const AdmittedCall& call, std::function<void(std::optional<HttpReply> refused)> done);
  /// What it used in the end; gives back the reservation.
  void settle(const std::string& account, NanoUsd reserved, NanoUsd cost);
  /// On the loop: by tenant, at most TenantMeter::kMostNamed and one for all others.
  [[nodiscard]] std::map<std::string, TenantFigures> figures() const;
  void read_keyed(std::shared_ptr<KeyedReader> reader);
  void left_keyed(const std::shared_ptr<KeyedReader>& reader);

  /// Nothing is admitted any more, leases are given back; `done`, on the loop, when that is written, or after a second.
  void end(std::function<void()> done);

 private:
  struct Limits {
    TenantMeter meter;
    std::mutex mutex;
    std::map<std::string, TenantLimits, std::less<>> of;  // by tenant; guarded by mutex
  };

  /// A key that is asked for here. It is waited for (no answer yet), or answered.
  struct Keyed {
    std::string request;
    std::vector<std::shared_ptr<KeyedReader>> waiting;
    Instant since{0};
    std::shared_ptr<AdmittedCall> call;  // that is answered
    std::shared_ptr<SharedAnswer> answer;
    std::string account;
    NanoUsd reserved = 0;
    bool taken_over = false;  // from somebody who may be frozen, and charge it when it thaws
    bool closing = false;
  };

  [[nodiscard]] Result<LimitTicket, HttpReply> begin(const std::shared_ptr<const Tenant>& tenant, std::int64_t prompt,
                                                     std::int64_t answer,
                                                     std::vector<std::pair<std::string, std::string>>& headers);
  /// As spend_.settle(), and counted.
  void charge(const std::string& account, NanoUsd reserved, NanoUsd cost, const std::string& key = {},
              std::function<void()> written = {});
  void count(const std::string& account, SpendBook::Verdict verdict) const;
  [[nodiscard]] static std::optional<HttpReply> wish(const Tenant& tenant, ApiCall& call);
  static void price(AdmittedCall& admitted, std::int64_t prompt, std::int64_t answer);
  void tick();
  void begin_end(std::function<void()> done);
  void end_when_quiet(int looks, std::function<void()> done);
  // Of keyed requests, on the loop (admission_keys.cc).
  void join(const std::shared_ptr<KeyedReader>& reader);
  void leave(const std::shared_ptr<KeyedReader>& reader);
  void claim(const std::string& key);
  void on_found(const std::string& key, OnceBook::Found found);
  void wait_for_other(const std::string& key);
  void reserve_and_answer(const std::string& key, const std::string& account);
  void answer(const std::string& key);
  void on_end(const std::string& key);
  void give_up(const std::string& key);
  void close(const std::string& key, NanoUsd cost, bool keep);
  void refuse_all(const std::string& key, const HttpReply& reply);
  void drop(const std::string& key, const HttpReply& reply, TenantRefusal why);
  bool anybody_waits(Keyed& entry);
  Keyed* find(const std::string& key);

  EventLoop* loop_;
  Transport* transport_;
  AdmissionTiming timing_;
  // Tickets end in it, and may outlive this: in calls that were handed to the loop and never ran.
  std::shared_ptr<Limits> limits_ = std::make_shared<Limits>();
  TenantTable tenants_;
  GatewayPeers peers_;
  SpendBook spend_;
  OnceBook once_;
  std::map<std::string, Keyed> keyed_;  // on the loop
  SharedAnswer::Held held_ = std::make_shared<std::atomic<std::int64_t>>(0);
  Transport::TimerId timer_ = 0;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // looked at on the loop alone
};

}  // namespace millrace
