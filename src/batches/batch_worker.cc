#include "batches/batch_worker.h"

#include <algorithm>
#include <charconv>

namespace millrace {

namespace {

constexpr std::size_t kCloseLooks = 4;                        // batches whose tasks are listed in each scan
constexpr Duration kUnborn = std::chrono::minutes(1);         // until a batch whose record never came is forgotten
constexpr Duration kListTime = std::chrono::milliseconds(2);  // for each block, between two lists of all
constexpr Duration kLongestSleep = std::chrono::milliseconds(250);

}  // namespace

std::optional<std::int64_t> BatchWorker::block_of(std::string_view task) {
  std::int64_t block = 0;
  const auto [end, problem] = std::from_chars(task.data(), task.data() + task.size(), block);
  if (problem != std::errc() || end != task.data() + task.size()) return std::nullopt;
  return block;
}

BatchWorker::BatchWorker(BatchStore& store, LineRunner& runner, BatchWorkerOptions options)
    : store_(&store), runner_(&runner), options_(std::move(options)), lives_(store, options_.life) {}

BatchWorker::~BatchWorker() {
  for (auto& [id, batch] : batches_) {
    for (auto& [block, held] : batch.held) drop(held);
  }
}

bool BatchWorker::Held::all_done() const {
  return std::ranges::all_of(lines, [](const HeldLine& line) { return line.state == LineState::done; });
}

void BatchWorker::say(const std::string& message) const {
  if (options_.on_message) options_.on_message(message);
}

Duration BatchWorker::step(Duration now, UnixTime wall) {
  now_ = now;
  wall_ = wall;
  take_answers();
  if (now_ < paused_until_) return paused_until_ - now_;
  if (const Status worked = work(); !worked.ok()) {
    // Whatever was half done is done again from what is stored.
    if (std::exchange(complaint_, worked.error().message) != worked.error().message) say(worked.error().message);
    paused_until_ = now_ + options_.timing.store_pause;
    return options_.timing.store_pause;
  }
  complaint_.clear();
  if (job_) return Duration{0};
  return std::clamp(std::min(next_scan_, next_start_) - now_, Duration{0}, kLongestSleep);
}

Status BatchWorker::work() {
  MILLRACE_CHECK_OK(lives_.renew(now_));
  if (now_ >= next_scan_) {  // first, so that one that was frozen for long commits nothing to a batch that has ended
    next_scan_ = now_ + options_.timing.scan;
    MILLRACE_CHECK_OK(scan());
  }
  MILLRACE_CHECK_OK(commit_all());
  if (job_) MILLRACE_CHECK_OK(run_job());
  if (now_ >= next_start_) {
    next_start_ = now_ + options_.timing.start;
    MILLRACE_CHECK_OK(start_lines());
  }
  return Ok{};
}

void BatchWorker::leave() {
  for (auto& [id, batch] : batches_) {
    for (auto& [block, held] : batch.held) {
      drop(held);
      // Best effort: a claim that stays is free in a while.
      (void)store_->update(fmt::format("task.{}.{}", id, block), stored_claim({.life = {}}), held.revision);
    }
    batch.held.clear();
  }
  (void)lives_.leave();
}

Status BatchWorker::scan() {
  MILLRACE_CHECK_OK(lives_.look(now_));
  MILLRACE_TRY(const auto live, store_->list("live"));
  std::map<std::string, bool, std::less<>> there;
  for (const StoredEntry& entry : live) {
    const std::string id = entry.key.substr(entry.key.find('.') + 1);
    there[id] = true;
    const auto [batch, is_new] = batches_.try_emplace(id);
    if (!is_new) continue;
    batch->second.key = batch_keys::batch(entry.value, id);
    batch->second.first_seen = now_;
  }
  for (auto batch = batches_.begin(); batch != batches_.end();) {
    if (there.contains(batch->first)) {
      ++batch;
      continue;
    }
    for (auto& [block, held] : batch->second.held) drop(held);
    batch = batches_.erase(batch);
  }
  for (auto& [id, batch] : batches_) {
    // One that has ended changes only where the store forgets that it did.
    const bool rests = batch.revision > 0 && has_ended(batch.record.status) &&
                       wall_ < batch.record.ended_at() + options_.timing.keep_results;
    if (rests && now_ - batch.read < options_.timing.read_ended) continue;
    MILLRACE_TRY(const auto entry, store_->get(batch.key));
    batch.read = now_;
    if (!entry) {
      if (now_ - batch.first_seen > kUnborn) MILLRACE_CHECK_OK(store_->erase("live." + id));
      continue;
    }
    auto record = read_batch(entry->value);
    if (!record.ok()) {
      say(record.error().message);
      continue;
    }
    batch.record = std::move(*record);
    batch.revision = entry->revision;
  }
  const auto row = by_deadline(true);
  ++turn_;
  for (std::size_t place = 0; place < row.size(); ++place) {
    const bool closely = place < kCloseLooks || place == kCloseLooks + turn_ % (row.size() - kCloseLooks);
    MILLRACE_CHECK_OK(look_at(row[place]->first, row[place]->second, closely));
  }
  return Ok{};
}

/// Those that are known, of this model or of all, the most urgent first.
std::vector<BatchWorker::Batches::iterator> BatchWorker::by_deadline(bool of_all_models) {
  std::vector<Batches::iterator> row;
  for (auto batch = batches_.begin(); batch != batches_.end(); ++batch) {
    const bool own = batch->second.record.model == options_.model;
    if (batch->second.revision > 0 && (own || of_all_models)) row.push_back(batch);
  }
  std::ranges::sort(row, {}, [](const Batches::iterator& batch) {
    const BatchRecord& record = batch->second.record;
    return std::pair(record.expires_at, record.id);
  });
  return row;
}

/// Writes a changed record; `changed` false: somebody else has changed it meanwhile, and the next scan sees how.
Status BatchWorker::change(Known& batch, const BatchRecord& to, bool& changed) {
  MILLRACE_TRY(const auto revision, store_->update(batch.key, stored_batch(to), batch.revision));
  changed = revision.has_value();
  if (changed) {
    batch.record = to;
    batch.revision = *revision;
  }
  next_scan_ = Duration{0};
  return Ok{};
}

Status BatchWorker::look_at(const std::string& id, Known& batch, bool with_tasks) {
  BatchRecord next = batch.record;
  bool changed = false;
  if (has_ended(next.status)) {
    for (auto& [block, held] : batch.held) drop(held);
    batch.held.clear();
    return wall_ >= next.ended_at() + options_.timing.keep_results ? clear_away(id) : Status(Ok{});
  }
  if ((next.status == BatchStatus::validating || next.status == BatchStatus::in_progress) && wall_ >= next.expires_at) {
    next.status = BatchStatus::finalizing;
    next.deadline_passed = true;
    next.finalizing_at = wall_;
    return change(batch, next, changed);
  }
  const bool is_open = next.status == BatchStatus::validating || next.status == BatchStatus::in_progress;
  if (is_open && next.model != options_.model) return Ok{};
  if (next.status == BatchStatus::in_progress) {
    // A list of thousands is not read every second, but where it may say that all are done.
    const bool may_be_done = static_cast<std::int64_t>(batch.tasks.size()) >= next.blocks;
    const bool is_due = now_ - batch.tasks_seen >= next.blocks * kListTime;
    if (!with_tasks || (!is_due && !may_be_done)) return Ok{};
    MILLRACE_CHECK_OK(load_tasks(id, batch));
    std::int64_t done = 0;
    for (const auto& [name, task] : batch.tasks) done += block_of(name) && task.claim.done ? 1 : 0;
    if (done < next.blocks) return Ok{};
    next.status = BatchStatus::finalizing;
    next.finalizing_at = wall_;
    return change(batch, next, changed);
  }
  for (auto& [block, held] : batch.held) drop(held);
  batch.held.clear();
  return job_ ? Status(Ok{}) : begin_job(id, batch);
}

/// Of a batch that has ended long ago: all but its record and its files.
Status BatchWorker::clear_away(const std::string& id) {
  for (const char* what : {"task.", "line.", "big."}) MILLRACE_CHECK_OK(store_->erase_below(what + id));
  MILLRACE_CHECK_OK(store_->erase("index." + id));
  return store_->erase("live." + id);
}

Status BatchWorker::load_tasks(const std::string& id, Known& batch) {
  MILLRACE_TRY(const auto entries, store_->list("task." + id));
  batch.tasks_seen = now_;
  batch.sum.reset();
  batch.tasks.clear();
  for (const StoredEntry& entry : entries) {
    MILLRACE_TRY(BatchClaim claim, read_claim(entry.value));
    batch.tasks[entry.key.substr(entry.key.rfind('.') + 1)] = {std::move(claim), entry.revision};
  }
  return Ok{};
}

/// True: the task is this process's now, by batch.tasks. False: it is somebody else's, or done.
Result<bool> BatchWorker::claim(const std::string& id, Known& batch, const std::string& name) {
  const std::string key = fmt::format("task.{}.{}", id, name);
  const BatchClaim own{.life = options_.life};
  batch.sum.reset();
  const auto known = batch.tasks.find(name);
  std::optional<std::uint64_t> revision;
  if (known == batch.tasks.end()) {
    MILLRACE_TRY(revision, store_->create(key, stored_claim(own)));
  } else {
    const BatchClaim& claim = known->second.claim;
    if (!claim.done && claim.life == options_.life) return true;
    if (claim.done || !lives_.is_dead(claim.life, now_)) return false;
    MILLRACE_TRY(revision, store_->update(key, stored_claim(own), known->second.revision));
    if (revision) ++counters_.taken_over;
  }
  if (revision) {
    ++counters_.claimed;
    batch.tasks[name] = {own, *revision};
    return true;
  }
  MILLRACE_TRY(const auto entry, store_->get(key));
  if (!entry) {
    batch.tasks.erase(name);
    return false;
  }
  MILLRACE_TRY(BatchClaim claim, read_claim(entry->value));
  batch.tasks[name] = {std::move(claim), entry->revision};
  return false;
}

Status BatchWorker::begin_job(const std::string& id, Known& batch) {
  const bool validates = batch.record.status == BatchStatus::validating;
  MILLRACE_CHECK_OK(load_tasks(id, batch));
  MILLRACE_TRY(const bool own, claim(id, batch, validates ? "validate" : "finalize"));
  if (!own) return Ok{};
  if (validates) {
    job_.emplace(Job{id, ValidateJob(*store_, batch.record)});
  } else {
    job_.emplace(Job{id, FinalizeJob(*store_, batch.record, wall_)});
  }
  return Ok{};
}

Status BatchWorker::run_job() {
  const auto found = batches_.find(job_->batch);
  const bool validates = std::holds_alternative<ValidateJob>(job_->work);
  if (found == batches_.end() || has_ended(found->second.record.status) ||
      validates != (found->second.record.status == BatchStatus::validating)) {
    job_.reset();
    return Ok{};
  }
  Known& batch = found->second;
  if (auto* validation = std::get_if<ValidateJob>(&job_->work)) {
    MILLRACE_TRY(const bool done, validation->step());
    if (!done) return Ok{};
    const Job job = std::move(*job_);
    job_.reset();
    return end_validation(batch, std::get<ValidateJob>(job.work));
  }
  auto& finalizing = std::get<FinalizeJob>(job_->work);
  auto progress = finalizing.step();
  if (!progress.ok()) {
    job_.reset();
    return std::move(progress).error();
  }
  if (*progress == FinalizeJob::Progress::more) return Ok{};
  const Job job = std::move(*job_);
  job_.reset();
  const auto& done = std::get<FinalizeJob>(job.work);
  if (*progress == FinalizeJob::Progress::done) return end_batch(batch, done);
  if (*progress == FinalizeJob::Progress::missing) return reopen(batch, done.missing_block());
  return fail_batch(batch, "input_file_gone", "The input file is not there any more.");
}

Status BatchWorker::end_validation(Known& batch, const ValidateJob& job) {
  BatchRecord next = batch.record;
  if (job.problems().empty()) {
    next.status = BatchStatus::in_progress;
    next.in_progress_at = wall_;
    next.blocks = job.blocks();
    next.counts.total = job.requests();
  } else {
    next.status = BatchStatus::failed;
    next.failed_at = wall_;
    next.problems = job.problems();
  }
  bool changed = false;
  return change(batch, next, changed);
}

Status BatchWorker::end_batch(Known& batch, const FinalizeJob& job) {
  BatchRecord next = batch.record;
  if (next.status == BatchStatus::cancelling) {
    next.status = BatchStatus::cancelled;
    next.cancelled_at = wall_;
  } else if (next.deadline_passed) {
    next.status = BatchStatus::expired;
    next.expired_at = wall_;
  } else {
    next.status = BatchStatus::completed;
    next.completed_at = wall_;
  }
  next.counts = job.counts();
  next.output_file = job.output_file();
  next.error_file = job.error_file();
  bool changed = false;
  return change(batch, next, changed);
}

/// The server has lost results that it had acknowledged, as a power cut does: their block is worked on again.
Status BatchWorker::reopen(Known& batch, std::int64_t block) {
  const std::string tasks = "task." + batch.record.id;
  say(fmt::format("results of {} are gone from the store; they are computed again", batch.record.id));
  MILLRACE_CHECK_OK(store_->erase(fmt::format("{}.{}", tasks, block)));
  MILLRACE_CHECK_OK(store_->erase(tasks + ".finalize"));
  BatchRecord next = batch.record;
  next.status = BatchStatus::in_progress;
  next.finalizing_at = 0;
  bool changed = false;
  return change(batch, next, changed);
}

Status BatchWorker::fail_batch(Known& batch, std::string code, std::string message) {
  BatchRecord next = batch.record;
  next.status = BatchStatus::failed;
  next.failed_at = wall_;
  next.problems.push_back({std::move(code), std::move(message), 0});
  bool changed = false;
  return change(batch, next, changed);
}

}  // namespace millrace
