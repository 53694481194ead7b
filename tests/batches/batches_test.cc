// Batches on a virtual clock: gateways are killed between any two changes of the store, calls fail, the store forgets.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

#include "batches/batch_validation.h"
#include "sim_batches.h"

namespace millrace::test {
namespace {

using nlohmann::json;
using std::chrono::hours;
using std::chrono::minutes;
using std::chrono::seconds;

std::vector<json> lines_of(const std::string& content) {
  std::vector<json> lines;
  for (std::size_t at = 0; at < content.size();) {
    const std::size_t end = content.find('\n', at);
    EXPECT_NE(end, std::string::npos) << "a line without an end";
    lines.push_back(json::parse(content.substr(at, end - at)));
    at = end + 1;
  }
  return lines;
}

/// The numbers of the requests c0, c1, … that a file answers, in its order.
std::vector<int> numbers_of(const std::vector<json>& lines) {
  std::vector<int> numbers;
  for (const json& line : lines) numbers.push_back(std::stoi(line["custom_id"].get<std::string>().substr(1)));
  return numbers;
}

/// Each of `count` requests has one answer, in its order, in one file or the other; the answers are right.
void expect_complete(SimBatches& sim, const json& batch, int count) {
  const std::vector<json> good =
      batch["output_file_id"].is_null() ? std::vector<json>() : lines_of(sim.content(batch["output_file_id"]));
  const std::vector<json> bad =
      batch["error_file_id"].is_null() ? std::vector<json>() : lines_of(sim.content(batch["error_file_id"]));
  std::vector<int> numbers = numbers_of(good), others = numbers_of(bad);
  EXPECT_TRUE(std::ranges::is_sorted(numbers));
  EXPECT_TRUE(std::ranges::is_sorted(others));
  for (const json& line : good) {
    EXPECT_EQ(line["response"]["status_code"], 200);
    EXPECT_EQ(line["error"], nullptr);
    EXPECT_EQ(line["response"]["body"]["said"], "say " + line["custom_id"].get<std::string>().substr(1));
  }
  EXPECT_EQ(batch["request_counts"]["completed"], numbers.size());
  EXPECT_EQ(batch["request_counts"]["failed"], others.size());
  EXPECT_EQ(batch["request_counts"]["total"], count);
  numbers.insert(numbers.end(), others.begin(), others.end());
  std::ranges::sort(numbers);
  std::vector<int> all(static_cast<std::size_t>(count));
  std::iota(all.begin(), all.end(), 0);
  EXPECT_EQ(numbers, all);
}

bool has_ended(SimBatches& sim, const std::string& id) {
  const json status = sim.batch(id)["status"];
  return status == "completed" || status == "failed" || status == "expired" || status == "cancelled";
}

TEST(Batches, AreAnsweredInTheOrderOfTheirLines) {
  SimBatches sim(1);
  sim.add_gateways(2);
  const std::string file = sim.upload(batch_file(100, true, true));
  const std::string id = sim.create(file);
  EXPECT_EQ(sim.batch(id)["status"], "validating");
  ASSERT_TRUE(sim.run_until([&] { return sim.batch(id)["status"] == "in_progress"; }, seconds(10)));
  ASSERT_TRUE(sim.run_until([&] { return sim.batch(id)["request_counts"]["completed"] >= 20; }, minutes(10)));
  EXPECT_EQ(sim.ask(&BatchApi::delete_file, file).status, 409) << "it is still read";
  const auto in = [](const BatchWorker::Figures& figures, BatchStatus status) {
    return figures.batches[static_cast<std::size_t>(status)];
  };
  for (const std::size_t gateway : {0, 1}) {
    const BatchWorker::Figures figures = sim.figures(gateway);
    EXPECT_EQ(in(figures, BatchStatus::in_progress), 1);
    EXPECT_GT(figures.left, 0);
    EXPECT_LE(figures.left, 100);
    EXPECT_LE(figures.running, figures.left);
  }
  ASSERT_TRUE(sim.run_until([&] { return has_ended(sim, id); }, minutes(10)));
  const json batch = sim.batch(id);
  EXPECT_EQ(batch["status"], "completed");
  EXPECT_EQ(batch["request_counts"]["failed"], 14);
  expect_complete(sim, batch, 100);
  EXPECT_EQ(sim.counters().started, 100) << "nothing was computed twice";
  EXPECT_EQ(sim.counters().completed, 86);
  EXPECT_EQ(sim.counters().failed, 14);
  EXPECT_TRUE(sim.run_until([&] { return in(sim.figures(0), BatchStatus::completed) == 1; }, minutes(1)));
  EXPECT_EQ(sim.figures(0).left + sim.figures(0).running, 0);
  // In the end nothing is left but the files and the record, and then not even the files.
  ASSERT_TRUE(sim.run_until([&] { return !sim.store.kinds().contains("live"); }, minutes(15)));
  auto kinds = sim.store.kinds();
  EXPECT_EQ(kinds["file"], 3);
  EXPECT_EQ(kinds["batch"], 1);
  for (const char* gone : {"task", "line", "big", "index"}) EXPECT_EQ(kinds.count(gone), 0u) << gone;
  for (const json& id_of : {batch["output_file_id"], batch["error_file_id"], batch["input_file_id"]}) {
    EXPECT_EQ(sim.ask(&BatchApi::delete_file, id_of).status, 200);
  }
  EXPECT_EQ(sim.store.kinds().count("data"), 0u);
}

/// Whatever is killed whenever: each line has its answer once.
TEST(Batches, OutliveGatewaysThatAreKilledAtAnyMoment) {
  BatchWorker::Counters all;
  for (std::uint64_t seed = 1; seed <= 30; ++seed) {
    SCOPED_TRACE(seed);
    SimBatches sim(seed);
    sim.disturbs = true;
    sim.add_gateways(3);
    const std::string id = sim.create(sim.upload(batch_file(120, seed % 2 == 0, seed % 3 == 0)), "7d");
    ASSERT_TRUE(sim.run_until([&] { return has_ended(sim, id); }, hours(10)));
    const json batch = sim.batch(id);
    EXPECT_EQ(batch["status"], "completed");
    expect_complete(sim, batch, 120);
    sim.disturbs = false;
    ASSERT_TRUE(sim.run_until([&] { return !sim.store.kinds().contains("live"); }, hours(1)));
    for (const char* gone : {"task", "line", "big", "index"}) EXPECT_EQ(sim.store.kinds().count(gone), 0u) << gone;
    EXPECT_EQ(sim.places.held, 0);
    for (const auto& [name, times] : sim.places.charged) EXPECT_EQ(times, 1) << name << " whoever answered it";
    all.doubled += sim.counters().doubled;
    all.taken_over += sim.counters().taken_over;
    all.tried_again += sim.counters().tried_again;
  }
  // Else this would have shown nothing.
  EXPECT_GT(all.doubled, 50);
  EXPECT_GT(all.taken_over, 30);
  EXPECT_GT(all.tried_again, 100);
}

/// Nobody is killed, so nobody else takes over what was left half done.
TEST(Batches, OutliveAStoreThatFailsNowAndThen) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    SimBatches sim(seed);
    sim.store_failing = 0.1;
    sim.add_gateways(1);
    const std::string id = sim.create(sim.upload(batch_file(60)), "1h");
    ASSERT_TRUE(sim.run_until([&] { return has_ended(sim, id); }, hours(2)));
    EXPECT_EQ(sim.batch(id)["status"], "completed");
    expect_complete(sim, sim.batch(id), 60);
    EXPECT_EQ(sim.places.held, 0);
    EXPECT_EQ(sim.places.charged.size(), 60u);
    for (const auto& [name, times] : sim.places.charged) EXPECT_EQ(times, 1) << name;
  }
}

