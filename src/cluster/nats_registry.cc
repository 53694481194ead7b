#include "cluster/nats_registry.h"

#include <fmt/format.h>
#include <nats/nats.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

namespace millrace {

namespace {

constexpr const char* kBucket = "mr_nodes";
constexpr std::size_t kMostRecord = 64 << 10;  // bytes
constexpr std::size_t kMostName = 256, kMostModels = 16;
constexpr std::int64_t kLookEvery = 250;  // ms that a watcher waits before it looks whether it should end
constexpr auto kTryAgain = std::chrono::seconds(1);

template <typename T, void (*destroy)(T*)>
struct Destroy {
  void operator()(T* what) const { destroy(what); }
};
using Store = std::unique_ptr<kvStore, Destroy<kvStore, kvStore_Destroy>>;
using StoreWatcher = std::unique_ptr<kvWatcher, Destroy<kvWatcher, kvWatcher_Destroy>>;
using Entry = std::unique_ptr<kvEntry, Destroy<kvEntry, kvEntry_Destroy>>;
using JetStream = std::unique_ptr<jsCtx, Destroy<jsCtx, jsCtx_Destroy>>;

/// As a key-value bucket is, but without rollups: with one in a message for its own key a node could clear all others'.
natsStatus make_bucket(jsCtx* js) {
  const char* subjects[] = {"$KV.mr_nodes.>"};
  jsStreamConfig config;
  jsStreamConfig_Init(&config);
  config.Name = "KV_mr_nodes";
  config.Subjects = subjects;
  config.SubjectsLen = 1;
  config.MaxMsgsPerSubject = 1;
  config.MaxMsgSize = static_cast<std::int32_t>(kMostRecord);
  config.Discard = js_DiscardNew;
  config.Storage = js_FileStorage;
  config.DenyDelete = true;
  config.DenyPurge = true;
  return js_AddStream(nullptr, js, &config, nullptr, nullptr);
}

natsStatus open_store(natsConnection* connection, JetStream& context, Store& store, bool makes_bucket) {
  jsCtx* js = nullptr;
  natsStatus status = natsConnection_JetStream(&js, connection, nullptr);
  if (status != NATS_OK) return status;
  context.reset(js);
  kvStore* bucket = nullptr;
  status = js_KeyValue(&bucket, js, kBucket);
  if (status == NATS_NOT_FOUND && makes_bucket) {
    status = make_bucket(js);
    if (status == NATS_OK) status = js_KeyValue(&bucket, js, kBucket);
  }
  if (status == NATS_OK) store.reset(bucket);
  return status;
}

}  // namespace

std::string record_json(const NodeRecord& record) {
  nlohmann::json models = nlohmann::json::array();
  for (const NodeModel& model : record.models) {
    models.push_back({{"name", model.name}, {"numeric_class", model.numeric_class}, {"max_tokens", model.max_tokens}});
  }
  return nlohmann::json{{"node", record.node}, {"places", record.places}, {"models", std::move(models)}}.dump();
}

Result<NodeRecord> parse_record(std::string_view text) {
  if (text.size() > kMostRecord) return fail("a record of {} bytes, at most {} are allowed", text.size(), kMostRecord);
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  const auto named = [](const nlohmann::json& object, const char* key) -> const std::string* {
    if (!object.is_object()) return nullptr;
    const auto value = object.find(key);
    return value == object.end() ? nullptr : value->get_ptr<const std::string*>();
  };
  const std::string* node = named(json, "node");
  if (node == nullptr) return fail("a record is no JSON object with a \"node\"");
  const auto counted = [](const nlohmann::json& object, const char* key) -> std::int64_t {
    constexpr std::int64_t kMost = std::int64_t{1} << 40;
    const auto value = object.find(key);
    if (value == object.end() || !value->is_number_integer()) return 0;
    return value->is_number_unsigned() && value->get<std::uint64_t>() > static_cast<std::uint64_t>(kMost)
               ? 0
               : std::min(value->get<std::int64_t>(), kMost);
  };
  NodeRecord record{.node = *node, .places = counted(json, "places")};
  if (record.places < 1) return fail("the record of {} has no \"places\"", *node);
  const auto models = json.find("models");
  if (models == json.end() || !models->is_array()) return fail("the record of {} has no array \"models\"", *node);
  for (const nlohmann::json& model : *models) {
    const std::string *name = named(model, "name"), *numeric_class = named(model, "numeric_class");
    const std::int64_t tokens = model.is_object() ? counted(model, "max_tokens") : 0;
    if (name == nullptr || numeric_class == nullptr || tokens < 1) {
      return fail("a model of {} has no \"name\", \"numeric_class\" or \"max_tokens\"", *node);
    }
    if (name->size() > kMostName || numeric_class->size() > kMostName || record.models.size() == kMostModels) {
      return fail("{} has more than {} models, or one with a name of more than {} bytes", *node, kMostModels,
                  kMostName);
    }
    record.models.push_back({*name, *numeric_class, tokens});
  }
  return record;
}

struct NatsRegistry::Shared {
  struct Task {
    NodeRecord record;
    std::function<void(Result<std::uint64_t>)> done;
  };

