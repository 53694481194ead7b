// What stands between a request and its answer: limits, money, and answers that several clients share.
// Over 500 lines because connections, answers and admission share one stage.
#include "tenants/admission.h"

#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <future>
#include <mutex>
#include <thread>

#include "tenants/admitted_answer.h"

namespace millrace::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds kPatience{10};

/// The clock and timers of a loop, and nobody else there.
class LonelyTransport : public Transport {
 public:
  explicit LonelyTransport(EventLoop& loop) : loop_(&loop) {}
  void publish(std::string_view, std::span<const std::byte>) override {}
  void subscribe(std::string_view, Handler) override {}
  [[nodiscard]] Instant now() const override { return loop_->now(); }
  TimerId after(Duration delay, std::function<void()> call) override { return loop_->after(delay, std::move(call)); }
  void cancel(TimerId timer) override { loop_->cancel(timer); }
  [[nodiscard]] bool connected() const override { return true; }

 private:
  EventLoop* loop_;
};

class LoopStore : public KeyStore {
 public:
  explicit LoopStore(EventLoop& loop) : loop_(&loop) {}

  void get(const std::string& key, Read done) override {
    const auto found = entries.find(key);
    std::optional<Stored> stored;
    if (found != entries.end()) stored = found->second;
    loop_->post([done = std::move(done), stored] { done(stored); });
  }
  void update(const std::string& key, const std::string& value, std::uint64_t revision, Written done) override {
    const auto found = entries.find(key);
    if ((found == entries.end() ? 0 : found->second.revision) != revision) {
      loop_->post([done = std::move(done)] { done(Error{"another revision", ErrorKind::busy}); });
    } else {
      put(key, value, std::move(done));
    }
  }
  void put(const std::string& key, const std::string& value, Written done) override {
    entries[key] = {value, ++revision_};
    loop_->post([done = std::move(done), revision = revision_] { done(revision); });
  }

  std::map<std::string, Stored> entries;  // on the loop

 private:
  EventLoop* loop_;
  std::uint64_t revision_ = 0;
};

/// What stands for an engine: answers go on when they are told to.
struct Script {
  std::mutex mutex;
  std::function<void()> wake;
  std::string bytes;
  bool last = false;
  std::atomic<bool> failed = false, cancelled = false;
  bool refuses_late = false;  // it is accepted once there is something of it
  std::optional<HttpReply> refusal;
  std::atomic<int> runs = 0;
  std::uint64_t seed = 0;
  ServiceWish wish;
  std::string salt;

  void say(const std::string& more, bool is_last = false) {
    const std::lock_guard lock(mutex);
    bytes += more;
    last = is_last;
    if (wake) wake();
  }
  void refuse(HttpReply reply) {
    const std::lock_guard lock(mutex);
    refusal = std::move(reply);
    failed = true;
    if (wake) wake();
  }
};

class ScriptedAnswer : public HttpAnswer {
 public:
  ScriptedAnswer(std::shared_ptr<Script> script, bool stream) : script_(std::move(script)), stream_(stream) {}
  [[nodiscard]] bool is_stream() const override { return stream_; }
  std::optional<HttpReply> start(std::function<void()> wake) override {
    const std::lock_guard lock(script_->mutex);
    ++script_->runs;
    script_->wake = std::move(wake);
    if (!script_->bytes.empty() || script_->last) script_->wake();  // it was told before it began
    return std::nullopt;
  }
  Piece pull() override {
    const std::lock_guard lock(script_->mutex);
    if (script_->refusal) return {{}, script_->refusal, true};
    if (!stream_ && !script_->last) return {};
    told_ = told_ || !script_->bytes.empty();
    Piece piece{.bytes = std::exchange(script_->bytes, {}), .whole = {}, .last = script_->last};
    if (!stream_) piece.whole = HttpReply{.body = std::exchange(piece.bytes, {})};
    return piece;
  }
  void cancel() override {
    const std::lock_guard lock(script_->mutex);
    script_->cancelled = true;
    script_->wake = nullptr;
  }
  [[nodiscard]] TokenUse use() const override { return {10, 0, 20}; }
  [[nodiscard]] bool failed() const override { return script_->failed; }
  [[nodiscard]] bool accepted() const override { return told_ || !script_->refuses_late; }

