"""Log probabilities of chats and completions, and of a prompt as evaluation harnesses ask for them."""

import math

from support import CONTEXT, PLAIN, RAW, Suite, collect, detokenize, fresh, told, tokenize

PROMPT = "The old sailor looked at the sea and said nothing for a long time."
GREEDY = {"temperature": 0, "extra_body": PLAIN}


class ChatLogprobs(Suite):
    def test_every_token_has_its_own(self):
        for fields in (GREEDY, {"seed": 4, **RAW}, {"seed": 5, "temperature": 2.0}):
            answer = self.chat(max_tokens=25, logprobs=True, top_logprobs=5, **fields)
            tokens = answer.choices[0].logprobs.content
            self.assertEqual(len(tokens), answer.usage.completion_tokens - (answer.choices[0].finish_reason == "stop"))
            data = b"".join(bytes(token.bytes) for token in tokens)
            self.assertEqual(data.decode(errors="replace"), answer.choices[0].message.content)
            for token in tokens:
                self.assertLessEqual(token.logprob, 0.0)
                self.assertEqual(len(token.top_logprobs), 5)
                values = [top.logprob for top in token.top_logprobs]
                self.assertEqual(values, sorted(values, reverse=True))
                self.assertLessEqual(sum(map(math.exp, values)), 1.0 + 1e-5)
                for top in token.top_logprobs:
                    if top.bytes == token.bytes:
                        self.assertEqual(top.logprob, token.logprob)
                        self.assertEqual(top.token, token.token)

    def test_greedy_takes_the_likeliest(self):
        answer = self.chat(max_tokens=25, logprobs=True, top_logprobs=2, **GREEDY)
        for token in answer.choices[0].logprobs.content:
            self.assertEqual(token.token, token.top_logprobs[0].token)

    def test_none_of_the_others(self):
        for fields in ({"top_logprobs": 0}, {}):
            answer = self.chat(max_tokens=5, logprobs=True, **GREEDY, **fields)
            self.assertEqual([token.top_logprobs for token in answer.choices[0].logprobs.content], [[]] * 5)

    def test_they_do_not_change_the_answer(self):
        plain = told(self.chat(max_tokens=30, seed=6, **RAW))
        self.assertEqual(told(self.chat(max_tokens=30, seed=6, logprobs=True, top_logprobs=20, **RAW)), plain)

    def test_a_stream_has_the_same(self):
        fields = {"max_tokens": 30, "seed": 6, "logprobs": True, "top_logprobs": 3, "n": 2, **RAW}
        whole = self.chat(**fields)
        chunks, parts = collect(self.chat(stream=True, **fields))
        self.assertEqual(parts, told(whole))
        for choice in whole.choices:
            streamed = [
                token
                for chunk in chunks
                for part in chunk.choices
                if part.index == choice.index and part.logprobs
                for token in part.logprobs.content
            ]
            self.assertEqual([t.model_dump() for t in streamed], [t.model_dump() for t in choice.logprobs.content])

    def test_a_stop_string_ends_them_too(self):
        text = self.chat(max_tokens=30, **GREEDY).choices[0].message.content
        stop = text[20:23]
        answer = self.chat(max_tokens=30, logprobs=True, stop=stop, **GREEDY)
        data = b"".join(bytes(token.bytes) for token in answer.choices[0].logprobs.content).decode()
        content = answer.choices[0].message.content
        self.assertEqual(content, text[: text.index(stop)])
        self.assertTrue(data.startswith(content))
        self.assertFalse(stop in data[: len(content)])


