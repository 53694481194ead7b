// HttpAnswer: the seam between the transport and what produces an answer over time.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "server/http_message.h"

namespace millrace {

/// An answer that takes time. One connection owns it and calls it from one thread, except that start() is told a `wake`
/// that may be called from any thread.
class HttpAnswer {
 public:
  /// What is there to be sent now.
  struct Piece {
    std::string bytes;               // of a stream; may be empty
    std::optional<HttpReply> whole;  // of an answer that is no stream, when it is complete
    bool last = false;               // nothing comes after this
    bool broken = false;             // it cannot go on: the connection is cut, so that nobody takes what came for all
  };

  virtual ~HttpAnswer() = default;  // cancels what has not ended

  /// A stream is sent as 200 text/event-stream in pieces as they come; otherwise one reply is awaited.
  [[nodiscard]] virtual bool is_stream() const = 0;
  /// Not empty: the stream is a file of this type. Its head is sent with its first bytes, and until then pull() may
  /// still give a `whole` instead.
  [[nodiscard]] virtual std::string_view file_type() const { return {}; }
  /// Begins. A value: it was refused, and this is the answer. `wake` says that pull() has something new; it does not
  /// block and is not called any more once the answer is cancelled or gone.
  virtual std::optional<HttpReply> start(std::function<void()> wake) = 0;
  /// What came since the last call. Is called again only when what it returned is written, so that a slow reader is
  /// felt here.
  virtual Piece pull() = 0;
  /// Whether it is settled, after start(), that it will be answered. As long as it is not, nothing is sent, and pull()
  /// may give a `whole` refusal of a stream too.
  [[nodiscard]] virtual bool accepted() const { return true; }
  /// Further headers of a stream that was accepted; no line breaks in them.
  [[nodiscard]] virtual std::vector<std::pair<std::string, std::string>> headers() const { return {}; }
  /// Once it has ended: whether it did so without an answer that is worth anything.
  [[nodiscard]] virtual bool failed() const { return false; }
  /// The client has gone or the server must end.
  virtual void cancel() = 0;
  [[nodiscard]] virtual TokenUse use() const = 0;
};

/// What a handler makes of a request.
using HttpOutcome = std::variant<HttpReply, std::unique_ptr<HttpAnswer>>;

}  // namespace millrace
