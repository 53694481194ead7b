// An HTTP server of a test: what it answers is a script, down to the bytes.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace millrace::bench {

struct ReceivedRequest {
  std::string method, target, authorization, body;
  int connection = 0;  // its number, from 0
  int number = 0;      // of all requests, from 0
};

/// Bytes that are sent as they are, after a pause.
struct Step {
  std::string bytes;
  double pause_s = 0.0;
};

/// The whole of an answer, its head included.
struct Reply {
  std::vector<Step> steps;
  bool close = false;  // the connection, behind the last step
};

using Script = std::function<Reply(const ReceivedRequest&)>;

/// A certificate for 127.0.0.1 that signs itself, and its key, as PEM.
struct Identity {
  std::string certificate, key;
};
Identity make_identity();

/// Listens on a free port of the loopback address until it is destroyed, on a thread of its own, on which the script
/// runs as well.
class ScriptedServer {
 public:
  explicit ScriptedServer(Script script, const Identity* tls = nullptr);
  ~ScriptedServer();
  ScriptedServer(const ScriptedServer&) = delete;
  ScriptedServer& operator=(const ScriptedServer&) = delete;

  [[nodiscard]] std::uint16_t port() const;
  [[nodiscard]] std::string url() const;
  /// What has arrived so far, in order.
  [[nodiscard]] std::vector<ReceivedRequest> received() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// A head with status 200 for a stream in chunks, and a piece of its body as one chunk.
std::string stream_head();
std::string chunk(const std::string& bytes);
inline std::string last_chunk() {
  return chunk("");
}

/// An answer with a length that is known.
Reply whole_reply(int status, const std::string& body, const std::string& headers = "");

/// An event of /v1/completions with one token.
std::string token_event(const std::string& text = "a");

/// The end of a stream as vLLM sends it: finish_reason, usage, [DONE].
std::string end_events(int prompt_tokens, int completion_tokens, const std::string& usage_more = "");

}  // namespace millrace::bench
