// Idempotency keys: whose it is to answer, what is kept, and that a charge counts once, with stores that lose and
// gateways that die.
#include "tenants/once.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <random>
#include <set>

#include "sim_key_store.h"
#include "tenants/budget.h"

namespace millrace::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;
using Outcome = OnceBook::Outcome;

/// One process, and who is known to live.
struct Desk {
  Desk(SimClock& clock, SimBucket& bucket, std::string name, std::string life, std::uint32_t seed,
       OnceBook::Lives lives)
      : time(&clock), store(clock, bucket, seed), book(store, std::move(name), std::move(life), std::move(lives)) {}

  OnceBook::Found claim(const std::string& key, const std::string& request = "r") {
    std::optional<OnceBook::Found> found;
    book.claim(key, {.request = request, .account = "a"}, [&](OnceBook::Found f) { found = std::move(f); });
    while (!found && time->step()) {
    }
    return *found;
  }
  bool finish(const std::string& key, OnceAnswer answer) {
    std::optional<bool> kept;
    book.finish(key, std::move(answer), [&](bool k) { kept = k; });
    while (!kept && time->step()) {
    }
    return *kept;
  }

  SimClock* time;
  SimKeyStore store;
  OnceBook book;
};

class Once : public testing::Test {
 protected:
  std::unique_ptr<Desk> desk(const std::string& name, const std::string& life) {
    alive_.insert(name + "/" + life);
    return std::make_unique<Desk>(
        clock_, bucket_, name, life, ++seed_,
        [this](const std::string& n, const std::string& l) { return alive_.contains(n + "/" + l); });
  }
  void dies(const std::string& name, const std::string& life) { alive_.erase(name + "/" + life); }

  SimClock clock_;
  SimBucket bucket_;
  std::set<std::string> alive_;
  std::uint32_t seed_ = 0;
};

TEST_F(Once, KeysSayNothingAndAreNobodyElses) {
  EXPECT_EQ(once_key("acme", "k"), once_key("acme", "k"));
  EXPECT_NE(once_key("acme", "k"), once_key("acm", "ek"));
  EXPECT_NE(once_key("a", " 1 b"), once_key("a 1", "b"));
  EXPECT_EQ(once_key("acme", "k").size(), 40U);
  EXPECT_EQ(once_seed("x"), once_seed("x"));
  EXPECT_NE(once_seed("x"), once_seed("y"));
  EXPECT_TRUE(check_idempotency_key("a-1_./é").ok() == false);
  EXPECT_TRUE(check_idempotency_key("3f2c:abc").ok());
  EXPECT_FALSE(check_idempotency_key("").ok());
  EXPECT_FALSE(check_idempotency_key("a b").ok());
  EXPECT_FALSE(check_idempotency_key(std::string(256, 'a')).ok());
}

