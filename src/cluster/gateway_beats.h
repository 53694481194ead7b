// GatewayBeats: a gateway says every second that it is there and what it does, for people who look.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "cluster/messages.h"
#include "cluster/timing.h"
#include "cluster/transport.h"

namespace millrace {

/// One thread: the transport's.
class GatewayBeats {
 public:
  using Load = std::function<void(GateBeat&)>;

  /// `life`: drawn by lot at each start. `transport` and what `load` uses must outlive it.
  GatewayBeats(Transport& transport, std::string gateway, std::uint32_t life, Load load,
               const ClusterTiming& timing = {});
  ~GatewayBeats();
  GatewayBeats(const GatewayBeats&) = delete;
  GatewayBeats& operator=(const GatewayBeats&) = delete;

 private:
  void beat();

  Transport* transport_;
  std::string gateway_;
  std::uint32_t life_;
  Load load_;
  ClusterTiming timing_;
  std::uint64_t beats_ = 0;
  Transport::TimerId timer_ = 0;
};

}  // namespace millrace
