"""Answers that have to match: JSON, schemas, expressions, choices, grammars."""

import json
import random
import re
import unittest

import jsonschema
import openai
import pydantic

import partial_json
import schemas
from support import MODEL, RAW, STORY, Suite, collect, told, tokenize

SCHEMAS = 100
MANY = 1200  # tokens: a model of this size likes to put much white space between the parts of JSON


def as_format(schema):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


class TheJudge(unittest.TestCase):
    """The parser of unfinished JSON takes every beginning of a right answer, and sees wrong ones."""

    SCHEMA = {
        "type": "object",
        "properties": {
            "a": {"type": "string", "maxLength": 4},
            "b": {"type": "array", "items": {"type": "integer", "minimum": -12, "maximum": 150}, "maxItems": 2},
            "c": {"anyOf": [{"enum": ["red", None, 2.5]}, {"type": "boolean"}]},
        },
        "required": ["a"],
        "additionalProperties": False,
    }

    def test_beginnings_of_what_is_right(self):
        texts = ['{"a": "x\\u00e9\\n", "b": [ 15, -3 ] ,"c":"red"}', '{"a":"","c":true}', '{"a":"\\\\\\"","b":[],"c":2.5}\n']
        for text in texts:
            self.assertTrue(partial_json.is_valid(json.loads(text), self.SCHEMA))
            for length in range(len(text) + 1):
                self.assertIsNone(partial_json.is_prefix(text[:length], self.SCHEMA), text[:length])

    def test_what_cannot_become_right(self):
        for text in (
            '{"d', '{"a":"abcde', '{"a":1', '{"a":"x",}', '{"a" "', "[", '{"b":[151', '{"b":[-13', '{"b":[1,2,', '{"b":[1,2,3',
            '{"a":"x"}}', '{"c":"blue', '{"c":tru1', '{"c":nul,', '{"a":"\\q', '{"b":{', '{"b":[01', "{a", '{"a":"x","a',
        ):  # fmt: skip
            self.assertIsNotNone(partial_json.is_prefix(text, self.SCHEMA), text)


