#include "cluster/terms.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

namespace millrace {

namespace {

using nlohmann::json;

constexpr std::size_t kMostText = 64 << 10, kMostName = 64, kMostLabels = 16;

Status read_number(const json& object, const char* key, double least, double most, double& value) {
  const auto found = object.find(key);
  if (found == object.end()) return Ok{};
  const double number = found->is_number() ? found->get<double>() : std::nan("");
  if (!(number >= least && number <= most)) return fail("\"{}\": expected a number of {} to {}", key, least, most);
  value = number;
  return Ok{};
}

Status read_text(const json& object, const char* key, std::size_t most, std::string& value) {
  const auto found = object.find(key);
  if (found == object.end()) return Ok{};
  if (!found->is_string() || found->get_ref<const std::string&>().size() > most) {
    return fail("\"{}\": expected a text of at most {} bytes", key, most);
  }
  value = found->get<std::string>();
  return Ok{};
}

Status check_keys(const json& object, std::initializer_list<std::string_view> known) {
  for (const auto& [key, value] : object.items()) {
    if (std::ranges::find(known, key) == known.end()) return fail("\"{}\": no such key", key);
  }
  return Ok{};
}

Result<Tariff> read_tariff(const json& object) {
  constexpr double kMostOffset = 24.0, kMostPrice = 100.0;
  Tariff tariff;
  if (object.is_number()) {  // the same at all hours
    const double price = object.get<double>();
    if (!(std::abs(price) <= kMostPrice)) return fail("\"tariff\": expected up to {} $/kWh", kMostPrice);
    tariff.name = "flat";
    tariff.usd_per_kwh.fill(price);
    return tariff;
  }
  if (!object.is_object()) return fail("\"tariff\": expected $/kWh, or an object with \"usd_per_kwh\"");
  MILLRACE_CHECK_OK(check_keys(object, {"name", "utc_offset_h", "usd_per_kwh"}));
  tariff.name.clear();
  MILLRACE_CHECK_OK(read_text(object, "name", kMostName, tariff.name));
  MILLRACE_CHECK_OK(read_number(object, "utc_offset_h", -kMostOffset, kMostOffset, tariff.utc_offset_hours));
  const auto prices = object.find("usd_per_kwh");
  if (prices == object.end() || !prices->is_array() || prices->size() != tariff.usd_per_kwh.size()) {
    return fail("\"usd_per_kwh\": expected 24 prices, from the local hour 0 on");
  }
  for (std::size_t hour = 0; hour < prices->size(); ++hour) {
    const json& price = (*prices)[hour];
    if (!price.is_number() || !(std::abs(price.get<double>()) <= kMostPrice)) {
      return fail("\"usd_per_kwh\": hour {} is no number up to {}", hour, kMostPrice);
    }
    tariff.usd_per_kwh[hour] = price.get<double>();
  }
  return tariff;
}

}  // namespace

std::string terms_json(const NodeTerms& terms) {
  json object{{"usd_per_hour", terms.usd_per_hour},
              {"busy_watts", terms.busy_watts},
              {"idle_watts", terms.idle_watts},
              {"pue", terms.pue},
              {"tariff",
               {{"name", terms.tariff.name},
                {"utc_offset_h", terms.tariff.utc_offset_hours},
                {"usd_per_kwh", terms.tariff.usd_per_kwh}}},
              {"data_class", terms.trusted ? "trusted" : "open"}};
  if (!terms.region.empty()) object["region"] = terms.region;
  if (!terms.labels.empty()) object["labels"] = terms.labels;
  return object.dump();
}

Result<NodeTerms> parse_terms(std::string_view text) {
  constexpr double kMostUsd = 1e6, kMostWatts = 1e7, kMostPue = 10.0;
  if (text.size() > kMostText) return fail("{} bytes of terms, at most {} are allowed", text.size(), kMostText);
  const json object = json::parse(text, nullptr, false);
  if (!object.is_object()) return fail("terms are no JSON object");
  MILLRACE_CHECK_OK(check_keys(
      object, {"usd_per_hour", "busy_watts", "idle_watts", "pue", "tariff", "region", "labels", "data_class"}));
  NodeTerms terms;
  MILLRACE_CHECK_OK(read_number(object, "usd_per_hour", 0.0, kMostUsd, terms.usd_per_hour));
  MILLRACE_CHECK_OK(read_number(object, "busy_watts", 0.0, kMostWatts, terms.busy_watts));
  MILLRACE_CHECK_OK(read_number(object, "idle_watts", 0.0, kMostWatts, terms.idle_watts));
  MILLRACE_CHECK_OK(read_number(object, "pue", 1.0, kMostPue, terms.pue));
  MILLRACE_CHECK_OK(read_text(object, "region", kMostName, terms.region));
  if (const auto tariff = object.find("tariff"); tariff != object.end()) {
    MILLRACE_TRY(terms.tariff, read_tariff(*tariff));
  }
  std::string data_class = "open";
  MILLRACE_CHECK_OK(read_text(object, "data_class", kMostName, data_class));
  if (data_class != "open" && data_class != "trusted") return fail("\"data_class\": expected \"open\" or \"trusted\"");
  terms.trusted = data_class == "trusted";
  if (const auto labels = object.find("labels"); labels != object.end()) {
    if (!labels->is_array() || labels->size() > kMostLabels) {
      return fail("\"labels\": expected at most {} texts", kMostLabels);
    }
    for (const json& label : *labels) {
      if (!label.is_string() || label.get_ref<const std::string&>().size() > kMostName) {
        return fail("\"labels\": one is no text of at most {} bytes", kMostName);
      }
      terms.labels.push_back(label.get<std::string>());
    }
  }
  return terms;
}

}  // namespace millrace
