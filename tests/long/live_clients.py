"""Clients of the live fault suite: what they ask, how they read, and what they make of the chunks that come."""

import http.client
import json
import random
import socket
import threading
import time
import urllib.parse

PROMPT = "First Citizen: Before we proceed any further, hear me speak. All: Speak, speak."
STUCK = 90  # seconds without a byte, though the client reads

WALK = {"type": "object", "additionalProperties": False, "required": ["steps"], "properties": {"steps": {
    "type": "array", "minItems": 12, "maxItems": 16, "items": {
        "type": "object", "additionalProperties": False, "required": ["who", "far"], "properties": {
            "who": {"enum": ["Romeo", "Juliet", "Mercutio"]}, "far": {"type": "integer", "minimum": 1, "maximum": 99}}}}}}
NOTE = {"type": "object", "additionalProperties": False, "required": ["lines"], "properties": {"lines": {
    "type": "array", "minItems": 10, "maxItems": 14, "items": {"type": "string", "pattern": "^[a-z]{3,12}( [a-z]{2,9}){2,5}$"}}}}
TOOL = {"type": "function", "function": {"name": "write_note", "description": "Writes a note.", "parameters": NOTE}}


def catalogue():
    """(name, path, body) of requests whose answers are long enough to be disturbed; every sort that may move."""
    text = {"prompt": PROMPT, "ignore_eos": True, "max_tokens": 900}
    sampled = text | {"temperature": 0.9}
    chat = {"messages": [{"role": "user", "content": "Write down what you saw today."}], "temperature": 0.8}
    requests = [("greedy", "/v1/completions", text | {"temperature": 0})]
    for seed in range(3):
        requests += [
            ("sampled", "/v1/completions", sampled | {"seed": seed, "top_p": 0.95}),
            ("four choices", "/v1/completions", sampled | {"seed": 10 + seed, "n": 4, "max_tokens": 300}),
            ("log-probabilities", "/v1/completions", sampled | {"seed": 20 + seed, "logprobs": 3, "max_tokens": 500}),
            ("penalties", "/v1/completions", sampled | {"seed": 30 + seed, "frequency_penalty": 0.6,
                                                       "presence_penalty": 0.3, "repetition_penalty": 1.1}),
            ("schema", "/v1/completions", {"prompt": PROMPT, "guided_json": WALK, "max_tokens": 900, "temperature": 1,
                                           "seed": 40 + seed, "n": 2}),
            ("tool call", "/v1/chat/completions", chat | {"tools": [TOOL], "tool_choice": "required",
                                                          "seed": 50 + seed, "max_tokens": 900}),
            ("all at once", "/v1/completions", sampled | {"seed": 60 + seed, "n": 3, "logprobs": 1, "max_tokens": 300,
                                                         "guided_regex": "([a-zA-Z']+ ){120,}",
                                                         "frequency_penalty": 0.5}),
        ]
    return requests


def fold(chunks):
    """What a client holds in the end: of each choice its text, calls, log-probabilities and reason; and the usage."""
    choices, usage = {}, None
    for chunk in chunks:
        usage = chunk.get("usage") or usage
        for piece in chunk["choices"]:
            choice = choices.setdefault(piece["index"], {"text": "", "calls": {}, "logprobs": {}, "finish_reason": None})
            delta = piece.get("delta", piece)
            choice["text"] += delta.get("text") or delta.get("content") or ""
            for call in delta.get("tool_calls") or []:
                own = choice["calls"].setdefault(call["index"], {"name": "", "arguments": ""})
                for key in own:
                    own[key] += call["function"].get(key) or ""
            for key, values in (piece.get("logprobs") or {}).items():
                choice["logprobs"].setdefault(key, []).extend(values or [])
            choice["finish_reason"] = piece.get("finish_reason") or choice["finish_reason"]
    counted = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {"choices": choices, "usage": usage and {key: usage[key] for key in counted}}


