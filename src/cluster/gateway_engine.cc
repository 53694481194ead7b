#include "cluster/gateway_engine.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace millrace {

namespace {

double seconds(std::chrono::steady_clock::duration time) {
  return std::chrono::duration<double>(time).count();
}

Placement placement_of(Request& request, const std::string& model) {
  Placement placement;
  placement.model = model;
  placement.task = request.task;
  placement.prompt = std::move(request.prompt);
  placement.choices.resize(static_cast<std::size_t>(request.choices));
  placement.sampling = request.sampling;
  placement.max_new_tokens = request.task == Task::generate ? request.max_new_tokens : 0;
  placement.stop_ids = request.stop_ids;
  placement.stop = request.stop;
  placement.special_text = request.special_text;
  placement.logprobs = request.logprobs;
  placement.prompt_logprobs = request.prompt_logprobs;
  if (request.grammar != nullptr) placement.grammar = request.grammar->spec();
  placement.pinned_tokens = request.pinned_tokens;
  placement.priority = request.priority;
  placement.cache_salt = request.cache_salt;
  return placement;
}

}  // namespace

GatewayEngine::GatewayEngine(GatewayStreams& streams, EventLoop& loop, std::string model, const Tokenizer* tokenizer,
                             std::int32_t vocab, std::int64_t hidden)
    : streams_(&streams),
      loop_(&loop),
      model_(std::move(model)),
      tokenizer_(tokenizer),
      vocab_(vocab),
      hidden_(hidden) {}

GatewayEngine::~GatewayEngine() {
  *alive_ = false;
}

Result<RequestId> GatewayEngine::submit(Request request, Sink sink) {
  const RequestId id = next_id_.fetch_add(1, std::memory_order_relaxed);
  auto live = std::make_shared<std::unique_ptr<Live>>(std::make_unique<Live>());
  (*live)->request = std::move(request);
  (*live)->sink = std::move(sink);
  (*live)->submitted = Clock::now();
  loop_->post([this, alive = alive_, id, live] {
    if (!*alive) return;
    Live& taken = *(live_[id] = std::move(*live));
    taken.prompt_tokens = static_cast<std::int64_t>(taken.request.prompt.size());
    taken.open_choices = static_cast<std::size_t>(taken.request.choices);
    for (std::int32_t c = 0; c < taken.request.choices; ++c) {
      taken.choices.emplace_back().text = AnswerText(tokenizer_, taken.request.special_text, taken.request.stop);
    }
    Placement placement = placement_of(taken.request, model_);
    if (std::isfinite(hedge_after)) {
      taken.placement = placement;
      const auto late = std::chrono::duration_cast<Duration>(std::chrono::duration<double>(hedge_after));
      loop_->after(late, [this, alive, id] {
        if (*alive) hedge(id);
      });
    }
    submit_stream(id, taken, std::move(placement), {}, taken.stream);
  });
  return id;
}

void GatewayEngine::submit_stream(RequestId id, Live& live, Placement placement, const std::string& avoid,
                                  StreamId& stream) {
  const auto own = std::make_shared<StreamId>(0);
  stream = *own = streams_->submit(
      std::move(placement), vocab_, [this, id, own](const StreamNews& news) { return on_stream(id, *own, news); },
      hidden_, live.request.wish, avoid);
}

void GatewayEngine::hedge(RequestId id) {
  const auto found = live_.find(id);
  if (found == live_.end() || !found->second->placement) return;  // it has ended, or begun
  Live& live = *found->second;
  Placement placement = std::move(*live.placement);
  live.placement.reset();
  ++counters_.hedged;
  submit_stream(id, live, std::move(placement), streams_->so_far(live.stream).node, live.hedge);
}

void GatewayEngine::choose(Live& live, StreamId stream) {
  live.placement.reset();
  if (live.hedge == 0) return;
  if (stream == live.hedge) ++counters_.won;
  const StreamId other = stream == live.stream ? live.hedge : live.stream;
  live.lost = streams_->so_far(other).work;
  streams_->cancel(other);
  live.stream = stream;
  live.hedge = 0;
}

Demand GatewayEngine::on_stream(RequestId id, StreamId stream, const StreamNews& news) {
  const auto found = live_.find(id);
  if (found == live_.end()) return Demand::more;
  Live& live = *found->second;
  const auto* done = std::get_if<StreamDone>(&news);
  if (done != nullptr && live.hedge != 0) {
    // Without a word: the other one may still answer.
    live.lost = done->work;
    if (stream == live.stream) {
      ++counters_.won;
      live.stream = live.hedge;
    }
    live.hedge = 0;
    return Demand::more;
  }
  if (done == nullptr) choose(live, stream);
  return on_news(id, news);
}

void GatewayEngine::cancel(RequestId id) {
  loop_->post([this, alive = alive_, id] {
    const auto found = *alive ? live_.find(id) : live_.end();
    if (!*alive || found == live_.end()) return;
    Live& live = *found->second;
    const StreamDone done = streams_->so_far(live.stream);
    streams_->cancel(live.stream);
    if (live.hedge != 0) streams_->cancel(live.hedge);
    for (std::size_t c = 0; c < live.choices.size(); ++c) {
      if (live.choices[c].ended) continue;
      const bool last = live.open_choices == 1;
      end_choice(id, live, static_cast<std::int32_t>(c), {.finish = FinishReason::cancelled}, done);
      if (last) return;
    }
  });
}

