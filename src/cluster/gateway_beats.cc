#include "cluster/gateway_beats.h"

#include <utility>

namespace millrace {

GatewayBeats::GatewayBeats(Transport& transport, std::string gateway, std::uint32_t life, Load load,
                           const ClusterTiming& timing)
    : transport_(&transport), gateway_(std::move(gateway)), life_(life), load_(std::move(load)), timing_(timing) {
  beat();
}

GatewayBeats::~GatewayBeats() {
  transport_->cancel(timer_);
}

void GatewayBeats::beat() {
  GateBeat beat{.life = life_, .number = ++beats_};
  load_(beat);
  transport_->publish(gate_subject(gateway_), encode(beat));
  timer_ = transport_->after(timing_.beat, [this] { this->beat(); });
}

}  // namespace millrace