 private:
  std::shared_ptr<Script> script_;
  bool stream_, told_ = false;
};

/// As a connection reads an answer.
struct Reader {
  explicit Reader(HttpOutcome outcome) {
    if (auto* whole = std::get_if<HttpReply>(&outcome)) {
      reply = std::move(*whole);
      return;
    }
    answer = std::get<std::unique_ptr<HttpAnswer>>(std::move(outcome));
    reply = answer->start([this] {
      const std::lock_guard lock(mutex);
      ++wakes;
      changed.notify_all();
    });
  }
  ~Reader() { answer.reset(); }

  /// False: nothing was there.
  bool read_now() {
    HttpAnswer::Piece piece = answer->pull();
    const bool any = !piece.bytes.empty() || piece.whole || piece.last;
    bytes += piece.bytes;
    last = last || piece.last;
    if (piece.whole) reply = std::move(piece.whole);
    return any;
  }

  /// Reads until this holds; false: it does not in ten seconds.
  template <typename Holds>
  bool read_until(const Holds& holds) {
    const auto end = std::chrono::steady_clock::now() + kPatience;
    while (!holds()) {
      int before = 0;
      {
        const std::lock_guard lock(mutex);
        before = wakes;
      }
      if (read_now()) continue;
      std::unique_lock lock(mutex);
      if (!changed.wait_until(lock, end, [&] { return wakes != before; })) return holds();
    }
    return true;
  }
  bool read_reply() {
    return read_until([this] { return reply.has_value(); });
  }
  [[nodiscard]] std::string header(std::string_view name) const {
    for (const auto& [known, value] : reply ? reply->headers : answer->headers()) {
      if (known == name) return value;
    }
    return "";
  }

  std::unique_ptr<HttpAnswer> answer;
  std::optional<HttpReply> reply;
  std::string bytes;
  bool last = false;
  std::mutex mutex;
  std::condition_variable changed;
  int wakes = 0;
};

class AdmissionTest : public testing::Test {
 protected:
  AdmissionTest()
      : transport_(loop_),
        spend_(loop_),
        once_(loop_),
        admission_(loop_, transport_, {spend_, once_}, "gate", new_life(1, 1), [](const std::string&) {},
                   {.grace = milliseconds(400)}) {
    admission_.tenants().complete();
    thread_ = std::thread([this] { loop_.run(); });
  }
  ~AdmissionTest() override {
    loop_.stop();
    thread_.join();
  }

  void tenant(Tenant tenant) {
    tenant.keys = {{sha256_hex("key of " + tenant.name), 0}};
    EXPECT_TRUE(admission_.tenants().set(tenant.name, tenant_json(tenant)).ok());
  }

  HttpOutcome ask(const std::string& who, const std::string& key = "", bool stream = true,
                  const std::string& body = "body", std::int64_t max_tokens = 20) {
    HttpRequest request{.path = "/v1/completions", .parameter = {}, .body = body, .id = {}, .tenant = who};
    if (!key.empty()) request.headers = {{"idempotency-key", key}};
    ApiCall call;
    call.answer.stream = stream;
    call.requests.push_back({});
    call.requests.front().prompt.assign(10, 1);
    call.requests.front().max_new_tokens = max_tokens;
    return admission_.admit(request, std::move(call),
                            [script = script_, stream](ApiCall made, const std::string& salt) {
                              script->seed = made.requests.front().sampling.seed;
                              script->wish = made.requests.front().wish;
                              script->salt = salt;
                              return std::make_unique<ScriptedAnswer>(script, stream);
                            });
  }

  /// What nodes see of a tenant's interactive requests.
  std::string salt_of_interactive(const std::string& who) {
    Reader reader(ask(who));
    EXPECT_TRUE(reader.answer != nullptr);
    return script_->salt;
  }

