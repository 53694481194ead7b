#include "cluster/nats_bucket.h"

#include <fmt/format.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <string_view>
#include <utility>

#include "cluster/nats_handles.h"

namespace millrace {

namespace {

constexpr std::int64_t kLookEvery = 250;  // ms that a watcher waits before it looks whether it should end
constexpr auto kTryAgain = std::chrono::seconds(1);
// While its servers choose which of them leads a bucket nobody answers, and what was asked meanwhile is lost: asking
// again is sooner than waiting.
constexpr std::int64_t kAnswerTime = 1500;  // ms
constexpr auto kAskAgain = std::chrono::milliseconds(100);
constexpr auto kAskEvery = std::chrono::seconds(5);  // whether the bucket is still the one that is watched

struct OpenStore {
  nats::JetStream context;
  nats::Store store;
  std::int64_t made = 0;  // nanoseconds since 1970
};

/// As a key-value bucket is, but without rollups: with one in a message for its own key a node could clear all others'.
natsStatus make_bucket(jsCtx* js, const BucketOptions& options, std::int64_t& made) {
  const std::string name = "KV_" + options.name, subject = "$KV." + options.name + ".>";
  const char* subjects[] = {subject.c_str()};
  jsStreamConfig config;
  jsStreamConfig_Init(&config);
  config.Name = name.c_str();
  config.Subjects = subjects;
  config.SubjectsLen = 1;
  config.MaxMsgsPerSubject = 1;
  constexpr std::size_t kHeaders = 1 << 10;  // of a message that updates or removes
  config.MaxMsgSize = static_cast<std::int32_t>(options.most_bytes + kHeaders);
  config.Discard = options.most_stored > 0 ? js_DiscardOld : js_DiscardNew;
  if (options.most_stored > 0) config.MaxBytes = options.most_stored;
  config.MaxAge = options.oldest.count();
  config.Storage = js_FileStorage;
  config.Replicas = options.replicas;
  config.NoAck = options.silent;
  config.DenyDelete = true;
  config.DenyPurge = true;
  jsStreamInfo* raw = nullptr;
  const natsStatus status = js_AddStream(&raw, js, &config, nullptr, nullptr);
  const nats::StreamInfo info(raw);
  if (status == NATS_OK) made = info->Created;
  return status;
}

/// When the bucket was made.
natsStatus ask_made(jsCtx* js, const std::string& name, std::int64_t& made) {
  jsOptions options;
  jsOptions_Init(&options);
  options.Wait = kAnswerTime;
  jsStreamInfo* raw = nullptr;
  const natsStatus status = js_GetStreamInfo(&raw, js, ("KV_" + name).c_str(), &options, nullptr);
  const nats::StreamInfo info(raw);
  if (status == NATS_OK) made = info->Created;
  return status;
}

natsStatus open_store(natsConnection* connection, const BucketOptions& options, OpenStore& open) {
  jsCtx* js = nullptr;
  natsStatus status = natsConnection_JetStream(&js, connection, nullptr);
  if (status != NATS_OK) return status;
  open.context.reset(js);
  status = ask_made(js, options.name, open.made);
  if (status == NATS_NOT_FOUND && options.makes) status = make_bucket(js, options, open.made);
  kvStore* bucket = nullptr;
  if (status == NATS_OK) status = js_KeyValue(&bucket, js, options.name.c_str());
  if (status == NATS_OK) open.store.reset(bucket);
  return status;
}

/// The last error of this thread says that somebody else has written meanwhile. The library has no status for it.
bool is_conflict(natsStatus status) {
  natsStatus last = NATS_OK;
  const char* text = nats_GetLastError(&last);
  return status != NATS_OK && text != nullptr &&
         std::string_view(text).find("wrong last sequence") != std::string_view::npos;
}

BucketEntry entry_of(const kvEntry* raw) {
  auto* entry = const_cast<kvEntry*>(raw);  // the library's readers take no const
  BucketEntry read{.key = kvEntry_Key(entry), .value = {}, .revision = kvEntry_Revision(entry)};
  if (kvEntry_Operation(entry) == kvOp_Put) {
    read.value.emplace(static_cast<const char*>(kvEntry_Value(entry)),
                       static_cast<std::size_t>(kvEntry_ValueLen(entry)));
  }
  return read;
}

}  // namespace

struct NatsBucket::Shared {
  /// On the worker's thread.
  using Task = std::function<void(const std::shared_ptr<Shared>&, OpenStore&)>;

