// What servers log: lines on standard error, with times.
#pragma once

#include <spdlog/logger.h>

#include <memory>

namespace millrace::cli {

using Log = std::shared_ptr<spdlog::logger>;
Log make_log();

}  // namespace millrace::cli
