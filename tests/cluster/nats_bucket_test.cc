// Buckets of a real server: written under a condition, and read by those who may only ask.
#include "cluster/nats_bucket.h"

#include <nats/nats.h>

#include <optional>

#include "cluster/nats_bucket_reader.h"
#include "nats_fixture.h"

namespace millrace::test {
namespace {

TEST_F(Nats, ABucketIsWrittenUnderACondition) {
  const auto one = connect("one"), other = connect("other");
  const auto quiet = [](const std::string&) {};
  NatsBucket mine(*one, loop_, {.name = "test", .most_bytes = 100, .makes = true}, quiet);
  NatsBucket theirs(*other, loop_, {.name = "test", .most_bytes = 100, .makes = true}, quiet);
  const auto update = [&](NatsBucket& bucket, const std::string& value, std::uint64_t revision) {
    std::optional<Result<std::uint64_t>> result;
    bucket.update("key", value, revision, [&](const Result<std::uint64_t>& answer) { result = answer; });
    run_until([&] { return result.has_value(); }, seconds(10));
    return result.value_or(fail("no answer"));
  };
  const auto first = update(mine, "a", 0);
  ASSERT_TRUE(first.ok()) << first.error().message;
  const auto again = update(theirs, "b", 0);
  ASSERT_FALSE(again.ok()) << "it is there";
  EXPECT_EQ(again.error().kind, ErrorKind::busy) << again.error().message;
  const auto second = update(theirs, "b", *first);
  ASSERT_TRUE(second.ok()) << second.error().message;
  EXPECT_EQ(update(mine, "c", *first).error().kind, ErrorKind::busy) << "somebody has written meanwhile";
  const auto large = update(mine, std::string(101, 'x'), *second);
  ASSERT_FALSE(large.ok());
  EXPECT_EQ(large.error().kind, ErrorKind::invalid);
  const auto read = [&](const std::string& key) {
    std::optional<std::optional<BucketEntry>> entry;
    mine.get(key,
             [&](const Result<std::optional<BucketEntry>>& answer) { entry = answer.ok() ? *answer : std::nullopt; });
    run_until([&] { return entry.has_value(); }, seconds(10));
    return entry.value_or(std::nullopt);
  };
  ASSERT_TRUE(read("key").has_value());
  EXPECT_EQ(read("key")->value, "b");
  EXPECT_EQ(read("key")->revision, *second);
  EXPECT_FALSE(read("nothing").has_value());
  // What was removed may be made once more, by one alone.
  std::optional<bool> removed;
  mine.remove("key", [&](const Result<std::uint64_t>& result) { removed = result.ok(); });
  EXPECT_TRUE(run_until([&] { return removed.has_value(); }));
  EXPECT_TRUE(update(theirs, "d", 0).ok());
  EXPECT_FALSE(update(mine, "e", 0).ok());
}

TEST_F(Nats, ABucketIsReadByAsking) {
  server_->make_bucket("mr_nodes");
  const auto one = connect("one"), eye = connect("eye");
  NatsRegistry writer(*one, loop_, [](const std::string&) {});
  struct Entry {
    std::string key;
    std::optional<std::string> value;
    std::uint64_t revision;
  };
  std::vector<Entry> seen;
  std::vector<std::string> told;
  const auto read = [&](const std::string& key, std::optional<std::string_view> value, std::uint64_t revision) {
    seen.push_back({key, value ? std::optional<std::string>(*value) : std::nullopt, revision});
  };
  const auto tell = [&](const std::string& message) { told.push_back(message); };
  const NatsBucketReader reader(*eye, loop_, "mr_nodes", read, tell, milliseconds(20));
  const auto announce = [&](std::int64_t places) {
    writer.announce({"one", places, {}}, [](const Result<std::uint64_t>&) {});
  };
  announce(16);
  EXPECT_TRUE(run_until([&] { return seen.size() == 1; }));
  EXPECT_EQ(seen[0].key, "one");
  EXPECT_GT(seen[0].revision, 0u);
  run_until([] { return false; }, milliseconds(200));
  EXPECT_EQ(seen.size(), 1u) << "what has not changed is told once";
  announce(3);
  EXPECT_TRUE(run_until([&] { return seen.size() == 2; }));
  EXPECT_EQ(parse_record(*seen[1].value)->places, 3);
  // As `nats kv del` does.
  natsMsg* message = nullptr;
  ASSERT_EQ(natsMsg_Create(&message, "$KV.mr_nodes.one", nullptr, "", 0), NATS_OK);
  ASSERT_EQ(natsMsgHeader_Set(message, "KV-Operation", "DEL"), NATS_OK);
  EXPECT_EQ(natsConnection_PublishMsg(one->connection(), message), NATS_OK);
  natsMsg_Destroy(message);
  EXPECT_TRUE(run_until([&] { return seen.size() == 3; }));
  EXPECT_FALSE(seen[2].value.has_value());
  const NatsBucketReader nothing(*eye, loop_, "mr_other", read, tell, milliseconds(20));
  EXPECT_TRUE(run_until([&] { return !told.empty(); }));
  EXPECT_TRUE(told.front().starts_with("mr_other can't be read: ")) << told.front();
  run_until([] { return false; }, milliseconds(200));
  EXPECT_EQ(told.size(), 1u) << "once";
}

}  // namespace
}  // namespace millrace::test