  natsConnection* connection = nullptr;
  BucketOptions options;
  std::function<void(const std::string&)> on_message;
  std::function<void(const BucketEntry&)> watcher;

  std::mutex mutex;
  std::condition_variable arrived;
  EventLoop* loop = nullptr;  // null: the bucket has ended; guarded by mutex, as all below
  std::deque<Task> tasks;

  /// On the loop, unless the bucket ends before.
  static void post(const std::shared_ptr<Shared>& shared, std::function<void(Shared&)> call) {
    const std::lock_guard lock(shared->mutex);
    if (shared->loop == nullptr) return;
    shared->loop->post([shared, call = std::move(call)] {
      {
        const std::lock_guard ended(shared->mutex);
        if (shared->loop == nullptr) return;
      }
      call(*shared);
    });
  }

  bool ended() {
    const std::lock_guard lock(mutex);
    return loop == nullptr;
  }

  void add(Task task) {
    {
      const std::lock_guard lock(mutex);
      tasks.push_back(std::move(task));
    }
    arrived.notify_all();
  }

  static void work(const std::shared_ptr<Shared>& shared) {
    OpenStore open;
    for (;;) {
      Task task;
      {
        std::unique_lock lock(shared->mutex);
        shared->arrived.wait(lock, [&] { return shared->loop == nullptr || !shared->tasks.empty(); });
        if (shared->loop == nullptr) break;
        task = std::move(shared->tasks.front());
        shared->tasks.pop_front();
      }
      task(shared, open);
    }
    nats_ReleaseThreadMemory();
  }

  natsStatus opened(OpenStore& open) const { return open.store ? NATS_OK : open_store(connection, options, open); }

  Error error_of(natsStatus status, const char* doing) const {
    const char* hint = status == NATS_NOT_FOUND ? " (a gateway makes the bucket when it starts)" : "";
    return {fmt::format("{} can't be {}: {}{}", options.name, doing, natsStatus_GetText(status), hint),
            ErrorKind::unavailable};
  }

  template <typename T>
  static void answer(const std::shared_ptr<Shared>& shared, std::function<void(Result<T>)> done, Result<T> result) {
    post(shared, [done = std::move(done), result = std::move(result)](Shared& s) {
      if (!result.ok() && result.error().kind == ErrorKind::unavailable) s.on_message(result.error().message);
      done(result);
    });
  }

  /// A write, which `how` does with the store.
  void write(std::size_t bytes, Written done, std::function<natsStatus(kvStore*, std::uint64_t&)> how) {
    add([bytes, done = std::move(done), how = std::move(how)](const std::shared_ptr<Shared>& shared, OpenStore& open) {
      if (bytes > shared->options.most_bytes) {
        answer<std::uint64_t>(
            shared, done,
            fail("{} bytes for {}, at most {} are allowed", bytes, shared->options.name, shared->options.most_bytes));
        return;
      }
      std::uint64_t revision = 0;
      natsStatus status = shared->opened(open);
      if (status == NATS_OK) status = how(open.store.get(), revision);
      Result<std::uint64_t> result = revision;
      if (is_conflict(status)) {
        result = Error{fmt::format("{}: somebody else has written", shared->options.name), ErrorKind::busy};
      } else if (status != NATS_OK) {
        result = shared->error_of(status, "written");
      }
      answer(shared, done, std::move(result));
    });
  }

  /// Tells what the watcher gives until it gives no more, or the bucket is another one: a server that has lost its
  /// files says nothing to those who watched, and whoever makes the bucket anew counts from the beginning.
  static void follow(const std::shared_ptr<Shared>& shared, const OpenStore& open, kvWatcher* watcher) {
    auto asked = std::chrono::steady_clock::now();
    while (!shared->ended()) {
      if (const auto now = std::chrono::steady_clock::now(); now - asked >= kAskEvery) {
        asked = now;
        std::int64_t made = open.made;
        if (ask_made(open.context.get(), shared->options.name, made) == NATS_NOT_FOUND || made != open.made) return;
      }
      kvEntry* raw = nullptr;
      const natsStatus status = kvWatcher_Next(&raw, watcher, kLookEvery);
      if (status == NATS_TIMEOUT) continue;
      if (status != NATS_OK) return;
      const nats::StoreEntry entry(raw);
      post(shared, [read = entry ? entry_of(entry.get()) : BucketEntry()](Shared& s) { s.watcher(read); });
    }
  }