TEST(Batches, WaitWhileTheirTenantMayNot) {
  SimBatches sim(4);
  sim.add_gateways(2);
  sim.places.refused = "t";
  const std::string id = sim.create(sim.upload(batch_file(200)));
  const std::string other = sim.create(sim.upload(batch_file(60), "u"), "25h", "u");
  const auto status = [&] { return json::parse(sim.ask(&BatchApi::batch, other, "u").body)["status"]; };
  ASSERT_TRUE(sim.run_until([&] { return status() == "completed"; }, minutes(5))) << "others are served";
  sim.run_until([] { return false; }, minutes(5));
  EXPECT_EQ(sim.batch(id)["status"], "in_progress");
  EXPECT_EQ(sim.batch(id)["request_counts"]["completed"], 0);
  EXPECT_GT(sim.counters().waited, 0);
  EXPECT_LT(sim.counters().waited, 2000) << "it is asked now and then";
  sim.places.refused.clear();
  ASSERT_TRUE(sim.run_until([&] { return has_ended(sim, id); }, minutes(10)));
  EXPECT_EQ(sim.batch(id)["status"], "completed");
  expect_complete(sim, sim.batch(id), 200);
  EXPECT_EQ(sim.counters().tried_again, 0) << "waiting is no try";
}

/// The control: with a store whose create() does not look, the same chaos does write results a second time.
TEST(Batches, WithoutCreateResultsWouldBeTakenTwice) {
  int overwritten = 0;
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    SimBatches sim(seed);
    sim.disturbs = true;
    sim.store.creates_once = false;
    sim.add_gateways(3);
    const std::string id = sim.create(sim.upload(batch_file(120)), "7d");
    sim.run_until([&] { return has_ended(sim, id); }, hours(1));
    overwritten += sim.store.overwritten;
  }
  EXPECT_GT(overwritten, 0);
}

