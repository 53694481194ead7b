#include "cluster/nats_bucket_reader.h"

#include <fmt/format.h>

#include <condition_variable>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "cluster/nats_handles.h"

namespace millrace {

namespace {

constexpr std::int64_t kAnswerTime = 2000;  // ms that the server has

}  // namespace

struct NatsBucketReader::Shared {
  natsConnection* connection = nullptr;
  std::string bucket;
  Reader reader;
  std::function<void(const std::string&)> on_message;
  std::chrono::milliseconds every{0};
  std::map<std::string, std::uint64_t> told;  // revisions, by key; the thread's alone

  std::mutex mutex;
  std::condition_variable ends;
  EventLoop* loop = nullptr;  // null: the reader has ended; guarded by mutex

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

  /// The keys that there are.
  natsStatus list(jsCtx* js, std::vector<std::string>& keys) const {
    const std::string stream = "KV_" + bucket, prefix = "$KV." + bucket + ".", all = prefix + ">";
    jsOptions options;
    jsOptions_Init(&options);
    options.Wait = kAnswerTime;
    options.Stream.Info.SubjectsFilter = all.c_str();
    jsStreamInfo* raw = nullptr;
    const natsStatus status = js_GetStreamInfo(&raw, js, stream.c_str(), &options, nullptr);
    if (status != NATS_OK) return status;
    const nats::StreamInfo info(raw);
    const jsStreamStateSubjects* subjects = info->State.Subjects;
    for (int i = 0; subjects != nullptr && i < subjects->Count; ++i) {
      const std::string_view subject = subjects->List[i].Subject;
      if (subject.starts_with(prefix)) keys.emplace_back(subject.substr(prefix.size()));
    }
    return NATS_OK;
  }

  static natsStatus read(const std::shared_ptr<Shared>& shared, jsCtx* js, const std::string& key) {
    const std::string stream = "KV_" + shared->bucket, subject = "$KV." + shared->bucket + "." + key;
    jsOptions options;
    jsOptions_Init(&options);
    options.Wait = kAnswerTime;
    natsMsg* raw = nullptr;
    const natsStatus status = js_GetLastMsg(&raw, js, stream.c_str(), subject.c_str(), &options, nullptr);
    if (status == NATS_NOT_FOUND) return NATS_OK;  // gone since it was listed
    if (status != NATS_OK) return status;
    const nats::Message message(raw);
    const std::uint64_t revision = natsMsg_GetSequence(raw);
    if (std::exchange(shared->told[key], revision) == revision) return NATS_OK;
    const char* operation = nullptr;
    std::optional<std::string> value;
    if (natsMsgHeader_Get(raw, "KV-Operation", &operation) != NATS_OK) {
      value.emplace(natsMsg_GetData(raw), static_cast<std::size_t>(natsMsg_GetDataLength(raw)));
    }
    post(shared, [key, value = std::move(value), revision](const Shared& s) { s.reader(key, value, revision); });
    return NATS_OK;
  }

  static natsStatus read_all(const std::shared_ptr<Shared>& shared) {
    jsCtx* raw = nullptr;
    natsStatus status = natsConnection_JetStream(&raw, shared->connection, nullptr);
    const nats::JetStream js(raw);
    std::vector<std::string> keys;
    if (status == NATS_OK) status = shared->list(raw, keys);
    for (const std::string& key : keys) {
      if (status == NATS_OK && !shared->ended()) status = read(shared, raw, key);
    }
    return status;
  }

  static void run(const std::shared_ptr<Shared>& shared) {
    natsStatus before = NATS_OK;
    while (!shared->ended()) {
      const natsStatus status = read_all(shared);
      if (status != NATS_OK && status != before) {
        post(shared, [status](const Shared& s) {
          s.on_message(fmt::format("{} can't be read: {}", s.bucket, natsStatus_GetText(status)));
        });
      }
      before = status;
      std::unique_lock lock(shared->mutex);
      shared->ends.wait_for(lock, shared->every, [&] { return shared->loop == nullptr; });
    }
    nats_ReleaseThreadMemory();
  }
};

NatsBucketReader::NatsBucketReader(NatsTransport& transport, EventLoop& loop, std::string bucket, Reader reader,
                                   std::function<void(const std::string&)> on_message, std::chrono::milliseconds every)
    : shared_(std::make_shared<Shared>()) {
  shared_->connection = transport.connection();
  shared_->bucket = std::move(bucket);
  shared_->reader = std::move(reader);
  shared_->on_message = std::move(on_message);
  shared_->every = every;
  shared_->loop = &loop;
  thread_ = std::thread(Shared::run, shared_);
}

NatsBucketReader::~NatsBucketReader() {
  {
    const std::lock_guard lock(shared_->mutex);
    shared_->loop = nullptr;
  }
  shared_->ends.notify_all();
  thread_.join();
}

}  // namespace millrace
