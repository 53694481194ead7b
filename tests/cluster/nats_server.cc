#include "nats_server.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <nats/nats.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "core/check.h"

namespace millrace::test {

namespace {

/// MILLRACE_NATS_SERVER (tools/nats_server sets it), else the system's; empty: there is none.
std::string program() {
  if (const char* chosen = std::getenv("MILLRACE_NATS_SERVER"); chosen != nullptr && *chosen != '\0') return chosen;
  for (const char* path : {"/usr/sbin/nats-server", "/usr/bin/nats-server", "/usr/local/bin/nats-server"}) {
    if (std::filesystem::exists(path)) return path;
  }
  return {};
}

sockaddr_in loopback(int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  return address;
}

int free_port() {
  const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = loopback(0);
  socklen_t size = sizeof address;
  MILLRACE_CHECK(::bind(socket, reinterpret_cast<sockaddr*>(&address), size) == 0, "no free port");
  ::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size);
  ::close(socket);
  return ntohs(address.sin_port);
}

bool listens(int port) {
  const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = loopback(port);
  const bool connected = ::connect(socket, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  ::close(socket);
  return connected;
}

}  // namespace

bool NatsServer::available() {
  return !program().empty();
}

NatsServer::NatsServer(const std::string& identities) : port_(free_port()), has_identities_(!identities.empty()) {
  std::string name = std::filesystem::temp_directory_path() / "millrace-nats-XXXXXX";
  MILLRACE_CHECK(::mkdtemp(name.data()) != nullptr, "no folder {}", name);
  folder_ = name;
  if (has_identities_) {
    const std::string command =
        fmt::format("python3 {}/deploy/issue_credentials {} {} --listen 127.0.0.1:{} --store {}/jetstream > /dev/null",
                    MILLRACE_SOURCE_DIR, folder_.string(), identities, port_, folder_.string());
    MILLRACE_CHECK(std::system(command.c_str()) == 0, "{} failed", command);
  }
  start();
}

NatsServer::~NatsServer() {
  stop();
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

std::string NatsServer::url() const {
  return fmt::format("nats://127.0.0.1:{}", port_);
}

NatsOptions NatsServer::options(const std::string& name) const {
  NatsOptions options{.url = url(), .name = name};
  if (!has_identities_) return options;
  options.nkey_seed = folder_ / (name + ".seed");
  std::ifstream file(folder_ / (name + ".pub"));
  std::getline(file, options.nkey);
  return options;
}

void NatsServer::start() {
  const std::string port = std::to_string(port_), folder = folder_ / "jetstream", log = folder_ / "log",
                    config = folder_ / "nats.conf", server = program();
  const char* const path = server.c_str();
  process_ = ::fork();
  if (process_ == 0) {
    if (has_identities_) {
      ::execl(path, path, "--config", config.c_str(), "--log", log.c_str(), static_cast<char*>(nullptr));
    }
    ::execl(path, path, "--addr", "127.0.0.1", "--port", port.c_str(), "--jetstream", "--store_dir", folder.c_str(),
            "--log", log.c_str(), static_cast<char*>(nullptr));
    ::_exit(127);
  }
  MILLRACE_CHECK(process_ > 0, "no process for {}", server);
  for (int tries = 0; !listens(port_); ++tries) {
    MILLRACE_CHECK(tries < 200, "{} does not listen on port {}", server, port_);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}

void NatsServer::stop() {
  if (process_ <= 0) return;
  ::kill(process_, SIGTERM);
  ::waitpid(process_, nullptr, 0);
  process_ = -1;
}

void NatsServer::lose_files() {
  std::filesystem::remove_all(folder_ / "jetstream");
}

void NatsServer::make_bucket(const std::string& bucket) const {
  natsConnection* connection = nullptr;
  jsCtx* js = nullptr;
  kvStore* store = nullptr;
  kvConfig config;
  kvConfig_Init(&config);
  config.Bucket = bucket.c_str();
  config.History = 1;
  natsStatus status = natsConnection_ConnectTo(&connection, url().c_str());
  if (status == NATS_OK) status = natsConnection_JetStream(&js, connection, nullptr);
  if (status == NATS_OK) status = js_CreateKeyValue(&store, js, &config);
  MILLRACE_CHECK(status == NATS_OK, "bucket {}: {}", bucket, natsStatus_GetText(status));
  kvStore_Destroy(store);
  jsCtx_Destroy(js);
  natsConnection_Destroy(connection);
}

}  // namespace millrace::test
