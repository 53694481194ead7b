// `millrace status`: the nodes and gateways of a cluster, as a table that is kept up to date, once, or as JSON.

#include <sys/ioctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "cli/cluster_flags.h"
#include "cli/options.h"
#include "cluster/cluster_view.h"
#include "cluster/event_loop.h"
#include "cluster/nats_bucket_reader.h"
#include "cluster/nats_registry.h"
#include "cluster/nats_transport.h"
#include "cluster/status_table.h"
#include "cluster/subjects.h"

namespace millrace::cli {

namespace {

constexpr auto kRefresh = std::chrono::seconds(1);
constexpr auto kLook = std::chrono::milliseconds(100);

UnixSeconds wall() {
  return std::chrono::duration_cast<UnixSeconds>(std::chrono::system_clock::now().time_since_epoch());
}

struct StatusFlags {
  NatsOptions nats{.name = "observer"};
  double wait = 2.5;
  bool once = false, json = false;
};

/// The terminal's second screen, without a cursor; the first one is as it was when this ends.
class Screen {
 public:
  explicit Screen(bool is_terminal) : is_terminal_(is_terminal) { say("\x1b[?1049h\x1b[?25l"); }
  ~Screen() { say("\x1b[?25h\x1b[?1049l"); }
  Screen(const Screen&) = delete;
  Screen& operator=(const Screen&) = delete;

  /// Letters of a line; 0: any number.
  [[nodiscard]] std::size_t width() const { return is_terminal_ ? size().ws_col : 0; }

  void show(const std::string& text) const {
    if (!is_terminal_) {
      std::printf("%s\n", text.c_str());
      std::fflush(stdout);
      return;
    }
    std::string drawn = "\x1b[H";
    const std::size_t rows = size().ws_row;  // 0: not known
    std::size_t lines = 1;
    for (const char c : text) {
      if (c == '\n' && ++lines > rows && rows > 0) break;
      drawn += c == '\n' ? std::string("\x1b[K\r\n") : std::string(1, c);
    }
    say((drawn + "\x1b[J").c_str());
  }

 private:
  static winsize size() {
    winsize size{};
    ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size);
    return size;
  }
  void say(const char* text) const {
    if (!is_terminal_) return;
    std::fputs(text, stdout);
    std::fflush(stdout);
  }

  bool is_terminal_;
};

/// Hears what the cluster says, on the loop.
class Observer {
 public:
  static Result<std::unique_ptr<Observer>> connect(const NatsOptions& options, EventLoop& loop) {
    std::unique_ptr<Observer> observer(new Observer(loop));
    const auto note = [o = observer.get()](const std::string& message) { o->note_ = message; };
    MILLRACE_TRY(observer->transport_, NatsTransport::connect(options, loop, note));
    NatsTransport& transport = *observer->transport_;
    transport.when_given_up([o = observer.get(), &loop](const std::string& why) {
      o->refused_ = why;
      loop.stop();
    });
    for (const std::string& pattern : {beat_subject("*"), gate_subject("*")}) {
      transport.subscribe(pattern, [o = observer.get()](std::string_view subject, std::span<const std::byte> message) {
        o->view_.take(subject, message, o->loop_->now());
      });
    }
    observer->records_ = std::make_unique<NatsBucketReader>(
        transport, loop, kNodesBucket,
        [o = observer.get()](const std::string& node, std::optional<std::string_view> value, std::uint64_t revision) {
          o->take_record(node, value, revision);
        },
        note);
    observer->terms_ = std::make_unique<NatsBucketReader>(
        transport, loop, kOperatorBucket,
        [o = observer.get()](const std::string& key, std::optional<std::string_view> value, std::uint64_t) {
          o->take_terms(key, value);
        },
        note);
    observer->look();
    return observer;
  }
  ~Observer() { loop_->cancel(timer_); }
  Observer(const Observer&) = delete;
  Observer& operator=(const Observer&) = delete;