TEST(Batches, APowerCutOfTheStoreCostsWorkAndNothingElse) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    SimBatches sim(seed);
    std::mt19937_64 random(seed);
    sim.add_gateways(2);
    const std::string file = sim.upload(batch_file(80));
    const std::string id = sim.create(file);
    const std::size_t made = sim.store.changes();
    for (int cut = 0; cut < 5; ++cut) {
      sim.run_until([&] { return has_ended(sim, id); }, seconds(std::uniform_int_distribution<>(1, 12)(random)));
      const std::size_t since = sim.store.changes() - made;
      sim.store.forget(std::uniform_int_distribution<std::size_t>(0, since)(random));
    }
    ASSERT_TRUE(sim.run_until([&] { return has_ended(sim, id); }, hours(2)));
    EXPECT_EQ(sim.batch(id)["status"], "completed");
    expect_complete(sim, sim.batch(id), 80);
  }
}

TEST(Batches, ExpireAtTheirDeadline) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    SimBatches sim(seed);
    sim.disturbs = seed % 2 == 0;
    sim.add_gateways(2);
    sim.places.places = 4;
    const std::string id = sim.create(sim.upload(batch_file(200)), "60s");
    ASSERT_TRUE(sim.run_until([&] { return has_ended(sim, id); }, hours(2)));
    const json batch = sim.batch(id);
    EXPECT_EQ(batch["status"], "expired");
    EXPECT_GE(batch["expired_at"], batch["expires_at"]);
    expect_complete(sim, batch, 200);
    EXPECT_GT(batch["request_counts"]["failed"], 0);
    for (const json& line : lines_of(sim.content(batch["error_file_id"]))) {
      EXPECT_EQ(line["response"], nullptr);
      EXPECT_EQ(line["error"]["code"], "batch_expired");
    }
    EXPECT_TRUE(sim.run_until([&] { return sim.places.lines == 0; }, minutes(2))) << "nobody wants it any more";
  }
}

TEST(Batches, AreCancelled) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    SimBatches sim(seed);
    sim.disturbs = seed % 2 == 0;
    sim.add_gateways(2);
    const std::string id = sim.create(sim.upload(batch_file(200)));
    sim.run_until([&] { return false; }, seconds(seed));
    const HttpReply reply = sim.ask(&BatchApi::cancel_batch, id);
    ASSERT_EQ(reply.status, 200) << reply.body;
    EXPECT_EQ(json::parse(reply.body)["status"], "cancelling");
    ASSERT_TRUE(sim.run_until([&] { return has_ended(sim, id); }, hours(2)));
    const json batch = sim.batch(id);
    EXPECT_EQ(batch["status"], "cancelled");
    if (batch["in_progress_at"].is_null()) {
      EXPECT_EQ(batch["output_file_id"], nullptr);
    } else {
      expect_complete(sim, batch, 200);
    }
    EXPECT_EQ(sim.ask(&BatchApi::cancel_batch, id).status, 200) << "again";
  }
}

TEST(Batches, AGatewayThatLeavesHandsOverAtOnce) {
  SimBatches sim(3);
  sim.add_gateways(2);
  const std::string id = sim.create(sim.upload(batch_file(60)));
  ASSERT_TRUE(sim.run_until([&] { return sim.counters().started > 10; }, minutes(1)));
  sim.leave(0);
  const Duration left = sim.now;
  ASSERT_TRUE(sim.run_until([&] { return sim.counters().started >= 61; }, minutes(1)));
  ASSERT_TRUE(sim.run_until([&] { return has_ended(sim, id); }, minutes(10)));
  expect_complete(sim, sim.batch(id), 60);
  EXPECT_LT(sim.now - left, minutes(1));
}