  natsConnection* connection = nullptr;
  std::function<void(const std::string&)> on_message;
  Watcher watcher;
  bool makes_bucket = false;

  std::mutex mutex;
  std::condition_variable arrived;
  EventLoop* loop = nullptr;  // null: the registry has ended; guarded by mutex, as all below
  std::deque<Task> tasks;

  /// On the loop, unless the registry ends before.
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

  static void write(const std::shared_ptr<Shared>& shared) {
    JetStream context;
    Store store;
    for (;;) {
      Task task;
      {
        std::unique_lock lock(shared->mutex);
        shared->arrived.wait(lock, [&] { return shared->loop == nullptr || !shared->tasks.empty(); });
        if (shared->loop == nullptr) break;
        task = std::move(shared->tasks.front());
        shared->tasks.pop_front();
      }
      natsStatus status = store ? NATS_OK : open_store(shared->connection, context, store, false);
      std::uint64_t revision = 0;
      const std::string json = record_json(task.record);
      if (status == NATS_OK) {
        status =
            kvStore_Put(&revision, store.get(), task.record.node.c_str(), json.data(), static_cast<int>(json.size()));
      }
      Result<std::uint64_t> result = revision;
      if (status != NATS_OK) {
        const char* hint = status == NATS_NOT_FOUND ? " (a gateway makes the bucket when it starts)" : "";
        result =
            Error{fmt::format("the record can't be written to {}: {}{}", kBucket, natsStatus_GetText(status), hint),
                  ErrorKind::unavailable};
      }
      post(shared, [done = std::move(task.done), result = std::move(result)](Shared& s) {
        if (!result.ok()) s.on_message(result.error().message);
        done(result);
      });
    }
    nats_ReleaseThreadMemory();
  }

  /// Tells what the watcher gives until it gives no more.
  static void follow(const std::shared_ptr<Shared>& shared, kvWatcher* watcher) {
    while (!shared->ended()) {
      kvEntry* raw = nullptr;
      const natsStatus status = kvWatcher_Next(&raw, watcher, kLookEvery);
      if (status == NATS_TIMEOUT) continue;
      if (status != NATS_OK) return;
      const Entry entry(raw);
      if (!entry) continue;  // all that was there has been told
      const std::string node = kvEntry_Key(entry.get());
      const std::uint64_t revision = kvEntry_Revision(entry.get());
      if (kvEntry_Operation(entry.get()) != kvOp_Put) {
        post(shared, [node, revision](Shared& s) { s.watcher(node, nullptr, revision); });
        continue;
      }
      const std::string_view text(static_cast<const char*>(kvEntry_Value(entry.get())),
                                  static_cast<std::size_t>(kvEntry_ValueLen(entry.get())));
      auto record = parse_record(text);
      if (record.ok() && record->node != node)
        record = fail("the record of {} stands under the key {}", record->node, node);
      post(shared, [node, revision, record = std::move(record)](Shared& s) {
        if (record.ok()) {
          s.watcher(node, &*record, revision);
        } else {
          s.on_message(record.error().message);
        }
      });
    }
  }

  static void watch(const std::shared_ptr<Shared>& shared) {
    std::string complained;
    while (!shared->ended()) {
      JetStream context;
      Store store;
      natsStatus status = open_store(shared->connection, context, store, shared->makes_bucket);
      kvWatcher* raw = nullptr;
      if (status == NATS_OK) status = kvStore_WatchAll(&raw, store.get(), nullptr);
      if (status == NATS_OK) {
        const StoreWatcher watcher(raw);
        complained.clear();
        follow(shared, watcher.get());
        continue;
      }
      std::string message = fmt::format("{} can't be watched: {}", kBucket, natsStatus_GetText(status));
      if (std::exchange(complained, message) != message) {
        post(shared, [message](Shared& s) { s.on_message(message); });
      }
      std::unique_lock lock(shared->mutex);
      shared->arrived.wait_for(lock, kTryAgain, [&] { return shared->loop == nullptr; });
    }
    nats_ReleaseThreadMemory();
  }
};

NatsRegistry::NatsRegistry(NatsTransport& transport, EventLoop& loop,
                           std::function<void(const std::string&)> on_message, bool makes_bucket)
    : shared_(std::make_shared<Shared>()) {
  shared_->connection = transport.connection();
  shared_->on_message = std::move(on_message);
  shared_->makes_bucket = makes_bucket;
  shared_->loop = &loop;
  writer_ = std::thread(Shared::write, shared_);
}

NatsRegistry::~NatsRegistry() {
  {
    const std::lock_guard lock(shared_->mutex);
    shared_->loop = nullptr;
  }
  shared_->arrived.notify_all();
  writer_.join();
  if (watcher_.joinable()) watcher_.join();
}

void NatsRegistry::announce(const NodeRecord& record, std::function<void(Result<std::uint64_t>)> done) {
  {
    const std::lock_guard lock(shared_->mutex);
    shared_->tasks.push_back({record, std::move(done)});
  }
  shared_->arrived.notify_all();
}

void NatsRegistry::watch(Watcher watcher) {
  shared_->watcher = std::move(watcher);
  watcher_ = std::thread(Shared::watch, shared_);
}

}  // namespace millrace
