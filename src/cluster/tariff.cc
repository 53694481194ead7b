#include "cluster/tariff.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <optional>

namespace millrace {

namespace {

constexpr double kSecondsPerHour = 3600.0, kHoursPerDay = 24.0;
constexpr double kMostUsdPerKwh = 100.0;

std::optional<double> number(std::string_view text) {
  double value = 0.0;
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (problem != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) return std::nullopt;
  return value;
}

std::vector<std::string_view> columns_of(std::string_view line) {
  std::vector<std::string_view> columns;
  for (;;) {
    const std::size_t comma = line.find(',');
    columns.push_back(line.substr(0, comma));
    if (comma == std::string_view::npos) return columns;
    line.remove_prefix(comma + 1);
  }
}

}  // namespace

double Tariff::at(UnixSeconds now) const {
  const double hours = std::floor(now.count() / kSecondsPerHour + utc_offset_hours);
  const double hour = hours - kHoursPerDay * std::floor(hours / kHoursPerDay);
  return usd_per_kwh[static_cast<std::size_t>(hour)];
}

double Tariff::mean() const {
  return std::accumulate(usd_per_kwh.begin(), usd_per_kwh.end(), 0.0) / kHoursPerDay;
}

Result<std::vector<Tariff>> parse_tariffs(std::string_view csv, const std::string& name) {
  constexpr std::string_view kHeader = "tariff,utc_offset_h,h00";
  std::vector<Tariff> tariffs;
  for (std::size_t number_of_line = 1; !csv.empty(); ++number_of_line) {
    const std::size_t end = csv.find('\n');
    std::string_view line = csv.substr(0, end);
    csv.remove_prefix(end == std::string_view::npos ? csv.size() : end + 1);
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (number_of_line == 1) {
      if (!line.starts_with(kHeader)) return fail("{}: expected the header \"{},...,h23\"", name, kHeader);
      continue;
    }
    if (line.empty()) continue;
    const std::vector<std::string_view> columns = columns_of(line);
    Tariff tariff;
    if (columns.size() != 2 + tariff.usd_per_kwh.size() || columns[0].empty()) {
      return fail("{}:{}: expected a name, an offset and 24 prices", name, number_of_line);
    }
    tariff.name = columns[0];
    const auto offset = number(columns[1]);
    if (!offset || std::abs(*offset) > kHoursPerDay) {
      return fail("{}:{}: the offset to UTC is no number of hours up to 24", name, number_of_line);
    }
    tariff.utc_offset_hours = *offset;
    for (std::size_t hour = 0; hour < tariff.usd_per_kwh.size(); ++hour) {
      const auto price = number(columns[2 + hour]);
      if (!price || std::abs(*price) > kMostUsdPerKwh) {
        return fail("{}:{}: the price of hour {} is no number up to {} $/kWh", name, number_of_line, hour,
                    kMostUsdPerKwh);
      }
      tariff.usd_per_kwh[hour] = *price;
    }
    if (std::ranges::find(tariffs, tariff.name, &Tariff::name) != tariffs.end()) {
      return fail("{}:{}: the tariff {} is there twice", name, number_of_line, tariff.name);
    }
    tariffs.push_back(std::move(tariff));
  }
  if (tariffs.empty()) return fail("{}: no tariffs", name);
  return tariffs;
}

}  // namespace millrace
