// SharedAnswer: one answer that several connections read, each from its beginning. It goes on when they have left.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "cluster/event_loop.h"
#include "server/http_answer.h"
#include "tenants/once.h"

namespace millrace {

class SharedAnswer : public std::enable_shared_from_this<SharedAnswer> {
 public:
  /// How far one of its readers has come. `wake` may be called from any thread.
  struct Reader {
    std::uint64_t offset = 0;
    std::function<void()> wake;
  };

  /// Bytes that answers hold for those who come later.
  using Held = std::shared_ptr<std::atomic<std::int64_t>>;

  /// All of it is held from its beginning on, up to kMaxOnceAnswer and as long as all answers together hold no more
  /// than `most_held`; then what all readers have read is dropped.
  SharedAnswer(EventLoop& loop, std::unique_ptr<HttpAnswer> inner, Held held, std::int64_t most_held);
  /// One that is complete; it counts as held as long as somebody reads it.
  SharedAnswer(EventLoop& loop, OnceAnswer kept, Held held);
  ~SharedAnswer();
  SharedAnswer(const SharedAnswer&) = delete;
  SharedAnswer& operator=(const SharedAnswer&) = delete;

  // On the loop.

  /// Begins. A value: it was refused. `on_end`: once, when all of it is there.
  std::optional<HttpReply> start(std::function<void()> on_end);
  void cancel();
  [[nodiscard]] const HttpAnswer* inner() const { return inner_.get(); }
  /// The whole answer; none where it was too long, or failed.
  [[nodiscard]] std::optional<OnceAnswer> kept() const;

  // Any thread.

  /// False: what came first is not there any more.
  bool join(const std::shared_ptr<Reader>& reader);
  void leave(const std::shared_ptr<Reader>& reader);
  [[nodiscard]] bool has_readers() const;
  HttpAnswer::Piece read(Reader& reader);
  [[nodiscard]] bool is_stream() const { return stream_; }
  /// As HttpAnswer has it.
  [[nodiscard]] bool accepted() const;
  /// Once it has ended here; -1 before, and of one that was kept.
  [[nodiscard]] TokenUse use() const;

 private:
  void pump();
  void pump_soon();
  [[nodiscard]] bool may_resume();
  [[nodiscard]] std::uint64_t unread() const;
  void drop_read();
  void hold(std::size_t bytes);

  EventLoop* loop_;
  Held all_held_;
  std::int64_t most_held_ = 0;
  bool stream_;
  std::unique_ptr<HttpAnswer> inner_;
  std::function<void()> on_end_;
  bool ended_ = false;

  mutable std::mutex mutex_;  // guards all below
  bool keep_ = true;
  std::int64_t held_ = 0;  // of all_held_
  std::string bytes_;      // of a stream, from `base_` on
  std::uint64_t base_ = 0;
  std::optional<HttpReply> whole_;
  bool accepted_ = false, last_ = false, paused_ = false;
  TokenUse use_;
  std::vector<std::shared_ptr<Reader>> readers_;
};

}  // namespace millrace
