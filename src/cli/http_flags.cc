#include "cli/http_flags.h"

#include <sys/resource.h>

#include <algorithm>
#include <tuple>

#include "core/memory.h"

namespace millrace::cli {

void add_http_flags(CLI::App& command, HttpFlags& flags) {
  ServerOptions& server = flags.server;
  command.add_option("--host", server.host, "Address to listen on")->capture_default_str();
  command.add_option("--port", server.port, "Port; 0: any free one")->capture_default_str();
  command.add_option(
      "--api-key-file", server.api_key_file,
      "Keys of which each request needs one (Authorization: Bearer KEY), one a line, # for comments; read "
      "again on SIGHUP. Each key has shared context of its own. /health, /ready, /version and /metrics "
      "stay open");
  CLI::Option* certificate = command.add_option("--tls-cert", server.tls_cert, "Certificate chain (PEM): serve TLS");
  CLI::Option* key = command.add_option("--tls-key", server.tls_key, "Key of the certificate (PEM)");
  certificate->needs(key);
  key->needs(certificate);
  command.add_option("--cors", server.cors, "Origin that browsers may call from, or *; may be repeated");
  command
      .add_option("--http-threads", server.threads, "Threads that serve connections; the rest of the machine computes")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  command.add_option("--max-connections", server.max_connections, "Open connections; more get 503")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command.add_option("--max-body", flags.max_body, "The largest request body; more gets 413")->capture_default_str();
  command
      .add_option("--stream-buffer", flags.stream_buffer, "What may wait for a slow reader before its answer pauses")
      ->capture_default_str();
  for (const auto& [name, value, text] :
       {std::tuple("--header-timeout", &flags.header_timeout, "Seconds for a request's head"),
        std::tuple("--idle-timeout", &flags.idle_timeout, "Seconds between two requests of a connection"),
        std::tuple("--write-timeout", &flags.write_timeout, "Seconds without a reader taking anything, then it is cut"),
        std::tuple("--drain-timeout", &flags.drain_timeout, "Seconds for running requests to finish after SIGTERM")}) {
    command.add_option(name, *value, text)->check(CLI::Range(0.01, 1e6))->capture_default_str();
  }
  command.add_option("--access-log", flags.access_log, "A line on standard error for each request: on or off")
      ->check(CLI::IsMember({"on", "off"}))
      ->capture_default_str();
}

Result<ServerOptions> server_options(const HttpFlags& flags) {
  using Seconds = HttpLimits::Seconds;
  ServerOptions options = flags.server;
  MILLRACE_TRY(options.limits.body_bytes, parse_size(flags.max_body));
  options.limits.all_bodies_bytes = std::max<std::uint64_t>(8 * options.limits.body_bytes, 64 << 20);
  options.limits.write_timeout = Seconds(flags.write_timeout);
  options.limits.idle_timeout = Seconds(flags.idle_timeout);
  options.limits.header_timeout = Seconds(flags.header_timeout);
  options.drain_timeout = Seconds(flags.drain_timeout);
  options.signals = true;
  return options;
}

void allow_descriptors(std::int64_t connections, const Log& log) {
  constexpr std::int64_t kOthers = 256;
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  const auto wanted = static_cast<rlim_t>(connections + kOthers);
  if (limit.rlim_cur < wanted) {
    limit.rlim_cur = std::min(wanted, limit.rlim_max);
    (void)::setrlimit(RLIMIT_NOFILE, &limit);
  }
  if (limit.rlim_cur < wanted) {
    log->warn("{} files may be open, fewer than --max-connections {} needs", limit.rlim_cur, connections);
  }
}

}  // namespace millrace::cli