class Schemas(Suite):
    def test_random_schemas(self):
        """Every answer that ends is valid, and every one that is cut off is the beginning of a valid one."""
        ends = {"stop": 0, "length": 0}
        for number, schema in enumerate(schemas.schemas(SCHEMAS)):
            with self.subTest(number=number, schema=schema):
                choice = self.chat(seed=number, max_tokens=MANY, response_format=as_format(schema), **RAW).choices[0]
                ends[choice.finish_reason] += 1
                text = choice.message.content
                self.assertIsNone(partial_json.is_prefix(text, schema), text)
                if choice.finish_reason == "stop":
                    jsonschema.validate(partial_json.loads(text), schema)
        self.assertEqual(sum(ends.values()), SCHEMAS)
        self.assertGreaterEqual(ends["stop"], SCHEMAS * 19 // 20, ends)

    def test_cut_off_answers_keep_the_grammar(self):
        rng = random.Random(2)
        for number, schema in enumerate(schemas.schemas(40, seed=2)):
            most = rng.randint(1, 12)
            choice = self.chat(seed=number, max_tokens=most, response_format=as_format(schema), **RAW).choices[0]
            self.assertIsNone(partial_json.is_prefix(choice.message.content, schema), (choice.message.content, schema))

    def test_streams_choices_and_logprobs(self):
        for number, schema in enumerate(schemas.schemas(10, seed=3)):
            fields = {"seed": number, "max_tokens": MANY, "n": 3, "response_format": as_format(schema), **RAW}
            whole = self.chat(logprobs=True, **fields)
            self.assertEqual(collect(self.chat(stream=True, **fields))[1], told(whole))
            for choice in whole.choices:
                self.assertIsNone(partial_json.is_prefix(choice.message.content, schema))
                data = b"".join(bytes(token.bytes) for token in choice.logprobs.content)
                self.assertEqual(data.decode(errors="replace"), choice.message.content)

    def test_greedy_and_completions(self):
        number = {"type": "integer", "minimum": 1, "maximum": 9}
        schema = {"type": "object", "properties": {"n": number}, "required": ["n"], "additionalProperties": False}
        answer = self.chat(temperature=0, max_tokens=MANY, response_format=as_format(schema))
        jsonschema.validate(json.loads(answer.choices[0].message.content), schema)
        answer = self.complete(temperature=0, max_tokens=MANY, extra_body={"guided_json": schema})
        jsonschema.validate(json.loads(answer.choices[0].text), schema)
        as_text = self.complete(temperature=0, max_tokens=MANY, extra_body={"guided_json": json.dumps(schema)})
        self.assertEqual(as_text.choices[0].text, answer.choices[0].text)

    def test_exclusive_bounds(self):
        """A number that is excluded is no answer, also where all others begin with it."""
        bias = {str(token): 3 for text in "0123456789.-" for token in tokenize(text)} | {"1": 7}  # 1: the end
        for low, high in ((10, 10.5), (9, 9.0625), (0, 0.5), (-2.5, -2), (-0.5, 0), (99.5, 100), (-1, 1)):
            for names in (
                ("exclusiveMinimum", "exclusiveMaximum"),
                ("exclusiveMinimum", "maximum"),
                ("minimum", "exclusiveMaximum"),
            ):
                schema = {"type": "number", names[0]: low, names[1]: high}
                fields = {"n": 64, "max_tokens": 50, "temperature": 1.0, "seed": 1, "logit_bias": bias}
                answer = self.chat(response_format=as_format(schema), **fields)
                ended = [choice.message.content for choice in answer.choices if choice.finish_reason == "stop"]
                wrong = sorted(
                    {text.strip() for text in ended if not partial_json.is_valid(partial_json.loads(text), schema)}
                )
                with self.subTest(schema=schema):
                    self.assertTrue(ended)
                    self.assertEqual(wrong, [])

    def test_references_and_definitions(self):
        schema = {
            "type": "object",
            "properties": {
                "one": {"$ref": "#/$defs/color"},
                "more": {"type": "array", "items": {"$ref": "#/$defs/color"}, "maxItems": 2},
            },
            "required": ["one", "more"],
            "additionalProperties": False,
            "$defs": {"color": {"type": "string", "enum": ["red", "green"]}},
        }
        for seed in range(5):
            answer = self.chat(seed=seed, max_tokens=MANY, response_format=as_format(schema), **RAW).choices[0]
            self.assertEqual(answer.finish_reason, "stop")
            jsonschema.validate(json.loads(answer.message.content), schema)

    def test_the_client_parses_into_a_class(self):
        class Boat(pydantic.BaseModel):
            sails: int = pydantic.Field(ge=1, le=5)
            afloat: bool

        answer = self.client.chat.completions.parse(
            model=MODEL, messages=STORY, response_format=Boat, seed=2, max_tokens=MANY
        )
        self.assertIsInstance(answer.choices[0].message.parsed, Boat)
        with self.client.chat.completions.stream(
            model=MODEL, messages=STORY, response_format=Boat, seed=2, max_tokens=MANY
        ) as stream:
            final = stream.get_final_completion()
        self.assertEqual(final.choices[0].message.parsed, answer.choices[0].message.parsed)

    def test_any_object(self):
        # Without a limit of their own strings and objects would go on: a push towards their ends.
        bias = {str(token): 7 for text in ('"', "}") for token in tokenize(text)}
        ended = 0
        for seed in range(12):
            fields = {"seed": seed, "max_tokens": 300, "response_format": {"type": "json_object"}, "logit_bias": bias}
            choice = self.chat(temperature=0.8, **fields).choices[0]
            text = choice.message.content
            node = partial_json.Parser(text).document()
            if choice.finish_reason == "stop":
                ended += 1
                self.assertIsInstance(json.loads(text), dict)
            else:
                self.assertEqual(node[0], "object")
        self.assertGreater(ended, 2)

    def test_text_is_no_constraint(self):
        plain = told(self.chat(seed=1, max_tokens=20))
        self.assertEqual(told(self.chat(seed=1, max_tokens=20, response_format={"type": "text"})), plain)

    def test_schemas_that_are_none(self):
        bad = [
            {"type": "strong"},
            {"type": "object", "properties": 7},
            {"$ref": "#/nowhere"},
            {"type": "string", "pattern": "("},
        ]
        for schema in bad:
            with self.subTest(schema=schema):
                self.assert_refused(param="response_format.json_schema.schema", response_format=as_format(schema))
        self.assert_refused(param="response_format.type", response_format={"type": "xml"})
        self.assert_refused(param="response_format.type", response_format={})
        self.assert_refused(param="response_format.json_schema", response_format={"type": "json_schema"})
        self.assert_refused(param="response_format", response_format="json_object")
        holder = {"type": "json_schema", "json_schema": {"name": "x"}}
        self.assert_refused(param="response_format.json_schema.schema", response_format=holder)
        self.assert_refused(param="guided_regex", response_format={"type": "json_object"}, extra_body={"guided_regex": "a"})
        self.assert_refused(param="guided_json", extra_body={"guided_json": "{"})


class Guided(Suite):
    def answers(self, count=8, **extra):
        """Answers of several seeds, streamed and whole, that all ended by themselves."""
        for seed in range(count):
            fields = {"seed": seed, "max_tokens": 80, "extra_body": extra, "temperature": 1.0}
            answer = told(self.chat(**fields))
            self.assertEqual(collect(self.chat(stream=True, **fields))[1], answer)
            self.assertEqual(answer[0][1], "stop")
            yield answer[0][0]

    def test_expressions(self):
        for expression in (
            r"[A-Z][a-z]{2,8} [0-9]{3}",
            r"(19|20)[0-9]{2}-(0[1-9]|1[0-2])",
            r"(a|bc){1,4}",
            "é{3}😀",
            r"\d{2,4}!?",
        ):
            for text in self.answers(guided_regex=expression):
                self.assertTrue(re.fullmatch(expression, text), (expression, text))
        for text in self.answers(structured_outputs={"regex": "x[ab]{3}"}):
            self.assertTrue(re.fullmatch("x[ab]{3}", text))

    def test_choices(self):
        choices = ["yes", "no", "perhaps not", "größer", "yesterday"]
        seen = set(self.answers(count=24, guided_choice=choices))
        self.assertLessEqual(seen, set(choices))
        self.assertGreater(len(seen), 1)
        self.assertEqual(set(self.answers(count=2, structured_outputs={"choice": ["one"]})), {"one"})

    def test_grammars(self):
        grammar = 'start: NUMBER (OP NUMBER)~1..3\nNUMBER: /[0-9]{1,2}/\nOP: "+" | "-" | "*"\n'
        for text in self.answers(guided_grammar=grammar):
            self.assertTrue(re.fullmatch(r"\d{1,2}([-+*]\d{1,2}){1,3}", text), text)

    def test_wrong_ones(self):
        self.assert_refused(param="guided_regex", extra_body={"guided_regex": "(a"})
        self.assert_refused(param="guided_grammar", extra_body={"guided_grammar": "start: nothing_of_that_name"})
        self.assert_refused(param="guided_choice", extra_body={"guided_choice": []})
        self.assert_refused(param="guided_choice", extra_body={"guided_choice": ["a", 1]})
        self.assert_refused(param="guided_choice", extra_body={"guided_choice": "a"})
        self.assert_refused(param="guided_regex", extra_body={"guided_regex": 7})
        with self.assertRaises(openai.BadRequestError):
            self.complete(extra_body={"guided_regex": "(a"})