class Broken(Exception):
    """The connection broke off, or could not be made: what becomes of a client when its gateway dies."""


class Wrong(Exception):
    """Something came that must not."""


def read_stream(url, path, body, on_chunk, small_window=False):
    """All chunks of a stream. `on_chunk(count)` is called behind each, and may sleep."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=STUCK)
    try:
        sock = socket.socket()
        if small_window:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(STUCK)
        sock.connect((parts.hostname, parts.port))
        connection.sock = sock
        asked = json.dumps(body | {"stream": True, "stream_options": {"include_usage": True}})
        connection.request("POST", path, asked, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise Wrong(f"{answer.status}: {answer.read(1000)}")
        chunks = []
        for line in answer:
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                return chunks
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise Wrong(f"after {len(chunks)} chunks: {chunk['error']}")
            chunks.append(chunk)
            on_chunk(len(chunks))
        raise Broken(f"after {len(chunks)} chunks")
    except TimeoutError as error:
        raise Wrong(f"stuck: nothing for {STUCK} s") from error
    except (ConnectionError, http.client.HTTPException) as error:
        raise Broken(repr(error)) from error
    finally:
        connection.close()


class Client(threading.Thread):
    """Reads one answer to its end. Where its gateway dies it asks another one again, from the beginning."""

    def __init__(self, number, request, cluster, at, gateway, expected_chunks):
        super().__init__(daemon=True)
        self.number, (self.name_of_request, self.path, self.body) = number, request
        self.cluster, self.on = cluster, gateway     # the number of its gateway
        self.at = max(1, int(at * expected_chunks))  # the chunk behind which its fault strikes
        self.reached = threading.Event()             # … which has come, or the answer has ended
        self.arrivals, self.retries, self.chunks, self.wrong = [], 0, None, None
        self.pauses = False
        self.slow = []  # (seconds of a sleep, how many chunks lie between two, how many sleeps): asked of it by a fault

    def run(self):
        try:
            while self.chunks is None:
                self.on, gateway = self.cluster.gateway(self.on)
                try:
                    self.arrivals.append((time.monotonic(), 0))
                    self.chunks = read_stream(gateway.url, self.path, self.body, self.take, small_window=self.pauses)
                except Broken as broken:
                    if not gateway.died:
                        raise Wrong(f"the stream broke off, and its gateway lives: {broken}") from broken
                    self.retries += 1
        except Wrong as wrong:
            self.wrong = str(wrong)
        except Exception as error:  # what it is, the main thread tells
            self.wrong = repr(error)
        finally:
            self.reached.set()

    def take(self, count):
        self.arrivals.append((time.monotonic(), count))
        if count >= self.at:
            self.reached.set()
        if self.slow:
            seconds, between, times = self.slow[0]
            if count % between == 0:
                time.sleep(seconds)
                self.slow[0] = (seconds, between, times - 1)
                if times <= 1:
                    self.slow.pop()

    def told(self):
        """What the gateway says became of it."""
        return next(chunk["usage"]["millrace"] for chunk in reversed(self.chunks) if chunk.get("usage"))

    def longest_gap(self, begin, end):
        """The longest time without a chunk that had begun before `end` and ended behind `begin`; None: not open then."""
        times = [when for when, _ in self.arrivals]
        gaps = [b - a for a, b in zip(times, times[1:]) if b > begin and a < end]
        return max(gaps, default=None)


def draw(seed, streams, kinds):
    """The schedule of a seed: for each stream (request, gateway, where in the answer its fault strikes, the fault or
    None). Every kind of `kinds`, {name: how often}, in random order over the streams."""
    dice = random.Random(seed)
    faults = [kind for kind, count in kinds.items() for _ in range(count)]
    faults += [None] * (streams - len(faults))
    dice.shuffle(faults)
    requests = catalogue()
    return [(dice.randrange(len(requests)), dice.randrange(2), dice.uniform(0.05, 0.7), fault, dice.random())
            for fault in faults]
