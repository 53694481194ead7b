// The routes of files and batches: who may make them, and what an upload that was given up leaves behind.
#include "batches/batch_routes.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>

#include "server/http_answer.h"
#include "sim_batches.h"

namespace millrace::test {
namespace {

using Method = HttpRoute::Method;

/// A store that answers when it is told to.
class SlowStore : public SimBatchStore {
 public:
  Result<std::vector<StoredEntry>> list(const std::string& prefix) override {
    std::unique_lock lock(mutex_);
    ++asked_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return open_; });
    return SimBatchStore::list(prefix);
  }
  Result<std::optional<std::uint64_t>> create(const std::string& key, std::string_view value) override {
    const std::lock_guard lock(mutex_);
    return SimBatchStore::create(key, value);
  }
  Status put(const std::string& key, std::string_view value) override {
    const std::lock_guard lock(mutex_);
    return SimBatchStore::put(key, value);
  }
  void wait_asked(int times) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return asked_ >= times; });
  }
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int asked_ = 0;
  bool open_ = false;
};

const HttpRoute& route(const std::vector<HttpRoute>& routes, Method method, const std::string& path) {
  for (const HttpRoute& one : routes) {
    if (one.method == method && one.path == path) return one;
  }
  ADD_FAILURE() << "no route " << path;
  return routes.front();
}

TEST(BatchRoutes, WhoMayHaveNoBatchesMakesNone) {
  SimBatchStore store;
  BatchApi api(store, {.model = "m", .now = [] { return 1; }, .on_change = {}});
  BatchRoutes batch_routes(api, [](const HttpRequest& request) {
    return request.tenant == "small" ? std::optional(error_reply(403, "no")) : std::nullopt;
  });
  std::vector<HttpRoute> routes;
  batch_routes.add_to(routes);
  HttpRequest request;
  for (const char* path : {"/v1/files", "/v1/batches"}) {
    request.tenant = "small";
    const HttpOutcome refused = route(routes, Method::post, path).handle(request);
    ASSERT_TRUE(std::holds_alternative<HttpReply>(refused)) << path;
    EXPECT_EQ(std::get<HttpReply>(refused).status, 403);
    EXPECT_FALSE(std::holds_alternative<HttpReply>(route(routes, Method::get, path).handle(request))) << path;
    request.tenant = "acme";
    EXPECT_FALSE(std::holds_alternative<HttpReply>(route(routes, Method::post, path).handle(request))) << path;
  }
}

TEST(BatchRoutes, AnUploadThatWasGivenUpIsNotBegun) {
  constexpr int kBusy = 2, kGivenUp = 8;  // as many as there are threads, and what waits behind
  SlowStore store;
  {
    BatchApi api(store, {.model = "m", .now = [] { return 1; }, .on_change = {}});
    BatchRoutes batch_routes(api, {});
    std::vector<HttpRoute> routes;
    batch_routes.add_to(routes);
    const auto upload = [&] {
      HttpRequest request;
      request.content_type = "multipart/form-data; boundary=b";
      request.body =
          "--b\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n"
          "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n{}\r\n--b--\r\n";
      auto answer = std::get<std::unique_ptr<HttpAnswer>>(route(routes, Method::post, "/v1/files").handle(request));
      answer->start([] {});
      return answer;
    };
    std::vector<std::unique_ptr<HttpAnswer>> busy;
    for (int i = 0; i < kBusy; ++i) busy.push_back(upload());
    store.wait_asked(kBusy);
    for (int i = 0; i < kGivenUp; ++i) upload()->cancel();
    store.open();
  }
  EXPECT_EQ(store.kinds()["file"], kBusy);
}

}  // namespace
}  // namespace millrace::test
