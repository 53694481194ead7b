// Server-sent events as a client reads them (WHATWG HTML, "Server-sent events", 9.2.6).
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace millrace::bench {

struct SseEvent {
  std::string name;  // of the field "event"; empty where there was none
  std::string data;  // lines of the field "data", joined by line feeds
};

/// Bytes in pieces of any size go in, whole events come out. Lines end with LF, CR or CRLF; comments, which servers
/// send to keep a connection open, and other fields are skipped. Two liberties for servers in the field: an event that
/// the stream's end cut off from its blank line counts (finish()), and a field "error" is an event of that name.
class SseParser {
 public:
  /// Appends the events that `bytes` completed. Error: one event has more than 16 MiB.
  Status feed(std::string_view bytes, std::vector<SseEvent>& events);

  /// The stream has ended: what is pending becomes an event.
  void finish(std::vector<SseEvent>& events);

 private:
  void take_line(std::string_view line, std::vector<SseEvent>& events);
  void dispatch(std::vector<SseEvent>& events);

  std::string line_;  // a line that has begun
  SseEvent event_;    // an event that has begun
  bool has_data_ = false;
  bool after_cr_ = false;  // a line feed next belongs to the line before
  bool at_start_ = true;   // a byte order mark may come
};

}  // namespace millrace::bench