TEST(Batches, LeaveRoomForInteractiveRequests) {
  SimBatches sim(5);
  sim.add_gateways(3);
  sim.places.places = 16;
  const std::string id = sim.create(sim.upload(batch_file(400)));
  ASSERT_TRUE(sim.run_until([&] { return sim.counters().started >= 60; }, minutes(5)));
  EXPECT_LE(sim.places.most_lines, 12 + 2) << "a quarter is kept, but for what rounding up gives away";
  // A burst takes all places: nothing more is begun, and what stands in its way goes back.
  sim.places.interactive = 16;
  sim.run_until([&] { return sim.places.lines == 0; }, seconds(20));
  EXPECT_EQ(sim.places.lines, 0);
  EXPECT_GT(sim.counters().yielded, 0);
  const std::int64_t before = sim.counters().started;
  sim.run_until([] { return false; }, seconds(30));
  EXPECT_EQ(sim.counters().started, before);
  sim.places.interactive = 0;
  ASSERT_TRUE(sim.run_until([&] { return has_ended(sim, id); }, hours(1)));
  expect_complete(sim, sim.batch(id), 400);
}

TEST(Batches, StartWhenThePlannerSaysSo) {
  SimBatches sim(6);
  std::vector<StartQuery> asked;
  sim.start_limit = [&](const StartQuery& query) {
    asked.push_back(query);
    std::vector<std::int64_t> limits;
    for (const WaitingLines& batch : query.batches) limits.push_back(batch.seconds_left <= 600 ? 3 : 0);
    return limits;
  };
  sim.add_gateways(1);
  const std::string id = sim.create(sim.upload(batch_file(40)), "1h");
  sim.run_until([] { return false; }, minutes(45));
  EXPECT_EQ(sim.counters().started, 0);
  ASSERT_FALSE(asked.empty());
  ASSERT_EQ(asked.back().batches.size(), 1u);
  EXPECT_EQ(asked.back().batches[0].lines, 40);
  EXPECT_EQ(asked.back().batches[0].own, 40.0);
  EXPECT_EQ(asked.back().batches[0].sample, 16);
  ASSERT_TRUE(sim.run_until([&] { return has_ended(sim, id); }, minutes(12)));
  EXPECT_EQ(sim.batch(id)["status"], "completed");
  EXPECT_EQ(sim.places.most_lines, 3);
  EXPECT_NEAR(asked.back().batches[0].answer_tokens, 256.0, 1.0);
}

TEST(Batches, FailWhereTheirFileIsNone) {
  SimBatches sim(7);
  sim.add_gateways(1);
  const std::string good = R"({"custom_id":"a","method":"POST","url":"/v1/completions","body":{"prompt":"x"}})";
  const struct {
    std::string content, code;
    json line;
  } cases[] = {
      {"", "empty_file", nullptr},
      {"\n \n", "empty_file", nullptr},
      {good + "\nnot json\n", "invalid_json_line", 2},
      {good + "\n\n" + good, "duplicate_custom_id", 3},
      {R"({"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{}})", "mismatched_endpoint", 1},
      {R"({"custom_id":"a","method":"POST","url":"/v1/completions","body":{"stream":true}})", "invalid_request", 1},
      {good + "\n" + std::string(kMostLineBytes + 1, ' ') + "x", "line_too_long", 2}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.code);
    const std::string id = sim.create(sim.upload(c.content));
    ASSERT_TRUE(sim.run_until([&] { return has_ended(sim, id); }, minutes(1)));
    const json batch = sim.batch(id);
    EXPECT_EQ(batch["status"], "failed");
    ASSERT_EQ(batch["errors"]["data"].size(), 1u) << batch;
    EXPECT_EQ(batch["errors"]["data"][0]["code"], c.code);
    EXPECT_EQ(batch["errors"]["data"][0]["line"], c.line);
  }
  std::string many;
  for (int i = 0; i < 100; ++i) many += "[]\n";
  const std::string id = sim.create(sim.upload(many));
  ASSERT_TRUE(sim.run_until([&] { return has_ended(sim, id); }, minutes(1)));
  EXPECT_EQ(sim.batch(id)["errors"]["data"].size(), kMostProblems);
}

