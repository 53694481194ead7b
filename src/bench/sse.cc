#include "bench/sse.h"

#include <utility>

namespace millrace::bench {

Status SseParser::feed(std::string_view bytes, std::vector<SseEvent>& events) {
  constexpr std::size_t kMaxEvent = std::size_t{16} << 20;
  while (!bytes.empty()) {
    if (std::exchange(after_cr_, false) && bytes.front() == '\n') {
      bytes.remove_prefix(1);
      continue;
    }
    const std::size_t end = bytes.find_first_of("\r\n");
    const std::string_view part = bytes.substr(0, end);
    if (line_.size() + event_.data.size() + part.size() > kMaxEvent) {
      return fail("an event of more than {} bytes", kMaxEvent);
    }
    if (end == std::string_view::npos) {
      line_ += part;
      break;
    }
    after_cr_ = bytes[end] == '\r';
    bytes.remove_prefix(end + 1);
    if (line_.empty()) {
      take_line(part, events);
    } else {
      line_ += part;
      const std::string line = std::exchange(line_, {});
      take_line(line, events);
    }
  }
  return Ok{};
}

void SseParser::finish(std::vector<SseEvent>& events) {
  if (!line_.empty()) {
    const std::string line = std::exchange(line_, {});
    take_line(line, events);
  }
  dispatch(events);
}

void SseParser::take_line(std::string_view line, std::vector<SseEvent>& events) {
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  if (std::exchange(at_start_, false) && line.starts_with(kByteOrderMark)) line.remove_prefix(kByteOrderMark.size());
  if (line.empty()) return dispatch(events);
  const std::size_t colon = line.find(':');
  const std::string_view field = line.substr(0, colon);
  std::string_view value = colon == std::string_view::npos ? std::string_view() : line.substr(colon + 1);
  if (value.starts_with(' ')) value.remove_prefix(1);
  if (field == "event") {
    event_.name = value;
  } else if (field == "data" || field == "error") {
    if (std::exchange(has_data_, true)) event_.data += '\n';
    event_.data += value;
    if (field == "error") event_.name = "error";
  }
}

void SseParser::dispatch(std::vector<SseEvent>& events) {
  if (std::exchange(has_data_, false)) events.push_back(std::move(event_));
  event_ = {};
}

}  // namespace millrace::bench
