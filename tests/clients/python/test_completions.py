"""Completions: forms of a prompt, echo, several answers, a model without a chat template."""

import unittest

import openai

from support import MODEL, PLAIN, RAW, STORIES, Suite, client, collect, detokenize, told, tokenize

PROMPTS = ["Once upon a time", "The old sailor said", "There was a mouse"]
UNICODE = "Ein Märchen: 日本 😀👩‍👩‍👧‍👦 \u0301x\u200d\ufeff\U0001f3f4 مرحبا"


class Completions(Suite):
    def test_answer_has_the_form_of_the_api(self):
        answer = self.complete(max_tokens=9, temperature=0)
        self.assertRegex(answer.id, r"^cmpl-\w+$")
        self.assertEqual((answer.object, answer.model), ("text_completion", MODEL))
        self.assertEqual(answer.choices[0].finish_reason, "length")
        self.assertIsNone(answer.choices[0].logprobs)
        self.assertEqual(answer.usage.completion_tokens, 9)
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + 9)

    def test_sixteen_tokens_are_the_default(self):
        answer = self.complete(temperature=0, extra_body={"ignore_eos": True})
        self.assertEqual(answer.usage.completion_tokens, 16)

    def test_text_and_ids_are_the_same_prompt(self):
        fields = {"max_tokens": 16, "seed": 3}
        ids = tokenize(PROMPTS[0], add_special_tokens=True)
        by_text, by_ids = self.complete(PROMPTS[0], **fields), self.complete(ids, **fields)
        self.assertEqual(told(by_text), told(by_ids))
        self.assertEqual(by_text.usage.prompt_tokens, len(ids))

    def test_several_prompts_are_answered_as_each_alone(self):
        fields = {"max_tokens": 16, "seed": 3}
        alone = [self.complete(prompt, **fields) for prompt in PROMPTS]
        expected = {i: told(answer)[0] for i, answer in enumerate(alone)}
        together = self.complete(PROMPTS, **fields)
        self.assertEqual(told(together), expected)
        self.assertEqual([choice.index for choice in together.choices], [0, 1, 2])
        for count in ("prompt_tokens", "completion_tokens"):
            self.assertEqual(getattr(together.usage, count), sum(getattr(answer.usage, count) for answer in alone))
        ids = [tokenize(prompt, add_special_tokens=True) for prompt in PROMPTS]
        self.assertEqual(told(self.complete(ids, **fields)), expected)
        chunks, parts = collect(self.complete(PROMPTS, stream=True, stream_options={"include_usage": True}, **fields))
        self.assertEqual(parts, expected)
        self.assertEqual(chunks[-1].usage.total_tokens, together.usage.total_tokens)

    def test_choices_of_several_prompts_are_in_order(self):
        fields = {"max_tokens": 12, "seed": 5, **RAW}
        both = self.complete(PROMPTS[:2], n=2, **fields)
        self.assertEqual([choice.index for choice in both.choices], [0, 1, 2, 3])
        alone = [told(self.complete(prompt, n=2, **fields)) for prompt in PROMPTS[:2]]
        self.assertEqual(told(both), {0: alone[0][0], 1: alone[0][1], 2: alone[1][0], 3: alone[1][1]})

    def test_stream_says_the_same_as_the_whole(self):
        for n in (1, 4):
            fields = {"max_tokens": 30, "seed": 8, "n": n, **RAW}
            chunks, parts = collect(self.complete(stream=True, **fields))
            self.assertEqual(parts, told(self.complete(**fields)))
            self.assertEqual({chunk.object for chunk in chunks}, {"text_completion"})

    def test_echo_repeats_the_prompt(self):
        for prompt in (PROMPTS[0], UNICODE, " two  spaces\n"):
            plain = self.complete(prompt, max_tokens=8, temperature=0).choices[0].text
            self.assertEqual(self.complete(prompt, max_tokens=8, temperature=0, echo=True).choices[0].text, prompt + plain)
            _, parts = collect(self.complete(prompt, max_tokens=8, temperature=0, echo=True, stream=True))
            self.assertEqual(parts[0][0], prompt + plain)
        ids = tokenize(UNICODE)
        self.assertTrue(self.complete(ids, max_tokens=1, echo=True).choices[0].text.startswith(detokenize(ids)))

    def test_best_of_tells_the_likeliest(self):
        fields = {"max_tokens": 12, "seed": 2, **RAW}
        best = self.complete(best_of=4, n=1, logprobs=0, **fields).choices
        every = self.complete(n=4, logprobs=0, **fields).choices
        means = {choice.text: sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs) for choice in every}
        self.assertEqual(len(best), 1)
        self.assertEqual(best[0].text, max(means, key=means.get))
        with self.assertRaises(openai.BadRequestError):
            self.complete(best_of=4, n=1, stream=True, **fields)
        with self.assertRaises(openai.BadRequestError):
            self.complete(best_of=1, n=2, **fields)

    def test_prompts_that_are_none(self):
        for prompt in ([], [[]], [1, "two"], ["one", [2]], [10**9], [-1], [1.5], [[1], "x"], {"text": "x"}, 7):
            with self.subTest(prompt=prompt), self.assertRaises(openai.BadRequestError) as caught:
                self.complete(prompt, max_tokens=1)
            self.assertTrue(caught.exception.param.startswith("prompt"))

    def test_empty_text(self):
        """Without a token that begins every text there is nothing to go on from; that is said."""
        if tokenize("", add_special_tokens=True):
            self.assertEqual(self.complete("", max_tokens=3, temperature=0).usage.completion_tokens, 3)
        else:
            with self.assertRaises(openai.BadRequestError) as caught:
                self.complete("", max_tokens=3)
            self.assertEqual(caught.exception.param, "prompt")

    def test_suffix_is_refused_rather_than_ignored(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.complete(suffix="the end")
        self.assertEqual(caught.exception.param, "suffix")


class ModelWithoutChat(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.client = client("MILLRACE_STORIES")

    @classmethod
    def tearDownClass(cls):
        cls.client.close()

    def test_completions(self):
        fields = {"model": STORIES, "prompt": PROMPTS[0], "max_tokens": 40, "temperature": 0, "extra_body": PLAIN}
        whole = self.client.completions.create(**fields)
        self.assertIn("there was", whole.choices[0].text)
        _, parts = collect(self.client.completions.create(stream=True, **fields))
        self.assertEqual(parts, told(whole))

    def test_text_goes_on_from_nothing(self):
        answer = self.client.completions.create(model=STORIES, prompt="", max_tokens=8, temperature=0)
        self.assertEqual(answer.usage.prompt_tokens, 1)
        self.assertEqual(answer.usage.completion_tokens, 8)

    def test_unicode_prompt(self):
        answer = self.client.completions.create(model=STORIES, prompt=UNICODE, max_tokens=4, temperature=0, echo=True)
        self.assertTrue(answer.choices[0].text.startswith(UNICODE))

    def test_chat_is_refused(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.chat.completions.create(model=STORIES, messages=[{"role": "user", "content": "x"}])
        self.assertIn("chat template", str(caught.exception))

    def test_schema(self):
        answer = self.client.completions.create(
            model=STORIES, prompt="A number: ", max_tokens=20, seed=1, extra_body={"guided_regex": "[1-9][0-9]{2}"}
        )
        self.assertRegex(answer.choices[0].text, r"^[1-9][0-9]{2}$")
        self.assertEqual(answer.choices[0].finish_reason, "stop")
