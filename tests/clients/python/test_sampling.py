"""Stop strings, seeds, temperature, biases, penalties."""

from support import PLAIN, RAW, STORY, Suite, collect, detokenize, told, tokenize

LENGTH = 48
GREEDY = {"temperature": 0, "max_tokens": LENGTH, "extra_body": PLAIN}


def bytes_of(token):
    return bytes(token.bytes)


class StopStrings(Suite):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        answer = cls.chat(cls, logprobs=True, **GREEDY)
        cls.text = answer.choices[0].message.content
        cls.tokens = [token.token for token in answer.choices[0].logprobs.content]
        assert "".join(cls.tokens) == cls.text

    def check(self, stop, expected, finish="stop", **fields):
        fields = GREEDY | fields
        whole = self.chat(stop=stop, **fields)
        self.assertEqual(told(whole), {0: (expected, finish)}, stop)
        _, parts = collect(self.chat(stop=stop, stream=True, **fields))
        self.assertEqual(parts, {0: (expected, finish)}, stop)
        return whole

    def test_every_place_within_and_between_tokens(self):
        """A stop string that begins at each character of the answer and ends in the next token or the one after."""
        begin, borders = 0, []
        for token in self.tokens:
            begin += len(token)
            borders.append(begin)
        for at in range(len(self.text) - 8):
            length = 1 + at % 7
            stop = self.text[at : at + length]
            self.check(stop, self.text[: self.text.index(stop)])
        self.assertGreater(len(self.text), 3 * LENGTH // 2)

    def test_tokens_are_counted_up_to_the_stop(self):
        stop = self.tokens[9][-1] + self.tokens[10] + self.tokens[11][:1]
        answer = self.check(stop, self.text[: self.text.index(stop)])
        if self.text.index(stop) > len("".join(self.tokens[:9])):
            self.assertEqual(answer.usage.completion_tokens, 12)

    def test_the_first_of_several_counts(self):
        stops = [self.text[40:46], self.text[20:25], self.text[60:63], "never in it"]
        self.check(stops, self.text[: min(self.text.index(stop) for stop in stops[:3])])

    def test_what_only_looked_like_a_stop_is_told(self):
        self.check(self.text[-5:] + "?!", self.text, "length")
        self.check(["never in it", self.text[10:20] + "\x00"], self.text, "length")

    def test_at_once(self):
        answer = self.check(self.text[0], "")
        self.assertEqual(answer.usage.completion_tokens, 1)

    def test_each_choice_by_itself(self):
        fields = {"n": 4, "max_tokens": 40, "seed": 2, **RAW}
        plain = told(self.chat(**fields))
        stopped = told(self.chat(stop="e", **fields))
        self.assertEqual(stopped, {i: (text.split("e")[0], "stop") for i, (text, _) in plain.items() if "e" in text})

    def test_in_completions(self):
        text = self.complete(temperature=0, max_tokens=40).choices[0].text
        stop = text[25:30]
        expected = {0: (text[: text.index(stop)], "stop")}
        self.assertEqual(told(self.complete(temperature=0, max_tokens=40, stop=stop)), expected)
        self.assertEqual(collect(self.complete(temperature=0, max_tokens=40, stop=stop, stream=True))[1], expected)

    def test_token_that_stops(self):
        token = tokenize(self.text)[5]
        answer = self.chat(**GREEDY | {"extra_body": PLAIN | {"stop_token_ids": [token]}})
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertTrue(self.text.startswith(answer.choices[0].message.content))
        self.assertNotIn(detokenize([token]), answer.choices[0].message.content)


class Randomness(Suite):
    def test_seed_repeats(self):
        for seed in (0, 1, 2**31, 2**63 - 1, -5):
            first, second = (told(self.chat(max_tokens=30, seed=seed, **RAW)) for _ in range(2))
            self.assertEqual(first, second)

    def test_seeds_differ(self):
        texts = {told(self.chat(max_tokens=30, seed=seed, **RAW))[0][0] for seed in range(12)}
        self.assertEqual(len(texts), 12)

    def test_without_a_seed_answers_differ(self):
        texts = {told(self.chat(max_tokens=30, **RAW))[0][0] for _ in range(6)}
        self.assertGreater(len(texts), 1)

    def test_no_temperature_no_chance(self):
        texts = {told(self.chat(max_tokens=30, temperature=0, seed=seed))[0] for seed in (None, 1, 2)}
        self.assertEqual(len(texts), 1)

    def test_smallest_nucleus_is_greedy(self):
        greedy = told(self.chat(**GREEDY))
        for fields in ({"top_p": 0.0}, {"extra_body": PLAIN | {"top_k": 1}}, {"extra_body": PLAIN | {"min_p": 1.0}}):
            self.assertEqual(told(self.chat(**GREEDY | {"temperature": 1.0, "seed": 3} | fields)), greedy)

    def test_top_k_is_kept(self):
        answer = self.chat(
            max_tokens=40, seed=1, temperature=2.0, logprobs=True, top_logprobs=3, extra_body=PLAIN | {"top_k": 3}
        )
        for token in answer.choices[0].logprobs.content:
            self.assertIn(token.token, [top.token for top in token.top_logprobs])

    def test_temperature_is_felt(self):
        """The hotter, the less likely are the tokens drawn."""
        means = []
        for temperature in (0.2, 1.0, 2.0):
            fields = {"temperature": temperature, "top_p": 1.0, "extra_body": PLAIN | {"ignore_eos": True}}
            answer = self.chat(n=8, max_tokens=30, seed=1, logprobs=True, **fields)
            values = [token.logprob for choice in answer.choices for token in choice.logprobs.content]
            means.append(sum(values) / len(values))
        self.assertGreater(means[0], means[1] + 0.2)
        self.assertGreater(means[1], means[2] + 0.2)


class Biases(Suite):
    def test_forced_token(self):
        (token,) = tokenize(" the")
        answer = self.chat(max_tokens=10, seed=1, logit_bias={str(token): 100})
        self.assertEqual(told(answer), {0: (" the" * 10, "length")})

    def test_banned_tokens(self):
        plain = self.chat(logprobs=True, top_logprobs=1, **GREEDY).choices[0]
        first = plain.logprobs.content[0]
        (token,) = tokenize(first.token)
        banned = self.chat(logprobs=True, top_logprobs=2, logit_bias={str(token): -100}, **GREEDY).choices[0]
        self.assertNotIn(first.token, [t.token for t in banned.logprobs.content])
        # What is told are the model's own probabilities: the second best follows.
        self.assertEqual(banned.logprobs.content[0].token, banned.logprobs.content[0].top_logprobs[1].token)
        self.assertEqual(banned.logprobs.content[0].top_logprobs[0].token, first.token)

    def test_answer_of_nothing(self):
        answer = self.chat(max_tokens=10, seed=1, logit_bias={"1": 100})  # the end
        self.assertEqual(told(answer), {0: ("", "stop")})
        self.assertEqual(answer.usage.completion_tokens, 1)
        _, parts = collect(self.chat(max_tokens=10, seed=1, logit_bias={"1": 100}, stream=True))
        self.assertEqual(parts, {0: ("", "stop")})
        self.assertEqual(told(self.complete(max_tokens=10, seed=1, logit_bias={"1": 100})), {0: ("", "stop")})


class Penalties(Suite):
    def check(self, presence, frequency):
        """Each token is the best one when the penalties are taken off the model's own log probabilities."""
        answer = self.chat(
            logprobs=True,
            top_logprobs=20,
            presence_penalty=presence,
            frequency_penalty=frequency,
            **GREEDY | {"max_tokens": 60}
        )
        counts = {}
        for token in answer.choices[0].logprobs.content:

            def score(candidate):
                seen = counts.get(bytes_of(candidate), 0)
                return candidate.logprob - (presence if seen else 0.0) - frequency * seen

            best = max(map(score, token.top_logprobs))
            self.assertGreaterEqual(score(token), best - 1e-4)
            counts[bytes_of(token)] = counts.get(bytes_of(token), 0) + 1
        return counts

    def test_presence_and_frequency(self):
        plain = self.check(0.0, 0.0)
        for presence, frequency in ((1.5, 0.0), (0.0, 1.2), (2.0, 2.0), (0.7, -0.4), (-1.0, 0.3)):
            with self.subTest(presence=presence, frequency=frequency):
                self.check(presence, frequency)
        self.assertGreater(len(self.check(2.0, 2.0)), len(plain))
        self.assertLess(len(self.check(-2.0, -2.0)), len(plain))

    def test_streams_are_penalised_alike(self):
        fields = {"presence_penalty": 1.0, "frequency_penalty": 1.0, "seed": 2, "max_tokens": 40, **RAW, "n": 3}
        self.assertEqual(collect(self.chat(STORY, stream=True, **fields))[1], told(self.chat(STORY, **fields)))