void GatewayEngine::resume(RequestId id, std::int32_t /*choice*/) {
  loop_->post([this, alive = alive_, id] {
    const auto live = *alive ? live_.find(id) : live_.end();
    if (*alive && live != live_.end()) streams_->resume(live->second->stream);
  });
}

Demand GatewayEngine::on_news(RequestId id, const StreamNews& news) {
  const auto found = live_.find(id);
  if (found == live_.end()) return Demand::more;
  Live& live = *found->second;
  if (const auto* came = std::get_if<TokenCame>(&news)) return on_token(id, live, *came);
  if (const auto* came = std::get_if<EmbeddingCame>(&news)) {
    live.choices.front().embedding = came->values;  // told with the end, as an engine does
    return Demand::more;
  }
  if (const auto* end = std::get_if<ChoiceEnd>(&news)) {
    Choice& choice = live.choices[static_cast<std::size_t>(end->choice)];
    if (choice.ended) return Demand::more;  // by a stop string, and the node has found it too
    TokenEvent event{
        .text = choice.text.finish(), .finish = end->reason, .embedding = std::exchange(choice.embedding, {})};
    if (choice.text.stopped()) event.finish = FinishReason::stop;
    end_choice(id, live, end->choice, std::move(event), streams_->so_far(live.stream));
    return Demand::more;
  }
  const StreamDone done = std::get<StreamDone>(news);
  const Error error = done.error.value_or(Error{"the stream has ended before its answers", ErrorKind::unavailable});
  const TokenEvent failure{.finish = FinishReason::error,
                           .error = error.message,
                           .error_kind = error.kind,
                           .of_step = error.kind != ErrorKind::invalid};
  for (std::size_t c = 0; c < live.choices.size(); ++c) {
    if (live.choices[c].ended) continue;
    const bool last = live.open_choices == 1;
    end_choice(id, live, static_cast<std::int32_t>(c), failure, done);
    if (last) break;
  }
  return Demand::more;
}

Demand GatewayEngine::on_token(RequestId id, Live& live, const TokenCame& came) {
  Choice& choice = live.choices[static_cast<std::size_t>(came.choice)];
  if (choice.ended) return Demand::more;
  TokenEvent event{.token = came.token, .of_prompt = came.of_prompt, .logprobs = came.logprobs};
  if (!came.of_prompt) {
    choice.last = Clock::now();
    if (choice.tokens++ == 0) choice.first = choice.last;
    const std::vector<std::int32_t>& stops = live.request.stop_ids;
    if (std::ranges::find(stops, came.token) == stops.end()) event.text = choice.text.push(came.token);
    if (choice.text.stopped()) {
      event.finish = FinishReason::stop;
      const bool last = live.open_choices == 1;
      const StreamId stream = live.stream;
      end_choice(id, live, came.choice, std::move(event), streams_->so_far(stream));
      if (last) streams_->cancel(stream);
      return Demand::more;
    }
  }
  event.request = id;
  event.choice = came.choice;
  return live.sink(event);
}

void GatewayEngine::end_choice(RequestId id, Live& live, std::int32_t index, TokenEvent event, const StreamDone& done) {
  Choice& choice = live.choices[static_cast<std::size_t>(index)];
  choice.ended = true;
  choice.finish = event.finish;
  event.request = id;
  event.choice = index;
  event.stop_string = choice.text.found();
  if (--live.open_choices > 0) {
    (void)live.sink(event);
    return;
  }
  const auto taken = live_.extract(id);
  const RequestSummary summary = summarize(live, done);
  event.summary = &summary;
  if (on_request) on_request({summary, live.choices.front().finish}, done);
  (void)live.sink(event);
}

RequestSummary GatewayEngine::summarize(const Live& live, const StreamDone& done) const {
  RequestSummary summary{.prompt_tokens = live.prompt_tokens,
                         .cached_tokens = std::min(done.cached_tokens, live.prompt_tokens),
                         .total = seconds(Clock::now() - live.submitted)};
  double decoding = 0.0;
  std::int64_t later = 0;
  for (const Choice& choice : live.choices) {
    summary.generated_tokens += choice.tokens;
    if (choice.tokens == 0) continue;
    const double ttft = seconds(choice.first - live.submitted);
    summary.ttft = summary.ttft == 0.0 ? ttft : std::min(summary.ttft, ttft);
    decoding += seconds(choice.last - choice.first);
    later += choice.tokens - 1;
  }
  if (later > 0) summary.tpot = decoding / static_cast<double>(later);
  ServiceReport service{.node = done.node, .migrations = done.migrations, .identical = done.identical};
  const auto add = [&](const NodeWork& work) {
    if (!cost) return;
    const auto [usd, joules] = cost(work);
    service.usd += usd;
    service.joules += joules;
  };
  std::ranges::for_each(live.lost, add);
  std::ranges::for_each(done.work, add);
  if (!done.work.empty()) service.recipe = done.work.back().recipe;
  summary.service = std::move(service);
  return summary;
}

}  // namespace millrace
