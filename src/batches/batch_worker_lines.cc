// The lines of BatchWorker: begun where there is room, answered, committed.
#include <algorithm>

#include "batches/batch_validation.h"
#include "batches/batch_worker.h"

namespace millrace {

namespace {

constexpr int kOk = 200, kTimeout = 408, kTooMany = 429, kServerError = 500;
constexpr int kClaimTries = 4;  // that others may win, each time
// Of a line, until some were answered: bytes of the input for a token of it, tokens of the answer; and lines that this
// guess counts for.
constexpr double kBytesPerToken = 4.0, kUsualAnswer = 256.0, kGuess = 2.0;

bool may_be_tried_again(int status) {
  return status == kTimeout || status == kTooMany || status >= kServerError;
}

}  // namespace

BatchWorker::HeldLine* BatchWorker::find(std::string_view id, std::int64_t block, std::size_t line) {
  const auto batch = batches_.find(id);
  if (batch == batches_.end()) return nullptr;
  const auto held = batch->second.held.find(block);
  return held == batch->second.held.end() ? nullptr : &held->second.lines[line];
}

void BatchWorker::take_answers() {
  for (auto& [id, answer] : runner_->finished()) {
    const auto found = running_.find(id);
    if (found == running_.end()) continue;
    const Place place = std::move(found->second);
    running_.erase(found);
    HeldLine* line = find(place.batch, place.block, place.line);
    if (line == nullptr) continue;
    if (answer.waits) {
      wait(place.batch, *line, answer.body);
      continue;
    }
    ++counters_.answered;
    if (may_be_tried_again(answer.status) && line->tries < options_.max_tries) {
      ++counters_.tried_again;
      line->state = LineState::pending;
      line->not_before = now_ + options_.timing.first_retry * (1 << (line->tries - 1));
      continue;
    }
    line->state = LineState::answered;
    line->tokens = answer.tokens;
    const BlockLine& of = line->line;
    LineResult result{.status = answer.status};
    result.record = batch_record(of.key, of.request.custom_id, answer.status, answer.body, of.request.problem);
    commits_.push_back({.batch = place.batch,
                        .block = place.block,
                        .line = place.line,
                        .result = std::move(result),
                        .writer = fmt::format("{}-{}", options_.life, counters_.answered),
                        .value = {},
                        .charge = std::move(answer.charge)});
  }
}

/// Its tenant may not have it now. Others of the batch are tried first: one that needs less may still be granted.
void BatchWorker::wait(const std::string& id, HeldLine& line, const std::string& why) {
  ++counters_.waited;
  line.state = LineState::pending;
  line.not_before = now_ + 2 * options_.timing.refused;
  --line.tries;
  Known& batch = batches_.find(id)->second;
  batch.not_before = now_ + options_.timing.refused;
  if (std::exchange(batch.refusal, why) != why) say(fmt::format("lines of {} wait: {}", id, why));
}

/// Those whose lines all have results: one whose end could not be written is still there.
Status BatchWorker::end_blocks() {
  for (auto& [id, batch] : batches_) {
    std::vector<std::int64_t> done;
    for (const auto& [block, held] : batch.held) {
      if (!held.damaged && held.all_done()) done.push_back(block);
    }
    for (const std::int64_t block : done) {
      const Status ended = end_block(id, batch, block);
      if (ended.ok()) continue;
      if (ended.error().kind == ErrorKind::unavailable) return ended;
      batch.held.at(block).damaged = true;  // others go on
      say(ended.error().message);
    }
  }
  return Ok{};
}

Status BatchWorker::commit_all() {
  MILLRACE_CHECK_OK(end_blocks());
  while (!commits_.empty()) {
    HeldLine* line = find(commits_.front().batch, commits_.front().block, commits_.front().line);
    if (line != nullptr && line->state == LineState::answered) MILLRACE_CHECK_OK(commit(commits_.front(), *line));
    commits_.pop_front();
    next_start_ = Duration{0};
  }
  return end_blocks();
}

Status BatchWorker::commit(Commit& commit, HeldLine& line) {
  const BatchKey& key = line.line.key;
  if (commit.value.empty()) {
    MILLRACE_TRY(commit.value, place_result(*store_, commit.batch, key, commit.result, commit.writer));
  }
  const std::string name = batch_keys::line(commit.batch, commit.block, static_cast<std::int64_t>(key.number));
  MILLRACE_TRY(const auto created, store_->create(name, commit.value));
  bool own = created.has_value();
  if (!own) {
    // By another gateway; or by this one, and the answer was lost: then its blob is what is stored.
    ++counters_.doubled;
    MILLRACE_TRY(const auto stored, store_->get(name));
    own = stored && stored->value == commit.value;
    if (stored && !own) MILLRACE_CHECK_OK(drop_result(*store_, commit.batch, key, commit.writer));
  }
  if (own) {
    commit.charge.take();  // so of all who answer a line one charges it
    ++(commit.result.status == kOk ? counters_.completed : counters_.failed);
  }
  ++counters_.committed;
  line.state = LineState::done;
  return Ok{};
}

/// All its lines have results.
Status BatchWorker::end_block(const std::string& id, Known& batch, std::int64_t block) {
  const auto held = batch.held.find(block);
  const auto first = static_cast<std::int64_t>(held->second.lines.front().line.key.number);
  const auto end = first + static_cast<std::int64_t>(held->second.lines.size());
  MILLRACE_TRY(const auto results, list_results(*store_, id, block, first, end));
  if (results.size() != held->second.lines.size()) {  // what was stored is gone
    for (HeldLine& line : held->second.lines) {
      const auto number = static_cast<std::int64_t>(line.line.key.number);
      const auto there = std::ranges::find(results, number, [](const auto& result) { return result.first; });
      if (there == results.end()) line.state = LineState::pending;
    }
    return Ok{};
  }
  BatchClaim done{.life = options_.life, .done = true};
  for (const HeldLine& line : held->second.lines) done.tokens.add(line.tokens);
  for (const auto& [number, result] : results) {
    ++done.counts.total;
    ++(result.status == kOk ? done.counts.completed : done.counts.failed);
  }
  const std::string name = std::to_string(block);
  MILLRACE_TRY(const auto revision,
               store_->update(fmt::format("task.{}.{}", id, name), stored_claim(done), held->second.revision));
  batch.held.erase(held);
  batch.sum.reset();
  if (revision) {
    batch.tasks[name] = {done, *revision};
  } else {
    ++counters_.lost;
    batch.tasks.erase(name);  // somebody else has it, as the next claim will see
  }
  if (static_cast<std::int64_t>(batch.tasks.size()) >= batch.record.blocks) next_scan_ = Duration{0};
  return Ok{};
}

Status BatchWorker::start_lines() {
  const LinesInFlight flight{.now = static_cast<std::int64_t>(running_.size()), .at_beats = lines_at_beats()};
  NodeRoom room = runner_->room();
  if (room.starved == 0) not_starved_ = now_;
  if (now_ - not_starved_ >= options_.timing.starving) room.blocked += room.starved;
  const std::int64_t gateways = lives_.count(now_);
  BatchBudget budget = batch_budget(room, gateways, flight);
  if (yielded_ > Duration{0} && now_ - yielded_ < options_.timing.beat_lag) budget = {};  // the beats are of before
  if (budget.yield > 0) {
    yield(budget.yield);
    yielded_ = now_;
  }
  const std::int64_t most = std::min(budget.start, options_.max_lines - flight.now);
  if (most > 0) {
    std::vector<Batches::iterator> row;
    StartQuery query{.now = now_, .wall = wall_, .gateways = gateways, .lines_at_beats = flight.at_beats, .room = room};
    for (const auto& found : by_deadline(false)) {
      Known& batch = found->second;
      if (batch.record.status != BatchStatus::in_progress || wall_ >= batch.record.expires_at) continue;
      row.push_back(found);
      if (options_.start_limit) query.batches.push_back(waiting_lines(found->first, batch, gateways));
    }
    MILLRACE_CHECK_OK(start_lines(std::move(row), most, query));
  }
  flights_.emplace_back(now_, static_cast<std::int64_t>(running_.size()));
  while (flights_.size() > 1 && now_ - flights_[1].first >= options_.timing.beat_lag) flights_.pop_front();
  return Ok{};
}

/// The fewest lines that were in flight since the time of which the oldest beat may tell.
std::int64_t BatchWorker::lines_at_beats() const {
  if (flights_.empty() || now_ - flights_.front().first < options_.timing.beat_lag) return 0;
  return std::ranges::min_element(flights_, {}, &std::pair<Duration, std::int64_t>::second)->second;
}

/// Of these batches, at most so many lines, as far as whoever plans their hours lets them.
Status BatchWorker::start_lines(std::vector<Batches::iterator> row, std::int64_t most, const StartQuery& query) {
  std::vector<std::int64_t> limits;
  if (options_.start_limit && !row.empty()) limits = options_.start_limit(query);
  for (std::size_t i = 0; i < row.size() && most > 0; ++i) {
    const std::string& id = row[i]->first;
    Known& batch = row[i]->second;
    if (now_ < batch.not_before) continue;
    std::int64_t limit = most;
    if (i < limits.size()) {
      std::int64_t under_way = 0;
      for (const auto& [block, held] : batch.held) {
        under_way += std::ranges::count(held.lines, LineState::running, &HeldLine::state) +
                     std::ranges::count(held.lines, LineState::answered, &HeldLine::state);
      }
      limit = std::min(most, limits[i] - under_way);
      tell_of_hours(id, batch, limits[i], under_way);
    }
    if (limit <= 0) continue;
    MILLRACE_TRY(const std::int64_t started, start_lines_of(id, batch, limit));
    most -= started;
  }
  return Ok{};
}

/// That lines wait for hours, once they have done so for a while, and that they do no more.
void BatchWorker::tell_of_hours(const std::string& id, Known& batch, std::int64_t limit, std::int64_t under_way) {
  constexpr Duration kAWhile = std::chrono::seconds(10);
  if (limit > 0 || under_way > 0) batch.not_waiting = now_;
  const bool waits = limit <= 0 && now_ - batch.not_waiting >= kAWhile;
  if (waits == batch.told_to_wait || (!waits && limit <= 0)) return;
  batch.told_to_wait = waits;
  say(fmt::format("lines of {} {}", id, waits ? "wait for hours that cost less" : "begin, as it was planned"));
}

/// As far as gateways have told, and of its own blocks as far as this one has come.
std::int64_t BatchWorker::lines_left(const Known& batch) {
  std::int64_t left = batch.record.counts.total;
  for (const auto& [name, task] : batch.tasks) left -= task.claim.counts.total;
  for (const auto& [block, held] : batch.held)
    left -= std::ranges::count(held.lines, LineState::done, &HeldLine::state);
  return std::max<std::int64_t>(0, left);
}

BatchWorker::TaskSum BatchWorker::sum_of(const Known& batch) {
  TaskSum sum;
  for (const auto& [name, task] : batch.tasks) {
    const BatchClaim& claim = task.claim;
    sum.done += claim.counts.total;
    sum.tokens.add(claim.tokens);
    const bool others =
        !claim.done && claim.life != options_.life && block_of(name) && !lives_.is_dead(claim.life, now_);
    sum.elsewhere += others ? kBlockLines : 0;
  }
  return sum;
}

WaitingLines BatchWorker::waiting_lines(const std::string& id, Known& batch, std::int64_t gateways) {
  const BatchRecord& record = batch.record;
  // Where the wall clock goes back, no batch has longer than its window since it was seen here.
  const double window = static_cast<double>(record.expires_at - record.created_at);
  const double known = std::chrono::duration<double>(now_ - batch.first_seen).count();
  WaitingLines waiting{.id = id,
                       .seconds_left = std::min(static_cast<double>(record.expires_at - wall_), window - known)};
  if (!batch.sum) batch.sum = sum_of(batch);
  const bool measured = batch.sum->tokens.lines > 0;
  LineTokens seen = batch.sum->tokens;
  std::int64_t here = 0, done_here = 0;
  for (const auto& [block, held] : batch.held) {
    const std::int64_t of_block = std::ranges::count(held.lines, LineState::done, &HeldLine::state);
    done_here += of_block;
    here += static_cast<std::int64_t>(held.lines.size()) - of_block;
    for (const HeldLine& line : held.lines) seen.add(line.tokens);
  }
  waiting.lines = lines_left(batch);
  const std::int64_t free = std::max<std::int64_t>(0, waiting.lines - here - batch.sum->elsewhere);
  waiting.own = static_cast<double>(here) + static_cast<double>(free) / static_cast<double>(gateways);
  if (!measured && (here > 0 || batch.sum->elsewhere == 0))
    waiting.sample = std::max<std::int64_t>(0, kBlockLines - done_here);
  const double lines = kGuess + static_cast<double>(seen.lines);
  const double bytes =
      static_cast<double>(record.input_bytes) / static_cast<double>(std::max<std::int64_t>(1, record.counts.total));
  waiting.prompt_tokens = (kGuess * bytes / kBytesPerToken + static_cast<double>(seen.prompt)) / lines;
  waiting.answer_tokens = (kGuess * kUsualAnswer + static_cast<double>(seen.answer)) / lines;
  return waiting;
}

BatchWorker::Figures BatchWorker::figures() const {
  Figures figures{.running = static_cast<std::int64_t>(running_.size()), .counters = counters_};
  for (const auto& [id, batch] : batches_) {
    if (batch.revision == 0) continue;
    ++figures.batches[static_cast<std::size_t>(batch.record.status)];
    const bool own = batch.record.model == options_.model && batch.record.status == BatchStatus::in_progress;
    if (own) figures.left += lines_left(batch);
  }
  return figures;
}

Result<std::int64_t> BatchWorker::start_lines_of(const std::string& id, Known& batch, std::int64_t most) {
  std::int64_t started = 0;
  while (batch.record.status == BatchStatus::in_progress) {
    for (auto& [block, held] : batch.held) {
      for (std::size_t i = 0; i < held.lines.size() && started < most; ++i) {
        HeldLine& line = held.lines[i];
        if (line.state != LineState::pending || now_ < line.not_before) continue;
        start(id, batch, block, i, line);
        ++started;
      }
    }
    if (started >= most) return started;
    MILLRACE_TRY(const bool claimed, claim_block(id, batch));
    if (!claimed) break;
  }
  return started;
}

/// False: there is none that may be claimed now.
Result<bool> BatchWorker::claim_block(const std::string& id, Known& batch) {
  const std::int64_t blocks = batch.record.blocks;
  // Each begins elsewhere, so that they seldom want the same one.
  const auto first = static_cast<std::int64_t>(batch_line_hash(options_.life) % static_cast<std::uint64_t>(blocks));
  int tries = 0;
  for (std::int64_t i = 0; i < blocks && tries < kClaimTries; ++i) {
    const std::int64_t block = (first + i) % blocks;
    if (batch.held.contains(block)) continue;
    const std::string name = std::to_string(block);
    const auto known = batch.tasks.find(name);
    if (known != batch.tasks.end()) {
      const BatchClaim& claim = known->second.claim;
      if (claim.done || (claim.life != options_.life && !lives_.is_dead(claim.life, now_))) continue;
    }
    ++tries;
    MILLRACE_TRY(const bool own, claim(id, batch, name));
    if (!own) continue;
    return hold(id, batch, block, batch.tasks[name].revision);
  }
  return false;
}

/// Reads the lines of a block that was claimed. False: they cannot be read, and the batch has failed.
Result<bool> BatchWorker::hold(const std::string& id, Known& batch, std::int64_t block, std::uint64_t revision) {
  const auto refused = [&](const char* code, const char* message) -> Result<bool> {
    MILLRACE_CHECK_OK(fail_batch(batch, code, message));
    return false;
  };
  if (batch.index.empty()) {
    MILLRACE_TRY(const auto entry, store_->get("index." + id));
    if (!entry) return refused("index_gone", "The list of the batch's lines is gone from the store.");
    MILLRACE_TRY(batch.index, read_index(entry->value));
  }
  if (static_cast<std::int64_t>(batch.index.size()) != batch.record.blocks + 1) {
    return refused("index_gone", "The list of the batch's lines is not that of its input file.");
  }
  const auto at = static_cast<std::size_t>(block);
  const auto bytes = read_blob(*store_, batch.record.input_blob, batch.index[at].offset, batch.index[at + 1].offset);
  if (!bytes.ok() && bytes.error().kind == ErrorKind::invalid) {
    return refused("input_file_gone", "The input file is not there any more.");
  }
  if (!bytes.ok()) return bytes.error();
  MILLRACE_TRY(const auto results,
               list_results(*store_, id, block, batch.index[at].request, batch.index[at + 1].request));
  Held held{.revision = revision, .lines = {}};
  for (BlockLine& line : read_block(*bytes, batch.index[at])) {
    const auto number = static_cast<std::int64_t>(line.key.number);
    const bool done = std::ranges::any_of(results, [&](const auto& result) { return result.first == number; });
    held.lines.push_back({.line = std::move(line), .state = done ? LineState::done : LineState::pending});
  }
  if (held.lines.empty()) return refused("input_file_gone", "The input file is not what it was.");
  const bool all_done = held.all_done();
  batch.held[block] = std::move(held);
  if (all_done) MILLRACE_CHECK_OK(end_block(id, batch, block));  // and where it fails, end_blocks() does it
  return true;
}

void BatchWorker::start(const std::string& id, const Known& batch, std::int64_t block, std::size_t index,
                        HeldLine& line) {
  line.state = LineState::running;
  line.started = now_;
  ++line.tries;
  line.id = runner_->start(line.line.request, batch.record.owner);
  running_[line.id] = {id, block, index};
  ++counters_.started;
}

/// Takes back those that began last: they have the least to lose.
void BatchWorker::yield(std::int64_t lines) {
  std::vector<std::pair<Duration, LineRunner::Id>> row;
  for (const auto& [id, place] : running_) {
    if (const HeldLine* line = find(place.batch, place.block, place.line)) row.emplace_back(line->started, id);
  }
  std::ranges::sort(row, std::greater<>());
  row.resize(std::min(row.size(), static_cast<std::size_t>(lines)));
  for (const auto& [started, id] : row) {
    const Place place = running_.at(id);
    HeldLine* line = find(place.batch, place.block, place.line);
    runner_->cancel(id);
    running_.erase(id);
    line->state = LineState::pending;
    line->not_before = now_ + options_.timing.beat_lag;
    --line->tries;
    ++counters_.yielded;
  }
}

void BatchWorker::drop(Held& held) {
  for (HeldLine& line : held.lines) {
    if (line.state != LineState::running) continue;
    runner_->cancel(line.id);
    running_.erase(line.id);
    line.state = LineState::pending;
  }
}

}  // namespace millrace