  static void watch(const std::shared_ptr<Shared>& shared) {
    std::string complained;
    while (!shared->ended()) {
      OpenStore open;
      natsStatus status = NATS_NOT_YET_CONNECTED;
      if (natsConnection_Status(shared->connection) == NATS_CONN_STATUS_CONNECTED) {
        status = open_store(shared->connection, shared->options, open);
      }
      kvWatcher* raw = nullptr;
      if (status == NATS_OK) status = kvStore_WatchAll(&raw, open.store.get(), nullptr);
      if (status == NATS_OK) {
        const nats::StoreWatcher watcher(raw);
        complained.clear();
        follow(shared, open, watcher.get());
        continue;
      }
      const bool soon = status == NATS_TIMEOUT || status == NATS_NOT_YET_CONNECTED;
      const std::string message = shared->error_of(status, "watched").message;
      if (std::exchange(complained, message) != message) {
        post(shared, [message](Shared& s) { s.on_message(message); });
      }
      std::unique_lock lock(shared->mutex);
      shared->arrived.wait_for(lock, soon ? kAskAgain : kTryAgain, [&] { return shared->loop == nullptr; });
    }
    nats_ReleaseThreadMemory();
  }
};

NatsBucket::NatsBucket(NatsTransport& transport, EventLoop& loop, BucketOptions options,
                       std::function<void(const std::string&)> on_message)
    : shared_(std::make_shared<Shared>()) {
  shared_->connection = transport.connection();
  shared_->options = std::move(options);
  shared_->on_message = std::move(on_message);
  shared_->loop = &loop;
  worker_ = std::thread(Shared::work, shared_);
}

NatsBucket::~NatsBucket() {
  {
    const std::lock_guard lock(shared_->mutex);
    shared_->loop = nullptr;
  }
  shared_->arrived.notify_all();
  worker_.join();
  if (watcher_.joinable()) watcher_.join();
}

void NatsBucket::put(std::string key, std::string value, Written done) {
  const std::size_t bytes = value.size();
  shared_->write(bytes, std::move(done),
                 [key = std::move(key), value = std::move(value)](kvStore* store, std::uint64_t& revision) {
                   return kvStore_Put(&revision, store, key.c_str(), value.data(), static_cast<int>(value.size()));
                 });
}

void NatsBucket::update(std::string key, std::string value, std::uint64_t revision, Written done) {
  const std::size_t bytes = value.size();
  shared_->write(bytes, std::move(done),
                 [key = std::move(key), value = std::move(value), revision](kvStore* store, std::uint64_t& written) {
                   const int size = static_cast<int>(value.size());
                   // Create knows of keys that were removed; for update they are there.
                   return revision == 0 ? kvStore_Create(&written, store, key.c_str(), value.data(), size)
                                        : kvStore_Update(&written, store, key.c_str(), value.data(), size, revision);
                 });
}

void NatsBucket::remove(std::string key, Written done) {
  shared_->write(0, std::move(done), [key = std::move(key)](kvStore* store, std::uint64_t& /*revision*/) {
    return kvStore_Delete(store, key.c_str());
  });
}

void NatsBucket::get(std::string key, Read done) {
  shared_->add([key = std::move(key), done = std::move(done)](const std::shared_ptr<Shared>& shared, OpenStore& open) {
    kvEntry* raw = nullptr;
    natsStatus status = shared->opened(open);
    if (status == NATS_OK) status = kvStore_Get(&raw, open.store.get(), key.c_str());
    const nats::StoreEntry entry(raw);
    Result<std::optional<BucketEntry>> result = std::optional<BucketEntry>();
    if (status == NATS_OK) {
      result = std::optional(entry_of(entry.get()));
    } else if (status != NATS_NOT_FOUND || !open.store) {
      result = shared->error_of(status, "read");
    }
    Shared::answer(shared, done, std::move(result));
  });
}

void NatsBucket::watch(std::function<void(const BucketEntry&)> watcher) {
  shared_->watcher = std::move(watcher);
  watcher_ = std::thread(Shared::watch, shared_);
}

}  // namespace millrace
