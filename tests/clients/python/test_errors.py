"""What is refused, and as which of the client's exceptions."""

import json
import os
import threading
import unittest

import openai

from support import CONTEXT, MODEL, STORY, Suite, ask, client, metrics, tokenize, wait_until

LONG = {"max_tokens": 1900, "extra_body": {"ignore_eos": True}}


class Parameters(Suite):
    def test_wrong_types(self):
        for field, value in {
            "temperature": "hot",
            "top_p": [1],
            "n": "2",
            "max_tokens": "12",
            "max_completion_tokens": 1.5,
            "seed": "x",
            "stream": "yes",
            "stop": 7,
            "logprobs": 3,
            "top_logprobs": "2",
            "presence_penalty": {},
            "frequency_penalty": True,
            "logit_bias": [1],
            "user": 7,
            "tools": "none",
            "tool_choice": 1,
            "parallel_tool_calls": "no",
            "response_format": [],
            "stream_options": True,
        }.items():
            with self.subTest(field=field):
                self.assert_refused("invalid_type", field, **{field: value})
        for field, value in {"top_k": 1.5, "min_p": "x", "ignore_eos": 1, "stop_token_ids": 1, "priority": "high"}.items():
            with self.subTest(field=field):
                self.assert_refused("invalid_type", field, extra_body={field: value})
        self.assert_refused("invalid_type", "stop[1]", stop=["a", 1])
        self.assert_refused("invalid_type", "logit_bias.5", logit_bias={"5": "much"})
        self.assert_refused("invalid_type", "stream_options.include_usage", stream=True, stream_options={"include_usage": 1})

    def test_out_of_range(self):
        for field, value in {
            "temperature": 2.1,
            "top_p": 1.01,
            "n": 0,
            "max_tokens": 0,
            "max_completion_tokens": -1,
            "presence_penalty": 2.5,
            "frequency_penalty": -2.5,
            "top_logprobs": 21,
            "seed": 2**63,
        }.items():
            with self.subTest(field=field):
                error = self.assert_refused(param=field, **{"logprobs": True, field: value})
                self.assertRegex(error.code, r"^(integer|decimal)_(above_max|below_min)_value$")
        self.assert_refused(param="n", n=10**9)
        self.assert_refused(param="temperature", temperature=-0.1)
        self.assert_refused(param="top_logprobs", top_logprobs=2)
        self.assert_refused(param="stream_options", stream_options={"include_usage": True})
        self.assert_refused(param="stop", stop=["x"] * 100)
        for key in ("-1", "x", "1.0", "999999", ""):
            self.assert_refused("invalid_value", "logit_bias", logit_bias={key: 1})
        self.assert_refused(param="logit_bias.5", logit_bias={"5": 101})

    def test_wrong_messages(self):
        user = {"role": "user", "content": "x"}
        for messages, param in [
            ([], "messages"),
            ({}, "messages"),
            ("hello", "messages"),
            ([7], "messages[0]"),
            ([{"content": "x"}], "messages[0].role"),
            ([{"role": "wizard", "content": "x"}], "messages[0].role"),
            ([user, {"role": "user"}], "messages[1].content"),
            ([{"role": "user", "content": 5}], "messages[0].content"),
            ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
            (
                [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
                "messages[0].content[0].type",
            ),
            ([user, {"role": "assistant", "tool_calls": "x"}], "messages[1].tool_calls"),
        ]:
            with self.subTest(messages=messages):
                self.assert_refused(param=param, messages=messages)

    def test_missing_fields(self):
        for path, body, param in [
            ("/v1/chat/completions", {"model": MODEL}, "messages"),
            ("/v1/completions", {"model": MODEL}, "prompt"),
            ("/v1/embeddings", {"model": MODEL}, "input"),
            ("/tokenize", {"model": MODEL}, "prompt"),
            ("/detokenize", {"model": MODEL}, "tokens"),
        ]:
            status, _, reply = ask("POST", path, body)
            self.assertEqual((status, json.loads(reply)["error"]["param"]), (400, param))

    def test_what_would_be_ignored_is_refused(self):
        self.assert_refused(param="functions", extra_body={"functions": [{"name": "f"}]})
        self.assert_refused(param="audio", extra_body={"audio": {"voice": "alloy", "format": "wav"}})

    def test_bodies_that_are_none(self):
        for body in (b"", b"{", b"[]", b"7", b"null", b'{"model": "millrace-tiny",}', b"\xff\xfe", b"{}" * 2, b"[" * 100000):
            status, headers, reply = ask("POST", "/v1/chat/completions", body)
            error = json.loads(reply)["error"]
            self.assertEqual(
                (status, error["type"], error["param"], error["code"]), (400, "invalid_request_error", None, None)
            )
            self.assertTrue(headers["Content-Type"].startswith("application/json"))


class Lengths(Suite):
    def test_a_hundred_kilobytes(self):
        for send in (lambda text: self.chat([{"role": "user", "content": text}]), self.complete):
            with self.assertRaises(openai.BadRequestError) as caught:
                send("The mill turns. " * 6400)
            self.assert_error(caught.exception, 400, "invalid_request_error", "context_length_exceeded")
            self.assertIn(f"maximum context length is {CONTEXT} tokens", str(caught.exception))

    def test_more_than_fits_was_asked_for(self):
        prompt = tokenize("x") * 100
        self.assertEqual(self.complete(prompt, max_tokens=1).usage.prompt_tokens, 100)
        with self.assertRaises(openai.BadRequestError) as caught:
            self.complete(prompt, max_tokens=CONTEXT - 99)
        self.assert_error(caught.exception, 400, "invalid_request_error", "context_length_exceeded", "prompt")
        answer = self.complete(prompt, max_tokens=CONTEXT - 100, temperature=0, extra_body={"ignore_eos": True})
        self.assertEqual(answer.usage.total_tokens, CONTEXT)

    def test_a_prompt_that_leaves_no_room(self):
        prompt = tokenize("x") * CONTEXT
        with self.assertRaises(openai.BadRequestError) as caught:
            self.complete(prompt)
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        self.assertEqual(self.complete(prompt[1:]).usage.completion_tokens, 1)


class Places(Suite):
    def test_unknown_model(self):
        for create, fields in (
            (self.client.chat.completions.create, {"messages": STORY}),
            (self.client.completions.create, {"prompt": "x"}),
            (self.client.embeddings.create, {"input": "x"}),
        ):
            with self.assertRaises(openai.NotFoundError) as caught:
                create(model="gpt-4", **fields)
            self.assert_error(caught.exception, 404, "invalid_request_error", "model_not_found")
            self.assertIn("gpt-4", str(caught.exception))

    def test_models(self):
        (model,) = self.client.models.list().data
        self.assertEqual((model.id, model.object), (MODEL, "model"))
        self.assertTrue(model.owned_by)
        self.assertEqual(self.client.models.retrieve(MODEL), model)
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.models.retrieve("other/model")
        self.assert_error(caught.exception, 404, "invalid_request_error", "model_not_found")

    def test_unknown_route(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.moderations.create(input="x")
        self.assert_error(caught.exception, 404, "invalid_request_error")
        with self.assertRaises(openai.NotFoundError):
            self.client.images.generate(prompt="x")

    def test_wrong_method(self):
        for method, path in (("GET", "/v1/chat/completions"), ("POST", "/v1/models"), ("DELETE", "/v1/completions")):
            status, headers, body = ask(method, path)
            self.assertEqual(status, 405)
            self.assertTrue(headers["Allow"])
            self.assertEqual(json.loads(body)["error"]["type"], "invalid_request_error")


class Keys(unittest.TestCase):
    def test_the_right_key(self):
        for name in ("MILLRACE_KEY", "MILLRACE_OTHER_KEY"):
            with client("MILLRACE_KEYED", api_key=os.environ[name]) as one:
                self.assertEqual(one.models.list().data[0].id, MODEL)
                self.assertTrue(one.completions.create(model=MODEL, prompt="x", max_tokens=2).choices[0].text)

    def test_a_wrong_key(self):
        for key in ("sk-nobody", "sk-first-tenan", "sk-first-tenant2", "-"):
            with client("MILLRACE_KEYED", api_key=key) as one:
                for call in (one.models.list, lambda: one.completions.create(model=MODEL, prompt="x")):
                    with self.assertRaises(openai.AuthenticationError) as caught:
                        call()
                    self.assertEqual(caught.exception.status_code, 401)
                    self.assertEqual(caught.exception.code, "invalid_api_key")

    def test_no_key(self):
        status, _, body = ask("GET", "/v1/models", server="MILLRACE_KEYED")
        self.assertEqual(status, 401)
        self.assertEqual(set(json.loads(body)["error"]), {"message", "type", "param", "code"})
        for path in ("/health", "/ready", "/version", "/metrics"):
            self.assertEqual(ask("GET", path, server="MILLRACE_KEYED")[0], 200)

    def test_tenants_share_no_context(self):
        prompt = "The miller counted every sack of flour in the long dark winter. " * 4
        cached = []
        for name in ("MILLRACE_KEY", "MILLRACE_KEY", "MILLRACE_OTHER_KEY"):
            with client("MILLRACE_KEYED", api_key=os.environ[name]) as one:
                usage = one.completions.create(model=MODEL, prompt=prompt, max_tokens=1).usage
                cached.append(usage.prompt_tokens_details.cached_tokens)
        self.assertEqual(cached[0], 0)
        self.assertGreater(cached[1], 16)
        self.assertEqual(cached[2], 0)


class FullQueue(unittest.TestCase):
    """One sequence runs, one request waits."""

    def test_too_many_is_a_rate_limit(self):
        count = lambda name: metrics("MILLRACE_BUSY")["vllm:num_requests_" + name]  # noqa: E731
        with client("MILLRACE_BUSY") as one:
            fields = {"model": MODEL, "prompt": "x", **LONG}
            running = one.completions.create(stream=True, **fields)
            next(iter(running))
            waiting = {}

            def wait_in_line():
                waiting["answer"] = one.completions.create(model=MODEL, prompt="y", max_tokens=3)

            thread = threading.Thread(target=wait_in_line)
            thread.start()
            try:
                wait_until(lambda: count("waiting") >= 1, 10, "a request that waits")
                with self.assertRaises(openai.RateLimitError) as caught:
                    one.completions.create(model=MODEL, prompt="z", max_tokens=3)
                error = caught.exception
                self.assertEqual(
                    (error.status_code, error.code, error.type), (429, "rate_limit_exceeded", "rate_limit_error")
                )
                self.assertRegex(error.response.headers["Retry-After"], r"^[1-9]\d*$")
                # A client that does as Retry-After says gets its answer.
                patient = one.with_options(max_retries=60)
                running.close()
                self.assertTrue(patient.completions.create(model=MODEL, prompt="z", max_tokens=3).choices)
            finally:
                running.close()
                thread.join(60)
            self.assertEqual(waiting["answer"].usage.completion_tokens, 3)
        wait_until(lambda: count("running") == 0, 5, "nothing running")
