// The part of Admission that answers keyed requests. All of it runs on the loop.
#include <algorithm>
#include <chrono>
#include <utility>

#include "tenants/admission.h"

namespace millrace {

namespace {

constexpr std::int64_t kMostHeld = 256 << 20;  // bytes of keyed answers that run or are told again

HttpReply other_reply() {
  return final_reply(422, "This Idempotency-Key was used for another request; use a new key for a new request.",
                     "invalid_request_error", "idempotency_key_reused");
}

HttpReply not_kept_reply() {
  return final_reply(409, "The answer to this Idempotency-Key was given, and was too long to be kept or is gone.",
                     "invalid_request_error", "idempotent_answer_not_kept");
}

/// Empty: nobody's.
std::string_view tenant_of(const AdmittedCall& call) {
  return call.tenant == nullptr ? std::string_view() : call.tenant->name;
}

}  // namespace

void KeyedReader::refuse(HttpReply reply) {
  const std::lock_guard lock(mutex);
  refused = std::move(reply);
  if (wake) wake();
}

void KeyedReader::give(std::shared_ptr<SharedAnswer> shared, bool is_replay) {
  if (!shared->join(reader)) {
    refuse(not_kept_reply());
    return;
  }
  const std::lock_guard lock(mutex);
  answer = std::move(shared);
  replayed = is_replay;
  if (wake) wake();
}

bool KeyedReader::has_left() {
  const std::lock_guard lock(mutex);
  return wake == nullptr;
}

Admission::Keyed* Admission::find(const std::string& key) {
  const auto found = keyed_.find(key);
  return found == keyed_.end() ? nullptr : &found->second;
}

void Admission::read_keyed(std::shared_ptr<KeyedReader> reader) {
  loop_->post([this, alive = alive_, reader = std::move(reader)] {
    if (*alive) join(reader);
  });
}

void Admission::left_keyed(const std::shared_ptr<KeyedReader>& reader) {
  loop_->post([this, alive = alive_, reader] {
    if (*alive) leave(reader);
  });
}

void Admission::join(const std::shared_ptr<KeyedReader>& reader) {
  const std::string& key = reader->call->key;
  const auto [found, is_new] = keyed_.try_emplace(key);
  Keyed& entry = found->second;
  if (is_new) {
    entry.request = reader->call->request;
    entry.since = loop_->now();
    entry.waiting.push_back(reader);
    claim(key);
  } else if (entry.request != reader->call->request) {
    limits_->meter.refused(tenant_of(*reader->call), TenantRefusal::key);
    reader->refuse(other_reply());
  } else if (entry.answer != nullptr) {
    limits_->meter.replayed(tenant_of(*reader->call));
    reader->give(entry.answer, entry.closing);
  } else {
    entry.waiting.push_back(reader);
  }
}

void Admission::leave(const std::shared_ptr<KeyedReader>& reader) {
  const std::string key = reader->call->key;
  Keyed* entry = find(key);
  if (entry == nullptr) return;
  std::erase(entry->waiting, reader);
  if (entry->answer == nullptr) return;
  entry->answer->leave(reader->reader);
  if (entry->closing || entry->answer->has_readers()) return;
  // The key says that its client may come back.
  transport_->after(timing_.grace, [this, key, answer = std::weak_ptr(entry->answer)] {
    const Keyed* later = find(key);
    if (later == nullptr || later->closing || later->answer == nullptr || later->answer != answer.lock()) return;
    if (!later->answer->has_readers()) give_up(key);
  });
}

bool Admission::anybody_waits(Keyed& entry) {
  std::erase_if(entry.waiting, [](const auto& reader) { return reader->has_left(); });
  return !entry.waiting.empty();
}

void Admission::claim(const std::string& key) {
  Keyed* entry = find(key);
  if (entry == nullptr) return;
  if (!anybody_waits(*entry)) {
    keyed_.erase(key);
    return;
  }
  const AdmittedCall& call = *entry->waiting.front()->call;
  const OnceRecord fresh{
      .request = call.request,
      .account = call.account,
      .started =
          std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count(),
      .stream = call.stream};
  once_.claim(key, fresh, [this, key](OnceBook::Found found) { on_found(key, std::move(found)); });
}

void Admission::on_found(const std::string& key, OnceBook::Found found) {
  Keyed* entry = find(key);
  switch (found.outcome) {
    case OnceBook::Outcome::claimed:
      if (entry == nullptr || !anybody_waits(*entry)) {
        once_.release(key);
        keyed_.erase(key);
      } else {
        entry->taken_over = found.taken_over;
        reserve_and_answer(key, found.record.account);
      }
      return;
    case OnceBook::Outcome::running:
      return wait_for_other(key);
    case OnceBook::Outcome::other:
      return drop(key, other_reply(), TenantRefusal::key);
    case OnceBook::Outcome::unavailable:
      return drop(key, away_reply("Idempotency keys cannot be looked up at the moment."), TenantRefusal::store);
    case OnceBook::Outcome::done:
      break;
  }
  if (entry == nullptr) return;
  if (!found.answer) return drop(key, not_kept_reply(), TenantRefusal::key);
  if (*held_ + static_cast<std::int64_t>(found.answer->body.size()) > kMostHeld) {
    return drop(key, away_reply("Too many answers are told again at the moment."), TenantRefusal::store);
  }
  const auto answer = std::make_shared<SharedAnswer>(*loop_, std::move(*found.answer), held_);
  for (const auto& reader : std::exchange(entry->waiting, {})) {
    limits_->meter.replayed(tenant_of(*reader->call));
    reader->give(answer, true);
  }
  keyed_.erase(key);
}

void Admission::wait_for_other(const std::string& key) {
  const Keyed* entry = find(key);
  if (entry == nullptr) return;
  if (loop_->now() - entry->since >= timing_.patience) {
    HttpReply reply = error_reply(409, "A request with this Idempotency-Key is still being answered.",
                                  "invalid_request_error", "idempotent_request_in_progress");
    reply.headers.emplace_back("Retry-After", "5");
    return drop(key, reply, TenantRefusal::key);
  }
  transport_->after(timing_.ask_again, [this, key] { claim(key); });
}

void Admission::reserve_and_answer(const std::string& key, const std::string& account) {
  Keyed& entry = keyed_.at(key);
  entry.call = entry.waiting.front()->call;
  entry.account = account.empty() ? entry.call->account : account;
  if (!entry.call->limit) return answer(key);
  spend_.reserve(entry.account, entry.call->limit, entry.call->reserve, [this, key](SpendBook::Verdict verdict) {
    Keyed* waiting = find(key);
    if (waiting == nullptr) return;
    if (const auto refused = spend_reply(verdict)) {
      once_.release(key);
      return drop(key, *refused, refusal_of(verdict));
    }
    waiting->reserved = waiting->call->reserve;
    answer(key);
  });
}

void Admission::answer(const std::string& key) {
  Keyed& entry = keyed_.at(key);
  limits_->meter.admitted(tenant_of(*entry.call));
  entry.answer = std::make_shared<SharedAnswer>(*loop_, entry.call->answer(), held_, kMostHeld);
  const auto refused = entry.answer->start([this, key] { on_end(key); });
  if (refused) {
    refuse_all(key, *refused);
    return close(key, 0, false);
  }
  for (const auto& reader : std::exchange(entry.waiting, {})) {
    if (reader->call != entry.call) limits_->meter.replayed(tenant_of(*reader->call));
    reader->give(entry.answer, false);
  }
}

void Admission::on_end(const std::string& key) {
  Keyed* entry = find(key);
  if (entry == nullptr) return;
  const TokenUse use = entry->answer->use();
  entry->call->ticket.end(std::max<std::int64_t>(use.prompt, 0) + std::max<std::int64_t>(use.generated, 0));
  const bool failed = entry->answer->inner()->failed();
  close(key, failed ? 0 : entry->call->cost_of(use), !failed);
}

/// Nobody has come back for it. It is charged for what was computed; who comes later begins anew.
void Admission::give_up(const std::string& key) {
  Keyed* entry = find(key);
  const TokenUse use = entry->answer->inner()->use();
  entry->answer->cancel();
  entry->call->ticket.end(std::max<std::int64_t>(use.prompt, 0) + std::max<std::int64_t>(use.generated, 0));
  close(key, entry->call->cost_of(use), false);
}

/// The charge comes first, with the key, then the answer is kept, then the ledger may forget the key: whenever this
/// gateway dies, whoever takes the key over charges it neither twice nor not at all. The key of one that was taken over
/// is not forgotten: whoever had it may be frozen, and will charge it when it thaws.
void Admission::close(const std::string& key, NanoUsd cost, bool keep) {
  Keyed& entry = keyed_.at(key);
  entry.closing = true;
  const std::string account = entry.account;
  const NanoUsd reserved = std::exchange(entry.reserved, 0);
  const bool charged = entry.call->tenant != nullptr && (cost > 0 || reserved > 0);
  if (!keep) {
    if (charged) charge(account, reserved, cost);
    once_.release(key);
    keyed_.erase(key);
    return;
  }
  const auto finish = [this, key, account, forgets = charged && cost > 0 && !entry.taken_over] {
    Keyed* ended = find(key);
    if (ended == nullptr) return;
    OnceAnswer kept{.stream = ended->answer->is_stream(), .body = {}};  // empty: it was too long
    if (auto whole = ended->answer->kept()) kept = *std::move(whole);
    once_.finish(key, std::move(kept), [this, key, account, forgets](bool is_kept) {
      if (is_kept && forgets) spend_.forget(account, key);
      keyed_.erase(key);
    });
  };
  if (charged && cost > 0) return charge(account, reserved, cost, key, finish);
  if (charged) charge(account, reserved, 0);
  finish();
}

void Admission::refuse_all(const std::string& key, const HttpReply& reply) {
  Keyed* entry = find(key);
  if (entry == nullptr) return;
  for (const auto& reader : std::exchange(entry->waiting, {})) reader->refuse(reply);
}

void Admission::drop(const std::string& key, const HttpReply& reply, TenantRefusal why) {
  if (const Keyed* entry = find(key)) {
    for (const auto& reader : entry->waiting) limits_->meter.refused(tenant_of(*reader->call), why);
  }
  refuse_all(key, reply);
  keyed_.erase(key);
}

}  // namespace millrace
