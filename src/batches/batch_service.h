// BatchService: a gateway's batches: a BatchWorker on a thread of its own, with the cluster in front of it.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

#include "batches/batch_worker.h"
#include "server/engine_routes.h"
#include "tenants/admission.h"

namespace millrace {

/// Answers lines as the API would: the same parsing, the same answers, for tenants as they are now. They go last
/// wherever they wait.
class EngineLines : public LineRunner {
 public:
  /// All must outlive it. `wake`: any thread, not for long: finished() has something.
  EngineLines(const ServedModel& model, const EngineAccess& engine, Admission& admission, std::function<void()> wake);
  ~EngineLines() override;

  Id start(const BatchLine& line, const std::string& tenant) override;
  void cancel(Id id) override;
  std::vector<std::pair<Id, LineAnswer>> finished() override;
  NodeRoom room() override;
  /// Any thread: by the latest beats.
  void set_room(const NodeRoom& room);

 private:
  /// What the ledger says of a line.
  struct Verdict {
    Id id = 0;
    std::optional<HttpReply> refused;
    LineCharge charge;
  };
  /// What wakes of answers and verdicts have in common with this; they may come later.
  struct News {
    std::mutex mutex;
    std::function<void()> wake;
    std::vector<Id> woken;
    std::vector<Verdict> verdicts;
  };
  struct Running {
    AdmittedCall call;
    LineCharge charge;
    std::unique_ptr<HttpAnswer> answer;  // null: the ledger is waited for
  };

  void begin(Id id, Running& running);

  const ServedModel* model_;
  const EngineAccess* engine_;
  Admission* admission_;
  std::shared_ptr<News> news_;
  std::map<Id, Running> running_;
  std::vector<std::pair<Id, LineAnswer>> ended_;  // at once
  Id next_ = 1;
  std::mutex mutex_;
  NodeRoom room_;  // guarded by mutex_
};

class BatchService {
 public:
  /// Begins. All must outlive it.
  BatchService(BatchStore& store, const ServedModel& model, const EngineAccess& engine, Admission& admission,
               BatchWorkerOptions options);
  /// Hands back what was claimed.
  ~BatchService();
  BatchService(const BatchService&) = delete;
  BatchService& operator=(const BatchService&) = delete;

  /// Any thread.
  void set_room(const NodeRoom& room) { lines_.set_room(room); }
  /// Any thread: of the last half second.
  [[nodiscard]] BatchWorker::Figures figures();
  /// Any thread: a batch was made or cancelled.
  void look_soon();
  /// Any thread: no line is begun any more, and what is under way is handed to others.
  void end();

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable woken_;
  bool wake_ = false, look_ = false, stop_ = false;  // guarded by mutex_
  BatchWorker::Figures figures_;                     // guarded by mutex_
  EngineLines lines_;
  BatchWorker worker_;
  std::thread thread_;
};

}  // namespace millrace
