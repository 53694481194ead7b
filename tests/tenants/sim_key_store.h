// A key store on a virtual clock, which loses, delays and forgets to answer.
#pragma once

#include <map>
#include <memory>
#include <random>
#include <string>

#include "cluster/sim_clock.h"
#include "tenants/key_store.h"

namespace millrace::test {

/// What all clients read and write.
struct SimBucket {
  std::map<std::string, Stored> entries;
  std::uint64_t revision = 0;
  std::int64_t writes = 0;
};

struct SimStoreFaults {
  double lost = 0.0;                               // share of requests that never arrive
  double silent = 0.0;                             // share of those that are done and never answered
  Duration slowest{std::chrono::milliseconds(3)};  // of each way
  Duration timeout{std::chrono::seconds(2)};
};

/// One client's. Requests arrive in any order, also after their client has been told `unavailable`.
class SimKeyStore : public KeyStore {
 public:
  SimKeyStore(SimClock& clock, SimBucket& bucket, std::uint32_t seed) : clock_(&clock), bucket_(&bucket), dice_(seed) {}
  ~SimKeyStore() override { *alive_ = false; }

  SimStoreFaults faults = {};
  bool away = false;  // nothing arrives

  void get(const std::string& key, Read done) override {
    ask<std::optional<Stored>>(
        [key](SimBucket& bucket) -> Result<std::optional<Stored>> {
          const auto found = bucket.entries.find(key);
          if (found == bucket.entries.end()) return std::optional<Stored>();
          return std::optional(found->second);
        },
        std::move(done));
  }

  void update(const std::string& key, const std::string& value, std::uint64_t revision, Written done) override {
    ask<std::uint64_t>(
        [key, value, revision](SimBucket& bucket) -> Result<std::uint64_t> {
          const auto found = bucket.entries.find(key);
          const std::uint64_t there = found == bucket.entries.end() ? 0 : found->second.revision;
          if (there != revision) return Error{"another revision", ErrorKind::busy};
          return write(bucket, key, value);
        },
        std::move(done));
  }

  void put(const std::string& key, const std::string& value, Written done) override {
    ask<std::uint64_t>([key, value](SimBucket& bucket) -> Result<std::uint64_t> { return write(bucket, key, value); },
                       std::move(done));
  }

 private:
  static std::uint64_t write(SimBucket& bucket, const std::string& key, const std::string& value) {
    bucket.entries[key] = {value, ++bucket.revision};
    ++bucket.writes;
    return bucket.revision;
  }

  bool chance(double share) { return std::uniform_real_distribution<>(0.0, 1.0)(dice_) < share; }
  Duration some(Duration most) { return Duration(std::uniform_int_distribution<std::int64_t>(1, most.count())(dice_)); }

  template <typename T>
  void ask(std::function<Result<T>(SimBucket&)> what, std::function<void(Result<T>)> done) {
    // One answer, whichever comes first.
    auto answered = std::make_shared<bool>(false);
    const auto answer = [alive = alive_, answered, done = std::move(done)](Result<T> result) {
      if (!*alive || std::exchange(*answered, true)) return;
      done(std::move(result));
    };
    clock_->at(clock_->now() + faults.timeout, [answer] { answer(Error{"no answer", ErrorKind::unavailable}); });
    if (away || chance(faults.lost)) return;
    const bool silent = chance(faults.silent);
    const Duration back = some(faults.slowest);
    clock_->at(clock_->now() + some(faults.slowest),
               [this, alive = alive_, clock = clock_, bucket = bucket_, what, answer, silent, back] {
                 Result<T> result = what(*bucket);  // also of a client that has died
                 if (silent || !*alive) return;
                 clock->at(clock->now() + back, [answer, result] { answer(result); });
               });
  }

  SimClock* clock_;
  SimBucket* bucket_;
  std::mt19937 dice_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace millrace::test