  /// What the ledger says, on the loop.
  SpendLedger ledger(const std::string& tenant) {
    SpendLedger found;
    on_loop([&] {
      for (const auto& [key, stored] : spend_.entries) {
        if (key.starts_with(tenant + ".")) found = *parse_ledger(stored.value);
      }
    });
    return found;
  }
  void on_loop(const std::function<void()>& call) {
    std::mutex mutex;
    std::condition_variable done;
    bool is_done = false;
    loop_.post([&] {
      call();
      const std::lock_guard lock(mutex);
      is_done = true;
      done.notify_all();
    });
    std::unique_lock lock(mutex);
    done.wait(lock, [&] { return is_done; });
  }
  TenantFigures figures(const std::string& tenant) {
    TenantFigures found;
    on_loop([&] { found = admission_.figures()[tenant]; });
    return found;
  }
  std::int64_t refused(const std::string& tenant, TenantRefusal why) {
    return figures(tenant).tally.refused[static_cast<std::size_t>(why)];
  }
  template <typename Holds>
  bool wait_for(const Holds& holds) {
    const auto end = std::chrono::steady_clock::now() + kPatience;
    while (!holds() && std::chrono::steady_clock::now() < end) std::this_thread::sleep_for(milliseconds(5));
    return holds();
  }

  EventLoop loop_;
  LonelyTransport transport_;
  LoopStore spend_, once_;
  std::shared_ptr<Script> script_ = std::make_shared<Script>();
  Admission admission_;
  std::thread thread_;
};

TEST(SharedAnswers, ThatAreToldAgainCountAsHeld) {
  EventLoop loop;
  const auto held = std::make_shared<std::atomic<std::int64_t>>(0);
  {
    const auto answer = std::make_shared<SharedAnswer>(loop, OnceAnswer{false, std::string(1000, 'x')}, held);
    EXPECT_EQ(*held, 1000);
  }
  EXPECT_EQ(*held, 0);
}

/// An answer that is not kept waits for its slowest reader, unless that one leaves.
TEST(SharedAnswers, GoOnWhenASlowReaderLeaves) {
  EventLoop loop;
  std::thread thread([&] { loop.run(); });
  const auto script = std::make_shared<Script>();
  const auto held = std::make_shared<std::atomic<std::int64_t>>(0);
  {
    const auto answer =
        std::make_shared<SharedAnswer>(loop, std::make_unique<ScriptedAnswer>(script, true), held, /*most_held=*/0);
    const auto fast = std::make_shared<SharedAnswer::Reader>(), slow = std::make_shared<SharedAnswer::Reader>();
    fast->wake = slow->wake = [] {};
    EXPECT_TRUE(answer->join(fast) && answer->join(slow));
    const auto on_loop = [&](const std::function<void()>& call) {
      std::promise<void> done;
      loop.post([&] {
        call();
        done.set_value();
      });
      done.get_future().wait();
    };
    on_loop([&] { answer->start([] {}); });
    std::size_t told = 0;
    const auto comes = [&](std::size_t bytes) {
      const auto end = std::chrono::steady_clock::now() + kPatience;
      while (told < bytes && std::chrono::steady_clock::now() < end) {
        told += answer->read(*fast).bytes.size();
        std::this_thread::sleep_for(milliseconds(1));
      }
      return told == bytes;
    };
    constexpr std::size_t kMuch = 2 << 20;
    script->say(std::string(kMuch, 'x'));
    EXPECT_TRUE(comes(kMuch));
    script->say("more");
    std::this_thread::sleep_for(milliseconds(100));
    EXPECT_EQ(answer->read(*fast).bytes, "") << "it waits for the slow one";
    answer->leave(slow);
    EXPECT_TRUE(comes(kMuch + 4));
    on_loop([&] { answer->cancel(); });
  }
  loop.stop();
  thread.join();
}

