#include "cli/cluster_flags.h"

#include <pthread.h>
#include <signal.h>

#include <utility>

#include "cluster/subjects.h"

namespace millrace::cli {

namespace {

sigset_t ending_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGUSR2}) sigaddset(&signals, signal);
  return signals;
}

}  // namespace

void add_nats_flags(CLI::App& command, NatsOptions& flags) {
  command.add_option("--nats", flags.url, "Servers of NATS, separated by commas")->capture_default_str();
  command.add_option("--name", flags.name, "Name in the cluster: up to 32 of a-z, 0-9 and -")->required();
  CLI::Option* credentials = command.add_option("--creds", flags.credentials, "File with a user's JWT and seed");
  CLI::Option* seed =
      command.add_option("--nkey-seed", flags.nkey_seed, "File with an NKey seed")->excludes(credentials);
  CLI::Option* key = command.add_option("--nkey", flags.nkey, "Public key of --nkey-seed");
  seed->needs(key);
  key->needs(seed);
  command.add_option("--tls-ca", flags.ca_file, "Certificates that are trusted (PEM): TLS is asked for");
}

Status check_nats_flags(const NatsOptions& flags) {
  if (is_cluster_name(flags.name)) return Ok{};
  return fail("--name {}: expected 1 to 32 of a-z, 0-9 and -", flags.name);
}

Signals::Signals() {
  const sigset_t signals = ending_signals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

Signals::~Signals() {
  if (!thread_.joinable()) return;
  pthread_kill(thread_.native_handle(), SIGUSR2);  // it waits for this one too, and ends
  thread_.join();
}

void Signals::watch(std::function<void()> on_signal) {
  thread_ = std::thread([on_signal = std::move(on_signal)] {
    const sigset_t signals = ending_signals();
    int signal = 0;
    while (sigwait(&signals, &signal) == 0 && signal != SIGUSR2) on_signal();
  });
}

}  // namespace millrace::cli
