"""Embeddings: encodings, lists, poolings, limits."""

import math
import struct

import openai

from support import CONTEXT, MODEL, STORIES, Suite, client, tokenize

TEXTS = ["The fox sleeps.", "A ship sailed over the sea to a far land.", "日本 😀", "x"]
WIDTH = 192


def as_float32(values):
    return [struct.unpack("<f", struct.pack("<f", value))[0] for value in values]


class Embeddings(Suite):
    def embed(self, text, **fields):
        return self.client.embeddings.create(model=MODEL, input=text, **fields)

    def vector(self, text, **fields):
        return self.embed(text, **fields).data[0].embedding

    def test_form(self):
        answer = self.embed(TEXTS)
        self.assertEqual((answer.object, answer.model), ("list", MODEL))
        self.assertEqual([item.index for item in answer.data], [0, 1, 2, 3])
        for item in answer.data:
            self.assertEqual((item.object, len(item.embedding)), ("embedding", WIDTH))
            self.assertAlmostEqual(math.fsum(value * value for value in item.embedding), 1.0, places=5)
        tokens = sum(len(tokenize(text, add_special_tokens=True)) for text in TEXTS)
        self.assertEqual((answer.usage.prompt_tokens, answer.usage.total_tokens), (tokens, tokens))

    def test_both_encodings_are_the_same_numbers(self):
        """Without a wish of ours the client asks for base64."""
        for text in TEXTS:
            numbers = as_float32(self.vector(text, encoding_format="float"))
            self.assertEqual(as_float32(self.vector(text)), numbers)

    def test_alone_or_among_others(self):
        together = [item.embedding for item in self.embed(TEXTS * 3, encoding_format="float").data]
        alone = [self.vector(text, encoding_format="float") for text in TEXTS]
        self.assertEqual(together, alone * 3)

    def test_ids_are_text(self):
        ids = [tokenize(text, add_special_tokens=True) for text in TEXTS]
        by_text = [item.embedding for item in self.embed(TEXTS).data]
        self.assertEqual([item.embedding for item in self.embed(ids).data], by_text)
        self.assertEqual(self.vector(ids[0]), by_text[0])

    def test_poolings(self):
        last, mean = (self.vector(TEXTS[1], extra_body={"pooling": pooling}) for pooling in ("last", "mean"))
        self.assertNotEqual(last, mean)
        self.assertEqual(mean, self.vector(TEXTS[1]))
        one = tokenize(TEXTS[3])
        self.assertEqual(len(one), 1)
        self.assertEqual(self.vector(one, extra_body={"pooling": "last"}), self.vector(one))
        self.assertEqual(self.vector(TEXTS[1], extra_body={"pooling": "last"}), last)

    def test_mean_is_the_mean_of_the_positions(self):
        ids = tokenize(TEXTS[1])
        raw = {"normalize": False}
        rows = [
            self.vector(ids[: i + 1], extra_body=raw | {"pooling": "last"}, encoding_format="float") for i in range(len(ids))
        ]
        mean = self.vector(ids, extra_body=raw, encoding_format="float")
        for column, value in enumerate(mean):
            self.assertAlmostEqual(value, math.fsum(row[column] for row in rows) / len(rows), places=5)

    def test_meaning_is_not_lost(self):
        """The same words in another order are nearer than other words."""
        near = self.embed(["The fox sleeps by the mill.", "By the mill the fox sleeps.", "Seven ships and forty guns."])
        first, second, third = (item.embedding for item in near.data)
        dot = lambda a, b: math.fsum(x * y for x, y in zip(a, b, strict=True))  # noqa: E731
        self.assertGreater(dot(first, second), dot(first, third))

    def test_dimensions(self):
        self.assertEqual(len(self.vector("x", dimensions=WIDTH)), WIDTH)
        with self.assertRaises(openai.BadRequestError) as caught:
            self.vector("x", dimensions=64)
        self.assert_error(caught.exception, 400, "invalid_request_error", param="dimensions")

    def test_wrong_input(self):
        for wrong in ([], [[]], 7, {"text": "x"}, [1.5], [10**9], ["x", 1]):
            with self.subTest(input=wrong), self.assertRaises(openai.BadRequestError) as caught:
                self.embed(wrong)
            self.assertTrue(caught.exception.param.startswith("input"))
        with self.assertRaises(openai.BadRequestError):
            self.embed("x", encoding_format="hex")
        with self.assertRaises(openai.NotFoundError):
            self.client.embeddings.create(model="other", input="x")

    def test_limits(self):
        token = tokenize("x")
        self.assertEqual(len(self.vector(token * CONTEXT)), WIDTH)
        with self.assertRaises(openai.BadRequestError) as caught:
            self.embed(token * (CONTEXT + 1))
        self.assert_error(caught.exception, 400, "invalid_request_error", "context_length_exceeded", "input")

    def test_another_model(self):
        with client("MILLRACE_STORIES") as stories:
            answer = stories.embeddings.create(model=STORIES, input=["", "a dog"])
            self.assertEqual([len(item.embedding) for item in answer.data], [64, 64])
