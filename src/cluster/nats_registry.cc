#include "cluster/nats_registry.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <utility>

namespace millrace {

namespace {

constexpr std::size_t kMostRecord = 64 << 10;  // bytes
constexpr std::size_t kMostName = 256, kMostModels = 16, kMostReason = 1024;
constexpr std::string_view kQuarantine = ".quarantine";

/// What a node says of its speed; where it says nothing, what nodes usually do.
Result<NodeSpeed> parse_speed(const nlohmann::json& model) {
  NodeSpeed speed;
  const auto claim = model.find("speed");
  if (claim == model.end()) return speed;
  const auto read = [&](const char* key, double& value) {
    const auto found = claim->is_object() ? claim->find(key) : claim->end();
    if (!claim->is_object() || found == claim->end() || !found->is_number()) return false;
    value = found->get<double>();
    return std::isfinite(value) && value >= 0.0;
  };
  if (read("prefill", speed.prefill) && read("step", speed.step) &&
      read("step_per_sequence", speed.step_per_sequence)) {
    return speed;
  }
  return fail("the \"speed\" of a model is not three numbers");
}

}  // namespace

std::string record_json(const NodeRecord& record) {
  nlohmann::json models = nlohmann::json::array();
  for (const NodeModel& model : record.models) {
    models.push_back({{"name", model.name},
                      {"numeric_class", model.numeric_class},
                      {"max_tokens", model.max_tokens},
                      {"recipe", model.recipe},
                      {"speed",
                       {{"prefill", model.speed.prefill},
                        {"step", model.speed.step},
                        {"step_per_sequence", model.speed.step_per_sequence}}}});
  }
  return nlohmann::json{{"node", record.node},
                        {"incarnation", record.incarnation},
                        {"places", record.places},
                        {"models", std::move(models)}}
      .dump();
}

Result<NodeRecord> parse_record(std::string_view text) {
  if (text.size() > kMostRecord) return fail("a record of {} bytes, at most {} are allowed", text.size(), kMostRecord);
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  const auto named = [](const nlohmann::json& object, const char* key) -> const std::string* {
    if (!object.is_object()) return nullptr;
    const auto value = object.find(key);
    return value == object.end() ? nullptr : value->get_ptr<const std::string*>();
  };
  const std::string* node = named(json, "node");
  if (node == nullptr) return fail("a record is no JSON object with a \"node\"");
  const auto counted = [](const nlohmann::json& object, const char* key) -> std::int64_t {
    constexpr std::int64_t kMost = std::int64_t{1} << 40;
    const auto value = object.find(key);
    if (value == object.end() || !value->is_number_integer()) return 0;
    return value->is_number_unsigned() && value->get<std::uint64_t>() > static_cast<std::uint64_t>(kMost)
               ? 0
               : std::min(value->get<std::int64_t>(), kMost);
  };
  NodeRecord record{.node = *node, .places = counted(json, "places")};
  if (record.places < 1) return fail("the record of {} has no \"places\"", *node);
  if (const auto incarnation = json.find("incarnation"); incarnation != json.end()) {
    if (!incarnation->is_number_unsigned()) return fail("the \"incarnation\" of {} is no whole number", *node);
    record.incarnation = incarnation->get<std::uint64_t>();
  }
  const auto models = json.find("models");
  if (models == json.end() || !models->is_array()) return fail("the record of {} has no array \"models\"", *node);
  for (const nlohmann::json& model : *models) {
    const std::string *name = named(model, "name"), *numeric_class = named(model, "numeric_class");
    const std::int64_t tokens = model.is_object() ? counted(model, "max_tokens") : 0;
    if (name == nullptr || numeric_class == nullptr || tokens < 1) {
      return fail("a model of {} has no \"name\", \"numeric_class\" or \"max_tokens\"", *node);
    }
    if (name->size() > kMostName || numeric_class->size() > kMostName || record.models.size() == kMostModels) {
      return fail("{} has more than {} models, or one with a name of more than {} bytes", *node, kMostModels,
                  kMostName);
    }
    const std::string* recipe = named(model, "recipe");
    if (recipe != nullptr && recipe->size() > kMostName) return fail("{} has a recipe of a long name", *node);
    NodeModel read{.name = *name, .numeric_class = *numeric_class, .max_tokens = tokens, .speed = {}};
    if (recipe != nullptr) read.recipe = *recipe;
    MILLRACE_TRY(read.speed, parse_speed(model));
    record.models.push_back(std::move(read));
  }
  return record;
}

namespace {

/// Grows from process to process of an identity, if its machine's clock does. Where that went back, the registry's
/// order still counts (NodeTable).
std::uint64_t microseconds_since_epoch() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(now).count());
}

}  // namespace

