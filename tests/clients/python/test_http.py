"""Below the clients: versions of HTTP, headers, the routes that are not OpenAI's."""

import json
import re
import socket
import unittest
import urllib.parse

from support import CONTEXT, MODEL, SECONDS, ask, connection, detokenize, metrics, tokenize, url, wait_until

BODY = {"prompt": "Once upon a time", "max_tokens": 12, "seed": 1}
STREAM = BODY | {"stream": True, "stream_options": {"include_usage": True}}
TEXTS = [
    "",
    "Once upon a time",
    "  two  spaces\n\t",
    "日本語 😀👩‍👩‍👧‍👦 é e\u0301",
    "a\u0000b",
    "<|user|>x<|end|>",
    "x" * 5000,
]

METRICS = """
vllm:num_requests_running vllm:num_requests_waiting vllm:kv_cache_usage_perc vllm:num_preemptions_total
vllm:prefix_cache_queries_total vllm:prefix_cache_hits_total vllm:prompt_tokens_total vllm:generation_tokens_total
vllm:time_to_first_token_seconds vllm:inter_token_latency_seconds vllm:request_time_per_output_token_seconds
vllm:e2e_request_latency_seconds vllm:request_queue_time_seconds vllm:request_prompt_tokens
vllm:request_generation_tokens vllm:request_success_total millrace:kv_waste_ratio millrace:batch_size
millrace:step_seconds
""".split()


def events(data):
    """The documents of a stream of server-sent events, which has to end with [DONE]."""
    parts = data.decode().split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""], parts[-2:]
    assert all(part.startswith("data: ") for part in parts[:-1]), parts
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


def text_of(documents):
    return "".join(choice["text"] for document in documents for choice in document["choices"])


def exchange(data):
    """Sends bytes and reads until the server closes."""
    parts = urllib.parse.urlsplit(url())
    with socket.create_connection((parts.hostname, parts.port), timeout=SECONDS) as line:
        line.sendall(data)
        received = b""
        while piece := line.recv(65536):
            received += piece
    return received


def raw(head, body=BODY):
    data = json.dumps(body).encode()
    return f"{head}\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n".encode() + b"%s\r\n" + data


class Http(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.text = json.loads(ask("POST", "/v1/completions", BODY)[2])["choices"][0]["text"]

    def test_encodings_that_a_client_would_take(self):
        for accepted in ("gzip, deflate, br, zstd", "identity", "*", "gzip;q=1.0, identity;q=0.5"):
            status, headers, body = ask("POST", "/v1/completions", BODY, {"Accept-Encoding": accepted})
            self.assertEqual(status, 200)
            self.assertIn(headers["Content-Encoding"], (None, "identity"))
            self.assertEqual(json.loads(body)["choices"][0]["text"], self.text)

    def test_stream_and_its_headers(self):
        status, headers, body = ask("POST", "/v1/completions", STREAM, {"Accept": "text/event-stream"})
        self.assertEqual(status, 200)
        self.assertTrue(headers["Content-Type"].startswith("text/event-stream"))
        self.assertEqual(headers["Transfer-Encoding"], "chunked")
        self.assertIn("no-", headers["Cache-Control"])
        self.assertEqual(text_of(events(body)), self.text)

    def test_one_connection_for_many_requests(self):
        line = connection()
        try:
            for body in (BODY, STREAM, BODY | {"n": 0}, BODY):
                line.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
                reply = line.getresponse()
                data = reply.read()
                self.assertNotEqual((reply.getheader("Connection") or "").lower(), "close")
                if body is BODY:
                    self.assertEqual(json.loads(data)["choices"][0]["text"], self.text)
        finally:
            line.close()

    def test_connection_close(self):
        for body in (BODY, STREAM):
            received = exchange(raw("POST /v1/completions HTTP/1.1", body) % b"Connection: close\r\n")
            head, _, _ = received.partition(b"\r\n\r\n")
            self.assertTrue(head.startswith(b"HTTP/1.1 200"))
            self.assertIn(b"connection: close", head.lower())

    def test_http_1_0(self):
        head, _, body = exchange(raw("POST /v1/completions HTTP/1.0") % b"").partition(b"\r\n\r\n")
        self.assertRegex(head, rb"^HTTP/1\.[01] 200 ")
        self.assertEqual(json.loads(body)["choices"][0]["text"], self.text)
        head, _, body = exchange(raw("POST /v1/completions HTTP/1.0", STREAM) % b"").partition(b"\r\n\r\n")
        self.assertNotIn(b"chunked", head.lower())
        self.assertEqual(text_of(events(body)), self.text)

    def test_requests_sent_ahead(self):
        one = raw("POST /v1/completions HTTP/1.1") % b""
        last = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        received = exchange(one * 3 + last)
        self.assertEqual(received.count(b"HTTP/1.1 200"), 4)
        self.assertEqual(received.count(json.dumps(self.text, ensure_ascii=False).encode()), 3)

    def test_expect_continue(self):
        received = exchange(raw("POST /v1/completions HTTP/1.1") % b"Expect: 100-continue\r\nConnection: close\r\n")
        self.assertIn(b"HTTP/1.1 200", received)

    def test_body_in_chunks(self):
        data = json.dumps(BODY).encode()
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(data[i : i + 9]), data[i : i + 9]) for i in range(0, len(data), 9))
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        self.assertIn(b"HTTP/1.1 200", exchange(head + chunks + b"0\r\n\r\n"))

    def test_head_and_options(self):
        status, headers, body = ask("HEAD", "/v1/models")
        self.assertEqual((status, body), (200, b""))
        self.assertGreater(int(headers["Content-Length"]), 10)
        status, headers, _ = ask("OPTIONS", "/v1/chat/completions")
        self.assertEqual(status, 204)
        self.assertIn("POST", headers["Allow"])

    def test_request_ids(self):
        self.assertEqual(ask("GET", "/health", headers={"X-Request-Id": "mine-17"})[1]["X-Request-Id"], "mine-17")
        first, second = (ask("GET", "/health")[1]["X-Request-Id"] for _ in range(2))
        self.assertTrue(first)
        self.assertNotEqual(first, second)

    def test_query_and_missing_type(self):
        self.assertEqual(ask("GET", "/v1/models?limit=3")[0], 200)
        line = connection()
        try:
            line.request("POST", "/v1/completions", json.dumps(BODY))
            self.assertEqual(line.getresponse().status, 200)
        finally:
            line.close()


