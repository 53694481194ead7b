// BatchWorker: a gateway's part in the work of all batches: which tasks it claims, which lines it has answered, what it
// commits (docs/batches.md). It decides by what is stored, so any number of them may work, and each may vanish.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "batches/batch_budget.h"
#include "batches/batch_jobs.h"
#include "batches/batch_lives.h"
#include "batches/batch_store.h"
#include "cluster/transport.h"
#include "tenants/line_charge.h"

namespace millrace {

struct LineAnswer {
  int status = 200;       // of HTTP
  std::string body = {};  // JSON
  bool waits = false;     // its tenant may not have it now, by `body`: it was not begun
  LineCharge charge = {};
  LineTokens tokens = {};  // of the line, where it was answered and this is known
};

/// Who answers lines. Called on the worker's thread.
class LineRunner {
 public:
  using Id = std::uint64_t;

  LineRunner() = default;
  LineRunner(const LineRunner&) = delete;
  LineRunner& operator=(const LineRunner&) = delete;
  virtual ~LineRunner() = default;

  /// Begins, as far as the tenant may; requests share KV memory only with those of the same tenant.
  virtual Id start(const BatchLine& line, const std::string& tenant) = 0;
  /// It does not come out of finished() any more.
  virtual void cancel(Id id) = 0;
  /// What has ended since the last call.
  virtual std::vector<std::pair<Id, LineAnswer>> finished() = 0;
  /// By the latest beats.
  virtual NodeRoom room() = 0;
};

struct BatchTiming {
  Duration scan = std::chrono::seconds(1);              // between two looks at all batches
  Duration start = std::chrono::milliseconds(250);      // between two looks at the nodes' room
  Duration beat_lag = std::chrono::milliseconds(1500);  // until a beat shows what was begun
  Duration starving = std::chrono::milliseconds(2500);  // waiting for memory; longer, and lines are taken back
  Duration store_pause = std::chrono::milliseconds(500);
  Duration refused = std::chrono::seconds(15);     // until a tenant's lines are begun again that it might not have
  Duration first_retry = std::chrono::seconds(1);  // doubled with each further one
  std::int64_t keep_results = 600;                 // seconds after the end of a batch
  Duration read_ended = std::chrono::seconds(30);  // how often the record of one that has ended is read
};

struct BatchWorkerOptions {
  std::string life;   // of this process; no other has had it
  std::string model;  // lines of others are left alone; they expire, are cancelled and cleared away all the same
  BatchTiming timing = {};
  std::int64_t max_lines = 1024;                            // in flight
  int max_tries = 5;                                        // of a line
  BatchStartLimit start_limit = {};                         // none: lines begin as soon as places are free
  std::function<void(const std::string&)> on_message = {};  // one line for the log
};

/// One thread.
class BatchWorker {
 public:
  BatchWorker(BatchStore& store, LineRunner& runner, BatchWorkerOptions options);
  ~BatchWorker();
  BatchWorker(const BatchWorker&) = delete;
  BatchWorker& operator=(const BatchWorker&) = delete;

  /// Does what is due, which takes little time, and says after what time it wants to be called again at the latest.
  /// `now` is monotonic.
  Duration step(Duration now, UnixTime wall);
  /// The next step looks at everything: a batch was made or cancelled.
  void look_soon() { next_scan_ = Duration{0}; }
  /// Hands back what it has claimed, as far as the store can be asked; the last call.
  void leave();

  struct Counters {
    std::int64_t started = 0, answered = 0, committed = 0, doubled = 0, tried_again = 0, yielded = 0,
                 waited = 0;                             // lines
    std::int64_t completed = 0, failed = 0;              // … whose results were written here
    std::int64_t claimed = 0, taken_over = 0, lost = 0;  // tasks
  };
  [[nodiscard]] const Counters& counters() const { return counters_; }
  [[nodiscard]] std::size_t lines_in_flight() const { return running_.size(); }

  struct Figures {
    std::array<std::int64_t, kBatchStatuses> batches = {};  // by BatchStatus: those that this process knows of
    std::int64_t running = 0;                               // lines in flight here
    std::int64_t left = 0;  // lines without a result, as it has seen them, of its model's batches in progress
    Counters counters = {};
  };
  [[nodiscard]] Figures figures() const;

 private:
  enum class LineState : std::uint8_t { pending, running, answered, done };

