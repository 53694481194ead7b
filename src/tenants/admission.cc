#include "tenants/admission.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "tenants/admitted_answer.h"

namespace millrace {

namespace {

using Headers = std::vector<std::pair<std::string, std::string>>;

std::int64_t unix_now() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

/// "1m30.5s", as OpenAI writes it.
std::string duration_text(Duration duration) {
  constexpr double kMinute = 60.0;
  const double seconds = std::ceil(std::chrono::duration<double>(duration).count() * 1e3) / 1e3;
  if (seconds < kMinute) return fmt::format("{:.9g}s", seconds);
  const double minutes = std::floor(seconds / kMinute);
  return fmt::format("{:.0f}m{:.9g}s", minutes, std::round((seconds - minutes * kMinute) * 1e3) / 1e3);
}

void set_retry(HttpReply& reply, Duration wait) {
  const auto ms = std::max<std::int64_t>(1, std::chrono::ceil<std::chrono::milliseconds>(wait).count());
  reply.headers.emplace_back("Retry-After", std::to_string((ms + 999) / 1000));
  reply.headers.emplace_back("retry-after-ms", std::to_string(ms));
}

Headers limit_headers(const Tenant& tenant, const TenantLimits::Left& left) {
  Headers headers;
  const auto add = [&](const char* what, std::int64_t limit, std::int64_t remaining, Duration full) {
    headers.emplace_back(fmt::format("x-ratelimit-limit-{}", what), std::to_string(limit));
    headers.emplace_back(fmt::format("x-ratelimit-remaining-{}", what), std::to_string(remaining));
    headers.emplace_back(fmt::format("x-ratelimit-reset-{}", what), duration_text(full));
  };
  if (tenant.requests_per_minute) add("requests", *tenant.requests_per_minute, left.requests, left.full_requests);
  if (tenant.tokens_per_minute) add("tokens", *tenant.tokens_per_minute, left.tokens, left.full_tokens);
  return headers;
}

HttpReply disabled_reply() {
  return final_reply(403, "This account is disabled; ask whoever runs this server.", "permission_error",
                     "account_disabled");
}

HttpReply no_batches_reply() {
  return final_reply(403, "Your account has no batches.", "permission_error", "batches_not_allowed");
}

/// Nodes see salts, and need not know who their users' users are.
std::string salt_of(const Tenant& tenant) {
  return sha256_hex("millrace tenant " + tenant.name).substr(0, 32);
}

/// Of its prompts, and of the longest answers that it allows.
std::pair<std::int64_t, std::int64_t> most_tokens(const ApiCall& call) {
  std::int64_t prompt = 0, answer = 0;
  for (const Request& one : call.requests) {
    prompt += static_cast<std::int64_t>(one.prompt.size());
    if (one.task == Task::generate) answer += one.max_new_tokens * one.choices;
  }
  return {prompt, answer};
}

}  // namespace

HttpReply final_reply(int status, std::string_view message, std::string_view type, std::string_view code) {
  HttpReply reply = error_reply(status, message, type, code);
  reply.headers.emplace_back("x-should-retry", "false");
  return reply;
}

HttpReply limited_reply(std::string_view message, Duration wait, std::string_view code) {
  HttpReply reply = error_reply(429, message, "rate_limit_error", code);
  set_retry(reply, wait);
  return reply;
}

HttpReply away_reply(std::string_view message) {
  HttpReply reply = error_reply(503, message, "service_unavailable", "service_unavailable");
  set_retry(reply, std::chrono::seconds(1));
  return reply;
}

std::optional<HttpReply> spend_reply(SpendBook::Verdict verdict) {
  switch (verdict) {
    case SpendBook::Verdict::granted:
      return std::nullopt;
    case SpendBook::Verdict::used_up:
      return final_reply(429,
                         "This request may cost more than your spend limit leaves in this period; a smaller max_tokens "
                         "may still fit.",
                         "insufficient_quota", "insufficient_quota");
    case SpendBook::Verdict::lent:
      return limited_reply("What your spend limit leaves is reserved for requests that run; try again soon.",
                           std::chrono::seconds(5));
    case SpendBook::Verdict::unavailable:
      break;
  }
  return away_reply("Your spend limit cannot be looked up at the moment.");
}

TenantRefusal refusal_of(SpendBook::Verdict verdict) {
  switch (verdict) {
    case SpendBook::Verdict::used_up:
      return TenantRefusal::spend;
    case SpendBook::Verdict::lent:
      return TenantRefusal::lent;
    default:
      return TenantRefusal::store;
  }
}

NanoUsd AdmittedCall::cost_of(const TokenUse& use) const {
  if (tenant == nullptr) return 0;
  if (tenant->has_prices()) {
    return price_of(*tenant, std::max<std::int64_t>(use.prompt, 0), std::max<std::int64_t>(use.generated, 0));
  }
  return use.usd > 0.0 ? nano_usd(use.usd) : 0;
}

Admission::Admission(EventLoop& loop, Transport& transport, Stores stores, std::string gateway, std::string life,
                     std::function<void(const std::string&)> on_message, const AdmissionTiming& timing)
    : loop_(&loop),
      transport_(&transport),
      timing_(timing),
      peers_(transport, gateway, life),
      spend_(stores.spend, gateway + "." + life, {[&loop] { return loop.now(); }, unix_now}, std::move(on_message),
             timing.spend),
      once_(stores.once, gateway, life,
            [this](const std::string& name, const std::string& its_life) { return peers_.lives(name, its_life); }) {
  peers_.uses = [this] {
    TenantUses uses;
    const std::lock_guard lock(limits_->mutex);
    for (const auto& [tenant, limits] : limits_->of) {
      if (limits.own().requests > 0) uses[tenant] = limits.own();
    }
    return uses;
  };
  peers_.on_heard = [this](const std::string& peer, const TenantUses& uses, bool first) {
    const std::lock_guard lock(limits_->mutex);
    for (auto& [name, limits] : limits_->of) {
      if (!uses.contains(name)) limits.lost(peer);
    }
    for (const auto& [name, use] : uses) {
      const auto tenant = tenants_.find(name);
      if (tenant == nullptr) continue;
      limits_->of.try_emplace(name, loop_->now()).first->second.heard(*tenant, peer, use, loop_->now(), first);
    }
  };
  peers_.on_lost = [this](const std::string& peer) {
    const std::lock_guard lock(limits_->mutex);
    for (auto& [tenant, limits] : limits_->of) limits.lost(peer);
  };
  timer_ = transport_->after(timing_.tick, [this] { tick(); });
}

Admission::~Admission() {
  *alive_ = false;
  transport_->cancel(timer_);
}

void Admission::tick() {
  spend_.tick();
  {
    const std::lock_guard lock(limits_->mutex);
    for (auto entry = limits_->of.begin(); entry != limits_->of.end();) {
      entry = entry->second.rest(loop_->now()) ? limits_->of.erase(entry) : std::next(entry);
    }
  }
  timer_ = transport_->after(timing_.tick, [this] { tick(); });
}

std::optional<std::variant<std::string, HttpReply>> Admission::who(std::string_view authorization) const {
  switch (tenants_.state()) {
    case TenantTable::State::none:
      return std::nullopt;
    case TenantTable::State::unknown:
      return away_reply("This gateway does not know yet who may ask.");
    case TenantTable::State::some:
      break;
  }
  const std::shared_ptr<const Tenant> tenant = tenants_.who(authorization);
  if (tenant == nullptr) return no_key_reply(authorization);
  if (tenant->disabled) {
    limits_->meter.refused(tenant->name, TenantRefusal::account);
    return disabled_reply();
  }
  return tenant->name;
}

std::optional<HttpReply> Admission::refuse_batches(const HttpRequest& request) const {
  const auto tenant = tenants_.find(request.tenant);
  if (tenants_.state() != TenantTable::State::some || (tenant != nullptr && tenant->batches)) return std::nullopt;
  limits_->meter.refused(request.tenant, TenantRefusal::account);
  return no_batches_reply();
}

Result<LimitTicket, HttpReply> Admission::begin(const std::shared_ptr<const Tenant>& tenant, std::int64_t prompt,
                                                std::int64_t answer, Headers& headers) {
  using Verdict = TenantLimits::Verdict;
  const Instant now = loop_->now();
  const std::lock_guard lock(limits_->mutex);
  TenantLimits& limits = limits_->of.try_emplace(tenant->name, now).first->second;
  const TenantLimits::Answer begun = limits.begin(*tenant, prompt, answer, now);
  headers = limit_headers(*tenant, limits.left(now));
  if (begun.verdict == Verdict::granted) {
    const std::weak_ptr<Limits> all = limits_;
    return LimitTicket([all, loop = loop_, name = tenant->name, taken = begun.taken_tokens](std::int64_t used) {
      const std::shared_ptr<Limits> held = all.lock();
      if (held == nullptr) return;
      held->meter.used(name, used);
      const std::lock_guard ending(held->mutex);
      if (const auto found = held->of.find(name); found != held->of.end()) found->second.end(taken, used, loop->now());
    });
  }
  HttpReply reply;
  const auto count = [&](TenantRefusal why) { limits_->meter.refused(tenant->name, why); };
  switch (begun.verdict) {
    case Verdict::too_many_requests:
      count(TenantRefusal::requests);
      reply = limited_reply(fmt::format("Rate limit reached: {} requests per minute.", *tenant->requests_per_minute),
                            begun.retry_after);
      break;
    case Verdict::too_many_tokens:
      count(TenantRefusal::tokens);
      reply = limited_reply(fmt::format("Rate limit reached: {} tokens per minute, and this request may use {}.",
                                        *tenant->tokens_per_minute, prompt + answer),
                            begun.retry_after);
      break;
    case Verdict::too_many_at_once:
      count(TenantRefusal::concurrent);
      reply = limited_reply(fmt::format("{} requests of yours run at once, which is your limit.", *tenant->concurrent),
                            begun.retry_after);
      break;
    default:
      count(TenantRefusal::too_large);
      reply = final_reply(429,
                          fmt::format("Request too large: its prompt has {} tokens, and your limit is {} per minute.",
                                      prompt, *tenant->tokens_per_minute),
                          "rate_limit_error", "rate_limit_exceeded");
  }
  reply.headers.insert(reply.headers.end(), headers.begin(), headers.end());
  return reply;
}

/// Adds what the tenant's nodes must be. A value: the request asks for what the tenant may not have.
std::optional<HttpReply> Admission::wish(const Tenant& tenant, ApiCall& call) {
  const TenantWish own = wish_of(tenant);
  for (Request& request : call.requests) {
    ServiceWish& wish = request.wish;
    auto region = region_of(tenant, wish.region);
    if (!region.ok()) {
      return final_reply(403, "Your account may not use this region: " + region.error().message + ".",
                         "permission_error", "region_not_allowed");
    }
    wish.region = *std::move(region);
    if (wish.region.empty()) wish.regions = own.regions;
    wish.trusted = wish.trusted || own.trusted;
    for (const std::string& label : own.labels) {
      if (std::ranges::find(wish.labels, label) == wish.labels.end()) wish.labels.push_back(label);
    }
  }
  return std::nullopt;
}

/// Where it is charged, and how much it may be.
void Admission::price(AdmittedCall& admitted, std::int64_t prompt, std::int64_t answer) {
  const Tenant& tenant = *admitted.tenant;
  admitted.account = spend_account(tenant, unix_now());
  if (tenant.spend_usd) admitted.limit = nano_usd(*tenant.spend_usd);
  admitted.reserve = price_of(tenant, prompt, answer);
}

Result<AdmittedCall, LineRefusal> Admission::admit_line(const std::string& tenant, ApiCall call,
                                                        MakeAnswer make) const {
  AdmittedCall admitted;
  admitted.call = std::move(call);
  admitted.make = std::move(make);
  admitted.salt = tenant;
  const TenantTable::State state = tenants_.state();
  if (state == TenantTable::State::unknown) return LineRefusal{away_reply("It is not known yet who may ask.")};
  if (state == TenantTable::State::none) return admitted;
  admitted.tenant = tenants_.find(tenant);
  if (admitted.tenant == nullptr) return LineRefusal{no_key_reply("removed")};
  if (admitted.tenant->disabled) return LineRefusal{disabled_reply()};
  if (!admitted.tenant->batches) return LineRefusal{no_batches_reply()};
  admitted.salt = salt_of(*admitted.tenant);
  if (auto refused = wish(*admitted.tenant, admitted.call)) return LineRefusal{std::move(*refused)};
  const auto [prompt, answer] = most_tokens(admitted.call);
  price(admitted, prompt, answer);
  if (admitted.limit && admitted.reserve > *admitted.limit) {
    return LineRefusal{
        final_reply(429, "This request may cost more than your whole spend limit; set a smaller max_tokens.",
                    "insufficient_quota", "insufficient_quota"),
        true};
  }
  return admitted;
}

LineCharge Admission::charge_of(const AdmittedCall& line, NanoUsd reserved) {
  if (line.tenant == nullptr) return {};
  return LineCharge([this, account = line.account, reserved](NanoUsd cost) {
    if (reserved > 0 || cost > 0) settle(account, reserved, cost);
  });
}

void Admission::hold(const AdmittedCall& line,
                     std::function<void(std::optional<HttpReply> refused, LineCharge charge)> done) {
  loop_->post([this, alive = alive_, account = line.account, limit = line.limit, amount = line.reserve,
               done = std::move(done)] {
    if (!*alive) return;
    spend_.reserve(account, limit, amount, [this, account, amount, done](SpendBook::Verdict verdict) {
      if (auto refused = spend_reply(verdict)) return done(std::move(refused), {});
      done(std::nullopt, LineCharge([this, account, amount](NanoUsd cost) { settle(account, amount, cost); }));
    });
  });
}

HttpOutcome Admission::admit(const HttpRequest& request, ApiCall call, const MakeAnswer& make) {
  const std::string key(request.header("idempotency-key"));
  const bool keyed = std::ranges::any_of(request.headers, [](const auto& h) { return h.first == "idempotency-key"; });
  if (keyed) {
    if (const Status status = check_idempotency_key(key); !status.ok()) {
      return error_reply(400, status.error().message, "invalid_request_error", "invalid_idempotency_key");
    }
  }
  AdmittedCall admitted;
  admitted.call = std::move(call);
  admitted.make = make;
  admitted.salt = request.tenant;
  if (tenants_.state() == TenantTable::State::some) {
    admitted.tenant = tenants_.find(request.tenant);
    if (admitted.tenant == nullptr) return no_key_reply("removed");  // between its head and its body
    admitted.salt = salt_of(*admitted.tenant);
    if (auto refused = wish(*admitted.tenant, admitted.call)) {
      limits_->meter.refused(request.tenant, TenantRefusal::account);
      return std::move(*refused);
    }
    const auto [prompt, answer] = most_tokens(admitted.call);
    auto ticket = begin(admitted.tenant, prompt, answer, admitted.headers);
    if (!ticket.ok()) return std::move(ticket).error();
    admitted.ticket = std::move(*ticket);
    price(admitted, prompt, answer);
  }
  if (!keyed) {
    if (!admitted.limit) limits_->meter.admitted(request.tenant);  // else when that much is reserved
    return make_admitted_answer(*this, std::move(admitted));
  }
  admitted.key = once_key(request.tenant, key);
  admitted.request = sha256_hex(request.path + "\n" + request.body);
  admitted.stream = admitted.call.answer.stream;
  if (!admitted.call.names_seed) {
    for (Request& one : admitted.call.requests) one.sampling.seed = once_seed(admitted.key);
  }
  return make_keyed_answer(*this, std::move(admitted));
}

void Admission::reserve(const AdmittedCall& call, std::function<void(std::optional<HttpReply>)> done) {
  loop_->post([this, alive = alive_, account = call.account, limit = call.limit, amount = call.reserve,
               done = std::move(done)] {
    if (!*alive) return;
    spend_.reserve(account, limit, amount, [this, account, done](SpendBook::Verdict verdict) {
      count(account, verdict);
      done(spend_reply(verdict));
    });
  });
}

void Admission::settle(const std::string& account, NanoUsd reserved, NanoUsd cost) {
  loop_->post([this, alive = alive_, account, reserved, cost] {
    if (*alive) charge(account, reserved, cost);
  });
}

void Admission::charge(const std::string& account, NanoUsd reserved, NanoUsd cost, const std::string& key,
                       std::function<void()> written) {
  limits_->meter.charged(tenant_of_account(account), cost);
  spend_.settle(account, reserved, cost, key, std::move(written));
}

/// Of a request that wanted to reserve.
void Admission::count(const std::string& account, SpendBook::Verdict verdict) const {
  const std::string_view tenant = tenant_of_account(account);
  if (verdict == SpendBook::Verdict::granted) return limits_->meter.admitted(tenant);
  limits_->meter.refused(tenant, refusal_of(verdict));
}

std::map<std::string, TenantFigures> Admission::figures() const {
  std::map<std::string, TenantFigures> figures;
  for (auto& [name, tally] : limits_->meter.tallies()) figures[name].tally = tally;
  const auto add = [](std::optional<NanoUsd>& sum, NanoUsd amount) { sum = sum.value_or(0) + amount; };
  for (const auto& [account, view] : spend_.views()) {
    const std::string name(tenant_of_account(account));
    const auto tenant = tenants_.find(name);
    if (tenant == nullptr || spend_account(*tenant, unix_now()) != account) continue;  // of a period that is over
    TenantFigures& of = figures[limits_->meter.name_of(name)];
    of.spent += view.spent;
    of.free += std::max<NanoUsd>(view.free, 0);
    of.reserved += view.reserved;
    if (view.limit) add(of.limit, *view.limit);
  }
  const std::lock_guard lock(limits_->mutex);
  for (const auto& [name, limits] : limits_->of) {
    if (limits.own().concurrent > 0) figures[limits_->meter.name_of(name)].running += limits.own().concurrent;
  }
  return figures;
}

void Admission::end(std::function<void()> done) {
  loop_->post([this, alive = alive_, done = std::move(done)] {
    if (*alive) begin_end(done);
  });
}

void Admission::begin_end(std::function<void()> done) {
  constexpr int kLooks = 100;
  std::vector<std::string> keys;
  for (const auto& [key, entry] : keyed_) keys.push_back(key);
  for (const std::string& key : keys) {
    if (const Keyed* entry = find(key); entry->answer != nullptr && !entry->closing) give_up(key);
  }
  spend_.end();
  end_when_quiet(kLooks, std::move(done));
}

void Admission::end_when_quiet(int looks, std::function<void()> done) {
  if (looks == 0 || (spend_.quiet() && once_.claims() == 0)) return done();
  transport_->after(std::chrono::milliseconds(10),
                    [this, looks, done = std::move(done)] { end_when_quiet(looks - 1, done); });
}

}  // namespace millrace
