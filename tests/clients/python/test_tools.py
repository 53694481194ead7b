"""Calls of tools. The built-in template knows no tools, so a call can be forced only, and "auto" is refused."""

import json
import random

import jsonschema

import partial_json
import schemas
from support import MODEL, RAW, STORY, Suite, collect, told

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Riga", "Köln"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
CLOCK = {"type": "object", "properties": {}, "additionalProperties": False}
NOTE = {
    "type": "object",
    "properties": {"text": {"type": "string", "maxLength": 5}, "where": {"$ref": "#/$defs/place"}},
    "required": ["text", "where"],
    "additionalProperties": False,
    "$defs": {"place": {"enum": ["here", "there"]}},
}
PARAMETERS = {"get_weather": WEATHER, "clock.now": CLOCK, "write-note": NOTE}


def tool(name, parameters):
    return {"type": "function", "function": {"name": name, "description": f"Does {name}.", "parameters": parameters}}


TOOLS = [tool(name, parameters) for name, parameters in PARAMETERS.items()]


def named(name):
    return {"type": "function", "function": {"name": name}}


class Tools(Suite):
    def ask(self, choice, **fields):
        return self.chat(**({"tools": TOOLS, "tool_choice": choice, "max_tokens": 1200} | RAW | fields))

    def check(self, calls):
        for call in calls:
            self.assertEqual(call.type, "function")
            self.assertRegex(call.id, r"^call_\w{8,}$")
            jsonschema.validate(json.loads(call.function.arguments), PARAMETERS[call.function.name])
        self.assertEqual(len({call.id for call in calls}), len(calls))

    def helper(self, choice, **fields):
        """The same through the client's own helper, which puts the pieces together."""
        fields = {"tools": TOOLS, "tool_choice": choice, "max_tokens": 1200} | RAW | fields
        with self.client.chat.completions.stream(model=MODEL, messages=STORY, **fields) as stream:
            events = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
            return stream.get_final_completion(), events

    def same(self, left, right):
        self.assertEqual(
            [(call.function.name, call.function.arguments) for call in left.message.tool_calls],
            [(call.function.name, call.function.arguments) for call in right.message.tool_calls],
        )
        self.assertEqual(left.finish_reason, right.finish_reason)

    def test_a_named_function(self):
        for name in PARAMETERS:
            for seed in range(4):
                choice = self.ask(named(name), seed=seed).choices[0]
                self.assertEqual(choice.finish_reason, "stop")
                self.assertIsNone(choice.message.content)
                self.assertEqual([call.function.name for call in choice.message.tool_calls], [name])
                self.check(choice.message.tool_calls)
                final, events = self.helper(named(name), seed=seed)
                self.same(final.choices[0], choice)
                self.check(final.choices[0].message.tool_calls)
                self.assertEqual([event.name for event in events], [name])

    def test_some_function_is_required(self):
        names = set()
        for seed in range(12):
            choice = self.ask("required", seed=seed).choices[0]
            self.assertTrue(choice.message.tool_calls)
            if choice.finish_reason == "length":
                continue
            self.assertEqual(choice.finish_reason, "tool_calls")
            self.assertIsNone(choice.message.content)
            self.check(choice.message.tool_calls)
            names |= {call.function.name for call in choice.message.tool_calls}
            final, events = self.helper("required", seed=seed)
            self.same(final.choices[0], choice)
            self.assertEqual(len(events), len(choice.message.tool_calls))
        self.assertGreater(len(names), 1)

    def test_one_call_only(self):
        for seed in range(12):
            choice = self.ask("required", seed=seed, parallel_tool_calls=False).choices[0]
            self.assertEqual(choice.finish_reason, "tool_calls")
            self.assertEqual(len(choice.message.tool_calls), 1)
            self.check(choice.message.tool_calls)

    def test_deltas_of_a_stream(self):
        whole = self.ask("required", seed=1, parallel_tool_calls=False).choices[0]
        chunks = list(self.ask("required", seed=1, parallel_tool_calls=False, stream=True))
        deltas = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or []]
        self.assertEqual({delta.index for delta in deltas}, {0})
        self.assertEqual([delta.function.name for delta in deltas if delta.function.name], [deltas[0].function.name])
        self.assertEqual([delta.id for delta in deltas if delta.id], [deltas[0].id])
        self.assertEqual(
            "".join(delta.function.arguments for delta in deltas), whole.message.tool_calls[0].function.arguments
        )
        self.assertEqual([c.delta.content or "" for chunk in chunks for c in chunk.choices], [""] * len(chunks))
        self.assertEqual(chunks[-1].choices[0].finish_reason, "tool_calls")

    def test_choices_of_calls(self):
        answer = self.ask(named("get_weather"), seed=3, n=3)
        for choice in answer.choices:
            self.check(choice.message.tool_calls)
        self.assertEqual(len({choice.message.tool_calls[0].id for choice in answer.choices}), 3)

    def test_a_call_that_is_cut_off(self):
        for most in range(1, 12):
            choice = self.ask(named("write-note"), seed=1, max_tokens=most).choices[0]
            if choice.finish_reason == "length":
                text = choice.message.tool_calls[0].function.arguments
                self.assertIsNone(
                    partial_json.is_prefix(
                        text, NOTE | {"properties": {**NOTE["properties"], "where": NOTE["$defs"]["place"]}}
                    )
                )

    def test_random_parameters(self):
        rng = random.Random(5)
        for number, schema in enumerate(schemas.schemas(15, seed=5)):
            tools = [tool("f", schema), tool("g", CLOCK)]
            choice = "required" if rng.random() < 0.5 else named("f")
            answer = self.ask(choice, tools=tools, seed=number, parallel_tool_calls=False).choices[0]
            if answer.finish_reason == "length":
                continue
            (call,) = answer.message.tool_calls
            jsonschema.validate(json.loads(call.function.arguments), {"f": schema, "g": CLOCK}[call.function.name])

    def test_allowed_tools(self):
        allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named("clock.now")]}}
        choice = self.ask(allowed, seed=1, parallel_tool_calls=False).choices[0]
        self.assertEqual(choice.message.tool_calls[0].function.name, "clock.now")

    def test_none_is_plain_chat(self):
        plain = told(self.chat(max_tokens=20, seed=1, **RAW))
        self.assertEqual(told(self.ask("none", max_tokens=20, seed=1)), plain)
        self.assertEqual(collect(self.ask("none", max_tokens=20, seed=1, stream=True))[1], plain)
        self.assertEqual(told(self.chat(max_tokens=20, seed=1, tools=[], **RAW)), plain)

    def test_left_to_a_model_that_knows_no_tools(self):
        for fields in ({}, {"tool_choice": "auto"}):
            error = self.assert_refused(param="tools", tools=TOOLS, **fields)
            self.assertIn("required", str(error))

    def test_wrong_tools(self):
        self.assert_refused(param="tools", tools={"type": "function"}, tool_choice="none")
        self.assert_refused(param="tools[0].function", tools=[{"type": "function"}], tool_choice="none")
        self.assert_refused(param="tools[0].type", tools=[{"function": {"name": "f"}}], tool_choice="none")
        self.assert_refused(param="tools[0].function.name", tools=[tool("a b", CLOCK)], tool_choice="required")
        self.assert_refused(param="tools[1].function.name", tools=[tool("f", CLOCK)] * 2, tool_choice="required")
        self.assert_refused(param="tools", tools=[tool("f", {"type": "strong"})], tool_choice="required")
        self.assert_refused(param="tool_choice", tool_choice="required")
        self.assert_refused(param="tool_choice", tools=TOOLS, tool_choice="sometimes")
        self.assert_refused(param="tool_choice.function.name", tools=TOOLS, tool_choice=named("other"))
        self.assert_refused(
            param="response_format", tools=TOOLS, tool_choice="required", response_format={"type": "json_object"}
        )

    def test_conversations_with_calls_are_refused_by_this_template(self):
        call = {"id": "call_1", "type": "function", "function": {"name": "clock.now", "arguments": "{}"}}
        answer = {"role": "tool", "tool_call_id": "call_1", "content": "noon"}
        self.assert_refused(
            param="messages", messages=[*STORY, {"role": "assistant", "content": "", "tool_calls": [call]}, answer]
        )
