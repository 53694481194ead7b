// What is spent, by several gateways that share a ledger, with a store that loses and gateways that die.
#include "tenants/budget.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <random>
#include <set>

#include "sim_key_store.h"

namespace millrace::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;
using Verdict = SpendBook::Verdict;

constexpr std::int64_t kToday = 1'800'000'000;
constexpr NanoUsd kDollar = 1'000'000'000;
const std::string kAccount = "acme.2027-01";

/// A gateway as far as money is concerned.
struct Purse {
  Purse(SimClock& clock, SimBucket& bucket, std::string name, std::uint32_t seed)
      : time(&clock),
        store(clock, bucket, seed),
        book(store, name,
             {[&clock] { return clock.now(); },
              [&clock] { return kToday + std::chrono::duration_cast<seconds>(clock.now()).count(); }},
             [](const std::string& message) { ADD_FAILURE() << message; }) {
    beat();
  }
  ~Purse() { *alive = false; }

  void beat() {
    if (!frozen) book.tick();
    time->at(time->now() + milliseconds(200), [this, alive = alive] {
      if (*alive) beat();
    });
  }

  Verdict reserve(NanoUsd amount, NanoUsd limit = kDollar) {
    std::optional<Verdict> verdict;
    book.reserve(kAccount, limit, amount, [&](Verdict v) { verdict = v; });
    while (!verdict && time->step()) {
    }
    return *verdict;
  }

  SimClock* time;
  SimKeyStore store;
  SpendBook book;
  bool frozen = false;
  std::shared_ptr<bool> alive = std::make_shared<bool>(true);
};

SpendLedger ledger_in(const SimBucket& bucket) {
  const auto found = bucket.entries.find(kAccount);
  if (found == bucket.entries.end()) return {};
  auto ledger = parse_ledger(found->second.value);
  EXPECT_TRUE(ledger.ok());
  return *ledger;
}

TEST(Ledger, IsReadAsItWasWritten) {
  SpendLedger ledger{.spent = 5, .leases = {{"gate.1", 7, 3}, {"gate.2", 0, 9, true}}, .paid = {{"abc", 12}}};
  auto read = parse_ledger(ledger_json(ledger));
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(*read, ledger);
  for (const char* wrong :
       {"", "[]", "{}", R"({"spent":-1,"leases":[],"paid":[]})", R"({"spent":1,"leases":[{}],"paid":[]})",
        R"({"spent":1,"leases":[],"paid":[{"key":1,"at":2}]})", R"({"spent":1.5,"leases":[],"paid":[]})",
        R"({"spent":1,"leases":[{"holder":"a","left":1,"turn":1,"closed":3}],"paid":[]})"}) {
    EXPECT_FALSE(parse_ledger(wrong).ok()) << wrong;
  }
}

TEST(Ledger, StaysSmall) {
  SpendLedger ledger;
  for (int i = 0; i < 400; ++i) {
    ledger.leases.push_back({"gateway-of-a-long-name-000000000." + std::to_string(i), 0, 1, i % 8 != 0});
  }
  for (int i = 0; i < 5000; ++i) ledger.paid.push_back({std::string(40, 'a') + std::to_string(i), kToday});
  ledger.paid.front().at = kToday - 25 * 3600;
  ledger.tidy(kToday);
  EXPECT_EQ(ledger.paid.size(), 512U);
  EXPECT_EQ(ledger.paid.back().key, std::string(40, 'a') + "4999");
  EXPECT_EQ(std::ranges::count_if(ledger.leases, &SpendLease::closed), 64);
  EXPECT_EQ(std::ranges::count_if(ledger.leases, [](const SpendLease& one) { return !one.closed; }), 50);
  EXPECT_LT(ledger_json(ledger).size(), kMaxLedgerRecord);
}

TEST(Budget, ReservesFromALeaseAndReportsAtOnce) {
  SimClock clock;
  SimBucket bucket;
  Purse purse(clock, bucket, "one", 1);
  EXPECT_EQ(purse.reserve(kDollar / 1000), Verdict::granted);
  const std::int64_t writes = bucket.writes;
  EXPECT_EQ(ledger_in(bucket).lent(), kDollar / 1000 + kDollar / 20) << "what was wanted, and 5 % of the rest";
  for (int i = 0; i < 30; ++i) EXPECT_EQ(purse.reserve(kDollar / 1000), Verdict::granted);
  EXPECT_EQ(bucket.writes, writes) << "from the slice, without asking";
  bool written = false;
  purse.book.settle(kAccount, kDollar / 1000, kDollar / 2000, "", [&] { written = true; });
  clock.run_until(clock.now() + milliseconds(20));
  EXPECT_TRUE(written);
  EXPECT_EQ(ledger_in(bucket).spent, kDollar / 2000);
}