TEST(Batches, OfAModelThatNobodyServesExpireAndAreCancelled) {
  SimBatches sim(21);
  sim.model = "another";
  sim.add_gateways(1);
  const std::string file = sim.upload(batch_file(20));
  const std::string late = sim.create(file, "60s"), unwanted = sim.create(file);
  EXPECT_FALSE(sim.run_until([&] { return has_ended(sim, late); }, seconds(50)));
  EXPECT_EQ(sim.batch(late)["status"], "validating") << "it may be somebody's";
  EXPECT_EQ(sim.ask(&BatchApi::cancel_batch, unwanted).status, 200);
  ASSERT_TRUE(sim.run_until([&] { return has_ended(sim, late) && has_ended(sim, unwanted); }, minutes(1)));
  EXPECT_EQ(sim.batch(late)["status"], "expired");
  EXPECT_EQ(sim.batch(unwanted)["status"], "cancelled");
  EXPECT_EQ(sim.counters().started, 0);
  ASSERT_TRUE(sim.run_until([&] { return !sim.store.kinds().contains("live"); }, minutes(15)));
}

TEST(BatchApi, ForgetsWhatEndedFirst) {
  SimBatches sim(22);
  sim.add_gateways(1);
  BatchApi small(sim.store, {.model = "m", .now = [&] { return sim.wall(); }, .on_change = {}, .max_records = 3});
  const std::string file = sim.upload(batch_file(2));
  std::vector<std::string> ids;
  for (int i = 0; i < 3; ++i) {
    ids.push_back(sim.create(file));
    ASSERT_TRUE(sim.run_until([&] { return has_ended(sim, ids.back()); }, minutes(5)));
  }
  HttpRequest request;
  request.tenant = "t";
  request.body = json{{"input_file_id", file}, {"endpoint", "/v1/completions"}, {"completion_window", "24h"}}.dump();
  EXPECT_EQ(small.create_batch(request).status, 429) << "their results are still there";
  ASSERT_TRUE(sim.run_until([&] { return !sim.store.kinds().contains("live"); }, minutes(15)));
  EXPECT_EQ(small.create_batch(request).status, 200);
  EXPECT_EQ(sim.ask(&BatchApi::batch, ids[0]).status, 404);
  EXPECT_EQ(sim.ask(&BatchApi::batch, ids[1]).status, 200);
  EXPECT_EQ(sim.store.kinds()["batch"], 3);
}

TEST(BatchApi, KeepsTenantsApart) {
  SimBatches sim(8);
  sim.add_gateways(1);
  const std::string file = sim.upload(batch_file(3), "one");
  const std::string id = sim.create(file, "24h", "one");
  for (const auto what : {&BatchApi::file, &BatchApi::delete_file}) EXPECT_EQ(sim.ask(what, file, "two").status, 404);
  for (const auto what : {&BatchApi::batch, &BatchApi::cancel_batch}) EXPECT_EQ(sim.ask(what, id, "two").status, 404);
  HttpRequest request;
  request.tenant = "two";
  request.parameter = file;
  EXPECT_FALSE(sim.api.find_file(request).ok());
  EXPECT_EQ(json::parse(sim.api.list_files(request).body)["data"].size(), 0u);
  EXPECT_EQ(json::parse(sim.api.list_batches(request).body)["data"].size(), 0u);
  EXPECT_NE(sim.create(file, "24h", "two").find("There is no file"), std::string::npos);
  EXPECT_EQ(sim.ask(&BatchApi::file, file, "one").status, 200);
  for (const char* id_of : {"", "*", ">", "a.b", "../x", "a b", "file-none"}) {
    EXPECT_EQ(sim.ask(&BatchApi::file, id_of, "one").status, 404) << id_of;
    EXPECT_EQ(sim.ask(&BatchApi::batch, id_of, "one").status, 404) << id_of;
  }
}

