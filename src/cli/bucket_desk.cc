#include "cli/bucket_desk.h"

#include <chrono>
#include <utility>

namespace millrace::cli {

namespace {

constexpr auto kPatience = std::chrono::seconds(10);  // with a server that does not answer
constexpr auto kLook = std::chrono::milliseconds(5);

}  // namespace

Result<std::unique_ptr<BucketDesk>> BucketDesk::open(const NatsOptions& options, BucketOptions bucket) {
  auto desk = std::make_unique<BucketDesk>();
  MILLRACE_CHECK_OK(desk->connect(options));
  const auto hear = [desk = desk.get()](const std::string& message) { desk->told_ = message; };
  desk->bucket_ = std::make_unique<NatsBucket>(*desk->transport_, desk->loop_, std::move(bucket), hear);
  return desk;
}

/// Until there is a connection: a bucket that is asked before refuses.
Status BucketDesk::connect(const NatsOptions& options) {
  MILLRACE_TRY(transport_,
               NatsTransport::connect(options, loop_, [this](const std::string& message) { told_ = message; }));
  transport_->when_given_up([this](const std::string& why) {
    told_ = why;
    loop_.stop();
  });
  EventLoop::TimerId timer = 0;
  std::function<void()> look = [this, &look, &timer] {
    if (transport_->connected()) {
      loop_.stop();
    } else {
      timer = loop_.after(kLook, look);
    }
  };
  timer = loop_.after(Duration{0}, look);
  const Status status = wait([this] { return transport_->connected(); });
  loop_.cancel(timer);
  return status;
}

Result<std::optional<BucketEntry>> BucketDesk::get(const std::string& key) {
  const auto result = std::make_shared<std::optional<Result<std::optional<BucketEntry>>>>();
  bucket_->get(key, [this, result](const Result<std::optional<BucketEntry>>& answer) {
    *result = answer;
    loop_.stop();
  });
  MILLRACE_CHECK_OK(wait([&] { return result->has_value(); }));
  return **result;
}

Result<std::map<std::string, BucketEntry>> BucketDesk::read() {
  bucket_->watch([this](const BucketEntry& entry) {
    if (entry.key.empty()) {
      complete_ = true;
      loop_.stop();
    } else {
      entries_[entry.key] = entry;
    }
  });
  MILLRACE_CHECK_OK(wait([this] { return complete_; }));
  return entries_;
}

Status BucketDesk::put(const std::string& key, const std::string& value, std::uint64_t revision) {
  return written([&](const NatsBucket::Written& done) { bucket_->update(key, value, revision, done); });
}

Status BucketDesk::remove(const std::string& key) {
  return written([&](const NatsBucket::Written& done) { bucket_->remove(key, done); });
}

Status BucketDesk::written(const std::function<void(const NatsBucket::Written&)>& write) {
  const auto result = std::make_shared<std::optional<Result<std::uint64_t>>>();
  write([this, result](const Result<std::uint64_t>& answer) {
    *result = answer;
    loop_.stop();
  });
  MILLRACE_CHECK_OK(wait([&] { return result->has_value(); }));
  if (!(*result)->ok()) return (*result)->error();
  return Ok{};
}

Status BucketDesk::wait(const std::function<bool()>& done) {
  const EventLoop::TimerId timer = loop_.after(kPatience, [this] { loop_.stop(); });
  loop_.run();
  loop_.cancel(timer);
  if (done()) return Ok{};
  return fail("NATS has not answered{}{}", told_.empty() ? "" : ": ", told_);
}

}  // namespace millrace::cli
