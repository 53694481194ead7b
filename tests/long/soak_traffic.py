"""What real clients do to a server beside asking politely: the side traffic of soak_test.py, on threads of its own."""

import collections
import contextlib
import http.client
import json
import math
import random
import selectors
import socket
import struct
import threading
import time

TIMEOUT = 300  # seconds for any answer; the crowd makes everybody wait
GREETING = [{"role": "user", "content": "Once upon a time"}]
SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["name", "age", "kind"],
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 99},
                   "kind": {"enum": ["cat", "dog", "fox"]}},
}
MALFORMED_HTTP = [
    b"GARBAGE\r\n\r\n",
    b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nno colon here\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nBig: " + b"x" * 100_000 + b"\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: minus one\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n{}",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnot hex\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999\r\n\r\n{",
    bytes(range(256)) * 8 + b"\r\n\r\n",
]
REFUSALS = [b"HTTP/1.1 %d" % status for status in (400, 413, 431, 501, 505)]
MALFORMED_JSON = [
    b"", b"{", b"[]", b"\xff\xfe", b"[" * 20_000, b'{"prompt": 1e999}', b'{"prompt": "a", "max_tokens": "many"}',
    b'{"prompt": {"a": 1}}', b'{"prompt": "a", "temperature": -1}', b'{"prompt": [99999999]}', b'{"prompt": "\\ud800',
]


class Unexpected(Exception):
    """An answer that is not what it should be."""


def expect(right, otherwise):
    if not right:
        raise Unexpected(otherwise)


