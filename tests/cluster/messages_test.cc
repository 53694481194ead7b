#include "cluster/messages.h"

#include <gtest/gtest.h>

#include <limits>

#include "cluster/placement.h"
#include "cluster/transport.h"

namespace millrace {
namespace {

Placement full_placement() {
  Placement placement{.model = "tiny", .numeric_class = "cpu/amx/6 7f3a", .max_new_tokens = 40};
  placement.prompt = {0, 1, 127, 128, 151935};
  placement.choices = {{.tokens = {5, 6}, .prompt_reported = 5}, {.tokens = {7}, .ended = true}, {}};
  placement.sampling = {.temperature = 0.7f,
                        .top_k = 40,
                        .top_p = 0.9f,
                        .min_p = 0.05f,
                        .repetition_penalty = 1.1f,
                        .presence_penalty = -0.5f,
                        .frequency_penalty = 0.25f,
                        .logit_bias = {{3, -100.0f}, {17, 2.5f}},
                        .seed = 0xfedcba9876543210u};
  placement.stop_ids = {2, 32000};
  placement.stop = {"\n\n", "END"};
  placement.special_text = true;
  placement.logprobs = 5;
  placement.prompt_logprobs = true;
  placement.grammar = GrammarSpec{.kind = GrammarSpec::Kind::choice, .text = "", .choices = {"yes", "no"}};
  placement.pinned_tokens = 3;
  placement.priority = -2;
  placement.cache_salt = "tenant/1";
  placement.allowed = 64;
  return placement;
}

TEST(PlacementTest, ComesBackAsItWas) {
  const Placement placement = full_placement();
  const auto back = decode_placement(encode(placement));
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(back->model, placement.model);
  EXPECT_EQ(back->numeric_class, placement.numeric_class);
  EXPECT_EQ(back->prompt, placement.prompt);
  EXPECT_EQ(back->choices, placement.choices);
  EXPECT_EQ(back->sampling.temperature, placement.sampling.temperature);
  EXPECT_EQ(back->sampling.top_k, placement.sampling.top_k);
  EXPECT_EQ(back->sampling.top_p, placement.sampling.top_p);
  EXPECT_EQ(back->sampling.min_p, placement.sampling.min_p);
  EXPECT_EQ(back->sampling.repetition_penalty, placement.sampling.repetition_penalty);
  EXPECT_EQ(back->sampling.presence_penalty, placement.sampling.presence_penalty);
  EXPECT_EQ(back->sampling.frequency_penalty, placement.sampling.frequency_penalty);
  EXPECT_EQ(back->sampling.logit_bias, placement.sampling.logit_bias);
  EXPECT_EQ(back->sampling.seed, placement.sampling.seed);
  EXPECT_EQ(back->max_new_tokens, placement.max_new_tokens);
  EXPECT_EQ(back->stop_ids, placement.stop_ids);
  EXPECT_EQ(back->stop, placement.stop);
  EXPECT_TRUE(back->special_text);
  EXPECT_EQ(back->logprobs, placement.logprobs);
  EXPECT_TRUE(back->prompt_logprobs);
  ASSERT_TRUE(back->grammar.has_value());
  EXPECT_EQ(back->grammar->kind, placement.grammar->kind);
  EXPECT_EQ(back->grammar->choices, placement.grammar->choices);
  EXPECT_EQ(back->pinned_tokens, placement.pinned_tokens);
  EXPECT_EQ(back->priority, placement.priority);
  EXPECT_EQ(back->cache_salt, placement.cache_salt);
  EXPECT_EQ(back->allowed, placement.allowed);
}

TEST(PlacementTest, AnEmbeddingComesBackAsItWas) {
  const auto back = decode_placement(encode(Placement{.task = Task::embed_last, .prompt = {1}, .max_new_tokens = 0}));
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(back->task, Task::embed_last);
  EXPECT_EQ(back->choices.size(), 1u);
}

TEST(PlacementTest, EveryBeginningOfItIsRefused) {
  const Bytes whole = encode(full_placement());
  for (std::size_t length = 0; length < whole.size(); ++length) {
    EXPECT_FALSE(decode_placement(std::span(whole).first(length)).ok()) << length;
  }
  Bytes longer = whole;
  longer.push_back(std::byte{0});
  EXPECT_EQ(decode_placement(longer).error().message, "1 bytes are left over");
}

TEST(PlacementTest, WhatCanNotBeIsRefused) {
  const auto refusal = [](auto change) {
    Placement placement = full_placement();
    change(placement);
    const auto back = decode_placement(encode(placement));
    return back.ok() ? std::string("taken") : back.error().message;
  };
  EXPECT_EQ(refusal([](Placement& p) { p.prompt.clear(); }), "the prompt is empty");
  EXPECT_EQ(refusal([](Placement& p) { p.choices.clear(); }), "there is no choice");
  EXPECT_EQ(refusal([](Placement& p) { p.max_new_tokens = 1; }), "a choice has more tokens than were asked for");
  EXPECT_EQ(refusal([](Placement& p) { p.pinned_tokens = 6; }), "pinned tokens is 6, at most 5 is allowed");
  EXPECT_EQ(refusal([](Placement& p) { p.sampling.top_p = std::numeric_limits<float>::quiet_NaN(); }),
            "top_p is no finite number");
  EXPECT_EQ(refusal([](Placement& p) { p.prompt = {-1}; }),
            "tokens of the prompt is 4294967295, at most 2147483647 is "
            "allowed");
  EXPECT_EQ(refusal([](Placement& p) { p.choices.resize(129); }), "choices is 129, at most 128 is allowed");
  EXPECT_EQ(refusal([](Placement& p) { p.task = Task::embed_mean; }), "an embedding has choices, or has begun");
  EXPECT_EQ(refusal([](Placement& p) { p.task = static_cast<Task>(3); }), "the task is of no known kind");
}

TEST(MessagesTest, ComeBackAsTheyWere) {
  const Attempt attempt{0x0123456789abcdefu, 3};
  const auto part = decode_put(encode(Put{PlacePart{attempt, 1, 2, Bytes{std::byte{7}}}}));
  ASSERT_TRUE(part.ok()) << part.error().message;
  EXPECT_EQ(std::get<PlacePart>(*part).attempt, attempt);
  EXPECT_EQ(std::get<PlacePart>(*part).part, 1u);
  EXPECT_EQ(std::get<PlacePart>(*part).parts, 2u);
  EXPECT_EQ(std::get<PlacePart>(*part).bytes, Bytes{std::byte{7}});

  const auto credits = decode_put(encode(Put{Credits{{{attempt, 9, 70}, {{1, 1}, 0, 64}}}}));
  ASSERT_TRUE(credits.ok()) << credits.error().message;
  ASSERT_EQ(std::get<Credits>(*credits).streams.size(), 2u);
  EXPECT_EQ(std::get<Credits>(*credits).streams[0].received, 9u);
  EXPECT_EQ(std::get<Credits>(*credits).streams[0].allowed, 70u);

  const auto cancel = decode_put(encode(Put{CancelAttempt{attempt}}));
  ASSERT_TRUE(cancel.ok());
  EXPECT_EQ(std::get<CancelAttempt>(*cancel).attempt, attempt);
  const auto ask = decode_put(encode(Put{AskRecord{}}));
  ASSERT_TRUE(ask.ok());
  EXPECT_TRUE(std::holds_alternative<AskRecord>(*ask));

  Frame frame{.seq = 300, .events = {}};
  frame.events.emplace_back(Accepted{});
  frame.events.emplace_back(TokenCame{.choice = 2, .token = 151935});
  frame.events.emplace_back(
      TokenCame{.token = 4, .of_prompt = true, .logprobs = TokenLogprobs{-0.5f, {{4, -0.5f}, {5, -2.0f}}}});
  frame.events.emplace_back(ChoiceEnd{2, FinishReason::length, 12});
  frame.events.emplace_back(AttemptFailed{ErrorKind::busy, "full"});
  frame.events.emplace_back(EmbeddingCame{{1.5f, -0.0f}});
  const auto said = decode_say(encode(Say{frame}));
  ASSERT_TRUE(said.ok()) << said.error().message;
  const Frame& back = std::get<Frame>(*said);
  ASSERT_EQ(back.events.size(), frame.events.size());
  EXPECT_EQ(back.seq, 300u);
  EXPECT_TRUE(std::holds_alternative<Accepted>(back.events[0]));
  EXPECT_EQ(std::get<TokenCame>(back.events[1]).choice, 2);
  EXPECT_EQ(std::get<TokenCame>(back.events[1]).token, 151935);
  EXPECT_TRUE(std::get<TokenCame>(back.events[2]).of_prompt);
  EXPECT_EQ(std::get<TokenCame>(back.events[2]).logprobs->top[1].second, -2.0f);
  EXPECT_EQ(std::get<ChoiceEnd>(back.events[3]).reason, FinishReason::length);
  EXPECT_EQ(std::get<ChoiceEnd>(back.events[3]).cached_tokens, 12);
  EXPECT_EQ(std::get<AttemptFailed>(back.events[4]).message, "full");
  EXPECT_EQ(std::get<EmbeddingCame>(back.events[5]).values, (std::vector{1.5f, -0.0f}));
  EXPECT_TRUE(std::holds_alternative<UnknownAttempt>(*decode_say(encode(Say{UnknownAttempt{}}))));

  const auto beat =
      decode_beat(encode(Beat{.incarnation = 5, .number = 6, .draining = true, .running = 7, .generated = 1'000'000}));
  ASSERT_TRUE(beat.ok());
  EXPECT_EQ(beat->generated, 1'000'000);
  EXPECT_EQ(beat->incarnation, 5u);
  EXPECT_EQ(beat->running, 7);
  EXPECT_TRUE(beat->draining);
}

TEST(MessagesTest, ABeatOfAGatewayComesBackAsItWas) {
  const auto beat = decode_gate_beat(encode(GateBeat{.life = 0xfedcba98u,
                                                     .number = 6,
                                                     .draining = true,
                                                     .running = 7,
                                                     .waiting = 8,
                                                     .generated = 9,
                                                     .connections = 10,
                                                     .ready_nodes = 11}));
  ASSERT_TRUE(beat.ok()) << beat.error().message;
  EXPECT_EQ(beat->life, 0xfedcba98u);
  EXPECT_EQ(beat->number, 6u);
  EXPECT_TRUE(beat->draining);
  EXPECT_EQ(beat->running, 7);
  EXPECT_EQ(beat->waiting, 8);
  EXPECT_EQ(beat->generated, 9);
  EXPECT_EQ(beat->connections, 10);
  EXPECT_EQ(beat->ready_nodes, 11);
  const Bytes whole = encode(*beat);
  for (std::size_t length = 0; length < whole.size(); ++length) {
    EXPECT_FALSE(decode_gate_beat(std::span(whole).first(length)).ok()) << length;
  }
  EXPECT_FALSE(decode_gate_beat(encode(Beat{})).ok());
  EXPECT_FALSE(decode_beat(whole).ok());
}

TEST(MessagesTest, AnEmbeddingIsNumbersAndNotTooMany) {
  const auto refusal = [](std::vector<float> values) {
    const auto back = decode_say(encode(Say{Frame{.events = {EmbeddingCame{std::move(values)}}}}));
    return back.ok() ? std::string("taken") : back.error().message;
  };
  EXPECT_EQ(refusal(std::vector<float>(kMaxEmbeddingPart, 1.0f)), "taken");
  EXPECT_EQ(refusal(std::vector<float>(kMaxEmbeddingPart + 1, 1.0f)),
            "numbers of an embedding is 257, at most 256 is allowed");
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    EXPECT_EQ(refusal({1.0f, bad}), "an embedding has what is no finite number");
  }
  // All that a frame may have fits into a message.
  const Frame full{.seq = 1ull << 62,
                   .events = std::vector<StreamEvent>(kMaxEventsInFrame,
                                                      EmbeddingCame{std::vector<float>(kMaxEmbeddingPart, 1.0f)})};
  EXPECT_LT(encode(Say{full}).size(), kMaxMessage);
}

TEST(MessagesTest, WhatIsNotForOneIsRefused) {
  EXPECT_FALSE(decode_put(encode(Say{UnknownAttempt{}})).ok());
  EXPECT_FALSE(decode_say(encode(Put{CancelAttempt{}})).ok());
  EXPECT_FALSE(decode_beat(encode(Say{UnknownAttempt{}})).ok());
  EXPECT_FALSE(decode_put({}).ok());
  Bytes later = encode(Put{CancelAttempt{}});
  later[0] = std::byte{2};
  EXPECT_EQ(decode_put(later).error().message, "version 2, only 1 is known");
  // A count that promises more than there is takes no memory.
  Bytes many = encode(Say{Frame{}});
  many.pop_back();
  many.insert(many.end(), {std::byte{0xc8}, std::byte{1}});
  EXPECT_EQ(decode_say(many).error().message, "200 events are announced, 0 bytes are there");
}

TEST(WireTest, ANumberIsWrittenInOneWayOnly) {
  const Bytes padded{std::byte{0x81}, std::byte{0x00}};
  WireReader in(padded);
  in.varint(1000, "it");
  EXPECT_FALSE(in.ok());
  const Bytes endless(11, std::byte{0xff});
  WireReader endless_in(endless);
  endless_in.varint(std::numeric_limits<std::uint64_t>::max(), "it");
  EXPECT_EQ(endless_in.status().error().message, "it is no number");
  for (const std::uint64_t value :
       {std::uint64_t{0}, std::uint64_t{127}, std::uint64_t{128}, std::numeric_limits<std::uint64_t>::max()}) {
    WireWriter out;
    out.varint(value);
    const Bytes bytes = std::move(out).take();
    WireReader back(bytes);
    EXPECT_EQ(back.varint(std::numeric_limits<std::uint64_t>::max(), "it"), value);
    EXPECT_TRUE(back.status().ok());
  }
  for (const std::int64_t value : {std::int64_t{0}, std::int64_t{-1}, std::numeric_limits<std::int64_t>::min(),
                                   std::numeric_limits<std::int64_t>::max()}) {
    WireWriter out;
    out.signed_varint(value);
    const Bytes bytes = std::move(out).take();
    WireReader back(bytes);
    EXPECT_EQ(
        back.signed_varint(std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max(), "it"),
        value);
  }
}

TEST(SubjectsTest, SayWhoSpeaks) {
  EXPECT_EQ(put_sender(put_subject("desk-1", "gw-a")), "gw-a");
  EXPECT_EQ(beat_sender(beat_subject("desk-1")), "desk-1");
  EXPECT_EQ(gate_sender(gate_subject("gw-a")), "gw-a");
  EXPECT_EQ(gate_sender(beat_subject("gw-a")), "");
  const std::string say = say_subject("gw-a", "desk-1", {0xab, 12});
  EXPECT_EQ(say, "mr.say.gw-a.desk-1.00000000000000ab.12");
  const auto from = parse_say(say);
  ASSERT_TRUE(from.has_value());
  EXPECT_EQ(from->node, "desk-1");
  EXPECT_EQ(from->attempt, (Attempt{0xab, 12}));
  for (const char* bad : {"", "mr.say.g.n.ab.1", "mr.say.g.n.00000000000000ab", "mr.say.g.n.00000000000000ab.1.2",
                          "mr.say.g.N.00000000000000ab.1", "mr.say.g.n.00000000000000ag.1",
                          "mr.say.g.n.00000000000000ab.-1", "mr.say.g.n.00000000000000ab.4294967296"}) {
    EXPECT_FALSE(parse_say(bad).has_value()) << bad;
  }
  EXPECT_EQ(put_sender("mr.put.n"), "");
  EXPECT_EQ(beat_sender("mr.beat.n.m"), "");
  EXPECT_FALSE(is_cluster_name(""));
  EXPECT_FALSE(is_cluster_name("a.b"));
  EXPECT_FALSE(is_cluster_name("*"));
  EXPECT_FALSE(is_cluster_name(std::string(33, 'a')));
}

}  // namespace
}  // namespace millrace