std::string quarantine_key(std::string_view node) {
  return std::string(node) + std::string(kQuarantine);
}

Result<std::pair<std::string, TermsNews>> parse_operator_entry(std::string_view key,
                                                               const std::optional<std::string>& value) {
  if (key.ends_with(kQuarantine)) {
    return std::pair<std::string, TermsNews>(key.substr(0, key.size() - kQuarantine.size()),
                                             Quarantine{value.value_or("")});
  }
  auto terms = value ? parse_terms(*value) : Result<NodeTerms>(NodeTerms{});
  if (!terms.ok()) return fail("the terms of {} are not used: {}", key, terms.error().message);
  return std::pair<std::string, TermsNews>(key, *std::move(terms));
}

NatsRegistry::NatsRegistry(NatsTransport& transport, EventLoop& loop,
                           std::function<void(const std::string&)> on_message, RegistryRole role, int replicas)
    : transport_(&transport),
      incarnation_(microseconds_since_epoch()),
      on_message_(on_message),
      nodes_(transport, loop,
             {.name = kNodesBucket,
              .most_bytes = kMostRecord,
              .makes = role == RegistryRole::gateway,
              .replicas = replicas,
              .silent = true},
             on_message),
      operator_(transport, loop, {kOperatorBucket, kMostRecord, role == RegistryRole::gateway, replicas}, on_message) {}

void NatsRegistry::announce(const NodeRecord& record, std::function<void(Result<std::uint64_t>)> done) {
  NodeRecord own = record;
  own.incarnation = incarnation_;
  const std::string json = record_json(own);
  if (json.size() > kMostRecord) {
    done(fail("a record of {} bytes, at most {} are allowed", json.size(), kMostRecord));
    return;
  }
  transport_->publish(fmt::format("$KV.{}.{}", kNodesBucket, record.node), std::as_bytes(std::span(json)));
  done(incarnation_);
}

void NatsRegistry::watch(Watcher watcher) {
  nodes_.watch([this, watcher = std::move(watcher)](const BucketEntry& entry) {
    if (entry.key.empty()) return;
    if (!entry.value) {
      watcher(entry.key, nullptr, entry.revision);
      return;
    }
    auto record = parse_record(*entry.value);
    if (record.ok() && record->node != entry.key) {
      record = fail("the record of {} stands under the key {}", record->node, entry.key);
    }
    if (record.ok()) {
      watcher(entry.key, &*record, record->incarnation);
    } else {
      on_message_(record.error().message);
    }
  });
}

void NatsRegistry::watch_terms(TermsWatcher watcher) {
  operator_.watch([this, watcher = std::move(watcher)](const BucketEntry& entry) {
    if (entry.key.empty()) return;
    const auto news = parse_operator_entry(entry.key, entry.value);
    if (news.ok()) {
      watcher(news->first, news->second);
    } else {
      on_message_(news.error().message);
    }
  });
}

void NatsRegistry::quarantine(const std::string& node, const std::string& reason) {
  operator_.put(quarantine_key(node), reason.substr(0, kMostReason), [](const Result<std::uint64_t>& /*revision*/) {});
}

}  // namespace millrace
