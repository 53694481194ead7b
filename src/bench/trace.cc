#include "bench/trace.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "bench/gzip.h"

namespace millrace::bench {

namespace {

constexpr std::int32_t kMaxTokens = 1 << 24;
constexpr double kMaxSeconds = 1e9;  // some thirty years
constexpr std::size_t kMaxText = std::size_t{1} << 30;
constexpr std::string_view kAzureHeader = "TIMESTAMP,ContextTokens,GeneratedTokens";

/// What a message quotes of a line: its beginning, without control characters.
std::string quoted(std::string_view line) {
  constexpr std::size_t kShown = 60;
  std::string shown(line.substr(0, kShown));
  for (char& c : shown) {
    if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7f) c = '?';
  }
  return line.size() > kShown ? shown + "..." : shown;
}

/// The whole of `text` as a number without sign.
std::optional<std::int64_t> whole_number(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || code != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

/// Takes exactly `digits` digits from the front of `text`.
std::optional<int> take_digits(std::string_view& text, std::size_t digits) {
  if (text.size() < digits) return std::nullopt;
  const std::string_view head = text.substr(0, digits);
  if (!std::all_of(head.begin(), head.end(), [](char c) { return c >= '0' && c <= '9'; })) return std::nullopt;
  text.remove_prefix(digits);
  return static_cast<int>(*whole_number(head));
}

bool take(std::string_view& text, char c) {
  if (text.empty() || text.front() != c) return false;
  text.remove_prefix(1);
  return true;
}

/// A time since 1970, whole seconds apart from their fraction: as one double, ticks of 100 ns would be lost.
struct Timestamp {
  std::int64_t seconds = 0;
  double fraction = 0.0;
};

/// "2023-11-16 18:17:03.9799600", with "T" for the space, no fraction, or "Z" or "+01:00" at its end as well.
std::optional<Timestamp> parse_timestamp(std::string_view text) {
  const auto year = take_digits(text, 4);
  if (!year || !take(text, '-')) return std::nullopt;
  const auto month = take_digits(text, 2);
  if (!month || !take(text, '-')) return std::nullopt;
  const auto day = take_digits(text, 2);
  if (!day || (!take(text, ' ') && !take(text, 'T'))) return std::nullopt;
  const auto hour = take_digits(text, 2);
  if (!hour || !take(text, ':')) return std::nullopt;
  const auto minute = take_digits(text, 2);
  if (!minute || !take(text, ':')) return std::nullopt;
  const auto second = take_digits(text, 2);
  if (!second || *hour > 23 || *minute > 59 || *second > 60) return std::nullopt;
  const std::chrono::year_month_day date{std::chrono::year(*year), std::chrono::month(static_cast<unsigned>(*month)),
                                         std::chrono::day(static_cast<unsigned>(*day))};
  if (!date.ok()) return std::nullopt;
  Timestamp time;
  time.seconds = std::int64_t{86400} * std::chrono::sys_days(date).time_since_epoch().count() + *hour * 3600 +
                 *minute * 60 + *second;
  if (take(text, '.')) {
    double unit = 0.1;
    std::size_t digits = 0;
    for (; digits < text.size() && text[digits] >= '0' && text[digits] <= '9'; ++digits, unit /= 10) {
      time.fraction += unit * (text[digits] - '0');
    }
    if (digits == 0) return std::nullopt;
    text.remove_prefix(digits);
  }
  if (text.empty() || text == "Z") return time;
  const int sign = take(text, '-') ? -1 : 1;
  if (sign > 0 && !take(text, '+')) return std::nullopt;
  const auto zone_hour = take_digits(text, 2);
  if (!zone_hour || !take(text, ':')) return std::nullopt;
  const auto zone_minute = take_digits(text, 2);
  if (!zone_minute || !text.empty()) return std::nullopt;
  time.seconds -= sign * (*zone_hour * 3600 + *zone_minute * 60);
  return time;
}

/// Reads lines of Azure's CSV; arrivals count from the first one that was read.
class AzureReader {
 public:
  Result<TraceRecord> read(std::string_view line) {
    const std::size_t first = line.find(',');
    const std::size_t second = first == std::string_view::npos ? first : line.find(',', first + 1);
    if (second == std::string_view::npos) return fail("expected {}, got \"{}\"", kAzureHeader, quoted(line));
    const auto time = parse_timestamp(line.substr(0, first));
    if (!time) {
      return fail("\"{}\" is not a time such as 2023-11-16 18:17:03.9799600", quoted(line.substr(0, first)));
    }
    const auto input = whole_number(line.substr(first + 1, second - first - 1));
    const auto output = whole_number(line.substr(second + 1));
    if (!input || !output || *input > kMaxTokens || *output > kMaxTokens) {
      return fail("expected two counts of at most {} tokens, got \"{}\"", kMaxTokens, quoted(line.substr(first + 1)));
    }
    if (!origin_) origin_ = time->seconds;
    return TraceRecord{static_cast<double>(time->seconds - *origin_) + time->fraction,
                       static_cast<std::int32_t>(*input),
                       static_cast<std::int32_t>(*output),
                       {}};
  }

 private:
  std::optional<std::int64_t> origin_;
};

/// The count of tokens at `key` of a JSON line.
Result<std::int32_t> token_count(const nlohmann::json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end()) return fail("\"{}\" is missing", key);
  if (!found->is_number_integer() || *found < 0 || *found > kMaxTokens) {
    return fail("\"{}\" is not a whole number from 0 to {}", key, kMaxTokens);
  }
  return found->get<std::int32_t>();
}

Result<TraceRecord> read_mooncake(std::string_view line) {
  const nlohmann::json object = nlohmann::json::parse(line, nullptr, false);
  if (!object.is_object()) return fail("not a JSON object: \"{}\"", quoted(line));
  TraceRecord record;
  const auto time = object.find("timestamp");
  if (time == object.end() || !time->is_number()) return fail("\"timestamp\" is not a number of milliseconds");
  record.arrival_s = time->get<double>() / 1e3;
  if (!(record.arrival_s >= 0 && record.arrival_s <= kMaxSeconds)) return fail("\"timestamp\" is out of range");
  MILLRACE_TRY(record.input_tokens, token_count(object, "input_length"));
  MILLRACE_TRY(record.output_tokens, token_count(object, "output_length"));
  const auto ids = object.find("hash_ids");
  if (ids == object.end()) return record;
  if (!ids->is_array()) return fail("\"hash_ids\" is not a list");
  const std::int32_t blocks = (record.input_tokens + kTraceBlockTokens - 1) / kTraceBlockTokens;
  if (ids->size() != static_cast<std::size_t>(blocks)) {
    return fail("\"hash_ids\" has {} ids, but {} tokens are {} blocks of {}", ids->size(), record.input_tokens, blocks,
                kTraceBlockTokens);
  }
  record.hash_ids.reserve(ids->size());
  for (const nlohmann::json& id : *ids) {
    if (!id.is_number_integer() || id < 0 || id > std::numeric_limits<std::int64_t>::max()) {
      return fail("\"hash_ids\" holds something that is no whole number from 0 on");
    }
    record.hash_ids.push_back(id.get<std::int64_t>());
  }
  return record;
}

void sort_by_arrival(std::vector<TraceRecord>& records) {
  std::stable_sort(records.begin(), records.end(),
                   [](const TraceRecord& a, const TraceRecord& b) { return a.arrival_s < b.arrival_s; });
  const double first = records.front().arrival_s;
  for (TraceRecord& record : records) record.arrival_s -= first;
}

/// Calls visit(number, line) for every line that holds more than blanks, without its line break.
Status for_each_line(std::string_view text, const std::function<Status(std::size_t, std::string_view)>& visit) {
  for (std::size_t number = 1; !text.empty(); ++number) {
    const std::size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    if (line.find_first_not_of(" \t") != std::string_view::npos) MILLRACE_CHECK_OK(visit(number, line));
  }
  return Ok{};
}

}  // namespace

