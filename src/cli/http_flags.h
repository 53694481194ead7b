// Flags of the commands that serve HTTP.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

#include "cli/log.h"
#include "core/result.h"
#include "server/server.h"

namespace millrace::cli {

struct HttpFlags {
  ServerOptions server;
  double write_timeout = 60.0, drain_timeout = 60.0, idle_timeout = 75.0, header_timeout = 15.0;
  std::string max_body = "32M", stream_buffer = "256K";
  std::string access_log = "on";
};

void add_http_flags(CLI::App& command, HttpFlags& flags);

/// The server's options, without what it calls. Error: a size that is none.
Result<ServerOptions> server_options(const HttpFlags& flags);

/// A connection is a descriptor; the usual soft limit of 1024 is less than the connections that are allowed.
void allow_descriptors(std::int64_t connections, const Log& log);

}  // namespace millrace::cli
