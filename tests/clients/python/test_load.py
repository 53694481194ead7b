"""Many requests at once say what each says alone."""

import asyncio
import unittest

import schemas
from support import MODEL, PLAIN, STORY, async_client
from test_tools import TOOLS

REQUESTS = 64


def mixed(number):
    """The method and fields of one of many unlike requests; all have a seed, so that there is one right answer."""
    text = " ".join(["Once upon a time", "there was a mill", "by the river", "where a fox lived"][: 1 + number % 4])
    text += f" and the number was {number}. " + "It rained. " * (7 * (number % 6))
    messages = [{"role": "user", "content": text}]
    fields = {"seed": number, "max_tokens": 5 + number * 7 % 60, "temperature": (0.0, 0.7, 1.0, 1.6)[number % 4]}
    kind = number % 8
    if kind == 0:
        return "chat", {"messages": messages, **fields}
    if kind == 1:
        return "chat", {"messages": messages, "n": 3, "logprobs": True, "top_logprobs": 2, **fields}
    if kind == 2:
        return "text", {"prompt": text, "logprobs": 1, "echo": True, **fields}
    if kind == 3:
        (schema,) = schemas.schemas(1, seed=number)
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        return "chat", {"messages": STORY, "response_format": form, **fields}
    if kind == 4:
        return "text", {"prompt": [text, "The sea"], "n": 2, "stop": ["e ", "fox"], **fields}
    if kind == 5:
        penalties = {"presence_penalty": 1.0, "frequency_penalty": 0.5, "logit_bias": {"300": 2, "301": -5}}
        return "chat", {"messages": messages, "extra_body": PLAIN, **penalties, **fields}
    if kind == 6:
        return "chat", {"messages": messages, "tools": TOOLS, "tool_choice": "required", **fields}
    return "embedding", {"input": [text, "x"]}


def without_names(value):
    """Without what is new in each answer, and how much of a prompt happened to be cached."""
    if isinstance(value, dict):
        return {key: without_names(item) for key, item in value.items() if key not in ("id", "created", "cached_tokens")}
    if isinstance(value, list):
        return [without_names(item) for item in value]
    return value


async def answer(client, number, stream):
    kind, fields = mixed(number)
    if kind == "embedding":
        return without_names((await client.embeddings.create(model=MODEL, **fields)).model_dump())
    create = client.chat.completions.create if kind == "chat" else client.completions.create
    if not stream:
        return without_names((await create(model=MODEL, **fields)).model_dump())
    choices = {}
    async for chunk in await create(model=MODEL, stream=True, **fields):
        for choice in chunk.choices:
            text, end = choices.get(choice.index, ("", None))
            text += choice.text if kind == "text" else choice.delta.content or ""
            if kind == "chat":
                text += "".join(call.function.arguments for call in choice.delta.tool_calls or [])
            choices[choice.index] = (text, choice.finish_reason or end)
    return choices


def streamed(whole):
    """What a stream of the same answer adds up to."""
    choices = {}
    for choice in whole["choices"]:
        message = choice.get("message")
        text = choice["text"] if message is None else message["content"] or ""
        for call in (message or {}).get("tool_calls") or []:
            text += call["function"]["arguments"]
        choices[choice["index"]] = (text, choice["finish_reason"])
    return choices


class Load(unittest.TestCase):
    maxDiff = 2000

    def test_alone_and_at_once(self):
        async def run():
            async with async_client() as client:
                alone = [await answer(client, number, False) for number in range(REQUESTS)]
                together = await asyncio.gather(*(answer(client, number, False) for number in range(REQUESTS)))
                backwards = await asyncio.gather(*(answer(client, number, False) for number in reversed(range(REQUESTS))))
                streams = await asyncio.gather(*(answer(client, number, True) for number in range(REQUESTS)))
                return alone, together, backwards[::-1], streams

        alone, together, backwards, streams = asyncio.run(asyncio.wait_for(run(), 600))
        for number in range(REQUESTS):
            with self.subTest(number=number, request=mixed(number)):
                self.assertEqual(together[number], alone[number])
                self.assertEqual(backwards[number], alone[number])
                whole = alone[number]
                self.assertEqual(streams[number], streamed(whole) if "choices" in whole else whole)