Result<Trace> parse_trace(std::string_view text, const std::string& name) {
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  const std::size_t start = text.find_first_not_of(" \t\r\n");
  if (start == std::string_view::npos) return fail("{}: no requests in it", name);
  const bool mooncake = text[start] == '{';
  Trace trace;
  AzureReader azure;
  bool header = !mooncake;
  MILLRACE_CHECK_OK(for_each_line(text, [&](std::size_t number, std::string_view line) -> Status {
    if (header) {
      header = false;
      if (line == kAzureHeader) return Ok{};
      return fail("{}:{}: neither the header {} nor a JSON object: \"{}\"", name, number, kAzureHeader, quoted(line));
    }
    Result<TraceRecord> record = mooncake ? read_mooncake(line) : azure.read(line);
    if (!record.ok()) return fail("{}:{}: {}", name, number, record.error().message);
    trace.records.push_back(std::move(*record));
    return Ok{};
  }));
  if (trace.records.empty()) return fail("{}: no requests in it", name);
  sort_by_arrival(trace.records);
  return trace;
}

Result<Trace> read_trace(const std::filesystem::path& path) {
  MILLRACE_TRY(const std::string text, read_maybe_gzip(path, kMaxText));
  return parse_trace(text, path.string());
}

Status scale_trace(Trace& trace, double time, double length) {
  if (!(time > 0 && std::isfinite(time))) return fail("time scale {} is not above 0", time);
  if (!(length > 0 && std::isfinite(length))) return fail("length scale {} is not above 0", length);
  std::optional<double> beyond;
  const auto scaled = [&](std::int32_t tokens) {
    const double wanted = std::max(1.0, std::round(tokens * length));
    if (wanted > kMaxTokens) beyond = wanted;
    return static_cast<std::int32_t>(std::min<double>(wanted, kMaxTokens));
  };
  for (TraceRecord& record : trace.records) {
    record.arrival_s *= time;
    record.input_tokens = scaled(record.input_tokens);
    record.output_tokens = scaled(record.output_tokens);
  }
  trace.block_tokens = scaled(trace.block_tokens);
  if (beyond)
    return fail("length scale {} makes a length of {} tokens, at most {} are allowed", length, *beyond, kMaxTokens);
  return Ok{};
}

}  // namespace millrace::bench
