#include "cli/interrupt.h"

#include <csignal>

namespace millrace::cli {

namespace {

// A signal handler can reach nothing but a global of this type.
volatile std::sig_atomic_t interrupted = 0;

void on_interrupt(int) {
  interrupted = 1;
}

}  // namespace

Interrupts::Interrupts() {
  struct sigaction action {};
  action.sa_handler = on_interrupt;  // without SA_RESTART: a read from the terminal returns with EINTR
  ::sigaction(SIGINT, &action, nullptr);
}

Interrupts::~Interrupts() {
  std::signal(SIGINT, SIG_DFL);
}

bool Interrupts::take() {
  if (interrupted == 0) return false;
  interrupted = 0;
  return true;
}

}  // namespace millrace::cli