  [[nodiscard]] const ClusterView& view() const { return view_; }
  [[nodiscard]] bool connected() const { return transport_->connected(); }
  /// What was said last of the connection or of a record.
  [[nodiscard]] const std::string& note() const { return note_; }
  /// Empty: it was not refused.
  [[nodiscard]] const std::string& refused() const { return refused_; }

 private:
  explicit Observer(EventLoop& loop) : loop_(&loop) {}

  void take_record(const std::string& node, std::optional<std::string_view> value, std::uint64_t revision) {
    if (!value) {
      view_.set_record(node, nullptr, revision);
      return;
    }
    const auto record = parse_record(*value);
    if (record.ok() && record->node == node) {
      view_.set_record(node, &*record, record->incarnation);
    } else {
      note_ = record.ok() ? "the record of " + record->node + " stands under the key " + node : record.error().message;
    }
  }

  void take_terms(const std::string& key, std::optional<std::string_view> value) {
    const auto news = parse_operator_entry(key, value ? std::optional<std::string>(*value) : std::nullopt);
    if (news.ok()) {
      view_.set_terms(news->first, news->second);
    } else {
      note_ = news.error().message;
    }
  }

  void look() {
    view_.look(loop_->now());
    timer_ = loop_->after(kLook, [this] { look(); });
  }

  EventLoop* loop_;
  ClusterView view_;
  std::string note_, refused_;
  EventLoop::TimerId timer_ = 0;
  std::unique_ptr<NatsTransport> transport_;
  std::unique_ptr<NatsBucketReader> records_, terms_;
};

Status run_status(const StatusFlags& flags) {
  MILLRACE_CHECK_OK(check_nats_flags(flags.nats));
  EventLoop loop;
  Signals signals;
  MILLRACE_TRY(const std::unique_ptr<Observer> observer, Observer::connect(flags.nats, loop));
  const auto refusal = [&]() -> Status {
    if (observer->refused().empty()) return Ok{};
    return fail("NATS at {} refuses {}: {}", flags.nats.url, flags.nats.name, observer->refused());
  };
  bool interrupted = false;
  signals.watch([&] {
    loop.post([&] {
      interrupted = true;
      loop.stop();
    });
  });
  if (flags.once || flags.json) {
    loop.after(std::chrono::duration_cast<Duration>(std::chrono::duration<double>(flags.wait)), [&] { loop.stop(); });
    loop.run();
    MILLRACE_CHECK_OK(refusal());
    if (interrupted) return fail("interrupted");
    if (!observer->connected()) return fail("NATS at {} can't be reached; --wait waits longer", flags.nats.url);
    if (flags.json) {
      std::printf("%s\n", status_json(observer->view(), loop.now(), wall()).dump().c_str());
    } else {
      std::printf("%s", status_text(observer->view(), loop.now(), wall(), 0).c_str());
    }
    return Ok{};
  }
  {
    const Screen screen(::isatty(STDOUT_FILENO) != 0);
    std::function<void()> draw = [&] {
      std::string text = status_text(observer->view(), loop.now(), wall(), screen.width());
      if (!observer->connected()) text += "\nno connection to NATS: " + observer->note() + "\n";
      screen.show(text);
      loop.after(kRefresh, draw);
    };
    loop.after(std::chrono::milliseconds(300), draw);  // by then the records have come
    loop.run();
  }
  return refusal();
}

}  // namespace

void add_status(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<StatusFlags>();
  CLI::App* command =
      app.add_subcommand("status", "The nodes and gateways of a cluster, every second until Ctrl-C, or once");
  add_nats_flags(*command, flags->nats);
  command->get_option("--name")->required(false)->capture_default_str();
  command->add_option("--wait", flags->wait, "Seconds to listen with --once or --json: beats come every second")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  command->add_flag("--once", flags->once, "Print the table once");
  command->add_flag("--json", flags->json, "Print one JSON document");
  command->callback([flags, &chosen] { chosen = [flags] { return run_status(*flags); }; });
}

}  // namespace millrace::cli
