"""Chats: shape, streams, usage, several choices, lengths, ends."""

import time

from support import CONTEXT, MODEL, RAW, STORY, Suite, collect, fresh, told

REPEAT = [{"role": "user", "content": "Repeat this: sailor prince slow fool"}]


class Chat(Suite):
    def test_answer_has_the_form_of_the_api(self):
        answer = self.chat(max_tokens=12, temperature=0)
        self.assertRegex(answer.id, r"^chatcmpl-\w+$")
        self.assertEqual(answer.object, "chat.completion")
        self.assertEqual(answer.model, MODEL)
        self.assertLess(abs(answer.created - time.time()), 60)
        self.assertTrue(answer.system_fingerprint)
        self.assertEqual(len(answer.choices), 1)
        choice = answer.choices[0]
        self.assertEqual((choice.index, choice.finish_reason, choice.logprobs), (0, "length", None))
        self.assertEqual(choice.message.role, "assistant")
        self.assertTrue(choice.message.content)
        self.assertIsNone(choice.message.tool_calls)
        self.assertIsNone(choice.message.refusal)

    def test_usage_adds_up(self):
        usage = self.chat(max_tokens=12, temperature=0).usage
        self.assertEqual(usage.completion_tokens, 12)
        self.assertGreater(usage.prompt_tokens, 10)
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + 12)
        self.assertLessEqual(usage.prompt_tokens_details.cached_tokens, usage.prompt_tokens)

    def test_stream_says_the_same_as_the_whole(self):
        for fields in ({"temperature": 0}, {"seed": 1}, {"seed": 2, **RAW}, {"seed": 3, "temperature": 1.5}):
            with self.subTest(**fields):
                whole = self.chat(max_tokens=40, **fields)
                chunks, parts = collect(self.chat(max_tokens=40, stream=True, **fields))
                self.assertEqual(parts, told(whole))
                self.assertEqual({chunk.id for chunk in chunks}, {chunks[0].id})
                self.assertEqual({chunk.object for chunk in chunks}, {"chat.completion.chunk"})
                self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
                self.assertEqual([chunk.usage for chunk in chunks], [None] * len(chunks))
                self.assertGreater(len(chunks), 10)

    def test_stream_helper_of_the_client(self):
        fields = {"max_tokens": 200, "seed": 5, "stop": [".", "!"]}  # the helper takes a limit of length for a failure
        with self.client.chat.completions.stream(model=MODEL, messages=STORY, **fields) as stream:
            pieces = [event.delta for event in stream if event.type == "content.delta"]
            final = stream.get_final_completion()
        self.assertEqual("".join(pieces), final.choices[0].message.content)
        self.assertEqual(told(final), told(self.chat(**fields)))

    def test_usage_comes_last_in_a_stream(self):
        whole = self.chat(max_tokens=20, seed=4)
        chunks, parts = collect(self.chat(max_tokens=20, seed=4, stream=True, stream_options={"include_usage": True}))
        self.assertEqual(parts, told(whole))
        self.assertEqual(chunks[-1].choices, [])
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            self.assertEqual(getattr(chunks[-1].usage, name), getattr(whole.usage, name))
        self.assertEqual({chunk.usage for chunk in chunks[:-1]}, {None})
        self.assertTrue(all(chunk.choices for chunk in chunks[:-1]))

    def test_shared_context_is_counted(self):
        salt = fresh()
        words = " ".join(f"The {color} boat sailed away." for color in ("red", "blue", "green", "white") * 20)
        messages = [{"role": "user", "content": words}]
        usages = []
        for _ in range(3):
            answer = self.chat(messages, max_tokens=30, temperature=0, extra_body=salt)
            usages.append(answer.usage)
            reply = {"role": "assistant", "content": answer.choices[0].message.content}
            messages = [*messages, reply, {"role": "user", "content": "And then?"}]
        cached = [usage.prompt_tokens_details.cached_tokens for usage in usages]
        self.assertEqual(cached[0], 0)
        # All of the former prompt but what is left of its last page, at least.
        self.assertGreaterEqual(cached[1], usages[0].prompt_tokens - 16)
        self.assertGreaterEqual(cached[2], usages[1].prompt_tokens - 16)
        self.assertLess(cached[2], usages[2].prompt_tokens)
        self.assertEqual(self.chat(messages, max_tokens=1, extra_body=fresh()).usage.prompt_tokens_details.cached_tokens, 0)

    def test_same_prompt_again_is_cached_and_says_the_same(self):
        salt = fresh()
        first = self.chat(max_tokens=20, seed=9, extra_body=salt)
        second = self.chat(max_tokens=20, seed=9, extra_body=salt)
        self.assertEqual(first.usage.prompt_tokens_details.cached_tokens, 0)
        self.assertGreaterEqual(second.usage.prompt_tokens_details.cached_tokens, first.usage.prompt_tokens - 16)
        self.assertLess(second.usage.prompt_tokens_details.cached_tokens, first.usage.prompt_tokens)
        self.assertEqual(told(first), told(second))

    def test_four_choices(self):
        whole = self.chat(n=4, max_tokens=24, seed=11, **RAW)
        self.assertEqual([choice.index for choice in whole.choices], [0, 1, 2, 3])
        texts = [choice.message.content for choice in whole.choices]
        self.assertEqual(len(set(texts)), 4)
        self.assertEqual(whole.usage.prompt_tokens, self.chat(max_tokens=1).usage.prompt_tokens)
        alone = self.chat(max_tokens=24, seed=11, **RAW)
        self.assertEqual(told(alone)[0], told(whole)[0])

        chunks, parts = collect(self.chat(n=4, max_tokens=24, seed=11, stream=True, **RAW))
        self.assertEqual(parts, told(whole))
        order = [choice.index for chunk in chunks for choice in chunk.choices]
        last_of_first = max(i for i, index in enumerate(order) if index == 0)
        first_of_last = order.index(3)
        self.assertLess(first_of_last, last_of_first, "the choices come one after the other")
        for index in range(4):
            roles = [c.delta.role for chunk in chunks for c in chunk.choices if c.index == index]
            self.assertEqual(roles[0], "assistant")

    def test_four_choices_count_all_their_tokens(self):
        answer = self.chat(n=4, max_tokens=10, seed=1, extra_body={"ignore_eos": True})
        self.assertEqual(answer.usage.completion_tokens, 40)
        self.assertEqual([choice.finish_reason for choice in answer.choices], ["length"] * 4)

    def test_limits_of_length(self):
        for field in ("max_tokens", "max_completion_tokens"):
            for most in (1, 2, 17):
                answer = self.chat(temperature=0, **{field: most})
                self.assertEqual((answer.usage.completion_tokens, answer.choices[0].finish_reason), (most, "length"))
        both = self.chat(temperature=0, max_tokens=9, max_completion_tokens=5)
        self.assertEqual(both.usage.completion_tokens, 5)

    def test_without_a_limit_the_context_is_the_limit(self):
        answer = self.chat(temperature=0, extra_body={"ignore_eos": True})
        self.assertEqual(answer.usage.total_tokens, CONTEXT)
        self.assertEqual(answer.choices[0].finish_reason, "length")

    def test_model_ends_its_answer(self):
        answer = self.chat(REPEAT, temperature=0, max_tokens=50)
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertEqual(answer.choices[0].message.content.split(), "sailor prince slow fool".split())
        self.assertNotIn("<|", answer.choices[0].message.content)
        _, parts = collect(self.chat(REPEAT, temperature=0, max_tokens=50, stream=True))
        self.assertEqual(parts, told(answer))

    def test_forms_of_messages(self):
        text = STORY[0]["content"]
        plain = told(self.chat(max_tokens=16, temperature=0))
        parts = [{"role": "user", "content": [{"type": "text", "text": text}]}]
        self.assertEqual(told(self.chat(parts, max_tokens=16, temperature=0)), plain)
        named = [{"role": "user", "name": "ann", "content": text}]
        self.assertEqual(told(self.chat(named, max_tokens=16, temperature=0)), plain)
        system, developer = (
            told(self.chat([{"role": role, "content": "Be brief."}, *STORY], max_tokens=16, temperature=0))
            for role in ("system", "developer")
        )
        self.assertEqual(system, developer)
        talk = [*STORY, {"role": "assistant", "content": "He was sad."}, {"role": "user", "content": "And then?"}]
        longer = self.chat(talk, max_tokens=8, temperature=0).usage
        self.assertGreater(longer.prompt_tokens, self.chat(max_tokens=8, temperature=0).usage.prompt_tokens + 8)

    def test_fields_that_ask_for_nothing_here(self):
        plain = told(self.chat(max_tokens=12, temperature=0))
        answer = self.chat(
            max_tokens=12,
            temperature=0,
            user="someone",
            metadata={"topic": "tests"},
            store=False,
            service_tier="auto",
            safety_identifier="someone",
            prompt_cache_key="tests",
            modalities=["text"],
            verbosity="low",
            extra_body={"field_of_tomorrow": {"deep": [1, 2, None]}, "another": 7},
        )
        self.assertEqual(told(answer), plain)

    def test_null_is_absent(self):
        nothing = dict.fromkeys(
            "n stop seed top_p logprobs top_logprobs logit_bias tools tool_choice response_format stream_options user".split()
        )
        answer = self.chat(max_tokens=12, temperature=0, extra_body=nothing)
        self.assertEqual(told(answer), told(self.chat(max_tokens=12, temperature=0)))

    def test_text_of_all_the_world(self):
        for text in (
            "Žluťoučký kůň pěl ďábelské ódy",
            "日本語の物語",
            "😀👩‍👩‍👧‍👦🏴‍☠️",
            "a\u0000b",
            "\t\n\\\"'",
            "مرحبا",
        ):
            messages = [{"role": "user", "content": "Repeat this: " + text}]
            whole = self.chat(messages, max_tokens=40, seed=1)
            _, parts = collect(self.chat(messages, max_tokens=40, seed=1, stream=True))
            self.assertEqual(parts, told(whole))
        self.assertEqual(
            self.chat([{"role": "user", "content": ""}], max_tokens=3, temperature=0).usage.completion_tokens, 3
        )

    def test_characters_are_whole_in_a_stream(self):
        for seed in range(6):
            fields = {"max_tokens": 60, "seed": seed, "temperature": 2.0, "extra_body": {"ignore_eos": True}}
            whole = self.chat(**fields).choices[0].message.content
            chunks, parts = collect(self.chat(stream=True, **fields))
            self.assertEqual(parts[0][0], whole)
            alone = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            self.assertEqual(alone.encode("utf-8", "surrogatepass").decode("utf-8"), whole)
