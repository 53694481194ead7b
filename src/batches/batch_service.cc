#include "batches/batch_service.h"

#include <nats/nats.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <utility>

#include "server/batch_call.h"

namespace millrace {

namespace {

constexpr std::size_t kQueueBytes = 256 << 10;  // of an answer's events
constexpr Duration kCountEvery = std::chrono::milliseconds(250);
constexpr auto kLast = std::numeric_limits<std::int32_t>::max();

}  // namespace

EngineLines::EngineLines(const ServedModel& model, const EngineAccess& engine, Admission& admission,
                         std::function<void()> wake)
    : model_(&model), engine_(&engine), admission_(&admission), news_(std::make_shared<News>()) {
  news_->wake = std::move(wake);
}

EngineLines::~EngineLines() {
  running_.clear();
  const std::lock_guard lock(news_->mutex);
  news_->wake = nullptr;
  news_->verdicts.clear();
}

LineRunner::Id EngineLines::start(const BatchLine& line, const std::string& tenant) {
  const Id id = next_++;
  auto call = batch_call(line, *model_);
  if (!call.ok()) {
    ended_.emplace_back(id, LineAnswer{call.error().status, call.error().json()});
    return id;
  }
  for (Request& request : call->requests) request.priority = kLast;
  auto admitted = admission_->admit_line(tenant, std::move(*call), [this](ApiCall made, const std::string& salt) {
    return make_engine_answer(*model_, *engine_, std::move(made), salt, kQueueBytes);
  });
  if (!admitted.ok()) {
    LineRefusal refusal = std::move(admitted).error();
    ended_.emplace_back(id, LineAnswer{refusal.reply.status, std::move(refusal.reply.body), !refusal.for_good});
    return id;
  }
  Running& running = running_[id];
  running.call = std::move(*admitted);
  if (!running.call.limit) {
    running.charge = admission_->charge_of(running.call, 0);
    begin(id, running);
    return id;
  }
  admission_->hold(running.call, [news = news_, id](std::optional<HttpReply> refused, LineCharge charge) {
    const std::lock_guard lock(news->mutex);
    if (!news->wake) return;
    news->verdicts.push_back({id, std::move(refused), std::move(charge)});
    news->wake();
  });
  return id;
}

void EngineLines::begin(Id id, Running& running) {
  running.answer = running.call.answer();
  auto refused = running.answer->start([news = news_, id] {
    const std::lock_guard lock(news->mutex);
    news->woken.push_back(id);
    if (news->wake) news->wake();
  });
  if (!refused) return;
  ended_.emplace_back(id, LineAnswer{refused->status, std::move(refused->body)});
  running_.erase(id);
}

void EngineLines::cancel(Id id) {
  running_.erase(id);
  std::erase_if(ended_, [&](const auto& ended) { return ended.first == id; });
}

std::vector<std::pair<LineRunner::Id, LineAnswer>> EngineLines::finished() {
  std::vector<Id> woken;
  std::vector<Verdict> verdicts;
  {
    const std::lock_guard lock(news_->mutex);
    woken.swap(news_->woken);
    verdicts.swap(news_->verdicts);
  }
  for (Verdict& verdict : verdicts) {
    const auto running = running_.find(verdict.id);
    if (running == running_.end()) continue;  // what was reserved is given back
    if (verdict.refused) {
      ended_.emplace_back(verdict.id, LineAnswer{verdict.refused->status, std::move(verdict.refused->body), true});
      running_.erase(running);
    } else {
      running->second.charge = std::move(verdict.charge);
      begin(verdict.id, running->second);
    }
  }
  auto finished = std::exchange(ended_, {});
  for (const Id id : woken) {
    const auto found = running_.find(id);
    if (found == running_.end()) continue;
    Running& running = found->second;
    HttpAnswer::Piece piece = running.answer->pull();
    if (!piece.whole) continue;
    constexpr int kOk = 200;
    LineTokens tokens;
    if (piece.whole->status == kOk && !running.answer->failed()) {
      const TokenUse use = running.answer->use();
      running.charge.costs(running.call.cost_of(use));
      if (use.prompt >= 0 && use.generated >= 0) {
        tokens = {1, std::max<std::int64_t>(0, use.prompt - std::max<std::int64_t>(0, use.cached)), use.generated};
      }
    }
    finished.emplace_back(
        id, LineAnswer{piece.whole->status, std::move(piece.whole->body), false, std::move(running.charge), tokens});
    running_.erase(found);
  }
  return finished;
}

NodeRoom EngineLines::room() {
  const std::lock_guard lock(mutex_);
  return room_;
}

void EngineLines::set_room(const NodeRoom& room) {
  const std::lock_guard lock(mutex_);
  room_ = room;
}

BatchService::BatchService(BatchStore& store, const ServedModel& model, const EngineAccess& engine,
                           Admission& admission, BatchWorkerOptions options)
    : lines_(model, engine, admission,
             [this] {
               const std::lock_guard lock(mutex_);
               wake_ = true;
               woken_.notify_one();
             }),
      worker_(store, lines_, std::move(options)),
      thread_([this] { run(); }) {}

BatchService::~BatchService() {
  end();
  thread_.join();
}

void BatchService::end() {
  const std::lock_guard lock(mutex_);
  stop_ = true;
  woken_.notify_one();
}

BatchWorker::Figures BatchService::figures() {
  const std::lock_guard lock(mutex_);
  return figures_;
}

void BatchService::look_soon() {
  const std::lock_guard lock(mutex_);
  wake_ = look_ = true;
  woken_.notify_one();
}

void BatchService::run() {
  Duration counted{0};
  while (true) {
    const auto wall = std::chrono::system_clock::now().time_since_epoch();
    const Duration now = std::chrono::steady_clock::now().time_since_epoch();
    const Duration sleep = worker_.step(now, std::chrono::duration_cast<std::chrono::seconds>(wall).count());
    const bool counts = now - counted >= kCountEvery;
    if (counts) counted = now;
    BatchWorker::Figures figures = counts ? worker_.figures() : BatchWorker::Figures{};
    std::unique_lock lock(mutex_);
    if (counts) figures_ = figures;
    woken_.wait_for(lock, sleep, [&] { return wake_ || stop_; });
    wake_ = false;
    if (std::exchange(look_, false)) worker_.look_soon();
    if (stop_) break;
  }
  worker_.leave();
  nats_ReleaseThreadMemory();
}

}  // namespace millrace