TEST(BatchApi, ListsInPages) {
  SimBatches sim(9);
  std::vector<std::string> ids;
  const std::string file = sim.upload(batch_file(1));
  for (int i = 0; i < 5; ++i) {
    ids.push_back(sim.create(file));
    sim.now += seconds(1);
  }
  HttpRequest request;
  request.tenant = "t";
  std::vector<std::string> seen;
  for (std::string after;;) {
    request.query = "limit=2" + (after.empty() ? "" : "&after=" + after);
    const json page = json::parse(sim.api.list_batches(request).body);
    for (const json& batch : page["data"]) seen.push_back(batch["id"]);
    EXPECT_EQ(page["last_id"], seen.back());
    if (!page["has_more"]) break;
    after = seen.back();
  }
  std::ranges::reverse(seen);
  EXPECT_EQ(seen, ids);
  for (const char* bad : {"limit=0", "limit=101", "limit=x", "after=none", "order=up"}) {
    request.query = bad;
    EXPECT_EQ(sim.api.list_batches(request).status, 400) << bad;
  }
  request.query = "purpose=batch_output";
  EXPECT_EQ(json::parse(sim.api.list_files(request).body)["data"].size(), 0u);
  request.query = "purpose=batch";
  EXPECT_EQ(json::parse(sim.api.list_files(request).body)["data"].size(), 1u);
}

TEST(BatchApi, SaysWhatIsWrong) {
  SimBatches sim(10);
  const std::string file = sim.upload(batch_file(1));
  HttpRequest request;
  request.tenant = "t";
  const auto asked = [&](json changes) {
    json body{{"input_file_id", file}, {"endpoint", "/v1/completions"}, {"completion_window", "24h"}};
    body.update(changes);
    request.body = body.dump();
    const HttpReply reply = sim.api.create_batch(request);
    return reply.status == 200 ? std::string() : json::parse(reply.body)["error"]["param"].dump();
  };
  EXPECT_EQ(asked({{"metadata", {{"a", "b"}}}}), "");
  EXPECT_EQ(asked({{"endpoint", "/v1/embeddings"}}), "\"endpoint\"");
  EXPECT_EQ(asked({{"endpoint", nullptr}}), "\"endpoint\"");
  for (const char* window : {"", "24", "h", "0h", "31d", "1w", "-1h", "99999999999999999999h", "24h "}) {
    EXPECT_EQ(asked({{"completion_window", window}}), "\"completion_window\"") << window;
  }
  EXPECT_EQ(asked({{"input_file_id", "file-none"}}), "\"input_file_id\"");
  EXPECT_EQ(asked({{"metadata", {{"a", 1}}}}), "\"metadata.a\"");
  EXPECT_EQ(asked({{"metadata", {{"a", std::string(513, 'x')}}}}), "\"metadata\"");
  EXPECT_EQ(asked({{"output_expires_after", {{"seconds", 1}}}}), "\"output_expires_after\"");

  request.content_type = "application/json";
  EXPECT_EQ(sim.api.upload(request).status, 400);
  request.content_type = "multipart/form-data; boundary=b";
  const auto form = [](std::string_view name, std::string_view more, std::string_view value) {
    return fmt::format("--b\r\nContent-Disposition: form-data; name=\"{}\"{}\r\n\r\n{}\r\n", name, more, value);
  };
  request.body = form("purpose", "", "batch") + "--b--";
  EXPECT_NE(sim.api.upload(request).body.find("'file'"), std::string::npos);
  request.body = form("purpose", "", "assistants") + form("file", "; filename=\"x\"", "") + "--b--";
  EXPECT_NE(sim.api.upload(request).body.find("purpose"), std::string::npos);
  request.body = form("expires_after[anchor]", "", "x") + "--b--";
  EXPECT_EQ(sim.api.upload(request).status, 400);

  BatchApi small(sim.store, {.model = "m",
                             .now = [] { return 1; },
                             .on_change = {},
                             .max_file_bytes = 10,
                             .max_files = 2,
                             .max_bytes = 1000,
                             .max_batches = 2});
  request.body = form("purpose", "", "batch") + form("file", "; filename=\"x\"", std::string(11, 'x')) + "--b--";
  EXPECT_EQ(small.upload(request).status, 413);
  request.body = form("purpose", "", "batch") + form("file", "; filename=\"x\"", std::string(10, 'x')) + "--b--";
  EXPECT_EQ(small.upload(request).status, 200);
  EXPECT_NE(small.upload(request).body.find("storage_limit_exceeded"), std::string::npos);
  request.body = json{{"input_file_id", file}, {"endpoint", "/v1/completions"}, {"completion_window", "24h"}}.dump();
  EXPECT_EQ(small.create_batch(request).status, 200);
  EXPECT_EQ(small.create_batch(request).status, 429) << "the first one was made above";
}

}  // namespace
}  // namespace millrace::test
