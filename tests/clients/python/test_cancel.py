"""Clients that go away, and a server that is asked to end."""

import asyncio
import socket
import threading
import unittest
import urllib.parse

import openai

import servers
from support import MODEL, Suite, ask, async_client, fresh, metrics, settings, url, wait_until

LONG = {"max_tokens": 1900, "n": 4, "temperature": 1.0}


def load():
    samples = metrics()
    return samples["vllm:num_requests_running"] + samples["vllm:num_requests_waiting"], samples["vllm:kv_cache_usage_perc"]


class Cancellation(Suite):
    def setUp(self):
        wait_until(lambda: load()[0] == 0, 10, "a server that rests")
        self.before = load()[1]
        self.aborted = metrics()["vllm:request_success_total"]

    def gone(self):
        """What ran is gone within a second, and so are its pages."""
        wait_until(lambda: load()[0] == 0, 1, "nothing running")
        wait_until(lambda: load()[1] <= self.before, 1, "KV memory given back")
        self.assertGreater(metrics()["vllm:request_success_total"], self.aborted)

    def extra(self):
        return {"ignore_eos": True} | fresh()

    def test_closed_streams(self):
        for create in (self.chat, self.complete):
            stream = create(stream=True, extra_body=self.extra(), **LONG)
            for _ in range(5):
                next(iter(stream))
            running, usage = load()
            self.assertGreater(running, 0)
            self.assertGreater(usage, self.before)
            stream.close()
            self.gone()

    def test_left_within_a_with_block(self):
        with self.chat(stream=True, extra_body=self.extra(), **LONG) as stream:
            for _ in stream:
                break
        self.gone()

    def test_cancelled_tasks(self):
        """An answer that is no stream is given up by closing the connection."""

        async def run():
            async with async_client() as many:
                tasks = [
                    asyncio.create_task(many.completions.create(model=MODEL, prompt="x", extra_body=self.extra(), **LONG))
                    for _ in range(3)
                ]
                while load()[0] == 0:
                    await asyncio.sleep(0.01)
                for task in tasks:
                    task.cancel()
                return await asyncio.gather(*tasks, return_exceptions=True)

        results = asyncio.run(asyncio.wait_for(run(), 60))
        self.assertEqual([type(result) for result in results], [asyncio.CancelledError] * 3)
        self.gone()

    def test_timeout_of_the_client(self):
        with self.assertRaises(openai.APITimeoutError):
            self.client.with_options(timeout=0.3).completions.create(
                model=MODEL, prompt="x", extra_body=self.extra(), **LONG | {"n": 32}
            )
        self.gone()

    def test_connection_that_breaks(self):
        body = b'{"prompt":"x","max_tokens":1900,"n":4,"stream":true,"ignore_eos":true}'
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        parts = urllib.parse.urlsplit(url())
        with socket.create_connection((parts.hostname, parts.port), timeout=60) as line:
            line.sendall(head + body)
            self.assertTrue(line.recv(100).startswith(b"HTTP/1.1 200"))
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset instead of a goodbye
        self.gone()

    def test_others_go_on(self):
        fields = {"max_tokens": 60, "seed": 4, "temperature": 1.0}
        alone = self.complete(**fields).choices[0].text
        results = {}
        stream = self.complete(stream=True, extra_body=self.extra(), **LONG)
        next(iter(stream))
        thread = threading.Thread(target=lambda: results.update(text=self.complete(**fields).choices[0].text))
        thread.start()
        stream.close()
        thread.join(60)
        self.assertEqual(results["text"], alone)


class Drain(unittest.TestCase):
    def test_what_runs_ends_and_what_comes_is_refused(self):
        with servers.Server() as server:
            with openai.OpenAI(**settings("MILLRACE_TINY", {"base_url": server.url + "/v1"})) as one:
                fields = {"model": MODEL, "prompt": "x", "max_tokens": 1500, "extra_body": {"ignore_eos": True}}
                stream = one.completions.create(
                    stream=True, stream_options={"include_usage": True}, n=2, temperature=1.0, **fields
                )
                chunks = [next(stream)]
                server.terminate()

                def refused():
                    try:
                        one.completions.create(model=MODEL, prompt="x", max_tokens=1)
                    except openai.InternalServerError as error:
                        return error
                    return None

                error = wait_until(refused, 5, "refusal while draining")
                self.assertEqual(error.status_code, 503)
                self.assertTrue(error.response.headers["Retry-After"])
                chunks += list(stream)
                self.assertEqual(chunks[-1].usage.completion_tokens, 3000)
            self.assertEqual(server.process.wait(10), 0)

    def test_ready(self):
        self.assertEqual(ask("GET", "/ready")[0], 200)