TEST_F(AdmissionTest, WhoMayAsk) {
  EXPECT_FALSE(admission_.who("Bearer x").has_value()) << "without tenants others decide";
  tenant({.name = "acme"});
  tenant({.name = "gone", .disabled = true});
  EXPECT_EQ(std::get<std::string>(*admission_.who("Bearer key of acme")), "acme");
  EXPECT_EQ(std::get<HttpReply>(*admission_.who("Bearer x")).status, 401);
  EXPECT_EQ(std::get<HttpReply>(*admission_.who("Bearer key of gone")).status, 403);
  tenant({.name = "small", .batches = false});
  HttpRequest request;
  request.tenant = "small";
  EXPECT_EQ(admission_.refuse_batches(request)->status, 403);
  request.tenant = "acme";
  EXPECT_FALSE(admission_.refuse_batches(request).has_value());
  EXPECT_EQ(refused("gone", TenantRefusal::account), 1);
  EXPECT_EQ(refused("small", TenantRefusal::account), 1);
  EXPECT_EQ(refused("acme", TenantRefusal::account), 0);
}

TEST_F(AdmissionTest, ReservesAndCharges) {
  tenant({.name = "acme", .requests_per_minute = 10, .spend_usd = 1.0, .usd_per_million_answer = 1e4});
  Reader reader(ask("acme"));  // may cost 0.2
  script_->say("data: a\n\n");
  EXPECT_TRUE(reader.read_until([&] { return !reader.bytes.empty(); }));
  EXPECT_TRUE(reader.answer->accepted());
  EXPECT_EQ(reader.header("x-ratelimit-remaining-requests"), "9");
  const TenantFigures running = figures("acme");
  EXPECT_EQ(running.running, 1);
  EXPECT_EQ(running.reserved, nano_usd(0.2));
  EXPECT_EQ(running.limit, nano_usd(1.0));
  script_->say("data: [DONE]\n\n", true);
  EXPECT_TRUE(reader.read_until([&] { return reader.last; }));
  EXPECT_EQ(reader.bytes, "data: a\n\ndata: [DONE]\n\n");
  EXPECT_TRUE(wait_for([&] { return ledger("acme").spent == nano_usd(0.2); }));
  Reader too_much(ask("acme", "", true, "body", 90));
  EXPECT_TRUE(too_much.read_reply());
  EXPECT_EQ(too_much.reply->status, 429);
  EXPECT_NE(too_much.reply->body.find("insufficient_quota"), std::string::npos);
  EXPECT_FALSE(too_much.answer->accepted());
  EXPECT_EQ(script_->runs, 1);
  too_much.answer.reset();  // as its connection does
  EXPECT_TRUE(wait_for([&] { return figures("acme").running == 0; }));
  const TenantFigures ended = figures("acme");
  EXPECT_EQ(ended.tally.admitted, 1);
  EXPECT_EQ(ended.tally.refused[static_cast<std::size_t>(TenantRefusal::spend)], 1);
  EXPECT_EQ(ended.tally.tokens, 30);
  EXPECT_EQ(ended.tally.charged, nano_usd(0.2));
  EXPECT_EQ(ended.spent, nano_usd(0.2));
  EXPECT_EQ(ended.reserved, 0);
  EXPECT_EQ(ended.free, ledger("acme").lent());
}

TEST_F(AdmissionTest, WhoLeavesIsChargedForWhatItHad) {
  tenant({.name = "acme", .concurrent = 1, .spend_usd = 1.0, .usd_per_million_answer = 1e4});
  {
    Reader reader(ask("acme"));
    script_->say("data: a\n\n");
    EXPECT_TRUE(reader.read_until([&] { return !reader.bytes.empty(); }));
    EXPECT_EQ(Reader(ask("acme")).reply->status, 429);
    EXPECT_EQ(refused("acme", TenantRefusal::concurrent), 1);
  }
  EXPECT_TRUE(script_->cancelled.load());
  EXPECT_TRUE(wait_for([&] { return ledger("acme").spent == nano_usd(0.2); }));
  Reader next(ask("acme"));
  EXPECT_FALSE(next.reply.has_value()) << "it does not count as running any more";
}

TEST_F(AdmissionTest, AFailedAnswerCostsNothing) {
  tenant({.name = "acme", .spend_usd = 1.0, .usd_per_million_answer = 1e4});
  Reader reader(ask("acme"));
  script_->failed = true;
  script_->say("data: error\n\n", true);
  EXPECT_TRUE(reader.read_until([&] { return reader.last; }));
  EXPECT_TRUE(wait_for([&] { return ledger("acme").lent() > 0; }));
  EXPECT_EQ(ledger("acme").spent, 0);
}

