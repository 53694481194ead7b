#include "cli/gateway_audits.h"

#include <chrono>
#include <fstream>
#include <random>
#include <system_error>
#include <utility>

#include "core/mapped_file.h"

namespace millrace::cli {

namespace {

constexpr Duration kSaveEvery = std::chrono::seconds(10);

}  // namespace

void add_audit_flags(CLI::App& command, AuditFlags& flags) {
  CLI::Option* share =
      command
          .add_option("--audit-share", flags.share,
                      "Share of what nodes say that trusted nodes score; 0: no audits (docs/audits.md)")
          ->check(CLI::Range(0.0, 1.0))
          ->capture_default_str();
  command.add_option("--audit-state", flags.state, "File for what audits have found, to go on from at the next start")
      ->needs(share);
}

Result<std::unique_ptr<GatewayAudits>> GatewayAudits::create(const AuditFlags& flags, const std::string& model,
                                                             std::int64_t vocab, GatewayStreams& streams,
                                                             Transport& transport, Registry& registry, Log log) {
  if (flags.share == 0.0) return std::unique_ptr<GatewayAudits>();
  std::random_device lot;
  const AuditOptions options{.model = model,
                             .vocab = static_cast<std::int32_t>(vocab),
                             .share = flags.share,
                             .seed = std::uint64_t{lot()} << 32 | lot()};
  std::unique_ptr<GatewayAudits> audits(
      new GatewayAudits(flags, options, streams, transport, registry, std::move(log)));
  std::error_code error;
  if (!flags.state.empty() && std::filesystem::exists(flags.state, error)) {
    MILLRACE_TRY(const std::string text, read_text_file(flags.state, std::size_t{64} << 20));
    const Status restored = audits->auditor_.restore(text);
    if (!restored.ok()) return fail("--audit-state {}: {}", flags.state, restored.error().message);
    audits->saved_ = audits->auditor_.json();
  }
  if (!flags.state.empty()) audits->keep_saving();
  return audits;
}

GatewayAudits::GatewayAudits(const AuditFlags& flags, AuditOptions options, GatewayStreams& streams,
                             Transport& transport, Registry& registry, Log log)
    : file_(flags.state),
      transport_(&transport),
      log_(std::move(log)),
      auditor_(
          streams, transport, std::move(options),
          [&streams](const std::string& node) {
            const NodeState* state = streams.nodes().find(node);
            return state != nullptr && state->terms.trusted;
          },
          [this, &registry](const std::string& node, const std::string& reason) {
            log_->warn("{} is quarantined: {}", node, reason);
            registry.quarantine(node, "audit: " + reason);
          }),
      saved_(auditor_.json()) {}

GatewayAudits::~GatewayAudits() {
  if (timer_ != 0) transport_->cancel(timer_);
  save();
  const Auditor::Counters& counts = auditor_.counters();
  log_->info(
      "audits: {} chosen, {} judged, {} controls, {} before there were enough of these, {} unscorable, {} without a "
      "reference, {} too many at once, {} failed, {} alarms",
      counts.chosen, counts.judged, counts.controls, counts.early, counts.unscorable, counts.no_reference,
      counts.crowded, counts.failed, counts.alarms);
}

void GatewayAudits::keep_saving() {
  timer_ = transport_->after(kSaveEvery, [this] {
    save();
    keep_saving();
  });
}

void GatewayAudits::save() {
  std::string state = auditor_.json();
  if (file_.empty() || state == saved_) return;
  const std::filesystem::path part = file_.string() + ".part";
  std::error_code error;
  std::ofstream out(part, std::ios::binary | std::ios::trunc);
  out << state << '\n';
  out.close();
  if (out) std::filesystem::rename(part, file_, error);
  if (!out || error) {
    log_->warn("cannot write what audits have found to {}", file_.string());
    return;
  }
  saved_ = std::move(state);
}

}  // namespace millrace::cli
