#include "batches/nats_batch_store.h"

#include <algorithm>
#include <mutex>

#include "cluster/nats_handles.h"

namespace millrace {

namespace {

constexpr const char* kBucket = "mr_batches";
constexpr const char* kStream = "KV_mr_batches";
constexpr const char* kSubjects = "$KV.mr_batches.";
constexpr std::int64_t kWait = 5000;  // ms for an answer

Error failure(std::string_view what, natsStatus status) {
  return Error{fmt::format("{} can't be {}: {}", kBucket, what, natsStatus_GetText(status)), ErrorKind::unavailable};
}

/// Read from the stream's leader alone: a copy that is behind would say that a claim or a result is not there.
natsStatus make_bucket(jsCtx* js, int replicas) {
  const std::string pattern = std::string(kSubjects) + ">";
  const char* subjects[] = {pattern.c_str()};
  jsStreamConfig config;
  jsStreamConfig_Init(&config);
  config.Name = kStream;
  config.Subjects = subjects;
  config.SubjectsLen = 1;
  config.MaxMsgsPerSubject = 1;
  config.MaxMsgSize = static_cast<std::int32_t>(BatchStore::kMostValue + 4096);  // and what stands in its head
  config.Discard = js_DiscardNew;
  config.Storage = js_FileStorage;
  config.Replicas = replicas;
  config.DenyDelete = true;  // nobody needs it: keys are purged
  return js_AddStream(nullptr, js, &config, nullptr, nullptr);
}

}  // namespace

struct NatsBatchStore::Shared {
  natsConnection* connection = nullptr;
  int replicas = 1;
  std::mutex mutex;
  nats::JetStream context;  // once it is open
  nats::Store store;        // likewise; gone before it

  Status open() {
    // A request without a server would wait for its whole time.
    if (natsConnection_Status(connection) != NATS_CONN_STATUS_CONNECTED) {
      return Error{fmt::format("{} can't be reached: there is no connection to NATS", kBucket), ErrorKind::unavailable};
    }
    const std::lock_guard lock(mutex);
    if (store) return Ok{};
    jsOptions options;
    jsOptions_Init(&options);
    options.Wait = kWait;
    jsCtx* js = context.get();
    natsStatus status = js == nullptr ? natsConnection_JetStream(&js, connection, &options) : NATS_OK;
    if (!context) context.reset(js);
    kvStore* bucket = nullptr;
    if (status == NATS_OK) status = js_KeyValue(&bucket, js, kBucket);
    if (status == NATS_NOT_FOUND) {
      status = make_bucket(js, replicas);
      if (status == NATS_OK) status = js_KeyValue(&bucket, js, kBucket);
    }
    store.reset(bucket);
    return status == NATS_OK ? Status(Ok{}) : failure("opened", status);
  }

  /// Nothing: another revision.
  Result<std::optional<std::uint64_t>> publish(const std::string& key, std::string_view value, jsPubOptions* options) {
    if (value.size() > kMostValue) return fail("a value of {} bytes for {}", value.size(), key);
    MILLRACE_CHECK_OK(open());
    jsPubAck* raw = nullptr;
    jsErrCode code{};
    const natsStatus status = js_Publish(&raw, context.get(), (kSubjects + key).c_str(), value.data(),
                                         static_cast<int>(value.size()), options, &code);
    const nats::Ack ack(raw);
    if (status == NATS_OK) return std::optional(ack->Sequence);
    if (code == JSStreamWrongLastSequenceErr) return std::optional<std::uint64_t>();
    return failure("written", status);
  }