// As at a gateway, which knows late what nodes say of a request.
TEST_F(AdmissionTest, AStreamThatIsRefusedLateHasAStatus) {
  tenant({.name = "acme", .spend_usd = 1.0, .usd_per_million_answer = 1e4});
  for (const char* key : {"", "k"}) {
    script_ = std::make_shared<Script>();
    script_->refuses_late = true;
    Reader reader(ask("acme", key));
    EXPECT_TRUE(wait_for([&] {
      reader.read_now();
      const std::lock_guard lock(script_->mutex);
      return script_->wake != nullptr;
    }));
    reader.read_now();
    EXPECT_FALSE(reader.answer->accepted()) << key;
    script_->refuse({.status = 503, .body = "nobody is there"});
    EXPECT_TRUE(reader.read_reply());
    EXPECT_EQ(reader.reply->status, 503) << key;
    EXPECT_EQ(reader.bytes, "");
  }
  EXPECT_EQ(ledger("acme").spent, 0);
  // With the same key it is asked for anew, and this time there is an answer.
  script_ = std::make_shared<Script>();
  script_->refuses_late = true;
  Reader again(ask("acme", "k"));
  EXPECT_TRUE(wait_for([&] {
    again.read_now();
    const std::lock_guard lock(script_->mutex);
    return script_->wake != nullptr;
  }));
  script_->say("data: a\n\n");
  EXPECT_TRUE(again.read_until([&] { return !again.bytes.empty(); }));
  EXPECT_TRUE(again.answer->accepted());
}

TEST_F(AdmissionTest, ATenantsNodesAreWishedFor) {
  tenant({.name = "acme", .trusted = true, .regions = {"eu", "us"}, .labels = {"quiet"}});
  Reader reader(ask("acme"));
  EXPECT_TRUE(script_->wish.trusted);
  EXPECT_EQ(script_->wish.region, "");
  EXPECT_EQ(script_->wish.regions, (std::vector<std::string>{"eu", "us"}));
  EXPECT_EQ(script_->wish.labels, (std::vector<std::string>{"quiet"}));
  EXPECT_EQ(script_->salt.find("acme"), std::string::npos) << "nodes need not know who asks";
}

TEST_F(AdmissionTest, ALineIsItsTenantsAsItIsNow) {
  const auto line = [&](const std::string& who, std::int64_t max_tokens = 20) {
    ApiCall call;
    call.requests.push_back({});
    call.requests.front().prompt.assign(10, 1);
    call.requests.front().max_new_tokens = max_tokens;
    return admission_.admit_line(who, std::move(call), {});
  };
  EXPECT_TRUE(line("anybody").ok()) << "without tenants nobody has limits";
  tenant({.name = "acme",
          .requests_per_minute = 1,
          .spend_usd = 0.3,
          .usd_per_million_answer = 1e4,
          .trusted = true,
          .regions = {"eu", "us"}});
  tenant({.name = "gone", .disabled = true});
  tenant({.name = "small", .batches = false});
  for (const char* who : {"anybody", "gone", "small"}) {
    const auto refused = line(who);
    ASSERT_FALSE(refused.ok()) << who;
    EXPECT_FALSE(refused.error().for_good) << who;
  }
  EXPECT_TRUE(line("acme", 40).error().for_good) << "it is more than there will ever be";
  auto first = line("acme"), second = line("acme");
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_TRUE(first->call.requests.front().wish.trusted);
  EXPECT_EQ(first->call.requests.front().wish.regions, (std::vector<std::string>{"eu", "us"}));
  const std::string salt = first->salt;

  const auto hold = [&](const AdmittedCall& call) {
    std::optional<std::pair<std::optional<HttpReply>, LineCharge>> told;
    std::mutex mutex;
    std::condition_variable changed;
    admission_.hold(call, [&](std::optional<HttpReply> refused, LineCharge charge) {
      const std::lock_guard lock(mutex);
      told.emplace(std::move(refused), std::move(charge));
      changed.notify_all();
    });
    std::unique_lock lock(mutex);
    changed.wait_for(lock, kPatience, [&] { return told.has_value(); });
    return std::move(*told);
  };
  auto held = hold(*first);  // 0.2 of 0.3
  EXPECT_FALSE(held.first.has_value());
  EXPECT_EQ(hold(*second).first->status, 429);
  held.second.costs(nano_usd(0.05));
  held.second.take();
  EXPECT_TRUE(wait_for([&] { return ledger("acme").spent == nano_usd(0.05); }));
  {
    auto dropped = hold(*second);
    EXPECT_FALSE(dropped.first.has_value());
    dropped.second.costs(nano_usd(0.2));
  }
  EXPECT_FALSE(hold(*second).first.has_value()) << "what was not taken is given back";
  EXPECT_EQ(ledger("acme").spent, nano_usd(0.05));
  EXPECT_EQ(salt, salt_of_interactive("acme"));
}