class LegacyLogprobs(Suite):
    def test_form(self):
        answer = self.complete(PROMPT, max_tokens=20, logprobs=4, **GREEDY)
        choice = answer.choices[0]
        told_of = choice.logprobs
        self.assertEqual(len(told_of.tokens), 20)
        self.assertEqual("".join(told_of.tokens), choice.text)
        self.assertEqual(told_of.text_offset, [len("".join(told_of.tokens[:i])) for i in range(20)])
        for token, value, top in zip(told_of.tokens, told_of.token_logprobs, told_of.top_logprobs, strict=True):
            self.assertIn(len(top), (4, 5))
            self.assertEqual(top[token], value)
            self.assertEqual(max(top.values()), value)

    def test_they_are_those_of_a_chat(self):
        prompt = tokenize("<|bos|><|user|>x<|end|><|assistant|>")
        self.assertEqual(len(prompt), 5)  # the markers are tokens of their own
        messages = [{"role": "user", "content": "x"}]
        rendered = self.complete(prompt, max_tokens=20, logprobs=0, **GREEDY)
        chat = self.chat(messages, max_tokens=20, logprobs=True, **GREEDY)
        self.assertEqual(rendered.choices[0].text, chat.choices[0].message.content)
        values = [token.logprob for token in chat.choices[0].logprobs.content]
        self.assertEqual(rendered.choices[0].logprobs.token_logprobs[: len(values)], values)

    def test_a_stream_has_the_same(self):
        for echo in (False, True):
            fields = {"max_tokens": 20, "logprobs": 2, "seed": 3, "echo": echo, **RAW}
            whole = self.complete(PROMPT, **fields)
            chunks, parts = collect(self.complete(PROMPT, stream=True, **fields))
            self.assertEqual(parts, told(whole))
            for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
                streamed = [
                    item
                    for chunk in chunks
                    for choice in chunk.choices
                    if choice.logprobs
                    for item in getattr(choice.logprobs, name)
                ]
                self.assertEqual(streamed, getattr(whole.choices[0].logprobs, name), name)


class PromptLogprobs(Suite):
    """echo with logprobs: the loglikelihood requests of lm-evaluation-harness."""

    def score(self, prompt, **fields):
        return self.complete(prompt, echo=True, logprobs=1, temperature=0, seed=1234, **({"max_tokens": 0} | fields))

    def test_scores_of_a_prompt(self):
        ids = tokenize(PROMPT)
        for prompt in (ids, PROMPT):
            answer = self.score(prompt, extra_body={"add_special_tokens": False})
            choice = answer.choices[0]
            self.assertEqual(choice.text, PROMPT)
            self.assertEqual(choice.finish_reason, "length")
            self.assertEqual(answer.usage.completion_tokens, 0)
            told_of = choice.logprobs
            self.assertEqual(len(told_of.tokens), len(ids))
            self.assertEqual("".join(told_of.tokens), PROMPT)
            self.assertIsNone(told_of.token_logprobs[0])
            self.assertIsNone(told_of.top_logprobs[0])
            rows = zip(told_of.tokens, told_of.token_logprobs, told_of.top_logprobs, strict=True)
            for token, value, top in list(rows)[1:]:
                self.assertLessEqual(value, 0.0)
                self.assertEqual(top[token], value)
                self.assertLessEqual(value, max(top.values()))

    def test_one_more_token_changes_nothing_before_it(self):
        none, one = (self.score(PROMPT, max_tokens=n).choices[0].logprobs for n in (0, 1))
        self.assertEqual(one.token_logprobs[:-1], none.token_logprobs)
        self.assertEqual(one.tokens[:-1], none.tokens)
        self.assertEqual(one.top_logprobs[:-1], none.top_logprobs)

    def test_an_answer_scored_as_prompt_has_the_values_it_was_generated_with(self):
        ids = tokenize(PROMPT)
        answer = self.complete(ids, max_tokens=30, logprobs=1, **GREEDY)
        generated = answer.choices[0].logprobs
        more = tokenize(answer.choices[0].text)
        if detokenize(ids + more) != PROMPT + answer.choices[0].text or len(more) != 30:
            self.skipTest("the tokenizer cuts the answer otherwise than the model did")
        scored = self.score(ids + more).choices[0].logprobs
        self.assertEqual(scored.token_logprobs[len(ids) :], generated.token_logprobs)
        self.assertEqual(scored.tokens[len(ids) :], generated.tokens)

    def test_several_prompts_and_shared_context(self):
        salt = fresh()
        prompts = [tokenize(PROMPT), tokenize(PROMPT + " Then he laughed."), tokenize("A mouse ran by.")]
        together = self.score(prompts, extra_body=salt)
        for prompt, choice in zip(prompts, together.choices, strict=True):
            again = self.score(prompt, extra_body=salt).choices[0]
            alone = self.score(prompt, extra_body=fresh()).choices[0]
            self.assertEqual(len(choice.logprobs.tokens), len(prompt))
            self.assertEqual(choice.logprobs, again.logprobs)
            self.assertEqual(choice.logprobs, alone.logprobs)

    def test_a_prompt_that_fills_the_context(self):
        ids = (tokenize(PROMPT) * CONTEXT)[:CONTEXT]
        scored = self.score(ids)
        self.assertEqual(len(scored.choices[0].logprobs.token_logprobs), CONTEXT)
        self.assertEqual(scored.usage.prompt_tokens, CONTEXT)
