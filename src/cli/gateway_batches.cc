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

}  // namespace

GatewayBatches::GatewayBatches(const NatsTransport& transport, const std::string& gateway, const ServedModel& model,
                               const EngineAccess& engine, Admission& admission,
                               std::function<void(const std::string&)> on_message, int replicas)
    : model_(model.name()),
      store_(transport, replicas),
      service_(store_, model, engine, admission,
               {.life = fmt::format("{}-{}", gateway, random_letters(kLifeLetters)),
                .model = model_,
                .on_message = std::move(on_message)}),
      api_(store_, {.model = model_, .now = unix_time, .on_change = [this] { service_.look_soon(); }}),
      routes_(api_, [&admission](const HttpRequest& request) { return admission.refuse_batches(request); }) {}

void GatewayBatches::watch(const GatewayStreams& streams, EventLoop& loop) {
  constexpr auto kLook = std::chrono::milliseconds(250);
  service_.set_room(node_room(streams.nodes(), model_));
  loop.after(kLook, [this, &streams, &loop] { watch(streams, loop); });
}

}  // namespace millrace::cli
