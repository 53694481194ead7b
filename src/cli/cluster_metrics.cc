#include "cli/cluster_metrics.h"

#include <array>
#include <cstdint>
#include <optional>
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
  std::int64_t quarantined = 0;
  for (const auto& [name, node] : streams.nodes().nodes()) {
    ++nodes[static_cast<std::size_t>(node.health)];
    quarantined += node.quarantine.empty() ? 0 : 1;
  }
  const auto nodes_that_are = [&](NodeHealth health) { return nodes[static_cast<std::size_t>(health)]; };
  const std::int64_t running = streams.running();
  std::vector<MetricFamily> families;
  families.push_back(labelled("millrace:cluster_nodes", "Nodes as this gateway sees them, by state.", false, "state",
                              {{"ready", nodes_that_are(NodeHealth::ready)},
                               {"draining", nodes_that_are(NodeHealth::draining)},
                               {"suspect", nodes_that_are(NodeHealth::suspect)},
                               {"dead", nodes_that_are(NodeHealth::dead)}}));
  families.push_back(gauge("millrace:cluster_quarantined_nodes",
                           "Nodes that get no streams because an operator or an audit said so.",
                           static_cast<double>(quarantined)));
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
  families.push_back(counter("millrace:cluster_slow_moves_total",
                             "Migrations from a node that was slower than the request's objectives.", c.slo_moves));
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
  families.push_back(
      counter("millrace:node_refused_placements_total", "Placements that nothing was begun of.", c.refused));
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

void add_hedges(std::vector<MetricFamily>& families, const GatewayEngine::Counters& hedges) {
  families.push_back(counter("millrace:hedges_started_total",
                             "Requests that a second node was asked for, as no token had come.", hedges.hedged));
  families.push_back(counter("millrace:hedges_won_total",
                             "Of these, those that the second node answered: first, or because the other could not.",
                             hedges.won));
}

void add_tenants(std::vector<MetricFamily>& families, const std::map<std::string, TenantFigures>& tenants) {
  const auto add = [&](const char* name, const char* help, bool is_counter, const auto& value) {
    MetricFamily family{.name = name, .help = help, .is_counter = is_counter, .label_name = "tenant"};
    for (const auto& [tenant, figures] : tenants) {
      if (const std::optional<double> number = value(figures)) family.values.push_back({tenant, *number});
    }
    if (!family.values.empty()) families.push_back(std::move(family));
  };
  using Number = std::optional<double>;
  const auto count = [](std::int64_t number) { return Number(static_cast<double>(number)); };
  add("millrace:tenant_admitted_requests_total", "Requests that an answer was begun for.", true,
      [&](const TenantFigures& f) { return count(f.tally.admitted); });
  add("millrace:tenant_replayed_requests_total",
      "Requests that were told the answer to an earlier one with the same Idempotency-Key.", true,
      [&](const TenantFigures& f) { return count(f.tally.replayed); });
  MetricFamily refused{.name = "millrace:tenant_refused_requests_total",
                       .help = "Requests that were refused, by why.",
                       .is_counter = true,
                       .label_name = "tenant"};
  for (const auto& [tenant, figures] : tenants) {
    for (std::size_t why = 0; why < kTenantRefusals; ++why) {
      const std::string reason(tenant_refusal_name(static_cast<TenantRefusal>(why)));
      refused.values.push_back({tenant, static_cast<double>(figures.tally.refused[why]), {{"reason", reason}}});
    }
  }
  if (!refused.values.empty()) families.push_back(std::move(refused));
  add("millrace:tenant_running_requests", "Requests that run here.", false,
      [&](const TenantFigures& f) { return count(f.running); });
  add("millrace:tenant_tokens_total", "Tokens of prompts and answers, without those of batches.", true,
      [&](const TenantFigures& f) { return count(f.tally.tokens); });
  add("millrace:tenant_charged_usd_total", "Dollars charged for what this gateway answered, batches included.", true,
      [](const TenantFigures& f) { return Number(usd(f.tally.charged)); });
  // Of tenants with a limit of spending: others have no ledger that is read.
  add("millrace:tenant_spent_usd", "Dollars spent in this period at all gateways, as the ledger was read last.", false,
      [](const TenantFigures& f) { return f.limit ? Number(usd(f.spent)) : std::nullopt; });
  add("millrace:tenant_limit_usd", "Dollars that may be spent in a period.", false,
      [](const TenantFigures& f) { return f.limit ? Number(usd(*f.limit)) : std::nullopt; });
  add("millrace:tenant_lease_usd", "Dollars lent to this gateway that requests may still reserve.", false,
      [](const TenantFigures& f) { return f.limit ? Number(usd(f.free)) : std::nullopt; });
  add("millrace:tenant_reserved_usd", "Dollars that requests which run here may cost at most.", false,
      [](const TenantFigures& f) { return f.limit ? Number(usd(f.reserved)) : std::nullopt; });
}

void add_audits(std::vector<MetricFamily>& families, const Auditor::Counters& audits, std::size_t open) {
  families.push_back(labelled("millrace:audits_total",
                              "Parts of answers that were chosen for audits, by what came of them; judged: scored and "
                              "added to the node's test, control: of a trusted node, the others tell nothing.",
                              true, "outcome",
                              {{"judged", audits.judged},
                               {"control", audits.controls},
                               {"early", audits.early},
                               {"no_reference", audits.no_reference},
                               {"unscorable", audits.unscorable},
                               {"crowded", audits.crowded},
                               {"failed", audits.failed}}));
  families.push_back(counter("millrace:audit_alarms_total", "Nodes that were found to lie.", audits.alarms));
  families.push_back(
      gauge("millrace:audit_streams", "Streams that run for the sake of audits.", static_cast<double>(open)));
}

void add_batches(std::vector<MetricFamily>& families, const BatchWorker::Figures& batches) {
  const BatchWorker::Counters& c = batches.counters;
  MetricFamily by_status{.name = "millrace:batches",
                         .help = "Batches of all gateways, by status; ended ones are cleared away after a while.",
                         .label_name = "status"};
  for (std::size_t status = 0; status < kBatchStatuses; ++status) {
    const std::string name(batch_status_name(static_cast<BatchStatus>(status)));
    by_status.values.push_back({name, static_cast<double>(batches.batches[status])});
  }
  families.push_back(std::move(by_status));
  families.push_back(gauge("millrace:batch_lines_left",
                           "Lines without a result of batches in progress, at all gateways, as this one knows.",
                           static_cast<double>(batches.left)));
  families.push_back(gauge("millrace:batch_lines_running", "Lines that this gateway has begun and not answered.",
                           static_cast<double>(batches.running)));
  families.push_back(labelled("millrace:batch_results_total", "Results of lines that this gateway has stored.", true,
                              "outcome", {{"completed", c.completed}, {"failed", c.failed}}));
  families.push_back(
      labelled("millrace:batch_lines_total",
               "What became of lines here; tried_again: after an error, yielded: taken back for "
               "interactive requests, waited: their tenant might not have them, doubled: stored already.",
               true, "what",
               {{"started", c.started},
                {"tried_again", c.tried_again},
                {"yielded", c.yielded},
                {"waited", c.waited},
                {"doubled", c.doubled}}));
  families.push_back(labelled("millrace:batch_tasks_total",
                              "Tasks of batches; taken_over: of these, from a gateway that was gone, lost: to another.",
                              true, "what", {{"claimed", c.claimed}, {"taken_over", c.taken_over}, {"lost", c.lost}}));
}

}  // namespace millrace::cli
