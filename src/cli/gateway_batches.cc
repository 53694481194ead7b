#include "cli/gateway_batches.h"

#include <fmt/format.h>

#include <chrono>
#include <utility>

#include "server/api_id.h"

namespace millrace::cli {

namespace {

constexpr std::size_t kLifeLetters = 12;

UnixTime unix_time() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

BatchStartLimit start_limit(const GatewayBatchFlags& flags, BatchHours& hours) {
  if (flags.start != "cheap") return {};
  return [&hours](const StartQuery& query) { return hours.limits(query); };
}

}  // namespace

void add_gateway_batch_flags(CLI::App& command, GatewayBatchFlags& flags) {
  command
      .add_option("--batch-start", flags.start,
                  "When lines of batches begin: in the cheapest hours before their deadline, by the terms of nodes, or "
                  "as soon as places are free")
      ->check(CLI::IsMember({"cheap", "soon"}))
      ->capture_default_str();
}

GatewayBatches::GatewayBatches(const GatewayBatchFlags& flags, const NatsTransport& transport,
                               const std::string& gateway, const ServedModel& model, const EngineAccess& engine,
                               Admission& admission, std::function<void(const std::string&)> on_message, int replicas)
    : model_(model.name()),
      store_(transport, replicas),
      service_(store_, model, engine, admission,
               {.life = fmt::format("{}-{}", gateway, random_letters(kLifeLetters)),
                .model = model_,
                .start_limit = start_limit(flags, hours_),
                .on_message = std::move(on_message)}),
      api_(store_, {.model = model_, .now = unix_time, .on_change = [this] { service_.look_soon(); }}),
      routes_(api_, [&admission](const HttpRequest& request) { return admission.refuse_batches(request); }) {}

void GatewayBatches::watch(const GatewayStreams& streams, const RoutePicker& picker, EventLoop& loop) {
  constexpr auto kLook = std::chrono::milliseconds(250);
  constexpr std::uint64_t kSupplyEvery = 8;  // looks
  const NodeTable& nodes = streams.nodes();
  if (looks_++ % kSupplyEvery == 0) {
    hours_.set_supply(batch_supply(
        nodes, model_, [&](const std::string& node, const NodeModel& model) { return picker.speed(node, model); }));
  }
  service_.set_room(node_room(nodes, model_));
  loop.after(kLook, [this, &streams, &picker, &loop] { watch(streams, picker, loop); });
}

}  // namespace millrace::cli