  Status purge(const std::string& subject) {
    MILLRACE_CHECK_OK(open());
    jsOptions options;
    jsOptions_Init(&options);
    options.Wait = kWait;
    options.Stream.Purge.Subject = subject.c_str();
    const natsStatus status = js_PurgeStream(context.get(), kStream, &options, nullptr);
    return status == NATS_OK ? Status(Ok{}) : failure("cleared", status);
  }
};

NatsBatchStore::NatsBatchStore(const NatsTransport& transport, int replicas) : shared_(std::make_unique<Shared>()) {
  shared_->connection = transport.connection();
  shared_->replicas = replicas;
}

NatsBatchStore::~NatsBatchStore() = default;

Result<std::optional<StoredEntry>> NatsBatchStore::get(const std::string& key) {
  MILLRACE_CHECK_OK(shared_->open());
  natsMsg* raw = nullptr;
  jsErrCode code{};
  const natsStatus status =
      js_GetLastMsg(&raw, shared_->context.get(), kStream, (kSubjects + key).c_str(), nullptr, &code);
  if (status == NATS_NOT_FOUND || code == JSNoMessageFoundErr) return std::optional<StoredEntry>();
  if (status != NATS_OK) return failure("read", status);
  const nats::Message message(raw);
  const auto bytes = static_cast<std::size_t>(natsMsg_GetDataLength(raw));
  return std::optional(StoredEntry{key, bytes == 0 ? std::string() : std::string(natsMsg_GetData(raw), bytes),
                                   natsMsg_GetSequence(raw)});
}

Result<std::optional<std::uint64_t>> NatsBatchStore::create(const std::string& key, std::string_view value) {
  jsPubOptions options;
  jsPubOptions_Init(&options);
  options.MaxWait = kWait;
  options.ExpectNoMessage = true;
  return shared_->publish(key, value, &options);
}

Result<std::optional<std::uint64_t>> NatsBatchStore::update(const std::string& key, std::string_view value,
                                                            std::uint64_t revision) {
  jsPubOptions options;
  jsPubOptions_Init(&options);
  options.MaxWait = kWait;
  options.ExpectLastSubjectSeq = revision;
  return shared_->publish(key, value, &options);
}

Status NatsBatchStore::put(const std::string& key, std::string_view value) {
  jsPubOptions options;
  jsPubOptions_Init(&options);
  options.MaxWait = kWait;
  MILLRACE_CHECK_OK(shared_->publish(key, value, &options));
  return Ok{};
}

Status NatsBatchStore::erase(const std::string& key) {
  return shared_->purge(kSubjects + key);
}

Status NatsBatchStore::erase_below(const std::string& prefix) {
  return shared_->purge(fmt::format("{}{}.>", kSubjects, prefix));
}

/// A watcher would be simpler, but the server goes through the whole stream for each (250 ms for 50,000 keys, by
/// version 2.9.10); what subjects it has it knows at once.
Result<std::vector<StoredEntry>> NatsBatchStore::list(const std::string& prefix) {
  MILLRACE_CHECK_OK(shared_->open());
  const std::string pattern = fmt::format("{}{}.>", kSubjects, prefix);
  jsOptions options;
  jsOptions_Init(&options);
  options.Wait = kWait;
  options.Stream.Info.SubjectsFilter = pattern.c_str();
  jsStreamInfo* raw = nullptr;
  const natsStatus status = js_GetStreamInfo(&raw, shared_->context.get(), kStream, &options, nullptr);
  if (status != NATS_OK) return failure("listed", status);
  const nats::StreamInfo info(raw);
  std::vector<std::string> keys;
  if (const jsStreamStateSubjects* subjects = info->State.Subjects; subjects != nullptr) {
    for (int i = 0; i < subjects->Count; ++i) {
      keys.emplace_back(std::string_view(subjects->List[i].Subject).substr(std::string_view(kSubjects).size()));
    }
  }
  std::ranges::sort(keys);
  std::vector<StoredEntry> entries;
  for (const std::string& key : keys) {
    MILLRACE_TRY(auto entry, get(key));
    if (entry) entries.push_back(std::move(*entry));  // else it went meanwhile
  }
  return entries;
}

}  // namespace millrace
