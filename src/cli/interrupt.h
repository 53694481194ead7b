// Ctrl-C while an answer is being generated stops the answer and not the program.
#pragma once

namespace millrace::cli {

/// While one lives, SIGINT sets a flag instead of ending the process. Terminal reads return early on it.
class Interrupts {
 public:
  Interrupts();
  ~Interrupts();
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

  /// True once after each interrupt.
  static bool take();
};

}  // namespace millrace::cli
