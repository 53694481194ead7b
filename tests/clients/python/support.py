"""What the suites share: clients, plain HTTP, metrics, and the texts that they ask for."""

import http.client
import json
import os
import re
import time
import unittest
import urllib.parse
import uuid

import openai

MODEL = "millrace-tiny"
STORIES = "stories260K"
CONTEXT = 2048  # tokens, of the built-in model
SECONDS = 120  # no answer takes that long
STORY = [{"role": "user", "content": "Continue this story: Once upon a time there was a little fox who lived by a mill."}]
PLAIN = {"repetition_penalty": 1.0}  # the built-in model's own default is another
# What the sampler leaves as it is: drawn from the model's own distribution.
RAW = {"temperature": 1.0, "top_p": 1.0, "extra_body": PLAIN}


def url(server="MILLRACE_TINY"):
    return os.environ[server]


def client(server="MILLRACE_TINY", **options):
    return openai.OpenAI(**settings(server, options))


def async_client(server="MILLRACE_TINY", **options):
    return openai.AsyncOpenAI(**settings(server, options))


def settings(server, options):
    return {"base_url": url(server) + "/v1", "api_key": "unused", "max_retries": 0, "timeout": SECONDS} | options


def connection(server="MILLRACE_TINY"):
    return http.client.HTTPConnection(urllib.parse.urlsplit(url(server)).netloc, timeout=SECONDS)


def ask(method, path, body=None, headers=(), server="MILLRACE_TINY"):
    """Status, headers and body of one plain exchange. `body` is JSON unless it is bytes."""
    line = connection(server)
    try:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        line.request(method, path, data, {"Content-Type": "application/json"} | dict(headers))
        reply = line.getresponse()
        return reply.status, reply.headers, reply.read()
    finally:
        line.close()


def tokenize(text, server="MILLRACE_TINY", **fields):
    status, _, body = ask("POST", "/tokenize", {"prompt": text, "add_special_tokens": False} | fields, server=server)
    assert status == 200, body
    return json.loads(body)["tokens"]


def detokenize(tokens, server="MILLRACE_TINY"):
    status, _, body = ask("POST", "/detokenize", {"tokens": tokens}, server=server)
    assert status == 200, body
    return json.loads(body)["prompt"]


def metrics(server="MILLRACE_TINY"):
    """Every sample of /metrics by its name; those that labels tell apart are added up."""
    status, _, body = ask("GET", "/metrics", server=server)
    assert status == 200, body
    samples = {}
    for name, value in re.findall(r"^([a-z0-9_:]+)(?:\{.*\})? (\S+)$", body.decode(), flags=re.M):
        samples[name] = samples.get(name, 0.0) + float(value)
    return samples


def wait_until(condition, seconds, what):
    """Looks every few milliseconds. Returns what the condition returned; fails when that stays false."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.01)


def fresh():
    """An extra field that keeps a request from sharing context with earlier ones."""
    return {"cache_salt": uuid.uuid4().hex}


class Suite(unittest.TestCase):
    """Has a client of the built-in model, and shorthands for its two ways to generate."""

    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.client = client()

    @classmethod
    def tearDownClass(cls):
        cls.client.close()

    def chat(self, messages=STORY, **fields):
        return self.client.chat.completions.create(model=MODEL, messages=messages, **fields)

    def complete(self, prompt="Once upon a time", **fields):
        return self.client.completions.create(model=MODEL, prompt=prompt, **fields)

    def assert_refused(self, code=None, param=None, **fields):
        """A chat with these fields is a BadRequestError that names the field."""
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat(**({"max_tokens": 4} | fields))
        self.assert_error(caught.exception, 400, "invalid_request_error", code, param)
        return caught.exception

    def assert_error(self, error, status, kind, code=None, param=None):
        """All that the API promises of an error."""
        self.assertEqual(error.status_code, status)
        body = error.response.json()["error"]
        self.assertEqual(set(body), {"message", "type", "param", "code"})
        self.assertEqual(error.type, kind, body)
        self.assertTrue(body["message"])
        self.assertTrue(error.request_id)
        if code:
            self.assertEqual(error.code, code, body)
        if param:
            self.assertEqual(error.param, param, body)


def collect(stream):
    """The chunks of a stream, and what they add up to: for each choice (content or text, finish_reason)."""
    chunks = list(stream)
    texts, ends = {}, {}
    for chunk in chunks:
        for choice in chunk.choices:
            delta = getattr(choice, "delta", None)
            text = choice.text if delta is None else delta.content
            if choice.index in ends:
                raise AssertionError(f"choice {choice.index} goes on after its end")
            texts[choice.index] = texts.get(choice.index, "") + (text or "")
            if choice.finish_reason is not None:
                ends[choice.index] = choice.finish_reason
    return chunks, {index: (text, ends.get(index)) for index, text in texts.items()}


def told(answer):
    """The same of an answer in one piece."""
    return {
        choice.index: (
            getattr(choice, "text", None) if hasattr(choice, "text") else choice.message.content,
            choice.finish_reason,
        )
        for choice in answer.choices
    }