  struct HeldLine {
    BlockLine line;
    LineState state = LineState::pending;
    LineRunner::Id id = 0;
    int tries = 0;
    Duration not_before{0}, started{0};
    LineTokens tokens = {};
  };
  struct Held {
    std::uint64_t revision = 0;  // of the claim
    std::vector<HeldLine> lines;
    bool damaged = false;  // what is stored of it cannot be read
    [[nodiscard]] bool all_done() const;
  };
  struct Task {
    BatchClaim claim;
    std::uint64_t revision = 0;
  };
  /// What a batch's tasks say together.
  struct TaskSum {
    std::int64_t done = 0, elsewhere = 0;  // lines of blocks that are done; that others have claimed, about
    LineTokens tokens = {};                // of blocks that are done
  };
  struct Known {
    BatchRecord record;
    std::string key;
    std::uint64_t revision = 0;  // of the record; 0: it was not there yet
    Duration first_seen{0}, read{0};
    std::map<std::string, Task, std::less<>> tasks;
    Duration tasks_seen{0};      // when they were listed
    std::optional<TaskSum> sum;  // of the tasks, until they change
    std::vector<BlockStart> index;
    std::map<std::int64_t, Held> held;  // by block
    Duration not_before{0};             // its tenant was refused
    std::string refusal;                // that was told last
    Duration not_waiting{0};            // when it last had lines that ran, or might have
    bool told_to_wait = false;
  };
  using Batches = std::map<std::string, Known, std::less<>>;
  struct Job {
    std::string batch;
    std::variant<ValidateJob, FinalizeJob> work;
  };
  struct Commit {
    std::string batch;
    std::int64_t block = 0;
    std::size_t line = 0;
    LineResult result;
    std::string writer = {};  // of its blob, where it needs one: no other has the name
    std::string value = {};   // as it is stored, once the blob is written
    LineCharge charge = {};
  };

  /// The number of a block that is a task's name.
  static std::optional<std::int64_t> block_of(std::string_view task);

  Status work();
  Status scan();
  Status look_at(const std::string& id, Known& batch, bool with_tasks);
  Status clear_away(const std::string& id);
  Status load_tasks(const std::string& id, Known& batch);
  Status change(Known& batch, const BatchRecord& to, bool& changed);
  Result<bool> claim(const std::string& id, Known& batch, const std::string& name);
  Status begin_job(const std::string& id, Known& batch);
  Status run_job();
  Status end_validation(Known& batch, const ValidateJob& job);
  Status end_batch(Known& batch, const FinalizeJob& job);
  Status reopen(Known& batch, std::int64_t block);
  Status fail_batch(Known& batch, std::string code, std::string message);
  [[nodiscard]] static std::int64_t lines_left(const Known& batch);
  void take_answers();
  void wait(const std::string& id, HeldLine& line, const std::string& why);
  Status commit_all();
  Status end_blocks();
  Status commit(Commit& commit, HeldLine& line);
  Status end_block(const std::string& id, Known& batch, std::int64_t block);
  Status start_lines();
  Result<std::int64_t> start_lines_of(const std::string& id, Known& batch, std::int64_t most);
  Result<bool> claim_block(const std::string& id, Known& batch);
  Result<bool> hold(const std::string& id, Known& batch, std::int64_t block, std::uint64_t revision);
  void start(const std::string& id, const Known& batch, std::int64_t block, std::size_t index, HeldLine& line);
  void yield(std::int64_t lines);
  void drop(Held& held);
  void say(const std::string& message) const;
  [[nodiscard]] std::vector<Batches::iterator> by_deadline(bool of_all_models);
  [[nodiscard]] std::int64_t lines_at_beats() const;
  void tell_of_hours(const std::string& id, Known& batch, std::int64_t limit, std::int64_t under_way);
  WaitingLines waiting_lines(const std::string& id, Known& batch, std::int64_t gateways);
  TaskSum sum_of(const Known& batch);
  Status start_lines(std::vector<Batches::iterator> row, std::int64_t most, const StartQuery& query);
  HeldLine* find(std::string_view batch, std::int64_t block, std::size_t line);

  BatchStore* store_;
  LineRunner* runner_;
  BatchWorkerOptions options_;
  BatchLives lives_;
  Batches batches_;
  struct Place {
    std::string batch;
    std::int64_t block = 0;
    std::size_t line = 0;
  };
  std::unordered_map<LineRunner::Id, Place> running_;
  std::deque<Commit> commits_;
  std::deque<std::pair<Duration, std::int64_t>> flights_;  // when how many lines were in flight, of the last beats
  std::optional<Job> job_;
  Duration now_{0};
  UnixTime wall_ = 0;
  Duration next_scan_{0}, next_start_{0}, paused_until_{0}, yielded_{0}, not_starved_{0};
  std::size_t turn_ = 0;  // which batch further back in the row is looked at closely
  std::string complaint_;
  Counters counters_;
};

}  // namespace millrace