TEST(Budget, SaysWhyNot) {
  SimClock clock;
  SimBucket bucket;
  Purse one(clock, bucket, "one", 1), two(clock, bucket, "two", 2);
  EXPECT_EQ(one.reserve(kDollar + 1), Verdict::used_up);
  EXPECT_EQ(one.reserve(kDollar * 6 / 10), Verdict::granted);
  EXPECT_EQ(two.reserve(kDollar * 5 / 10), Verdict::lent) << "it may come back";
  EXPECT_EQ(two.reserve(kDollar * 2 / 10), Verdict::granted);
  one.book.settle(kAccount, kDollar * 6 / 10, kDollar * 6 / 10);
  clock.run_until(clock.now() + seconds(15));  // one gives back what it does not use
  EXPECT_EQ(two.reserve(kDollar * 5 / 10), Verdict::used_up);
  two.store.away = true;
  clock.run_until(clock.now() + seconds(30));
  const Instant began = clock.now();
  EXPECT_EQ(two.reserve(1), Verdict::unavailable) << "its lease is too old to be believed";
  EXPECT_LE(clock.now() - began, seconds(4));
}

TEST(Budget, WithoutALimitWhatIsSpentIsWrittenDown) {
  SimClock clock;
  SimBucket bucket;
  Purse purse(clock, bucket, "one", 1);
  std::optional<Verdict> verdict;
  purse.book.reserve(kAccount, std::nullopt, 0, [&](Verdict v) { verdict = v; });
  EXPECT_EQ(verdict, Verdict::granted);
  purse.book.settle(kAccount, 0, 77);
  clock.run_until(clock.now() + seconds(1));
  EXPECT_EQ(ledger_in(bucket).spent, 77);
  EXPECT_EQ(ledger_in(bucket).lent(), 0);
}

TEST(Budget, AKeyIsChargedOnce) {
  SimClock clock;
  SimBucket bucket;
  Purse one(clock, bucket, "one", 1), two(clock, bucket, "two", 2);
  EXPECT_EQ(one.reserve(1000), Verdict::granted);
  EXPECT_EQ(two.reserve(1000), Verdict::granted);
  one.book.settle(kAccount, 1000, 700, "k");
  two.book.settle(kAccount, 1000, 700, "k");
  clock.run_until(clock.now() + seconds(1));
  EXPECT_EQ(ledger_in(bucket).spent, 700);
  EXPECT_TRUE(ledger_in(bucket).has_paid("k"));
  two.book.forget(kAccount, "k");
  clock.run_until(clock.now() + seconds(1));
  EXPECT_FALSE(ledger_in(bucket).has_paid("k"));
}

TEST(Budget, ManyChargesAtOnceKeepTheRecordSmall) {
  SimClock clock;
  SimBucket bucket;
  constexpr int kMany = 3000;
  Purse one(clock, bucket, "gate." + std::string(20, '1'), 1);
  int written = 0;
  one.store.away = true;
  for (int i = 0; i < kMany; ++i) {
    const std::string key = std::to_string(i) + std::string(36, 'k');
    one.book.settle(kAccount, 0, 1, key, [&written] { ++written; });
  }
  clock.run_until(seconds(10));
  EXPECT_EQ(written, 0);
  one.store.away = false;
  clock.run_until(seconds(60));
  EXPECT_EQ(written, kMany);
  EXPECT_EQ(ledger_in(bucket).spent, kMany);
  EXPECT_LE(bucket.entries.at(kAccount).value.size(), kMaxLedgerRecord);
}

TEST(Budget, AnUnusedLeaseComesBackAndADeadOnesToo) {
  SimClock clock;
  SimBucket bucket;
  auto dies = std::make_unique<Purse>(clock, bucket, "dies", 1);
  Purse lives(clock, bucket, "lives", 2);
  EXPECT_EQ(dies->reserve(kDollar / 2), Verdict::granted);
  EXPECT_EQ(lives.reserve(kDollar / 100), Verdict::granted);
  lives.book.settle(kAccount, kDollar / 100, 0);
  clock.run_until(clock.now() + seconds(12));
  EXPECT_EQ(ledger_in(bucket).lease("lives")->left, 0);
  EXPECT_GE(ledger_in(bucket).lease("dies")->left, kDollar / 2) << "it is reserved";
  dies.reset();
  clock.run_until(clock.now() + seconds(75));
  EXPECT_EQ(ledger_in(bucket).lent(), 0);
  EXPECT_EQ(lives.reserve(kDollar), Verdict::granted);
}

