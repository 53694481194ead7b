#include "tenants/once.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "tenants/tenant.h"

namespace millrace {

namespace {

using nlohmann::json;

constexpr std::size_t kMostRecord = 4096, kMostText = 256;
constexpr int kTries = 5;  // to write how a claim ended

constexpr std::string_view kStates[] = {"running", "open", "done"};

/// Of one claim: who is fenced off does not write into the answer of who has it now.
std::string piece_key(const std::string& key, const OnceRecord& record, std::uint32_t piece) {
  return fmt::format("{}.{}.{}.{}", key, record.life, record.claim, piece);
}

bool is_mine(const OnceRecord& a, const OnceRecord& b) {
  return a.gateway == b.gateway && a.life == b.life && a.claim == b.claim;
}

}  // namespace

std::string once_json(const OnceRecord& record) {
  return json{{"request", record.request}, {"state", kStates[static_cast<std::size_t>(record.state)]},
              {"gateway", record.gateway}, {"life", record.life},
              {"claim", record.claim},     {"account", record.account},
              {"started", record.started}, {"stream", record.stream},
              {"pieces", record.pieces},   {"bytes", record.bytes}}
      .dump();
}

Result<OnceRecord> parse_once(std::string_view text) {
  if (text.size() > kMostRecord) return fail("the record of a key has {} bytes", text.size());
  const json object = json::parse(text, nullptr, false);
  OnceRecord record;
  bool right = object.is_object();
  const auto read = [&](const char* key, auto& value) {
    const auto found = right ? object.find(key) : object.end();
    using T = std::decay_t<decltype(value)>;
    if constexpr (std::is_same_v<T, std::string>) {
      right = right && found != object.end() && found->is_string() &&
              found->template get_ref<const std::string&>().size() <= kMostText;
    } else if constexpr (std::is_same_v<T, bool>) {
      right = right && found != object.end() && found->is_boolean();
    } else {
      right = right && found != object.end() && found->is_number_integer() && *found >= 0;
    }
    if (right) value = found->template get<T>();
  };
  std::string state;
  read("request", record.request);
  read("state", state);
  read("gateway", record.gateway);
  read("life", record.life);
  read("claim", record.claim);
  read("account", record.account);
  read("started", record.started);
  read("stream", record.stream);
  read("pieces", record.pieces);
  read("bytes", record.bytes);
  const auto* const known = std::ranges::find(kStates, state);
  right = right && known != std::ranges::end(kStates) && record.bytes <= kMaxOnceAnswer &&
          record.pieces == (record.bytes + kMaxOncePiece - 1) / kMaxOncePiece;
  if (!right) return fail("the record of a key lacks something, or has it wrong");
  record.state = static_cast<OnceState>(known - std::ranges::begin(kStates));
  return record;
}

std::string once_key(std::string_view tenant, std::string_view idempotency_key) {
  constexpr std::size_t kDigits = 40;
  return sha256_hex(fmt::format("millrace once {} {} {}", tenant.size(), tenant, idempotency_key)).substr(0, kDigits);
}

std::uint64_t once_seed(std::string_view once_key) {
  constexpr std::size_t kDigits = 15;  // as positive a number as a client may give
  return std::stoull(sha256_hex(fmt::format("millrace seed {}", once_key)).substr(0, kDigits), nullptr, 16);
}

Status check_idempotency_key(std::string_view key) {
  const bool printable = std::ranges::all_of(key, [](char c) { return c > ' ' && c < 0x7f; });
  if (!key.empty() && key.size() <= kMaxIdempotencyKey && printable) return Ok{};
  return fail("an Idempotency-Key has 1 to {} printable ASCII characters without blanks", kMaxIdempotencyKey);
}

OnceBook::OnceBook(KeyStore& store, std::string gateway, std::string life, Lives lives)
    : store_(&store), gateway_(std::move(gateway)), life_(std::move(life)), lives_(std::move(lives)) {}

OnceBook::~OnceBook() {
  *alive_ = false;
}

void OnceBook::claim(const std::string& key, OnceRecord fresh, Told told) {
  fresh.state = OnceState::running;
  fresh.gateway = gateway_;
  fresh.life = life_;
  fresh.claim = next_claim_++;
  write_claim(key, fresh, 0, false, std::move(told));
}

void OnceBook::write_claim(const std::string& key, const OnceRecord& fresh, std::uint64_t revision, bool taken_over,
                           Told told) {
  const auto on_written = [this, alive = alive_, key, fresh, taken_over,
                           told = std::move(told)](const Result<std::uint64_t>& written) {
    if (!*alive) return;
    if (written.ok()) {
      claims_[key] = {fresh, *written};
      return told({Outcome::claimed, fresh, std::nullopt, taken_over});
    }
    // Somebody else was there, or nobody knows whether this was written.
    store_->get(key, [this, alive, key, fresh, taken_over, told](const Result<std::optional<Stored>>& read) {
      if (!*alive) return;
      if (!read.ok() || !*read) return told({Outcome::unavailable});
      judge(key, fresh, **read, taken_over, told);
    });
  };
  store_->update(key, once_json(fresh), revision, on_written);
}

void OnceBook::judge(const std::string& key, const OnceRecord& fresh, const Stored& stored, bool taken_over,
                     Told told) {
  const auto record = parse_once(stored.value);
  if (!record.ok()) return told({Outcome::unavailable});
  if (record->request != fresh.request) return told({Outcome::other, *record});
  if (record->state == OnceState::done) return fetch(key, *record, 0, {}, std::move(told));
  if (record->state == OnceState::running) {
    if (is_mine(*record, fresh)) {
      claims_[key] = {*record, stored.revision};
      return told({Outcome::claimed, *record, std::nullopt, taken_over});
    }
    // One of this life that is not known any more could not be closed when it ended.
    const bool own = record->gateway == gateway_ && record->life == life_;
    const bool runs = own ? claims_.contains(key) : lives_(record->gateway, record->life);
    if (runs) return told({Outcome::running, *record});
  }
  OnceRecord mine = fresh;
  mine.account = record->account;
  mine.started = record->started;
  write_claim(key, mine, stored.revision, true, std::move(told));
}

void OnceBook::fetch(const std::string& key, const OnceRecord& record, std::uint32_t piece, std::string body,
                     Told told) {
  if (piece == record.pieces) {
    Found found{Outcome::done, record};
    if (record.pieces > 0 && body.size() == record.bytes) found.answer = OnceAnswer{record.stream, std::move(body)};
    return told(std::move(found));
  }
  store_->get(piece_key(key, record, piece),
              [this, alive = alive_, key, record, piece, body = std::move(body),
               told = std::move(told)](const Result<std::optional<Stored>>& read) mutable {
                if (!*alive) return;
                if (!read.ok()) return told({Outcome::unavailable, record});
                if (!*read) return told({Outcome::done, record});  // older than what is kept
                fetch(key, record, piece + 1, body + (*read)->value, std::move(told));
              });
}

void OnceBook::finish(const std::string& key, OnceAnswer answer, std::function<void(bool)> kept) {
  const auto found = claims_.find(key);
  if (found == claims_.end()) return kept(false);
  OnceRecord& record = found->second.record;
  record.stream = answer.stream;
  record.bytes = answer.body.size() <= kMaxOnceAnswer ? answer.body.size() : 0;
  record.pieces = static_cast<std::uint32_t>((record.bytes + kMaxOncePiece - 1) / kMaxOncePiece);
  keep(key, std::make_shared<OnceAnswer>(std::move(answer)), 0, std::move(kept));
}

/// The pieces first, so that a record which says done has all of them behind it.
void OnceBook::keep(const std::string& key, const std::shared_ptr<OnceAnswer>& answer, std::uint32_t piece,
                    std::function<void(bool)> kept) {
  const auto found = claims_.find(key);
  if (found == claims_.end()) return kept(false);
  if (piece == found->second.record.pieces) return close(key, OnceState::done, kTries, std::move(kept));
  store_->put(piece_key(key, found->second.record, piece), answer->body.substr(piece * kMaxOncePiece, kMaxOncePiece),
              [this, alive = alive_, key, answer, piece, kept](const Result<std::uint64_t>& written) {
                if (!*alive) return;
                if (written.ok()) return keep(key, answer, piece + 1, kept);
                release(key, [kept] { kept(false); });
              });
}

void OnceBook::close(const std::string& key, OnceState state, int tries, std::function<void(bool)> closed) {
  const auto found = claims_.find(key);
  if (found == claims_.end()) return closed(false);
  OnceRecord record = found->second.record;
  record.state = state;
  const std::uint64_t revision = found->second.revision;
  store_->update(
      key, once_json(record), revision,
      [this, alive = alive_, key, state, tries, record, closed](const Result<std::uint64_t>& written) {
        if (!*alive) return;
        if (written.ok()) {
          claims_.erase(key);
          return closed(true);
        }
        // Written all the same, taken by another, or not written yet: the store says which.
        store_->get(key, [this, alive, key, state, tries, record, closed](const Result<std::optional<Stored>>& read) {
          if (!*alive) return;
          const bool away = !read.ok();
          const auto there = away || !*read ? fail("no record") : parse_once((*read)->value);
          const bool mine = there.ok() && is_mine(*there, record);
          if (tries > 0 && (away || (mine && there->state == OnceState::running))) {
            if (mine) claims_[key].revision = (*read)->revision;
            return close(key, state, tries - 1, closed);
          }
          claims_.erase(key);
          closed(mine && there->state == state);
        });
      });
}

void OnceBook::release(const std::string& key, std::function<void()> released) {
  close(key, OnceState::open, kTries, [released = std::move(released)](bool) {
    if (released) released();
  });
}

}  // namespace millrace
