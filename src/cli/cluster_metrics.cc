#include "cli/cluster_metrics.h"

#include <array>
#include <cstdint>
#include <string>
#include <utility>

#include "cluster/cluster_view.h"

namespace millrace::cli {

namespace {

MetricFamily gauge(std::string name, std::string help, double value) {
  return {.name = std::move(name), .help = std::move(help), .values = {{.value = value}}};
}

MetricFamily counter(std::string name, std::string help, std::int64_t value) {
  return {.name = std::move(name),
          .help = std::move(help),
          .is_counter = true,
          .values = {{.value = static_cast<double>(value)}}};
}

using Labelled = std::vector<std::pair<const char*, std::int64_t>>;

MetricFamily labelled(std::string name, std::string help, bool is_counter, std::string label, const Labelled& values) {
  MetricFamily family{
      .name = std::move(name), .help = std::move(help), .is_counter = is_counter, .label_name = std::move(label)};
  for (const auto& [text, value] : values) family.values.push_back({text, static_cast<double>(value)});
  return family;
}

void add_transport(std::vector<MetricFamily>& families, const NatsTransport& transport) {
  const NatsTransport::Counters c = transport.counters();
  families.push_back(
      gauge("millrace:nats_connected", "1 where there is a connection to NATS.", transport.connected() ? 1.0 : 0.0));
  families.push_back(
      labelled("millrace:nats_messages_total",
               "Messages of NATS; unsent: there was no server, dropped: this process was too slow.", true, "what",
               {{"published", c.published}, {"unsent", c.unsent}, {"received", c.received}, {"dropped", c.dropped}}));
}

}  // namespace

std::vector<MetricFamily> gateway_metrics(const GatewayStreams& streams, const NatsTransport& transport) {
  const GatewayStreams::Counters& c = streams.counters();
  std::array<std::int64_t, 4> nodes{};
  for (const auto& [name, node] : streams.nodes().nodes()) ++nodes[static_cast<std::size_t>(node.health)];
  const auto nodes_that_are = [&](NodeHealth health) { return nodes[static_cast<std::size_t>(health)]; };
  const std::int64_t running = streams.running();
  std::vector<MetricFamily> families;
  families.push_back(labelled("millrace:cluster_nodes", "Nodes as this gateway sees them, by state.", false, "state",
                              {{"ready", nodes_that_are(NodeHealth::ready)},
                               {"draining", nodes_that_are(NodeHealth::draining)},
                               {"suspect", nodes_that_are(NodeHealth::suspect)},
                               {"dead", nodes_that_are(NodeHealth::dead)}}));
  families.push_back(
      labelled("millrace:cluster_streams", "Streams; waiting: no node has accepted them yet.", false, "state",
               {{"running", running}, {"waiting", static_cast<std::int64_t>(streams.count()) - running}}));
  families.push_back(labelled("millrace:cluster_ended_streams_total", "Streams that ended, by how.", true, "how",
                              {{"done", c.done}, {"failed", c.failed}, {"cancelled", c.cancelled}}));
  families.push_back(counter("millrace:cluster_placements_total", "Streams that were placed on a node.", c.placements));
  families.push_back(counter("millrace:cluster_placed_again_total",
                             "Placements that were sent again for want of an answer.", c.placed_again));
  families.push_back(
      counter("millrace:cluster_migrations_total", "Streams that left a node which had accepted them.", c.migrations));
  families.push_back(labelled(
      "millrace:cluster_dropped_messages_total",
      "Messages of nodes that were dropped; fenced: of an old attempt, breach: against the "
      "rules.",
      true, "why", {{"fenced", c.fenced}, {"malformed", c.malformed}, {"doubled", c.doubled}, {"breach", c.breaches}}));
  add_transport(families, transport);
  return families;
}

std::vector<MetricFamily> node_metrics(const NodeStreams& streams, const NatsTransport& transport) {
  const NodeStreams::Counters& c = streams.counters();
  std::vector<MetricFamily> families;
  families.push_back(gauge("millrace:node_streams", "Streams that are here.", static_cast<double>(streams.count())));
  families.push_back(counter("millrace:node_placements_total", "Streams that were placed here.", c.placed));
  families.push_back(labelled("millrace:node_ended_streams_total",
                              "Streams that ended here, by how; orphaned: no gateway wanted them any more.", true,
                              "how",
                              {{"completed", c.completed}, {"cancelled", c.cancelled}, {"orphaned", c.orphaned}}));
  families.push_back(labelled("millrace:node_frames_total", "Frames that were sent, and sent again.", true, "what",
                              {{"sent", c.frames}, {"resent", c.resent}}));
  families.push_back(labelled("millrace:node_dropped_messages_total",
                              "Messages of gateways that were dropped; unknown: of a stream that is not here.", true,
                              "why", {{"fenced", c.fenced}, {"malformed", c.malformed}, {"unknown", c.unknown}}));
  add_transport(families, transport);
  return families;
}

}  // namespace millrace::cli