TEST(Budget, WhoEndsLeavesNothingLent) {
  SimClock clock;
  SimBucket bucket;
  Purse purse(clock, bucket, "one", 1);
  EXPECT_EQ(purse.reserve(kDollar / 10), Verdict::granted);
  EXPECT_EQ(purse.reserve(kDollar / 10), Verdict::granted);
  purse.book.settle(kAccount, kDollar / 10, 5);
  purse.book.end();
  EXPECT_EQ(purse.reserve(1), Verdict::unavailable);
  clock.run_until(clock.now() + seconds(1));
  EXPECT_EQ(ledger_in(bucket).lent(), kDollar / 10) << "of a request that runs";
  purse.book.settle(kAccount, kDollar / 10, 5);
  clock.run_until(clock.now() + seconds(1));
  EXPECT_TRUE(purse.book.quiet());
  EXPECT_EQ(ledger_in(bucket).lent(), 0);
  EXPECT_EQ(ledger_in(bucket).spent, 10);
}

TEST(Budget, ALowerLimitShrinksLeases) {
  SimClock clock;
  SimBucket bucket;
  Purse purse(clock, bucket, "one", 1);
  EXPECT_EQ(purse.reserve(kDollar, kDollar * 100), Verdict::granted);
  purse.book.settle(kAccount, kDollar, kDollar / 2);
  clock.run_until(clock.now() + milliseconds(100));
  EXPECT_EQ(purse.reserve(kDollar * 50, kDollar), Verdict::used_up);
  EXPECT_LE(ledger_in(bucket).spent + ledger_in(bucket).lent(), kDollar);
}

/// Gateways that come and go, are cut off and freeze, and requests that end after some time.
class Chaos {
 public:
  Chaos(std::uint32_t seed, NanoUsd limit) : dice_(seed), limit_(limit) {}

  void run(Duration time) {
    for (int i = 0; i < 4; ++i) begin(static_cast<std::size_t>(i));
    const Instant end = clock_.now() + time;
    while (clock_.now() < end) {
      clock_.run_until(clock_.now() + milliseconds(between(1, 400)));
      step();
      check();
    }
  }

  /// All faults end; what is not known to have been lost must be whole again.
  void settle_down() {
    for (auto& purse : purses_) {
      purse->frozen = false;
      purse->store.away = false;
      purse->store.faults = {};
    }
    clock_.run_until(clock_.now() + seconds(30));
    for (Running& run : running_) end_one(run);
    running_.clear();
    clock_.run_until(clock_.now() + minutes(3));
    check();
    const SpendLedger ledger = ledger_in(bucket_);
    EXPECT_EQ(ledger.lent(), 0) << "nothing is leaked";
    EXPECT_GE(ledger.spent, told_) << "what was said to be written is written";
    EXPECT_LE(ledger.spent, charged_) << "nothing is charged twice";
    EXPECT_GE(ledger.spent, charged_ - unsure_) << "only what died with its gateway may be missing";
    const NanoUsd rest = limit_ - ledger.spent;
    if (rest > 0) {
      EXPECT_EQ(purses_.front()->reserve(rest, limit_), Verdict::granted) << "all that is left can be had";
    }
  }

  [[nodiscard]] NanoUsd spent() const { return ledger_in(bucket_).spent; }
  std::int64_t granted = 0, deaths = 0;
  NanoUsd written_off = 0;  // what those that died had reserved, or settled without the ledger's answer
  [[nodiscard]] NanoUsd late() const { return late_; }

 private:
  struct Running {
    std::size_t gateway = 0;
    int life = 0;
    NanoUsd reserved = 0;
    Instant end{0};
  };

  std::int64_t between(std::int64_t least, std::int64_t most) {
    return std::uniform_int_distribution<std::int64_t>(least, most)(dice_);
  }

  void begin(std::size_t i) {
    const std::string name = "gate" + std::to_string(i) + "." + std::to_string(++lives_);
    auto purse = std::make_unique<Purse>(clock_, bucket_, name, static_cast<std::uint32_t>(dice_()));
    purse->store.faults = {.lost = 0.05, .silent = 0.05, .slowest = milliseconds(between(1, 500))};
    if (purses_.size() <= i) {
      purses_.push_back(std::move(purse));
      life_.push_back(lives_);
      names_.push_back(name);
    } else {
      purses_[i] = std::move(purse);
      life_[i] = lives_;
      names_[i] = name;
    }
  }

