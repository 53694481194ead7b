// The access log: one line an exchange.
#pragma once

#include <string>

#include "server/http_message.h"

namespace millrace {

/// `peer=… method=… path=… status=… bytes=… seconds=… id=… prompt=… cached=… generated=…`; counts that do not apply are
/// "-". Whatever a client sent is escaped, so that it cannot end the line or pose as another field.
std::string access_line(const HttpRecord& record);

}  // namespace millrace
