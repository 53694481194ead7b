// The store of batches in a real NATS server, and who may touch it.
#include <gtest/gtest.h>
#include <nats/nats.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "batches/batch_blob.h"
#include "batches/nats_batch_store.h"
#include "cluster/nats_server.h"
#include "sim_batches.h"

namespace millrace::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

/// A connection whose loop runs on a thread of its own.
class Connection {
 public:
  Connection(const NatsServer& server, const std::string& name) {
    auto made = NatsTransport::connect(server.options(name), loop_, [this](const std::string& message) {
      const std::lock_guard lock(mutex_);
      messages_.push_back(message);
    });
    EXPECT_TRUE(made.ok()) << made.error().message;
    transport = std::move(*made);
    thread_ = std::thread([this] { loop_.run(); });
  }
  ~Connection() {
    loop_.stop();
    thread_.join();
  }

  /// Within ten seconds.
  bool was_told(const std::string& what) {
    for (int tries = 0; tries < 1000; ++tries) {
      {
        const std::lock_guard lock(mutex_);
        for (const std::string& message : messages_) {
          if (message.find(what) != std::string::npos) return true;
        }
      }
      std::this_thread::sleep_for(milliseconds(10));
    }
    return false;
  }

 private:
  EventLoop loop_;
  std::mutex mutex_;
  std::vector<std::string> messages_;

 public:
  std::unique_ptr<NatsTransport> transport;

 private:
  std::thread thread_;
};

class NatsBatches : public testing::Test {
 protected:
  void SetUp() override {
    if (!NatsServer::available()) GTEST_SKIP() << "this machine has no nats-server (Debian: apt install nats-server)";
    server_.emplace(identities());
  }
  virtual std::string identities() { return {}; }

  std::optional<NatsServer> server_;
};

TEST_F(NatsBatches, CreateUpdateAndEraseAsTheyAreMeant) {
  const Connection one(*server_, "one"), two(*server_, "two");
  NatsBatchStore first(*one.transport), second(*two.transport);
  EXPECT_FALSE(first.get("a.b")->has_value());
  EXPECT_TRUE(first.list("a")->empty());
  const auto created = first.create("a.b", "1");
  ASSERT_TRUE(created.ok()) << created.error().message;
  ASSERT_TRUE(created->has_value());
  EXPECT_FALSE(second.create("a.b", "2")->has_value()) << "it is there";
  EXPECT_EQ(second.get("a.b")->value().value, "1");
  EXPECT_EQ(second.get("a.b")->value().revision, **created);
  const auto updated = second.update("a.b", "3", **created);
  ASSERT_TRUE(updated->has_value());
  EXPECT_FALSE(first.update("a.b", "4", **created)->has_value()) << "an old revision";
  EXPECT_EQ(first.get("a.b")->value().value, "3");
  EXPECT_TRUE(first.put("a.b", "").ok());
  EXPECT_EQ(first.get("a.b")->value().value, "");

  EXPECT_TRUE(first.put("a.c.d", "5").ok());
  EXPECT_TRUE(first.put("ab.c", "6").ok());
  const auto listed = *second.list("a");
  ASSERT_EQ(listed.size(), 2u);
  EXPECT_EQ(listed[0].key, "a.b");
  EXPECT_EQ(listed[1].key, "a.c.d");
  EXPECT_EQ(listed[1].value, "5");
  EXPECT_TRUE(second.erase("a.b").ok());
  EXPECT_TRUE(second.erase("a.b").ok()) << "twice";
  EXPECT_FALSE(first.get("a.b")->has_value());
  EXPECT_TRUE(first.create("a.b", "7")->has_value()) << "it may be made again";
  EXPECT_TRUE(first.erase_below("a").ok());
  EXPECT_TRUE(first.list("a")->empty());
  EXPECT_EQ(first.list("ab")->size(), 1u) << "another's keys stay";
}