TEST_F(AdmissionTest, DuplicatesShareOneAnswer) {
  tenant({.name = "acme", .spend_usd = 1.0, .usd_per_million_answer = 1e4});
  Reader one(ask("acme", "k")), two(ask("acme", "k"));
  EXPECT_TRUE(wait_for([&] {
    const std::lock_guard lock(script_->mutex);
    return script_->wake != nullptr;
  }));
  script_->say("data: a\n\n");
  EXPECT_TRUE(one.read_until([&] { return !one.bytes.empty(); }));
  Reader three(ask("acme", "k"));
  EXPECT_TRUE(three.read_until([&] { return !three.bytes.empty(); })) << "from the beginning";
  Reader other(ask("acme", "k", true, "another body"));
  EXPECT_TRUE(other.read_reply());
  EXPECT_EQ(other.reply->status, 422);
  script_->say("data: [DONE]\n\n", true);
  for (Reader* reader : {&one, &two, &three}) {
    EXPECT_TRUE(reader->read_until([&] { return reader->last; }));
    EXPECT_EQ(reader->bytes, "data: a\n\ndata: [DONE]\n\n");
    EXPECT_EQ(reader->header("Idempotent-Replayed"), "");
  }
  EXPECT_EQ(script_->runs, 1);
  EXPECT_EQ(script_->seed, once_seed(once_key("acme", "k")));
  EXPECT_TRUE(wait_for([&] { return ledger("acme").spent == nano_usd(0.2) && ledger("acme").paid.empty(); }));
  Reader later(ask("acme", "k"));
  EXPECT_TRUE(later.read_until([&] { return later.last; }));
  EXPECT_EQ(later.bytes, one.bytes);
  EXPECT_EQ(later.header("Idempotent-Replayed"), "true");
  EXPECT_EQ(script_->runs, 1);
  EXPECT_EQ(ledger("acme").spent, nano_usd(0.2));
  const TenantTally tally = figures("acme").tally;
  EXPECT_EQ(tally.admitted, 1);
  EXPECT_EQ(tally.replayed, 3);
  EXPECT_EQ(tally.refused[static_cast<std::size_t>(TenantRefusal::key)], 1);
  EXPECT_EQ(tally.charged, nano_usd(0.2));
}

TEST_F(AdmissionTest, TheLedgerRemembersWhatWasTakenOver) {
  tenant({.name = "acme", .spend_usd = 1.0, .usd_per_million_answer = 1e4});
  on_loop([&] {
    const OnceRecord begun{.request = sha256_hex("/v1/completions\nbody"),
                           .state = OnceState::open,
                           .gateway = "another",
                           .life = new_life(1, 2),
                           .account = "acme.2027-01"};
    once_.put(once_key("acme", "k"), once_json(begun), [](const Result<std::uint64_t>&) {});
  });
  Reader reader(ask("acme", "k"));
  script_->say("data: [DONE]\n\n", true);
  EXPECT_TRUE(reader.read_until([&] { return reader.last; }));
  Reader again(ask("acme", "k"));
  EXPECT_TRUE(again.read_until([&] { return again.last; }));
  EXPECT_EQ(script_->runs, 1);
  EXPECT_TRUE(wait_for([&] { return ledger("acme").spent == nano_usd(0.2); }));
  std::this_thread::sleep_for(milliseconds(100));
  EXPECT_TRUE(ledger("acme").has_paid(once_key("acme", "k"))) << "who had it may be frozen, and charge it later";
}

