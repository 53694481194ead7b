#include "sim_batches.h"

#include <nlohmann/json.hpp>

namespace millrace::test {

using std::chrono::milliseconds;
using std::chrono::seconds;

void SimBatchStore::set(const std::string& key, std::optional<std::string> value) {
  const auto found = entries_.find(key);
  if (found == entries_.end() && !value) return;
  journal_.push_back({key, found == entries_.end() ? std::nullopt : std::optional(found->second)});
  ++sequence_;
  if (value) {
    entries_[key] = {key, std::move(*value), sequence_};
  } else {
    entries_.erase(found);
  }
}

Result<std::optional<StoredEntry>> SimBatchStore::get(const std::string& key) {
  const auto found = entries_.find(key);
  return found == entries_.end() ? std::optional<StoredEntry>() : std::optional(found->second);
}

Result<std::optional<std::uint64_t>> SimBatchStore::create(const std::string& key, std::string_view value) {
  if (entries_.contains(key)) {
    if (creates_once) return std::optional<std::uint64_t>();
    if (key.starts_with("line.")) ++overwritten;
  }
  set(key, std::string(value));
  return std::optional(sequence_);
}

Result<std::optional<std::uint64_t>> SimBatchStore::update(const std::string& key, std::string_view value,
                                                           std::uint64_t revision) {
  const auto found = entries_.find(key);
  if (found == entries_.end() || found->second.revision != revision) return std::optional<std::uint64_t>();
  set(key, std::string(value));
  return std::optional(sequence_);
}

Status SimBatchStore::put(const std::string& key, std::string_view value) {
  if (value.size() > kMostValue) return fail("a value of {} bytes", value.size());
  set(key, std::string(value));
  return Ok{};
}

Status SimBatchStore::erase(const std::string& key) {
  set(key, std::nullopt);
  return Ok{};
}

Status SimBatchStore::erase_below(const std::string& prefix) {
  auto listed = list(prefix);
  for (const StoredEntry& entry : *listed) set(entry.key, std::nullopt);
  return Ok{};
}

Result<std::vector<StoredEntry>> SimBatchStore::list(const std::string& prefix) {
  std::vector<StoredEntry> found;
  const std::string begin = prefix + ".";
  for (auto entry = entries_.lower_bound(begin); entry != entries_.end() && entry->first.starts_with(begin); ++entry) {
    found.push_back(entry->second);
  }
  return found;
}

void SimBatchStore::forget(std::size_t changes) {
  for (std::size_t i = 0; i < changes && !journal_.empty(); ++i) {
    const Change change = std::move(journal_.back());
    journal_.pop_back();
    --sequence_;
    if (change.before) {
      entries_[change.key] = *change.before;
    } else {
      entries_.erase(change.key);
    }
  }
}

std::map<std::string, int> SimBatchStore::kinds() const {
  std::map<std::string, int> kinds;
  for (const auto& [key, entry] : entries_) ++kinds[key.substr(0, key.find('.'))];
  return kinds;
}

SimLines::~SimLines() {
  places_->lines -= static_cast<std::int64_t>(running_.size());
}

LineRunner::Id SimLines::start(const BatchLine& line, const std::string& tenant) {
  const auto lot = [&] { return std::uniform_real_distribution<>(0.0, 1.0)(random_); };
  const nlohmann::json body = nlohmann::json::parse(line.body);
  if (!tenant.empty() && tenant == places_->refused) {
    running_[next_] = {*now_, {429, "its limit", true}};
    ++places_->lines;
    return next_++;
  }
  LineAnswer answer{200, nlohmann::json{{"said", body["prompt"]}}.dump()};
  if (body.value("bad", false)) answer = {400, R"({"error":{"message":"bad"}})"};
  if (body.value("big", false))
    answer.body = nlohmann::json{{"said", body["prompt"]}, {"filler", std::string(600'000, 'x')}}.dump();
  if (lot() < failing) answer = {503, R"({"error":{"message":"gone"}})"};
  ++places_->held;
  answer.charge = LineCharge([places = places_, name = line.custom_id.value_or("")](NanoUsd cost) {
    --places->held;
    if (cost > 0) ++places->charged[name];
  });
  if (answer.status == 200) {
    answer.charge.costs(1);
    answer.tokens = places_->tokens;
  }
  running_[next_] = {*now_ + std::chrono::duration_cast<Duration>(lot() * longest), std::move(answer)};
  places_->most_lines = std::max(places_->most_lines, ++places_->lines);
  return next_++;
}

void SimLines::cancel(Id id) {
  places_->lines -= static_cast<std::int64_t>(running_.erase(id));
}

std::vector<std::pair<LineRunner::Id, LineAnswer>> SimLines::finished() {
  std::vector<std::pair<Id, LineAnswer>> ended;
  for (auto line = running_.begin(); line != running_.end();) {
    if (line->second.end > *now_) {
      ++line;
      continue;
    }
    ended.emplace_back(line->first, std::move(line->second.answer));
    line = running_.erase(line);
    --places_->lines;
  }
  return ended;
}

NodeRoom SimLines::room() {
  const std::int64_t wanted = places_->interactive + places_->lines;
  return {.places = places_->places,
          .busy = std::min(places_->places, wanted),
          .blocked = std::max<std::int64_t>(0, wanted - places_->places)};
}

SimBatches::SimBatches(std::uint64_t seed)
    : api(store, {.model = "m", .now = [this] { return wall(); }, .on_change = {}}), random_(seed) {}

double SimBatches::lot() {
  return std::uniform_real_distribution<>(0.0, 1.0)(random_);
}

UnixTime SimBatches::wall() const {
  return 1'700'000'000 + std::chrono::duration_cast<seconds>(now).count();
}

void SimBatches::add_gateways(int count) {
  for (int i = 0; i < count; ++i) start(gateways_.emplace_back());
}

void SimBatches::start(Gateway& gateway) {
  gateway.store = std::make_unique<FaultyStore>(store, random_());
  gateway.lines = std::make_unique<SimLines>(places, now, random_());
  BatchWorkerOptions options{.life = fmt::format("life{}", ++lives_), .model = model, .start_limit = start_limit};
  if (supply) {
    gateway.hours = std::make_unique<BatchHours>();
    options.start_limit = [this, hours = gateway.hours.get()](const StartQuery& query) {
      hours->set_supply(supply());
      return hours->limits(query);
    };
  }
  gateway.worker = std::make_unique<BatchWorker>(*gateway.store, *gateway.lines, std::move(options));
  gateway.next = now;
  gateway.store->failing = store_failing;
  if (!disturbs) return;
  gateway.store->failing = 0.02;
  gateway.lines->failing = 0.05;
}

/// As SIGKILL does.
void SimBatches::stop(Gateway& gateway) {
  const BatchWorker::Counters& own = gateway.worker->counters();
  gone_.started += own.started;
  gone_.doubled += own.doubled;
  gone_.yielded += own.yielded;
  gone_.waited += own.waited;
  gone_.taken_over += own.taken_over;
  gone_.tried_again += own.tried_again;
  gone_.completed += own.completed;
  gone_.failed += own.failed;
  gateway.worker.reset();
  gateway.lines.reset();
  gateway.store.reset();
}

BatchWorker::Counters SimBatches::counters() const {
  BatchWorker::Counters all = gone_;
  for (const Gateway& gateway : gateways_) {
    if (!gateway.worker) continue;
    all.started += gateway.worker->counters().started;
    all.doubled += gateway.worker->counters().doubled;
    all.yielded += gateway.worker->counters().yielded;
    all.waited += gateway.worker->counters().waited;
    all.taken_over += gateway.worker->counters().taken_over;
    all.tried_again += gateway.worker->counters().tried_again;
    all.completed += gateway.worker->counters().completed;
    all.failed += gateway.worker->counters().failed;
  }
  return all;
}

BatchWorker::Figures SimBatches::figures(std::size_t gateway) const {
  return gateways_[gateway].worker->figures();
}

void SimBatches::kill(std::size_t gateway) {
  stop(gateways_[gateway]);
  gateways_[gateway].restart = Duration::max();
}

void SimBatches::freeze(std::size_t gateway, Duration time) {
  gateways_[gateway].next = now + time;
}

void SimBatches::leave(std::size_t gateway) {
  gateways_[gateway].worker->leave();
  kill(gateway);
}

void SimBatches::disturb(Gateway& gateway) {
  const double what = lot();
  if (what < 0.004) {
    gateway.store->die_after = static_cast<std::int64_t>(lot() * 30);
  } else if (what < 0.006) {
    gateway.next = now + std::chrono::duration_cast<Duration>(lot() * seconds(60));
  }
}

void SimBatches::step(Gateway& gateway) {
  if (!gateway.worker) {
    if (now >= gateway.restart) start(gateway);
    return;
  }
  if (now < gateway.next) return;
  if (disturbs) disturb(gateway);
  try {
    gateway.next = std::max(gateway.next, now + gateway.worker->step(now, wall()));
  } catch (const Killed&) {
    stop(gateway);
    gateway.restart = now + std::chrono::duration_cast<Duration>(lot() * seconds(20));
  }
}

bool SimBatches::run_until(const std::function<bool()>& holds, Duration most) {
  constexpr int kTicks = 4;  // between two looks
  int tick = 0;
  for (const Duration end = now + most; now < end; now += milliseconds(50)) {
    if (tick++ % kTicks == 0 && holds()) return true;
    for (Gateway& gateway : gateways_) step(gateway);
  }
  return holds();
}

std::string SimBatches::upload(const std::string& content, const std::string& tenant) {
  HttpRequest request;
  request.tenant = tenant;
  request.content_type = "multipart/form-data; boundary=xyz";
  request.body =
      "--xyz\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n"
      "--xyz\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f.jsonl\"\r\n\r\n" +
      content + "\r\n--xyz--\r\n";
  const HttpReply reply = api.upload(request);
  return reply.status == 200 ? nlohmann::json::parse(reply.body)["id"].get<std::string>() : reply.body;
}

std::string SimBatches::create(const std::string& file, const std::string& window, const std::string& tenant) {
  HttpRequest request;
  request.tenant = tenant;
  request.body =
      nlohmann::json{{"input_file_id", file}, {"endpoint", "/v1/completions"}, {"completion_window", window}}.dump();
  const HttpReply reply = api.create_batch(request);
  return reply.status == 200 ? nlohmann::json::parse(reply.body)["id"].get<std::string>() : reply.body;
}

HttpReply SimBatches::ask(HttpReply (BatchApi::*what)(const HttpRequest&), const std::string& id,
                          const std::string& tenant) {
  HttpRequest request;
  request.tenant = tenant;
  request.parameter = id;
  return (api.*what)(request);
}

nlohmann::json SimBatches::batch(const std::string& id) {
  return nlohmann::json::parse(ask(&BatchApi::batch, id).body);
}

std::string SimBatches::content(const std::string& file) {
  HttpRequest request;
  request.tenant = "t";
  request.parameter = file;
  auto found = api.find_file(request);
  if (!found.ok()) return found.error().message;
  std::string content;
  while (content.size() < found->bytes) content += *api.read_file(*found, content.size());
  return content;
}

std::string batch_file(int lines, bool bad, bool big) {
  std::string file;
  for (int i = 0; i < lines; ++i) {
    nlohmann::json body{{"prompt", fmt::format("say {}", i)}};
    if (bad && i % 7 == 3) body["bad"] = true;
    if (big && i % 13 == 5) body["big"] = true;
    file +=
        nlohmann::json{
            {"custom_id", fmt::format("c{}", i)}, {"method", "POST"}, {"url", "/v1/completions"}, {"body", body}}
            .dump() +
        "\n";
    if (i % 10 == 0) file += "\n";  // blank lines do not count
  }
  return file;
}

}  // namespace millrace::test
