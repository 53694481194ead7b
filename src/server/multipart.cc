#include "server/multipart.h"

#include <algorithm>

#include "server/http_text.h"

namespace millrace {

namespace {

constexpr std::size_t kMostBoundary = 70, kMostHead = 8 << 10, kMostParts = 32;
constexpr std::string_view kLineEnd = "\r\n";

std::string_view trim(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

/// The value of a parameter in `text; key=value; key="quoted \" value"`; nothing: it is not there, or a quote without
/// end.
std::optional<std::string> parameter(std::string_view text, std::string_view key) {
  std::size_t at = text.find(';');
  while (at < text.size()) {
    const std::size_t equals = text.find('=', at);
    if (equals == std::string_view::npos) return std::nullopt;
    const std::string_view name = trim(text.substr(at + 1, equals - at - 1));
    std::string value;
    at = equals + 1;
    if (at < text.size() && text[at] == '"') {
      for (++at; at < text.size() && text[at] != '"'; ++at) {
        if (text[at] == '\\' && at + 1 < text.size()) ++at;
        value += text[at];
      }
      if (at == text.size()) return std::nullopt;
      at = text.find(';', at);
    } else {
      const std::size_t end = std::min(text.find(';', at), text.size());
      value = trim(text.substr(at, end - at));
      at = end;
    }
    if (equals_ignoring_case(name, key)) return value;
  }
  return std::nullopt;
}

bool is_type(std::string_view header, std::string_view type) {
  return equals_ignoring_case(trim(header.substr(0, header.find(';'))), type);
}

/// What the head of a part says of it.
Result<FormPart> read_head(std::string_view head) {
  constexpr std::string_view kDisposition = "Content-Disposition";
  while (!head.empty()) {
    const std::string_view line = head.substr(0, head.find(kLineEnd));
    head.remove_prefix(std::min(line.size() + kLineEnd.size(), head.size()));
    const std::size_t colon = line.find(':');
    if (colon == std::string_view::npos) return fail("the form has a part with a header line without ':'");
    if (!equals_ignoring_case(trim(line.substr(0, colon)), kDisposition)) continue;
    const std::string_view value = line.substr(colon + 1);
    auto name = parameter(value, "name");
    if (!is_type(value, "form-data") || !name) break;
    FormPart part{.name = std::move(*name), .filename = parameter(value, "filename"), .content = {}};
    if (part.filename) part.filename->erase(0, part.filename->find_last_of("/\\") + 1);
    return part;
  }
  return fail("the form has a part without a header line 'Content-Disposition: form-data; name=\"...\"'");
}

}  // namespace

Result<std::string> form_boundary(std::string_view content_type) {
  if (!is_type(content_type, "multipart/form-data")) {
    return fail("expected Content-Type: multipart/form-data; boundary=..., not '{}'",
                escape_for_log(content_type, kMostBoundary));
  }
  auto boundary = parameter(content_type, "boundary");
  if (!boundary || boundary->empty() || boundary->size() > kMostBoundary) {
    return fail("the Content-Type of a form needs a boundary of 1 to {} characters", kMostBoundary);
  }
  return std::move(*boundary);
}

Result<std::vector<FormPart>> parse_form(std::string_view content_type, std::string_view body) {
  MILLRACE_TRY(const std::string boundary, form_boundary(content_type));
  const std::string mark = "\r\n--" + boundary;
  std::vector<FormPart> parts;
  // The first boundary may stand right at the beginning; what is before it is to be ignored.
  std::string_view rest = body;
  if (rest.starts_with(std::string_view(mark).substr(kLineEnd.size()))) {
    rest.remove_prefix(mark.size() - kLineEnd.size());
  } else {
    const std::size_t first = rest.find(mark);
    if (first == std::string_view::npos) return fail("the form does not have the boundary that its Content-Type names");
    rest.remove_prefix(first + mark.size());
  }
  while (true) {
    if (rest.starts_with("--")) return parts;
    const std::size_t line = rest.find(kLineEnd);
    if (line == std::string_view::npos || !trim(rest.substr(0, line)).empty()) {
      return fail("the form has a boundary that no line end follows");
    }
    rest.remove_prefix(line);  // with the line end, so that a part without headers has an empty line at once
    const std::size_t head = rest.substr(0, kMostHead).find("\r\n\r\n");
    if (head == std::string_view::npos)
      return fail("the form has a part without a head of at most {} bytes", kMostHead);
    const std::string_view headers =
        rest.substr(std::min(kLineEnd.size(), head), head - std::min(kLineEnd.size(), head));
    MILLRACE_TRY(FormPart part, read_head(headers));
    rest.remove_prefix(head + 2 * kLineEnd.size());
    // An empty part's boundary begins with the line end that ended its head.
    const std::size_t end = rest.find(mark);
    if (end == std::string_view::npos) return fail("the form has no end: its last boundary is missing");
    part.content = rest.substr(0, end);
    rest.remove_prefix(end + mark.size());
    if (parts.size() == kMostParts) return fail("the form has more than {} parts", kMostParts);
    if (std::ranges::find(parts, part.name, &FormPart::name) != parts.end()) {
      return fail("the form has two parts of the name '{}'", escape_for_log(part.name, kMostBoundary));
    }
    parts.push_back(std::move(part));
  }
}

}  // namespace millrace