TEST_F(AdmissionTest, AnAnswerWaitsForItsClientToComeBack) {
  tenant({.name = "acme", .spend_usd = 1.0, .usd_per_million_answer = 1e4});
  {
    Reader reader(ask("acme", "k", false));
    EXPECT_TRUE(wait_for([&] { return script_->runs == 1; }));
  }
  std::this_thread::sleep_for(milliseconds(100));
  EXPECT_FALSE(script_->cancelled.load());
  {
    Reader back(ask("acme", "k", false));
    script_->say("{}", true);
    EXPECT_TRUE(back.read_reply());
    EXPECT_EQ(back.reply->body, "{}");
    EXPECT_EQ(script_->runs, 1);
  }
  // The next one is not asked for again: it is given up, and charged for what was computed.
  script_ = std::make_shared<Script>();
  {
    Reader reader(ask("acme", "k2", false));
    EXPECT_TRUE(wait_for([&] { return script_->runs == 1; }));
  }
  EXPECT_TRUE(wait_for([&] { return script_->cancelled.load(); }));
  EXPECT_TRUE(wait_for([&] { return ledger("acme").spent == 2 * nano_usd(0.2); }));
  Reader late(ask("acme", "k2", false));
  EXPECT_TRUE(wait_for([&] { return script_->runs == 2; })) << "and begins anew for who comes later";
}

TEST_F(AdmissionTest, AFailedAnswerIsNotKept) {
  {
    Reader reader(ask("", "k", false));
    script_->failed = true;
    script_->say("{}", true);
    EXPECT_TRUE(reader.read_reply());
  }
  on_loop([] {});  // its end has been seen there
  script_->failed = false;
  Reader again(ask("", "k", false));
  EXPECT_TRUE(wait_for([&] { return script_->runs == 2; }));
}

TEST_F(AdmissionTest, ALongAnswerIsNotKeptAndNotHeld) {
  Reader reader(ask("", "k"));
  EXPECT_TRUE(wait_for([&] { return script_->runs == 1; }));
  const std::string piece(1 << 20, 'x');
  std::size_t told = 0;
  for (int i = 0; i < 12; ++i) {
    script_->say(piece);
    told += piece.size();
    EXPECT_TRUE(reader.read_until([&] { return reader.bytes.size() == told; }));
  }
  Reader late(ask("", "k"));
  EXPECT_TRUE(late.read_reply());
  EXPECT_EQ(late.reply->status, 409);
  EXPECT_EQ(late.header("x-should-retry"), "false");
  script_->say("end", true);
  EXPECT_TRUE(reader.read_until([&] { return reader.last; }));
  EXPECT_EQ(reader.bytes.size(), told + 3);
  Reader after(ask("", "k"));
  EXPECT_TRUE(after.read_reply());
  EXPECT_EQ(after.reply->status, 409);
  EXPECT_EQ(script_->runs, 1);
}

TEST_F(AdmissionTest, WhatEndsGivesBack) {
  tenant({.name = "acme", .spend_usd = 1.0, .usd_per_million_answer = 1e4});
  {
    Reader reader(ask("acme"));
    script_->say("data: [DONE]\n\n", true);
    EXPECT_TRUE(reader.read_until([&] { return reader.last; }));
  }
  EXPECT_TRUE(wait_for([&] { return ledger("acme").lent() > 0; }));
  std::atomic<bool> ended{false};
  admission_.end([&] { ended = true; });
  EXPECT_TRUE(wait_for([&] { return ended.load(); }));
  EXPECT_EQ(ledger("acme").lent(), 0);
}

}  // namespace
}  // namespace millrace::test
