#include "tenants/gateway_peers.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "cluster/subjects.h"

namespace millrace {

namespace {

using nlohmann::json;

constexpr std::size_t kLifeDigits = 20, kMostTenants = 4096;
constexpr std::size_t kMostAsked = 4096;
constexpr Duration kMostStep = std::chrono::seconds(1);  // that counts between two looks: it may have been stopped
constexpr Duration kSettle = std::chrono::seconds(3);    // after the server was away others need to find it

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

}  // namespace

std::string new_life(std::uint64_t unix_ms, std::uint32_t lot) {
  return fmt::format("{:012x}{:08x}", unix_ms & 0xffffffffffffULL, lot);
}

std::string alive_json(const std::string& life, const TenantUses& uses) {
  json object = json::object();
  for (const auto& [tenant, use] : uses) {
    if (object.size() == kMostTenants) break;
    object[tenant] = {use.requests, use.tokens, use.concurrent};
  }
  return json{{"life", life}, {"use", std::move(object)}}.dump();
}

Result<AliveMessage> parse_alive(std::string_view text) {
  if (text.size() > kMaxMessage) return fail("{} bytes", text.size());
  const json object = json::parse(text, nullptr, false);
  if (!object.is_object()) return fail("no JSON object");
  const auto life = object.find("life"), uses = object.find("use");
  if (life == object.end() || !life->is_string() || life->get_ref<const std::string&>().size() != kLifeDigits) {
    return fail("no \"life\"");
  }
  if (uses == object.end() || !uses->is_object() || uses->size() > kMostTenants) return fail("no \"use\"");
  AliveMessage message{.life = life->get<std::string>(), .uses = {}};
  for (const auto& [tenant, use] : uses->items()) {
    const auto is_count = [](const json& count) { return count.is_number_integer() && count >= 0; };
    if (!is_cluster_name(tenant) || !use.is_array() || use.size() != 3 || !std::ranges::all_of(use, is_count)) {
      return fail("a \"use\" that is none");
    }
    message.uses[tenant] = {use[0].get<std::uint64_t>(), use[1].get<std::uint64_t>(), use[2].get<std::int64_t>()};
  }
  return message;
}

GatewayPeers::GatewayPeers(Transport& transport, std::string gateway, std::string life, const ClusterTiming& timing)
    : transport_(&transport), gateway_(std::move(gateway)), life_(std::move(life)), timing_(timing) {
  ticked_ = connected_ = transport_->now();
  transport_->subscribe("mr.alive.*", [this, alive = alive_](std::string_view subject, auto message) {
    if (*alive) hear(subject, message);
  });
  // Not from within this call: what is said comes from `uses`, which is set later.
  timer_ = transport_->after(Duration{0}, [this] { tick(); });
}

GatewayPeers::~GatewayPeers() {
  *alive_ = false;
  transport_->cancel(timer_);
}

void GatewayPeers::tick() {
  const Instant now = transport_->now();
  const bool connected = transport_->connected();
  if (connected && !was_connected_) connected_ = now;
  was_connected_ = connected;
  const Duration step = std::min(now - std::exchange(ticked_, now), kMostStep);
  if (connected && now - connected_ >= kSettle) clock_ += step;
  if (connected && (said_ == Instant{0} || now - said_ >= timing_.beat)) {
    said_ = now;
    say();
  }
  std::vector<std::string> lost;
  for (const auto& [gateway, heard] : heard_) {
    if (clock_ - heard.at >= timing_.dead) lost.push_back(gateway);
  }
  for (const std::string& gateway : lost) {
    gone_[gateway] = heard_[gateway].life;
    heard_.erase(gateway);
    if (on_lost) on_lost(gateway);
  }
  timer_ = transport_->after(timing_.look, [this] { tick(); });
}

void GatewayPeers::say() {
  transport_->publish(alive_subject(gateway_), bytes_of(alive_json(life_, uses ? uses() : TenantUses())));
}

void GatewayPeers::hear(std::string_view subject, std::span<const std::byte> message) {
  const std::string gateway(alive_sender(subject));
  const auto said = parse_alive({reinterpret_cast<const char*>(message.data()), message.size()});
  if (gateway == gateway_ && said.ok() && said->life == life_) return;
  if (gateway.empty() || !said.ok()) {
    ++malformed_;
    return;
  }
  const auto [found, first] = heard_.try_emplace(gateway);
  Heard& heard = found->second;
  if (said->life < heard.life) return;  // it comes late
  heard = {said->life, clock_};
  gone_.erase(gateway);
  asked_.erase({gateway, said->life});
  if (on_heard) on_heard(gateway, said->uses, first);
}

bool GatewayPeers::lives(const std::string& gateway, const std::string& life) {
  if (gateway == gateway_ && life == life_) return true;
  const auto heard = heard_.find(gateway);
  if (heard != heard_.end() && heard->second.life == life) return true;
  if (heard != heard_.end() && heard->second.life > life) return false;
  if (const auto gone = gone_.find(gateway); gone != gone_.end() && gone->second >= life) return false;
  // Not heard of: this gateway may not have listened for long enough, or that one may just begin.
  if (asked_.size() >= kMostAsked) asked_.clear();
  const auto asked = asked_.try_emplace({gateway, life}, clock_).first;
  return clock_ - asked->second < timing_.dead;
}

}  // namespace millrace