  void step() {
    const auto i = static_cast<std::size_t>(between(0, 3));
    Purse& purse = *purses_[i];
    const std::int64_t what = between(0, 999);
    if (what < 4) {
      ++deaths;
      unsure_ += unwritten_[life_[i]];
      for (const Running& run : running_) {
        if (run.life == life_[i]) written_off += run.reserved;
      }
      written_off += unwritten_[life_[i]];
      std::erase_if(running_, [&](const Running& run) { return run.life == life_[i]; });
      purses_[i].reset();
      begin(i);
    } else if (what < 8) {
      purse.store.away = true;
      clock_.at(clock_.now() + seconds(between(1, 150)), [this, i, life = life_[i]] {
        if (life_[i] == life) purses_[i]->store.away = false;
      });
    } else if (what < 12) {
      purse.frozen = true;
      clock_.at(clock_.now() + seconds(between(1, 150)), [this, i, life = life_[i]] {
        if (life_[i] == life) purses_[i]->frozen = false;
      });
    } else if (what < 700 && !purse.frozen) {
      const NanoUsd amount = between(1, limit_ / 400);
      purse.book.reserve(kAccount, limit_, amount, [this, i, life = life_[i], amount](Verdict verdict) {
        if (verdict != Verdict::granted) return;
        ++granted;
        running_.push_back({i, life, amount, clock_.now() + milliseconds(between(1, 20'000))});
      });
    }
    std::vector<Running> ended;
    std::erase_if(running_, [&](const Running& run) {
      const bool over = run.end <= clock_.now() && !purses_[run.gateway]->frozen;
      if (over) ended.push_back(run);
      return over;
    });
    for (Running& run : ended) end_one(run);
  }

  void end_one(Running& run) {
    const NanoUsd cost = between(0, run.reserved);
    charged_ += cost;
    unwritten_[run.life] += cost;
    purses_[run.gateway]->book.settle(kAccount, run.reserved, cost, "", [this, life = run.life, cost] {
      told_ += cost;
      unwritten_[life] -= cost;
    });
  }

  void check() {
    const SpendLedger ledger = ledger_in(bucket_);
    // A holder whose lease was taken back may still write what it had reserved, and that is all that can be too much.
    for (const SpendLease& lease : ledger.leases) {
      if (!lease.closed || !closed_.insert(lease.holder + "/" + std::to_string(lease.turn)).second) continue;
      for (std::size_t i = 0; i < purses_.size(); ++i) {
        if (lease.holder != names_[i]) continue;
        late_ += purses_[i]->book.view(kAccount).reserved + unwritten_[life_[i]];
      }
    }
    ASSERT_LE(ledger.spent + ledger.lent(), limit_ + late_);
    ASSERT_LE(charged_, limit_ + late_ + written_off) << "all that was charged, known to the ledger or not";
  }

  SimClock clock_;
  SimBucket bucket_;
  std::mt19937 dice_;
  NanoUsd limit_;
  std::vector<std::unique_ptr<Purse>> purses_;
  std::vector<int> life_;
  std::vector<std::string> names_;
  std::set<std::string> closed_;  // leases, each time that one was taken back
  NanoUsd late_ = 0;              // what their holders had reserved then
  int lives_ = 0;
  std::vector<Running> running_;
  std::map<int, NanoUsd> unwritten_;  // by life: settled, and not known to be in the ledger
  NanoUsd charged_ = 0, told_ = 0, unsure_ = 0;
};

TEST(Budget, HoldsWhateverHappens) {
  std::int64_t granted = 0, deaths = 0;
  int used_up = 0, taken_back = 0;
  for (std::uint32_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE(seed);
    Chaos chaos(seed, kDollar * 4);
    chaos.run(minutes(20));
    chaos.settle_down();
    granted += chaos.granted;
    deaths += chaos.deaths;
    used_up += chaos.spent() > kDollar * 4 * 9 / 10 ? 1 : 0;
    taken_back += chaos.late() > 0 ? 1 : 0;
    if (testing::Test::HasFailure()) return;
  }
  EXPECT_GT(granted, 12 * 400);
  EXPECT_GT(deaths, 12 * 4);
  EXPECT_GT(used_up, 6) << "the limit was felt";
  EXPECT_GT(taken_back, 3) << "leases of those who were cut off were taken back";
}

}  // namespace
}  // namespace millrace::test