TEST_F(Once, RecordsAreReadAsTheyWereWritten) {
  const OnceRecord record{.request = "r",
                          .state = OnceState::done,
                          .gateway = "g",
                          .life = "l",
                          .claim = 3,
                          .account = "acme.2027-01",
                          .started = 17,
                          .stream = true,
                          .pieces = 2,
                          .bytes = 500'000};
  auto read = parse_once(once_json(record));
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(*read, record);
  OnceRecord wrong = record;
  wrong.pieces = 1;
  EXPECT_FALSE(parse_once(once_json(wrong)).ok());
  for (const char* text : {"", "[]", "{}", R"({"request":"r","state":"odd"})"}) EXPECT_FALSE(parse_once(text).ok());
}

TEST_F(Once, AnAnswerIsToldAgain) {
  const auto one = desk("one", "1"), two = desk("two", "1");
  EXPECT_EQ(one->claim("k").outcome, Outcome::claimed);
  EXPECT_EQ(two->claim("k").outcome, Outcome::running);
  EXPECT_EQ(one->claim("k").outcome, Outcome::running);
  EXPECT_EQ(two->claim("k", "another body").outcome, Outcome::other);
  std::string body;
  for (int i = 0; i < 200'000; ++i) body += std::to_string(i);
  ASSERT_GT(body.size(), 2 * kMaxOncePiece);
  EXPECT_TRUE(one->finish("k", {true, body}));
  const auto again = two->claim("k");
  EXPECT_EQ(again.outcome, Outcome::done);
  ASSERT_TRUE(again.answer.has_value());
  EXPECT_TRUE(again.answer->stream);
  EXPECT_EQ(again.answer->body, body);
  EXPECT_EQ(two->claim("k", "another body").outcome, Outcome::other);
}

TEST_F(Once, WhatIsTooLongIsNotKept) {
  const auto one = desk("one", "1");
  EXPECT_EQ(one->claim("k").outcome, Outcome::claimed);
  EXPECT_TRUE(one->finish("k", {false, std::string(kMaxOnceAnswer + 1, 'x')}));
  const auto again = one->claim("k");
  EXPECT_EQ(again.outcome, Outcome::done);
  EXPECT_FALSE(again.answer.has_value());
}

TEST_F(Once, ADeadGatewaysKeyIsTakenOverByOne) {
  auto one = desk("one", "1");
  const auto two = desk("two", "1"), three = desk("three", "1");
  EXPECT_EQ(one->claim("k").outcome, Outcome::claimed);
  one.reset();
  EXPECT_EQ(two->claim("k").outcome, Outcome::running) << "nobody knows yet that it is dead";
  dies("one", "1");
  std::vector<Outcome> outcomes;
  for (Desk* desk : {two.get(), three.get()}) {
    desk->book.claim("k", {.request = "r", .account = "b"}, [&](const OnceBook::Found& found) {
      outcomes.push_back(found.outcome);
      if (found.outcome != Outcome::claimed) return;
      EXPECT_TRUE(found.taken_over);
      EXPECT_EQ(found.record.account, "a") << "it is charged where it was begun";
    });
  }
  clock_.run_until(seconds(10));
  std::ranges::sort(outcomes);
  EXPECT_EQ(outcomes, (std::vector{Outcome::claimed, Outcome::running}));
}

TEST_F(Once, WhoWasTakenForDeadKeepsNothing) {
  const auto one = desk("one", "1"), two = desk("two", "1");
  EXPECT_EQ(one->claim("k").outcome, Outcome::claimed);
  dies("one", "1");
  EXPECT_EQ(two->claim("k").outcome, Outcome::claimed);
  EXPECT_FALSE(one->finish("k", {false, "of one"}));
  EXPECT_TRUE(two->finish("k", {false, "of two"}));
  EXPECT_EQ(one->claim("k").answer->body, "of two");
}

TEST_F(Once, ATakeoverIsKnownAsOneThoughItsAnswerWasLost) {
  constexpr int kKeys = 40;
  const auto one = desk("one", "1"), two = desk("two", "1");
  const auto key = [](int k) { return "k" + std::to_string(k); };
  for (int k = 0; k < kKeys; ++k) EXPECT_EQ(one->claim(key(k)).outcome, Outcome::claimed);
  dies("one", "1");
  two->store.faults.silent = 0.4;
  for (int k = 0; k < kKeys; ++k) {
    OnceBook::Found found;
    while (found.outcome != Outcome::claimed) found = two->claim(key(k));
    EXPECT_TRUE(found.taken_over);
  }
}

TEST_F(Once, AReleasedKeyIsFree) {
  const auto one = desk("one", "1"), two = desk("two", "1");
  EXPECT_EQ(one->claim("k").outcome, Outcome::claimed);
  one->book.release("k");
  clock_.run_until(seconds(1));
  EXPECT_EQ(two->claim("k").outcome, Outcome::claimed);
  EXPECT_EQ(one->book.claims(), 0U);
}

TEST_F(Once, AClaimThatCouldNotBeClosedIsFreeForItsOwnGateway) {
  const auto one = desk("one", "1");
  EXPECT_EQ(one->claim("k").outcome, Outcome::claimed);
  one->store.away = true;
  one->book.release("k");
  clock_.run_until(minutes(5));
  EXPECT_EQ(one->book.claims(), 0U);
  one->store.away = false;
  EXPECT_EQ(one->claim("k").outcome, Outcome::claimed);
}

/// Clients that ask again and again with their keys, at gateways that die; each answer costs what its key says.
class KeyChaos {
 public:
  static constexpr int kGateways = 3, kKeys = 40;

  explicit KeyChaos(std::uint32_t seed) : dice_(seed) {
    for (std::size_t i = 0; i < kGateways; ++i) begin(i);
    for (int k = 0; k < kKeys; ++k) ask(k);
  }

  void run() {
    for (int i = 0; i < 4000 && served_ < kKeys; ++i) {
      clock_.run_until(clock_.now() + milliseconds(between(10, 300)));
      for (auto& gateway : gateways_) gateway->spend.tick();
      if (between(0, 99) == 0) {
        const auto victim = static_cast<std::size_t>(between(0, kGateways - 1));
        kill(victim);
      }
    }
    EXPECT_EQ(served_, kKeys) << "every client gets its answer in the end";
    for (int i = 0; i < 200; ++i) {
      clock_.run_until(clock_.now() + milliseconds(500));
      for (auto& gateway : gateways_) gateway->spend.tick();
    }
    NanoUsd sum = 0;
    for (int k = 0; k < kKeys; ++k) sum += price(k);
    const auto found = bucket_.entries.find("acme.2027-01");
    ASSERT_NE(found, bucket_.entries.end());
    const auto ledger = parse_ledger(found->second.value);
    ASSERT_TRUE(ledger.ok());
    EXPECT_EQ(ledger->spent, sum) << "each answer is charged once";
    for (const auto& [key, bodies] : told_) EXPECT_EQ(bodies.size(), 1U) << "the same answer, whoever tells it";
  }

  int deaths = 0, runs = 0;

 private:
  struct Gateway {
    Gateway(KeyChaos& chaos, std::string name, std::string its_life, std::uint32_t seed)
        : life(std::move(its_life)),
          store(chaos.clock_, chaos.bucket_, seed),
          spend(store, name + "." + life, {[&chaos] { return chaos.clock_.now(); }, [] { return 1'800'000'000; }},
                [](const std::string& message) { ADD_FAILURE() << message; }),
          once(store, name, life, [&chaos](const std::string& n, const std::string& l) { return chaos.lives(n, l); }) {}

    std::string life;
    SimKeyStore store;
    SpendBook spend;
    OnceBook once;
  };

  std::int64_t between(std::int64_t least, std::int64_t most) {
    return std::uniform_int_distribution<std::int64_t>(least, most)(dice_);
  }
  static std::string key(int k) { return "key" + std::to_string(k); }
  static NanoUsd price(int k) { return 1000 + k * 7; }
  static std::string name(std::size_t i) { return "gate" + std::to_string(i); }

  void begin(std::size_t i) {
    const std::string life = std::to_string(1000 + ++lives_);
    auto gateway = std::make_unique<Gateway>(*this, name(i), life, static_cast<std::uint32_t>(dice_()));
    gateway->store.faults = {.lost = 0.04, .silent = 0.04, .slowest = milliseconds(between(1, 100))};
    if (gateways_.size() <= i) {
      gateways_.push_back(std::move(gateway));
    } else {
      gateways_[i] = std::move(gateway);
    }
  }

  void kill(std::size_t i) {
    ++deaths;
    died_[name(i) + "/" + gateways_[i]->life] = clock_.now();
    begin(i);
  }

  /// A death is known after three seconds.
  bool lives(const std::string& gateway, const std::string& life) const {
    const auto died = died_.find(gateway + "/" + life);
    return died == died_.end() || clock_.now() - died->second < seconds(3);
  }

  void again(int k) {
    clock_.at(clock_.now() + milliseconds(between(100, 1500)), [this, k] { ask(k); });
  }

  /// A client: it gives up waiting when its gateway dies, and asks another.
  void ask(int k) {
    const auto i = static_cast<std::size_t>(between(0, kGateways - 1));
    const std::string life = gateways_[i]->life;
    const auto is_same = [this, i, life] { return gateways_[i]->life == life; };
    gateways_[i]->once.claim(key(k), {.request = "r", .account = "acme.2027-01"},
                             [this, k, i, is_same](const OnceBook::Found& found) {
                               if (found.outcome == Outcome::done) {
                                 told_[k].insert(found.answer ? found.answer->body : "nothing");
                                 ++served_;
                               } else if (found.outcome == Outcome::claimed) {
                                 compute(k, i, is_same);
                               } else {
                                 again(k);
                               }
                             });
    clock_.at(clock_.now() + seconds(30), [this, k, is_same] {
      if (!is_same() && told_[k].empty()) ask(k);  // the connection broke
    });
  }

  void compute(int k, std::size_t i, const std::function<bool()>& is_same) {
    ++runs;
    gateways_[i]->spend.reserve("acme.2027-01", 1'000'000'000, 5000, [this, k, i, is_same](SpendBook::Verdict verdict) {
      if (verdict != SpendBook::Verdict::granted) {
        gateways_[i]->once.release(key(k), [this, k] { again(k); });
        return;
      }
      clock_.at(clock_.now() + milliseconds(between(50, 4000)), [this, k, i, is_same] {
        if (!is_same()) return again(k);
        gateways_[i]->spend.settle("acme.2027-01", 5000, price(k), key(k), [this, k, i, is_same] {
          if (!is_same()) return;
          gateways_[i]->once.finish(key(k), {false, "answer " + key(k)}, [this, k, i, is_same](bool kept) {
            if (kept && is_same()) gateways_[i]->spend.forget("acme.2027-01", key(k));
            again(k);  // it has lost its connection, and asks once more
          });
        });
      });
    });
  }

  SimClock clock_;
  SimBucket bucket_;
  std::mt19937 dice_;
  std::vector<std::unique_ptr<Gateway>> gateways_;
  std::map<std::string, Instant> died_;
  std::map<int, std::set<std::string>> told_;
  int lives_ = 0, served_ = 0;
};

TEST(OnceChaos, EveryKeyIsAnsweredAndChargedOnce) {
  int deaths = 0, runs = 0;
  for (std::uint32_t seed = 1; seed <= 25; ++seed) {
    SCOPED_TRACE(seed);
    KeyChaos chaos(seed);
    chaos.run();
    deaths += chaos.deaths;
    runs += chaos.runs;
    if (testing::Test::HasFailure()) return;
  }
  EXPECT_GT(deaths, 25);
  EXPECT_GT(runs, 25 * KeyChaos::kKeys) << "some answers were computed twice, as their gateway died";
}

}  // namespace
}  // namespace millrace::test