class OtherRoutes(unittest.TestCase):
    def test_tokens_and_back(self):
        for text in TEXTS:
            ids = tokenize(text)
            self.assertEqual(detokenize(ids), text)
        status, _, body = ask("POST", "/tokenize", {"model": MODEL, "prompt": TEXTS[1], "return_token_strs": True})
        reply = json.loads(body)
        self.assertEqual((status, reply["count"], reply["max_model_len"]), (200, len(reply["tokens"]), CONTEXT))
        self.assertEqual(len(reply["token_strs"]), reply["count"])

    def test_tokens_of_a_chat(self):
        messages = [{"role": "user", "content": "Hello"}]
        status, _, body = ask("POST", "/tokenize", {"messages": messages})
        self.assertEqual(status, 200)
        self.assertEqual(json.loads(body)["tokens"], tokenize("<|bos|><|user|>Hello<|end|><|assistant|>"))
        _, _, body = ask("POST", "/v1/chat/completions", {"messages": messages, "max_tokens": 1})
        self.assertEqual(
            json.loads(body)["usage"]["prompt_tokens"], len(tokenize("<|bos|><|user|>Hello<|end|><|assistant|>"))
        )

    def test_wrong_tokens(self):
        for tokens in ("x", ["x"], [-1], [10**9], [1.5]):
            status, _, body = ask("POST", "/detokenize", {"tokens": tokens})
            self.assertEqual(status, 400)
            self.assertTrue(json.loads(body)["error"]["param"].startswith("tokens"))
        self.assertEqual(ask("POST", "/tokenize", {"prompt": 7})[0], 400)
        self.assertEqual(ask("POST", "/tokenize", {"prompt": "x", "model": "other"})[0], 404)

    def test_states(self):
        for path in ("/health", "/ready", "/version"):
            status, headers, body = ask("GET", path)
            self.assertEqual(status, 200)
            self.assertTrue(headers["Content-Type"].startswith("application/json"))
            json.loads(body)
        self.assertRegex(json.loads(ask("GET", "/version")[2])["version"], r"^\d+\.\d+")

    def test_metrics(self):
        status, headers, body = ask("GET", "/metrics")
        self.assertEqual(status, 200)
        self.assertTrue(headers["Content-Type"].startswith("text/plain"))
        text = body.decode()
        for name in METRICS:
            self.assertIn(f"# HELP {name} ", text)
            self.assertIn(f"# TYPE {name} ", text)
            self.assertTrue(re.search(rf'^{name}\S*model_name="{MODEL}"', text, flags=re.M), name)

    def test_metrics_count_what_happens(self):
        before = metrics()
        ask("POST", "/v1/completions", BODY | {"max_tokens": 20, "ignore_eos": True, "n": 2})
        tokens = "vllm:generation_tokens_total"

        def counted():
            """A step is counted when all of it is over, which may be a moment after its answers are out."""
            now = metrics()
            return now if now[tokens] >= before[tokens] + 40 else None

        after = wait_until(counted, 2, "40 tokens")

        def grown(name):
            return after[name] - before[name]

        self.assertEqual(grown("vllm:generation_tokens_total"), 40)
        self.assertEqual(grown("vllm:request_success_total"), 1)
        self.assertEqual(grown("vllm:e2e_request_latency_seconds_count"), 1)
        self.assertEqual(grown("vllm:time_to_first_token_seconds_count"), 1)
        self.assertEqual(grown("vllm:inter_token_latency_seconds_count"), 38)
        self.assertEqual(grown("vllm:request_prompt_tokens_sum"), len(tokenize(BODY["prompt"], add_special_tokens=True)))
        self.assertGreaterEqual(after["vllm:kv_cache_usage_perc"], 0)
        self.assertLessEqual(after["vllm:kv_cache_usage_perc"], 1)
