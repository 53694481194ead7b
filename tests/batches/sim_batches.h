// Batches on a virtual clock: a store in memory that can forget, gateways that can be killed between any two of its
// changes, and lines that are answered after a while.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "batches/batch_api.h"
#include "batches/batch_hours.h"
#include "batches/batch_store.h"
#include "batches/batch_worker.h"

namespace millrace::test {

/// Thrown by a store whose gateway is killed at this very moment.
struct Killed {};

class SimBatchStore : public BatchStore {
 public:
  Result<std::optional<StoredEntry>> get(const std::string& key) override;
  Result<std::optional<std::uint64_t>> create(const std::string& key, std::string_view value) override;
  Result<std::optional<std::uint64_t>> update(const std::string& key, std::string_view value,
                                              std::uint64_t revision) override;
  Status put(const std::string& key, std::string_view value) override;
  Status erase(const std::string& key) override;
  Status erase_below(const std::string& prefix) override;
  Result<std::vector<StoredEntry>> list(const std::string& prefix) override;

  /// As a power cut: the last changes never were, and their numbers come again.
  void forget(std::size_t changes);
  [[nodiscard]] std::size_t changes() const { return journal_.size(); }
  /// Keys by what they begin with, up to the first dot.
  [[nodiscard]] std::map<std::string, int> kinds() const;

  /// Whether create() looks what is there: off, results may be taken twice.
  bool creates_once = true;
  /// Results that were written over one that was there.
  int overwritten = 0;

 private:
  struct Change {
    std::string key;
    std::optional<StoredEntry> before;
  };
  void set(const std::string& key, std::optional<std::string> value);

  std::map<std::string, StoredEntry> entries_;
  std::deque<Change> journal_;
  std::uint64_t sequence_ = 0;
};

/// A gateway's way to the store: calls fail, before or behind what they do, and one of them may be its last.
class FaultyStore : public BatchStore {
 public:
  FaultyStore(BatchStore& store, std::uint64_t seed) : store_(&store), random_(seed) {}

  Result<std::optional<StoredEntry>> get(const std::string& key) override {
    return call([&] { return store_->get(key); });
  }
  Result<std::optional<std::uint64_t>> create(const std::string& key, std::string_view value) override {
    return call([&] { return store_->create(key, value); });
  }
  Result<std::optional<std::uint64_t>> update(const std::string& key, std::string_view value,
                                              std::uint64_t revision) override {
    return call([&] { return store_->update(key, value, revision); });
  }
  Status put(const std::string& key, std::string_view value) override {
    return call([&] { return store_->put(key, value); });
  }
  Status erase(const std::string& key) override {
    return call([&] { return store_->erase(key); });
  }
  Status erase_below(const std::string& prefix) override {
    return call([&] { return store_->erase_below(prefix); });
  }
  Result<std::vector<StoredEntry>> list(const std::string& prefix) override {
    return call([&] { return store_->list(prefix); });
  }

  double failing = 0.0;                        // share of calls
  std::optional<std::int64_t> die_after = {};  // calls

 private:
  template <typename Call>
  auto call(const Call& make) -> decltype(make()) {
    const auto lot = [&] { return std::uniform_real_distribution<>(0.0, 1.0)(random_); };
    const Error lost{"the store was asked to fail", ErrorKind::unavailable};
    const bool dies = die_after && (*die_after)-- <= 0;
    if (dies && lot() < 0.5) throw Killed{};
    if (lot() < failing / 2) return lost;
    auto result = make();
    if (dies) throw Killed{};
    if (lot() < failing / 2) return lost;
    return result;
  }

  BatchStore* store_;
  std::mt19937_64 random_;
};

/// What all lines and interactive requests of a cloud share.
struct SimPlaces {
  std::int64_t places = 16;
  std::int64_t interactive = 0;
  std::int64_t lines = 0;                   // that run
  std::int64_t most_lines = 0;              // at once, ever
  std::string refused = {};                 // the tenant that may have none
  std::int64_t held = 0;                    // that something is reserved for
  std::map<std::string, int> charged = {};  // how often, by custom_id
  LineTokens tokens = {1, 100, 256};        // that each line takes
};

/// Answers each line with what stands in its body, after a while.
class SimLines : public LineRunner {
 public:
  SimLines(SimPlaces& places, const Duration& now, std::uint64_t seed) : places_(&places), now_(&now), random_(seed) {}
  ~SimLines() override;

  Id start(const BatchLine& line, const std::string& tenant) override;
  void cancel(Id id) override;
  std::vector<std::pair<Id, LineAnswer>> finished() override;
  NodeRoom room() override;

  Duration longest = std::chrono::seconds(4);
  double failing = 0.0;  // share of answers with status 503

 private:
  struct Running {
    Duration end{0};
    LineAnswer answer;
  };
  SimPlaces* places_;
  const Duration* now_;
  std::mt19937_64 random_;
  std::map<Id, Running> running_;
  Id next_ = 1;
};

/// Gateways, and a client of theirs.
class SimBatches {
 public:
  explicit SimBatches(std::uint64_t seed);

  /// Chaos: kills, freezes, failing calls.
  bool disturbs = false;
  double store_failing = 0.0;  // share of calls, where nothing else disturbs
  BatchStartLimit start_limit = {};
  /// Where it is set, gateways that begin plan the hours of their lines, by these nodes.
  std::function<std::vector<BatchSupply>()> supply = {};

  void add_gateways(int count);
  std::string model = "m";  // of those that begin
  void kill(std::size_t gateway);
  void freeze(std::size_t gateway, Duration time);
  void leave(std::size_t gateway);
  /// Lets the time pass until this holds; false: it did not.
  bool run_until(const std::function<bool()>& holds, Duration most = std::chrono::hours(2));

  std::string upload(const std::string& content, const std::string& tenant = "t");
  std::string create(const std::string& file, const std::string& window = "24h", const std::string& tenant = "t");
  HttpReply ask(HttpReply (BatchApi::*what)(const HttpRequest&), const std::string& id,
                const std::string& tenant = "t");
  nlohmann::json batch(const std::string& id);
  std::string content(const std::string& file);
  [[nodiscard]] UnixTime wall() const;
  /// Of all gateways that ever were.
  [[nodiscard]] BatchWorker::Counters counters() const;
  /// Of one that lives.
  [[nodiscard]] BatchWorker::Figures figures(std::size_t gateway) const;

  SimBatchStore store;
  SimPlaces places;
  BatchApi api;
  Duration now{std::chrono::seconds(1000)};

 private:
  struct Gateway {
    std::unique_ptr<FaultyStore> store;
    std::unique_ptr<BatchHours> hours;
    std::unique_ptr<SimLines> lines;
    std::unique_ptr<BatchWorker> worker;
    Duration next{0}, restart{0};
  };
  void start(Gateway& gateway);
  void stop(Gateway& gateway);
  void disturb(Gateway& gateway);
  void step(Gateway& gateway);
  double lot();

  std::mt19937_64 random_;
  std::vector<Gateway> gateways_;
  BatchWorker::Counters gone_;
  int lives_ = 0;
};

/// A file of so many requests; `bad`: each seventh has a body that is answered with status 400.
std::string batch_file(int lines, bool bad = false, bool big = false);

}  // namespace millrace::test
