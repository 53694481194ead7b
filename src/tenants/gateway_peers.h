// GatewayPeers: which other gateways live, and what they have let through: each says it once a second.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "cluster/timing.h"
#include "cluster/transport.h"
#include "tenants/rate_limit.h"

namespace millrace {

/// By tenant.
using TenantUses = std::map<std::string, TenantUse, std::less<>>;

/// What a gateway says of itself on alive_subject(), as JSON text, and back. `life`: 20 characters, of which later ones
/// of the same gateway are greater.
std::string alive_json(const std::string& life, const TenantUses& uses);
struct AliveMessage {
  std::string life;
  TenantUses uses;
};
Result<AliveMessage> parse_alive(std::string_view json);

/// A life that begins at this Unix time in milliseconds.
std::string new_life(std::uint64_t unix_ms, std::uint32_t lot);

/// One thread: the transport's.
class GatewayPeers {
 public:
  /// `transport` must outlive it. Begins at once.
  GatewayPeers(Transport& transport, std::string gateway, std::string life, const ClusterTiming& timing = {});
  ~GatewayPeers();
  GatewayPeers(const GatewayPeers&) = delete;
  GatewayPeers& operator=(const GatewayPeers&) = delete;

  std::function<TenantUses()> uses;  // of this gateway
  /// Of another one. `first`: it was not heard of before.
  std::function<void(const std::string& gateway, const TenantUses& uses, bool first)> on_heard;
  std::function<void(const std::string& gateway)> on_lost;

  /// Whether this life of a gateway may still be there. False: another life of it was heard of, or nothing for as long
  /// as a node is given; time in which nobody could be heard does not count. Another life of this gateway's own name is
  /// one like others': it may still be ending.
  [[nodiscard]] bool lives(const std::string& gateway, const std::string& life);

  [[nodiscard]] std::int64_t malformed() const { return malformed_; }

 private:
  struct Heard {
    std::string life;
    Duration at{0};
  };

  void tick();
  void say();
  void hear(std::string_view subject, std::span<const std::byte> message);

  Transport* transport_;
  std::string gateway_, life_;
  ClusterTiming timing_;
  std::map<std::string, Heard> heard_;
  std::map<std::string, std::string> gone_;                        // lives that are not heard of any more
  std::map<std::pair<std::string, std::string>, Duration> asked_;  // lives that were asked about before they were heard
  Duration clock_{0};                                              // of this process, while it hears others
  Instant ticked_{0}, connected_{0}, said_{0};
  bool was_connected_ = false;
  std::int64_t malformed_ = 0;
  Transport::TimerId timer_ = 0;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace millrace
