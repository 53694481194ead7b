#include "cluster/node_agent.h"

#include <utility>

namespace millrace {

NodeAgent::NodeAgent(Transport& transport, Registry& registry, NodeRecord record, StreamRunner& runner, Load load,
                     std::uint32_t life, const ClusterTiming& timing)
    : transport_(&transport),
      registry_(&registry),
      record_(std::move(record)),
      load_(std::move(load)),
      timing_(timing),
      streams_(transport, record_.node, runner, life, timing) {
  streams_.on_record_asked = [this] {
    if (incarnation_ != 0 && transport_->now() - announced_ >= timing_.beat) announce();  // one gateway asks as another
  };
  beat();
}

NodeAgent::~NodeAgent() {
  transport_->cancel(timer_);
}

void NodeAgent::drain() {
  draining_ = true;
  streams_.drain();
  transport_->cancel(timer_);
  beat();
}

void NodeAgent::announce() {
  if (asked_ || !transport_->connected()) return;
  asked_ = true;
  announced_ = transport_->now();
  registry_->announce(record_, [this](Result<std::uint64_t> incarnation) {
    asked_ = false;
    if (incarnation.ok()) incarnation_ = *incarnation;
  });
}

void NodeAgent::beat() {
  // Again now and then: the registry may have lost what it had.
  if (incarnation_ == 0 || transport_->now() - announced_ >= timing_.announce_every) announce();
  if (incarnation_ != 0) {
    Beat beat{.incarnation = incarnation_, .number = ++beats_, .draining = draining_};
    load_(beat);
    transport_->publish(beat_subject(record_.node), encode(beat));
  }
  timer_ = transport_->after(timing_.beat, [this] { beat(); });
}

}  // namespace millrace