def post(path, body):
    """A request as bytes; `body` is an object, or bytes that need not be JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return (f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n").encode() + data


def talkative_stream(tokens):
    """A stream of about 2 KB a token: it fills the buffers of a slow reader after few tokens."""
    return post("/v1/chat/completions", {
        "messages": GREETING, "max_tokens": tokens, "ignore_eos": True, "stream": True, "logprobs": True,
        "top_logprobs": 20, "temperature": 1, "stream_options": {"include_usage": True}})


def stream_flaw(data, tokens):
    """What is wrong with a talkative stream that has ended; empty if nothing is."""
    if not data.startswith(b"HTTP/1.1 200 "):
        return f"starts with {data[:80]!r}"
    told = data.count(b'"top_logprobs"')
    if told != tokens:
        return f"{told} tokens instead of {tokens}"
    if b'"finish_reason":"length"' not in data or b"data: [DONE]" not in data:
        return f"ends with {data[-120:]!r}"
    return ""


class SlowReader:
    """A connection that takes one byte at a time, through buffers as small as the kernel lets them be."""

    def __init__(self, address, tokens):
        self.tokens = tokens
        self.data = bytearray()
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect(address)
        self.socket.sendall(talkative_stream(tokens))
        self.socket.setblocking(False)

    def sip(self):
        with contextlib.suppress(BlockingIOError):
            self.data += self.socket.recv(1)

    def close(self):
        self.socket.close()


def drink(readers, seconds):
    """Lets slow readers become fast and read to the end; the flaws of their streams."""
    flaws = []
    end = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for reader in readers:
            selector.register(reader.socket, selectors.EVENT_READ, reader)
        while selector.get_map() and time.monotonic() < end:
            for key, _ in selector.select(timeout=1):
                reader, over = key.data, False
                try:
                    part = reader.socket.recv(1 << 16)
                    reader.data += part
                    over = not part or b"data: [DONE]" in reader.data[-200:]
                except OSError as error:
                    flaws.append(f"slow reader: {error} after {len(reader.data)} bytes")
                    selector.unregister(reader.socket)
                    continue
                if over:
                    selector.unregister(reader.socket)
                    flaw = stream_flaw(bytes(reader.data), reader.tokens)
                    if flaw:
                        flaws.append(f"slow reader: {flaw}")
        flaws += [f"slow reader: no end within {seconds} s" for _ in selector.get_map()]
    return flaws


class Traffic:
    """As a context: everything at once, until it is left. `counts`: what was done; `wrong`: what came out otherwise."""

    def __init__(self, address):
        self.address = address
        self.counts = collections.Counter()
        self.wrong = []
        self.over = threading.Event()
        self.story = None
        kinds = [(self.vanish, 0.3), (self.cancel, 0.4), (self.malformed_http, 0.3), (self.malformed_json, 0.3),
                 (self.grammar, 0.5), (self.choices, 0.5), (self.embeddings, 0.5), (self.same_again, 1.0),
                 (self.slow_readers, 1.0), (self.long_answers, 3.0)]
        self.threads = [threading.Thread(target=self.repeat, args=(*kind, seed)) for seed, kind in enumerate(kinds)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join()

    def repeat(self, act, pause, seed):
        draw = random.Random(seed)
        while not self.over.wait(pause * draw.uniform(0.5, 1.5)):
            self.attempt(act, draw)

    def attempt(self, act, *arguments):
        try:
            act(*arguments)
            self.counts[act.__name__] += 1
        except (OSError, http.client.HTTPException, ValueError, LookupError, Unexpected) as error:
            self.wrong.append(f"{act.__name__}: {type(error).__name__}: {error}")

    def connect(self):
        return socket.create_connection(self.address, TIMEOUT)

    def ask(self, path, body):
        """Status and body of the answer to a whole request."""
        connection = http.client.HTTPConnection(*self.address, timeout=TIMEOUT)
        with contextlib.closing(connection):
            connection.request("POST", path, body if isinstance(body, bytes) else json.dumps(body),
                               {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()

    def answer(self, path, body):
        status, text = self.ask(path, body)
        expect(status == 200, f"{status} {text[:200]!r}")
        return json.loads(text)

    def vanish(self, draw):
        """Leaves in mid-stream, politely or with a reset."""
        body = {"messages": GREETING, "max_tokens": 500, "ignore_eos": True, "stream": True, "temperature": 1,
                "n": draw.choice((1, 1, 3))}
        with self.connect() as connection:
            connection.sendall(post("/v1/chat/completions", body))
            start = connection.recv(draw.choice((1, 200, 4000)))
            expect(start and b"HTTP/1.1 200"[:len(start)] == start[:12], f"{start[:80]!r}")
            if draw.random() < 0.5:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def cancel(self, draw):
        """Does not wait for an answer that comes in one piece."""
        path, body = draw.choice((
            ("/v1/completions", {"prompt": "The river", "max_tokens": 500, "ignore_eos": True, "n": 2}),
            ("/v1/embeddings", {"input": ["A long walk. " * 40] * 20})))
        with self.connect() as connection:
            connection.sendall(post(path, body))
            time.sleep(draw.uniform(0, 0.2))

    def malformed_http(self, draw):
        with self.connect() as connection:
            connection.sendall(draw.choice(MALFORMED_HTTP))
            start = connection.recv(4096)
        expect(start[:12] in REFUSALS, f"{start[:80]!r}")

    def malformed_json(self, draw):
        body = draw.choice(MALFORMED_JSON)
        status, text = self.ask("/v1/completions", body)
        expect(status == 400 and json.loads(text)["error"]["message"], f"{body[:40]!r} got {status} {text[:200]!r}")

    def grammar(self, draw):
        body = {"messages": GREETING, "max_tokens": 200, "temperature": 1, "seed": draw.randrange(2**31),
                "response_format": {"type": "json_schema", "json_schema": {"name": "pet", "schema": SCHEMA}}}
        choice = self.answer("/v1/chat/completions", body)["choices"][0]
        if choice["finish_reason"] == "stop":
            pet = json.loads(choice["message"]["content"])
            expect(pet.keys() == {"name", "age", "kind"} and len(pet["name"]) <= 12, f"{pet}")
            expect(0 <= pet["age"] <= 99 and pet["kind"] in ("cat", "dog", "fox"), f"{pet}")
            self.counts["grammar_whole"] += 1

    def choices(self, draw):
        tokens = draw.randint(1, 40)
        body = {"prompt": "In the morning", "n": 3, "max_tokens": tokens, "ignore_eos": True, "temperature": 1}
        answer = self.answer("/v1/completions", body)
        expect([choice["index"] for choice in answer["choices"]] == [0, 1, 2], f"{answer}")
        expect(answer["usage"]["completion_tokens"] == 3 * tokens, f"{answer['usage']}")

    def embeddings(self, draw):
        texts = [f"Number {draw.randrange(10**6)}" for _ in range(draw.randint(1, 4))]
        vectors = [entry["embedding"] for entry in self.answer("/v1/embeddings", {"input": texts})["data"]]
        expect(len(vectors) == len(texts), f"{len(vectors)} vectors for {len(texts)} texts")
        expect(all(math.isfinite(x) for vector in vectors for x in vector) and any(vectors[0]), "not a vector")

    def same_again(self, _):
        """A request with a seed gets the same answer at any time, whatever else is going on."""
        body = {"messages": GREETING, "max_tokens": 48, "temperature": 1, "seed": 7}
        story = self.answer("/v1/chat/completions", body)["choices"][0]["message"]["content"]
        self.story = self.story or story
        expect(story == self.story, f"{story!r} instead of {self.story!r}")

    def long_answers(self, draw):
        """More than KV memory has room for at once: some have to give way and are computed again."""
        tokens = draw.randint(300, 600)
        body = {"prompt": f"Story {draw.randrange(10**6)}:", "n": 4, "max_tokens": tokens, "ignore_eos": True,
                "temperature": 1}
        used = self.answer("/v1/completions", body)["usage"]["completion_tokens"]
        expect(used == 4 * tokens, f"{used} tokens instead of {4 * tokens}")

    def slow_readers(self, draw):
        """A few that sip for some seconds and then read to the end."""
        with contextlib.ExitStack() as stack:
            readers = [stack.enter_context(contextlib.closing(SlowReader(self.address, 96))) for _ in range(8)]
            end = time.monotonic() + draw.uniform(2, 12)
            while time.monotonic() < end and not self.over.wait(1):
                for reader in readers:
                    reader.sip()
            self.wrong += drink(readers, TIMEOUT)

    def crowd(self, size, seconds):
        """`size` slow readers at once for some seconds. Then every fourth reads to the end, and the others leave."""
        with contextlib.ExitStack() as stack:
            readers = [stack.enter_context(contextlib.closing(SlowReader(self.address, 96))) for _ in range(size)]
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                for reader in readers:
                    reader.sip()
                time.sleep(1)
            thirsty = readers[::4]
            for reader in set(readers) - set(thirsty):
                reader.close()
            self.wrong += drink(thirsty, TIMEOUT)
