// Any bytes as a form: the first line as its Content-Type, the rest as its body.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "server/http_text.h"
#include "server/multipart.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace millrace;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::string_view type = input.substr(0, input.find('\n'));
  const std::string_view body = input.substr(type.size());
  for (const std::string_view content_type : {type, std::string_view("multipart/form-data; boundary=b")}) {
    const auto boundary = form_boundary(content_type);
    const auto parts = parse_form(content_type, body);
    if (!parts.ok()) continue;
    require(boundary.ok() && !boundary->empty());
    std::size_t bytes = 0;
    for (const FormPart& part : *parts) {
      // What it holds lies in the body, one part behind the other, and has no boundary in it.
      require(part.content.empty() || (part.content.data() >= body.data() + bytes &&
                                       part.content.data() + part.content.size() <= body.data() + body.size()));
      if (!part.content.empty()) {
        bytes = static_cast<std::size_t>(part.content.data() + part.content.size() - body.data());
      }
      require(part.content.find("\r\n--" + *boundary) == std::string_view::npos);
      require(!part.filename || part.filename->find_first_of("/\\") == std::string::npos);
    }
  }
  if (const auto value = query_value(type, "after")) {
    require(type.find('\0') != std::string_view::npos || value->find('\0') == std::string::npos);
  }
  return 0;
}
