// Transport: how state machines of the cluster speak to others and to the clock. NATS is one, a simulated network on a
// virtual clock (sim_network.h) another.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace millrace {

/// Times on a transport's own monotonic clock, since it began. Clocks of two machines have nothing in common.
using Instant = std::chrono::nanoseconds;
using Duration = std::chrono::nanoseconds;

/// One thread: whatever is called back is called on it, one at a time, and it alone may call.
class Transport {
 public:
  using Handler = std::function<void(std::string_view subject, std::span<const std::byte> message)>;
  using TimerId = std::uint64_t;

  Transport() = default;
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;
  virtual ~Transport() = default;

  /// Says a message to whoever subscribes, at most kMaxMessage bytes of it. It may arrive late, twice or never, and
  /// behind later ones.
  virtual void publish(std::string_view subject, std::span<const std::byte> message) = 0;

  /// Messages on subjects that match, from now until the transport ends. In a pattern `*` stands for any one part
  /// between dots, `>` at the end for one and more.
  virtual void subscribe(std::string_view pattern, Handler handler) = 0;

  [[nodiscard]] virtual Instant now() const = 0;
  /// Calls once, not earlier than this. Later where the machine is busy or stands still.
  virtual TimerId after(Duration delay, std::function<void()> call) = 0;
  /// Of a timer that has called already: nothing.
  virtual void cancel(TimerId timer) = 0;

  /// Whether there is a server at the moment, as far as is known.
  [[nodiscard]] virtual bool connected() const = 0;
};

constexpr std::size_t kMaxMessage = 512 << 10;

}  // namespace millrace
