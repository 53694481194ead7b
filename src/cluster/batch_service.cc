#include "cluster/batch_service.h"

#include <nats/nats.h>

#include <chrono>
#include <limits>
#include <utility>

#include "server/batch_call.h"

namespace millrace {

namespace {

constexpr std::size_t kQueueBytes = 256 << 10;  // of an answer's events
constexpr auto kLast = std::numeric_limits<std::int32_t>::max();

}  // namespace

EngineLines::EngineLines(const ServedModel& model, const EngineAccess& engine, std::function<void()> wake)
    : model_(&model), engine_(&engine), news_(std::make_shared<News>()) {
  news_->wake = std::move(wake);
}

EngineLines::~EngineLines() {
  answers_.clear();
  const std::lock_guard lock(news_->mutex);
  news_->wake = nullptr;
}

LineRunner::Id EngineLines::start(const BatchLine& line, const std::string& tenant) {
  const Id id = next_++;
  auto call = batch_call(line, *model_);
  if (!call.ok()) {
    ended_.emplace_back(id, LineAnswer{call.error().status, call.error().json()});
    return id;
  }
  for (Request& request : call->requests) request.priority = kLast;
  auto answer = make_engine_answer(*model_, *engine_, std::move(*call), tenant, kQueueBytes);
  auto refused = answer->start([news = news_, id] {
    const std::lock_guard lock(news->mutex);
    news->woken.push_back(id);
    if (news->wake) news->wake();
  });
  if (refused) {
    ended_.emplace_back(id, LineAnswer{refused->status, std::move(refused->body)});
  } else {
    answers_[id] = std::move(answer);
  }
  return id;
}

void EngineLines::cancel(Id id) {
  answers_.erase(id);
  std::erase_if(ended_, [&](const auto& ended) { return ended.first == id; });
}

std::vector<std::pair<LineRunner::Id, LineAnswer>> EngineLines::finished() {
  auto finished = std::exchange(ended_, {});
  std::vector<Id> woken;
  {
    const std::lock_guard lock(news_->mutex);
    woken.swap(news_->woken);
  }
  for (const Id id : woken) {
    const auto answer = answers_.find(id);
    if (answer == answers_.end()) continue;
    HttpAnswer::Piece piece = answer->second->pull();
    if (!piece.whole) continue;
    finished.emplace_back(id, LineAnswer{piece.whole->status, std::move(piece.whole->body)});
    answers_.erase(answer);
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
                           BatchWorkerOptions options)
    : lines_(model, engine,
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

void BatchService::look_soon() {
  const std::lock_guard lock(mutex_);
  wake_ = look_ = true;
  woken_.notify_one();
}

void BatchService::run() {
  while (true) {
    const auto wall = std::chrono::system_clock::now().time_since_epoch();
    const Duration sleep = worker_.step(std::chrono::steady_clock::now().time_since_epoch(),
                                        std::chrono::duration_cast<std::chrono::seconds>(wall).count());
    std::unique_lock lock(mutex_);
    woken_.wait_for(lock, sleep, [&] { return wake_ || stop_; });
    wake_ = false;
    if (std::exchange(look_, false)) worker_.look_soon();
    if (stop_) break;
  }
  worker_.leave();
  nats_ReleaseThreadMemory();
}

}  // namespace millrace