TEST_F(NatsBatches, OfManyWhoCreateOneWins) {
  const Connection one(*server_, "one"), two(*server_, "two");
  NatsBatchStore first(*one.transport), second(*two.transport);
  ASSERT_TRUE(first.list("line").ok());
  std::atomic<int> won{0};
  std::vector<std::thread> threads;
  for (NatsBatchStore* store : {&first, &second, &first, &second}) {
    threads.emplace_back([&won, store] {
      for (int i = 0; i < 100; ++i) {
        const auto created = store->create("line.b.0." + std::to_string(i), "x");
        if (created.ok() && *created) ++won;
      }
      nats_ReleaseThreadMemory();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(won, 100);
  EXPECT_EQ(second.list("line.b")->size(), 100u);
}

TEST_F(NatsBatches, LargeThingsLieInPieces) {
  const Connection one(*server_, "one");
  NatsBatchStore store(*one.transport);
  std::string content;
  for (int i = 0; content.size() < 3 * kBlobPiece + 17; ++i) content += std::to_string(i) + ",";
  BlobWriter blob(store, "data.x");
  for (std::size_t at = 0; at < content.size(); at += 100'001) {
    ASSERT_TRUE(blob.append(std::string_view(content).substr(at, 100'001)).ok());
  }
  ASSERT_TRUE(blob.finish().ok());
  EXPECT_EQ(*read_blob(store, "data.x", 0, content.size()), content);
  EXPECT_EQ(*read_blob(store, "data.x", kBlobPiece - 3, 2 * kBlobPiece + 3),
            content.substr(kBlobPiece - 3, kBlobPiece + 6));
  const auto beyond = read_blob(store, "data.x", 0, content.size() + 1);
  ASSERT_FALSE(beyond.ok());
  EXPECT_EQ(beyond.error().kind, ErrorKind::invalid);
  EXPECT_FALSE(store.put("data.y", std::string(BatchStore::kMostValue + 1, 'x')).ok());
  EXPECT_TRUE(store.put("data.y", std::string(BatchStore::kMostValue, 'x')).ok());
  EXPECT_EQ(store.get("data.y")->value().value.size(), BatchStore::kMostValue);
}

TEST_F(NatsBatches, AServerThatIsKilledLosesNothingThatItTook) {
  const Connection one(*server_, "one");
  NatsBatchStore store(*one.transport);
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(store.create("k." + std::to_string(i), "x")->has_value());
  ::kill(server_->pid(), SIGKILL);
  server_->stop();
  for (int tries = 0; one.transport->connected() && tries < 1000; ++tries)
    std::this_thread::sleep_for(milliseconds(10));
  const auto begin = std::chrono::steady_clock::now();
  const auto without = store.get("k.0");
  ASSERT_FALSE(without.ok());
  EXPECT_EQ(without.error().kind, ErrorKind::unavailable);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, seconds(1)) << "without a server nobody waits";
  server_->start();
  bool whole = false;
  for (int tries = 0; !whole && tries < 1000; ++tries) {
    const auto listed = store.list("k");
    whole = listed.ok() && listed->size() == 50;
    std::this_thread::sleep_for(milliseconds(10));
  }
  EXPECT_TRUE(whole);
  EXPECT_FALSE(store.create("k.7", "y")->has_value());
}

/// The worker over the real store: two of them, one of which is gone without a word.
TEST_F(NatsBatches, WorkersShareABatch) {
  const Connection one(*server_, "one"), two(*server_, "two");
  NatsBatchStore first(*one.transport), second(*two.transport);
  SimPlaces places;
  Duration now{seconds(1000)};
  const auto wall = [&] { return 1'700'000'000 + std::chrono::duration_cast<seconds>(now).count(); };
  SimLines lines_one(places, now, 1), lines_two(places, now, 2);
  std::optional<BatchWorker> worker_one(std::in_place, first, lines_one,
                                        BatchWorkerOptions{.life = "l1", .model = "m"});
  BatchWorker worker_two(second, lines_two, {.life = "l2", .model = "m"});
  BatchApi api(first, {.model = "m", .now = wall, .on_change = {}});
  HttpRequest request;
  request.content_type = "multipart/form-data; boundary=b";
  request.body =
      "--b\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--b\r\nContent-Disposition: "
      "form-data; name=\"file\"; filename=\"f\"\r\n\r\n" +
      batch_file(60, true, true) + "\r\n--b--\r\n";
  const HttpReply uploaded = api.upload(request);
  ASSERT_EQ(uploaded.status, 200) << uploaded.body;
  request.body = nlohmann::json{
      {"input_file_id", nlohmann::json::parse(uploaded.body)["id"]},
      {"endpoint", "/v1/completions"},
      {"completion_window",
       "24h"}}.dump();
  request.parameter = nlohmann::json::parse(api.create_batch(request).body)["id"];
  nlohmann::json batch;
  for (int i = 0; i < 3000 && batch["status"] != "completed"; ++i) {
    now += milliseconds(100);
    if (worker_one && worker_one->counters().committed >= 10) worker_one.reset();
    if (worker_one) worker_one->step(now, wall());
    worker_two.step(now, wall());
    batch = nlohmann::json::parse(api.batch(request).body);
  }
  EXPECT_EQ(batch["status"], "completed") << batch;
  EXPECT_EQ(batch["request_counts"]["completed"], 51);
  EXPECT_EQ(batch["request_counts"]["failed"], 9);
  request.parameter = batch["output_file_id"];
  const auto file = api.find_file(request);
  ASSERT_TRUE(file.ok());
  std::string content;
  while (content.size() < file->bytes) content += *api.read_file(*file, content.size());
  EXPECT_EQ(std::ranges::count(content, '\n'), 51);
  EXPECT_GT(worker_two.counters().taken_over, 0);
  now += seconds(700);
  for (int i = 0; i < 20; ++i) worker_two.step(now += seconds(1), wall());
  for (const char* gone : {"task", "line", "big", "index", "live"}) EXPECT_TRUE(second.list(gone)->empty()) << gone;
}

class BatchRights : public NatsBatches {
 protected:
  std::string identities() override { return "--gateway gate other --node one"; }
};

TEST_F(BatchRights, GatewaysKeepBatchesAndNodesDoNot) {
  Connection gate(*server_, "gate"), other(*server_, "other"), node(*server_, "one");
  NatsBatchStore store(*gate.transport), theirs(*other.transport), its(*node.transport);
  ASSERT_TRUE(store.list("a").ok()) << "the bucket is made";
  ASSERT_TRUE(store.create("a.b", "1")->has_value());
  EXPECT_EQ(theirs.get("a.b")->value().value, "1");
  EXPECT_EQ(theirs.list("a")->size(), 1u);
  EXPECT_TRUE(theirs.erase("a.b").ok());
  EXPECT_TRUE(theirs.create("a.b", "2")->has_value());
  EXPECT_TRUE(theirs.erase_below("a").ok());
  ASSERT_TRUE(store.create("a.b", "3")->has_value());

  for (const char* subject :
       {"$KV.mr_batches.a.b", "$JS.API.STREAM.INFO.KV_mr_batches", "$JS.API.STREAM.MSG.GET.KV_mr_batches",
        "$JS.API.STREAM.PURGE.KV_mr_batches", "$JS.API.STREAM.DELETE.KV_mr_batches",
        "$JS.API.STREAM.UPDATE.KV_mr_batches", "$JS.API.CONSUMER.CREATE.KV_mr_batches",
        "$JS.API.DIRECT.GET.KV_mr_batches.$KV.mr_batches.a.b"}) {
    EXPECT_EQ(natsConnection_PublishString(node.transport->connection(), subject, "x"), NATS_OK);
    EXPECT_TRUE(node.was_told(subject)) << subject;
  }
  node.transport->subscribe("$KV.mr_batches.>", [](std::string_view, std::span<const std::byte>) { FAIL(); });
  EXPECT_TRUE(node.was_told("$KV.mr_batches.>"));
  // What no gateway needs, it may not either; and of the nodes' records it can clear none.
  for (const char* subject : {"$JS.API.STREAM.DELETE.KV_mr_batches", "$JS.API.STREAM.UPDATE.KV_mr_batches",
                              "$JS.API.STREAM.PURGE.KV_mr_nodes", "$KV.mr_nodes.one"}) {
    EXPECT_EQ(natsConnection_PublishString(gate.transport->connection(), subject, "x"), NATS_OK);
    EXPECT_TRUE(gate.was_told(subject)) << subject;
  }
  EXPECT_EQ(store.get("a.b")->value().value, "3");
}

}  // namespace
}  // namespace millrace::test
