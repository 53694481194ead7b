// Forms with files in them: multipart/form-data (RFC 7578, with the grammar of RFC 2046). Pure.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace millrace {

struct FormPart {
  std::string name;
  std::optional<std::string> filename;  // as sent, without folders; not to be used as a path
  std::string_view content;             // a part of the body
};

/// The boundary that a Content-Type "multipart/form-data; boundary=..." names. Error: another type, or no boundary of 1
/// to 70 characters.
Result<std::string> form_boundary(std::string_view content_type);

/// The parts of a form; they refer to `body`. Errors: no such boundary in it, a part without a name or with a head of
/// more than 8 KiB, more than 32 parts, two parts of one name, no end.
Result<std::vector<FormPart>> parse_form(std::string_view content_type, std::string_view body);

}  // namespace millrace
