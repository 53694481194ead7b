#include "audits/auditor.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

namespace millrace {

namespace {

constexpr std::int32_t kLowPriority = 100;  // behind whatever else the trusted node has to do

/// No objective moves an audit to another node.
const ServiceWish kNoHurry{.ttft_slo = std::numeric_limits<double>::infinity(),
                           .tpot_slo = std::numeric_limits<double>::infinity()};

/// From the first hash on; empty where there is none.
std::string_view hashes_of(std::string_view numeric_class) {
  constexpr std::size_t kDigits = 16;
  const auto is_digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  for (std::size_t begin = 0; begin < numeric_class.size();) {
    const std::size_t end = std::min(numeric_class.find(' ', begin), numeric_class.size());
    const std::string_view word = numeric_class.substr(begin, end - begin);
    if (word.size() == kDigits && std::ranges::all_of(word, is_digit)) return numeric_class.substr(begin);
    begin = end + 1;
  }
  return {};
}

bool is_greedy(const SamplingParams& sampling) {
  return sampling.temperature == 0.0f || sampling.top_k == 1;
}

}  // namespace

bool computes_alike(std::string_view a, std::string_view b) {
  return a == b || (!hashes_of(a).empty() && hashes_of(a) == hashes_of(b));
}

Auditor::Auditor(GatewayStreams& streams, Transport& transport, AuditOptions options, IsTrusted is_trusted,
                 Quarantine quarantine)
    : streams_(&streams),
      transport_(&transport),
      options_(std::move(options)),
      is_trusted_(std::move(is_trusted)),
      quarantine_(std::move(quarantine)),
      dice_(options_.seed) {
  streams_->listen([this](const SaidPart& part) { take(part); });
}

Auditor::~Auditor() {
  *alive_ = false;
  streams_->listen(nullptr);
}

void Auditor::take(const SaidPart& part) {
  if (open_.contains(part.id) || part.work.model != options_.model) return;
  if (!controls_.contains(part.id) && !std::bernoulli_distribution(options_.share)(dice_)) return;
  std::vector<std::size_t> spoken;  // choices with tokens of this node
  for (std::size_t c = 0; c < part.work.choices.size(); ++c) {
    if (part.work.choices[c].tokens.size() > part.from[c]) spoken.push_back(c);
  }
  if (spoken.empty()) return;
  ++counters_.chosen;
  const std::size_t choice = spoken[dice_() % spoken.size()], from = part.from[choice];
  const std::vector<std::int32_t>& all = part.work.choices[choice].tokens;
  auto audit = std::make_shared<Audit>(Audit{.node = part.node, .numeric_class = part.numeric_class});
  audit->sampling = part.work.sampling;
  audit->sampling.choice = static_cast<std::uint32_t>(choice);
  audit->control = part.work;
  audit->control.choices.assign(1, {});
  audit->control.max_new_tokens = std::min(part.work.max_new_tokens, static_cast<std::int64_t>(kMostTokens));
  audit->control.logprobs = -1;
  audit->control.prompt_logprobs = false;
  audit->control.priority = kLowPriority;
  std::vector<Errand> errands;
  if (can_score(part.work)) {
    audit->kind = is_greedy(part.work.sampling) ? AuditKind::greedy : AuditKind::sampled;
    const std::size_t count = std::min(all.size() - from, kMostTokens);
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(from + dice_() % (all.size() - from - count + 1));
    audit->tokens.assign(begin, begin + static_cast<std::ptrdiff_t>(count));
    audit->first_position = static_cast<std::int64_t>(part.work.prompt.size()) + (begin - all.begin());
    errands.push_back(scoring(*audit, {all.begin(), begin}));
  } else {
    audit->kind = AuditKind::redrawn;
    for (std::size_t i = 0; i < kRedrawn; ++i) {
      errands.push_back(redraw(part.work, choice, from + dice_() % (all.size() - from)));
    }
  }
  transport_->after(Duration{0}, [this, alive = alive_, audit, errands = std::move(errands)] {
    if (*alive) refer(audit, errands);
  });
}

/// The answer as a prompt, of which only the piece is asked about.
Auditor::Errand Auditor::scoring(const Audit& audit, std::vector<std::int32_t> before) {
  Placement work{.model = audit.control.model, .prompt = audit.control.prompt};
  work.prompt.insert(work.prompt.end(), before.begin(), before.end());
  work.prompt.insert(work.prompt.end(), audit.tokens.begin(), audit.tokens.end());
  work.choices[0].prompt_reported = audit.first_position;
  work.max_new_tokens = 1;
  work.logprobs = kAuditTop;
  work.prompt_logprobs = true;
  work.pinned_tokens = audit.control.pinned_tokens;
  work.priority = kLowPriority;
  work.cache_salt = audit.control.cache_salt;
  return {std::move(work), -1};
}

/// The answer up to this token, which is to be drawn again: under the same choice, as that is part of its key.
Auditor::Errand Auditor::redraw(const Placement& work, std::size_t choice, std::size_t at) {
  const std::vector<std::int32_t>& all = work.choices[choice].tokens;
  Errand errand{work, all[at]};
  Placement& again = errand.work;
  again.choices.assign(choice + 1, {});
  for (PlacedChoice& other : again.choices) other.ended = true;
  again.choices[choice].ended = false;
  again.choices[choice].tokens.assign(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(at));
  again.max_new_tokens = static_cast<std::int64_t>(at) + 1;
  again.stop.clear();
  again.logprobs = -1;
  again.prompt_logprobs = false;
  again.priority = kLowPriority;
  return errand;
}

std::vector<std::string> Auditor::references(const std::string& numeric_class) const {
  std::vector<std::string> same, alike;
  for (const auto& [name, node] : streams_->nodes().nodes()) {
    const NodeModel* model = NodeTable::model(node, options_.model);
    if (model == nullptr || !node.usable() || !is_trusted_(name)) continue;
    if (model->numeric_class == numeric_class) same.push_back(name);
    if (computes_alike(model->numeric_class, numeric_class)) alike.push_back(name);
  }
  return same.empty() ? alike : same;
}

std::string Auditor::class_of(const std::string& node) const {
  const NodeState* state = streams_->nodes().find(node);
  const NodeModel* model = state == nullptr ? nullptr : NodeTable::model(*state, options_.model);
  return model == nullptr ? std::string() : model->numeric_class;
}

void Auditor::refer(const std::shared_ptr<Audit>& audit, std::vector<Errand> errands) {
  const std::vector<std::string> who = references(audit->numeric_class);
  if (who.empty()) {
    ++counters_.no_reference;
    return;
  }
  if (audit->kind == AuditKind::redrawn && class_of(who.front()) != audit->numeric_class) {
    ++counters_.unscorable;
    return;
  }
  if (open_.size() + errands.size() > kMostOpen) {
    ++counters_.crowded;
    return;
  }
  audit->pending = errands.size();
  for (Errand& errand : errands) {
    // Its number is known once it is placed; nothing of it is told before that.
    auto id = std::make_shared<StreamId>(0);
    *id = streams_->submit(
        std::move(errand.work), options_.vocab,
        [this, alive = alive_, id](const StreamNews& news) { return *alive ? on_news(*id, news) : Demand::more; }, 0,
        kNoHurry, {}, who);
    open_.emplace(*id, OpenErrand{audit, errand.expected});
  }
}

Demand Auditor::on_news(StreamId id, const StreamNews& news) {
  const auto found = open_.find(id);
  if (found == open_.end()) return Demand::more;
  Audit& audit = *found->second.audit;
  if (const auto* came = std::get_if<TokenCame>(&news)) {
    if (came->of_prompt && came->logprobs) audit.referred.push_back({came->token, *came->logprobs});
    if (audit.kind == AuditKind::redrawn) {
      ++audit.redrawn;
      audit.missed += came->token != found->second.expected ? 1 : 0;
    }
  } else if (const auto* done = std::get_if<StreamDone>(&news)) {
    const std::string reference = class_of(done->node);
    // Of two trusted nodes of unlike classes nobody could say what honest scores are.
    audit.failed =
        audit.failed || done->error || !done->identical || (!audit.reference.empty() && audit.reference != reference);
    audit.reference = reference;
    const std::shared_ptr<Audit> ended = found->second.audit;
    open_.erase(found);
    if (--ended->pending == 0) judge(*ended);
  }
  return Demand::more;
}

AuditBaseline& Auditor::baseline(const std::string& numeric_class, AuditKind kind) {
  const char* name = kind == AuditKind::greedy ? "greedy " : kind == AuditKind::sampled ? "sampled " : "redrawn ";
  return baselines_[name + numeric_class];
}

void Auditor::judge(const Audit& audit) {
  const bool redrawn = audit.kind == AuditKind::redrawn, same = audit.reference == audit.numeric_class;
  const bool whole = redrawn ? audit.redrawn == kRedrawn && same : audit.referred.size() == audit.tokens.size();
  double score = 0.0;
  if (whole) {
    score = redrawn ? static_cast<double>(audit.missed) / static_cast<double>(audit.redrawn)
                    : answer_score(audit.referred, audit.sampling, audit.first_position, options_.vocab);
  }
  if (!whole || audit.failed || !std::isfinite(score) || !computes_alike(audit.reference, audit.numeric_class)) {
    ++counters_.failed;
    return;
  }
  if (is_trusted_(audit.node)) {
    if (same) baseline(audit.numeric_class, audit.kind).add(score);
    ++counters_.controls;
    return;
  }
  double bound = (same ? kSameClassBounds : kAlikeClassBounds).of(audit.kind);
  if (same) {
    const AuditBaseline& honest = baseline(audit.numeric_class, audit.kind);
    if (honest.answers() < AuditBaseline::kEnough) {
      ++counters_.early;
      start_control(audit);
      return;
    }
    bound = honest.bound(bound);
  }
  AuditTest& test = tests_[audit.node];
  test.add(score, bound);
  ++counters_.judged;
  if (!test.alarmed()) return;
  ++counters_.alarms;
  const std::string reason = fmt::format(
      "its answers are not those of {}: {:.0f} to 1 after {} audits; the last one scored {:.4f}, and honest "
      "nodes have a mean of at most {:.4f}",
      audit.numeric_class, std::exp(std::min(test.log_evidence(), 30.0)), test.answers(), score, bound);
  tests_.erase(audit.node);  // whoever lets it serve again has it judged anew
  quarantine_(audit.node, reason);
}

void Auditor::start_control(const Audit& audit) {
  std::vector<std::string> who = references(audit.numeric_class);
  if (who.empty() || controls_.size() >= kMostOpen) return;
  auto id = std::make_shared<StreamId>(0);
  *id = streams_->submit(
      audit.control, options_.vocab,
      [this, alive = alive_, id](const StreamNews& news) {
        if (*alive && std::holds_alternative<StreamDone>(news)) controls_.erase(*id);
        return Demand::more;
      },
      0, kNoHurry, {}, std::move(who));
  controls_.insert(*id);
}

std::string Auditor::json() const {
  nlohmann::json state{{"tests", nlohmann::json::object()}, {"baselines", nlohmann::json::object()}};
  for (const auto& [node, test] : tests_) state["tests"][node] = nlohmann::json::parse(test.json());
  for (const auto& [name, honest] : baselines_) state["baselines"][name] = nlohmann::json::parse(honest.json());
  return state.dump();
}

Status Auditor::restore(std::string_view text) {
  const auto state = nlohmann::json::parse(text, nullptr, false);
  if (!state.is_object() || !state.contains("tests") || !state["tests"].is_object() || !state.contains("baselines") ||
      !state["baselines"].is_object()) {
    return fail("expected an object with \"tests\" and \"baselines\"");
  }
  std::map<std::string, AuditTest> tests;
  std::map<std::string, AuditBaseline> baselines;
  for (const auto& [node, test] : state["tests"].items()) {
    MILLRACE_TRY(tests[node], AuditTest::parse(test.dump()));
  }
  for (const auto& [name, honest] : state["baselines"].items()) {
    MILLRACE_TRY(baselines[name], AuditBaseline::parse(honest.dump()));
  }
  tests_ = std::move(tests);
  baselines_ = std::move(baselines);
  return Ok{};
}

}  // namespace millrace
