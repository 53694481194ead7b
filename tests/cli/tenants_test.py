"""Tenants and idempotency keys at gateways on loopback: who may ask, what it is charged, and that a retry is one request."""

import concurrent.futures
import json
import os
import pathlib
import random
import signal
import subprocess
import time
import unittest
import urllib.error
import urllib.request
import uuid

from cluster_processes import BINARY, NATS, ROOT, Processes, free_port, needs_nats, wait_for_port

PROMPT = "First Citizen: Before we proceed any further, hear me speak."


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.body = status, body
        self.headers = {name.lower(): value for name, value in headers.items()}

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json["error"]


def send(url, path="/v1/completions", key=None, idempotency_key=None, headers=None, timeout=120, **body):
    """A POST; an answer whatever its status."""
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    if key:
        request.add_header("Authorization", "Bearer " + key)
    if idempotency_key:
        request.add_header("Idempotency-Key", idempotency_key)
    for name, value in (headers or {}).items():
        request.add_header(name, value)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return Answer(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.headers, error.read())


def text_of(answer):
    """Of a stream, which must be whole."""
    lines = [line[6:] for line in answer.body.decode().splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]", lines[-3:]
    return "".join(choice["text"] for line in lines[:-1] for choice in json.loads(line)["choices"])


@needs_nats
class Tenants(Processes):
    GATEWAYS = ("gate-a", "gate-b")

    def setUp(self):
        super().setUp()
        self.port = free_port()
        keys = os.path.join(self.folder, "keys")
        subprocess.run([ROOT / "deploy/issue_credentials", keys, "--gateway", *self.GATEWAYS, "--node", "one",
                        "--operator", "boss", "--listen", f"127.0.0.1:{self.port}"], check=True,
                       stdout=subprocess.DEVNULL)
        self.keys = keys
        self.server = self.start(NATS, "--config", os.path.join(keys, "nats.conf"))
        self.assertTrue(wait_for_port(self.port), "nats-server listens")
        self.gateways = {}
        self.processes = {}
        for name in self.GATEWAYS:
            self.start_gateway(name)
        self.node = self.start(BINARY, "node", *self.identity("one"), "--threads", 1, "--json", "--kv-memory", "64M")
        self.first_line(self.node)

    def identity(self, name):
        public = pathlib.Path(self.keys, name + ".pub").read_text().strip()
        return ("--nats", f"nats://127.0.0.1:{self.port}", "--name", name, "--nkey-seed",
                os.path.join(self.keys, name + ".seed"), "--nkey", public)

    def start_gateway(self, name):
        process = self.start(BINARY, "gateway", *self.identity(name), "--port", 0, "--json", "--access-log", "off")
        self.gateways[name] = self.first_line(process)["listening"]
        self.processes[name] = process

    def tenant(self, *arguments, fails=False):
        run = subprocess.run([BINARY, "tenant", *arguments, *self.identity("boss"), "--json"], capture_output=True,
                             text=True, timeout=60)
        if fails:
            self.assertEqual(run.returncode, 1, run.stdout)
            return run.stderr
        self.assertEqual(run.returncode, 0, run.stderr)
        return json.loads(run.stdout)

    def new_tenant(self, name, *settings):
        sets = [word for setting in settings for word in ("--set", setting)]
        key = self.tenant(name, "--new-key", *sets)[name]["new_key"]
        for url in self.gateways.values():
            self.wait_for(lambda: self.models(url, key) == 200, "a gateway knows the key")
        return key

    def models(self, url, key=None):
        request = urllib.request.Request(url + "/v1/models")
        if key:
            request.add_header("Authorization", "Bearer " + key)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    def wait_for(self, holds, what, seconds=20):
        end = time.monotonic() + seconds
        while not holds():
            self.assertLess(time.monotonic(), end, what)
            time.sleep(0.05)

    def spent(self, tenant):
        """Dollars of this month, and what gateways have leased of the rest."""
        spent = self.tenant(tenant)[tenant]["spent"]
        return spent["usd"], spent["leased_usd"]

    def price(self, answer, prompt=100, completion=1000):
        usage = answer["usage"]
        return (usage["prompt_tokens"] * prompt + usage["completion_tokens"] * completion) / 1e6

    def begin(self, url, idempotency_key, body, key=None, then=lambda: None):
        """The first text of a stream; the connection is closed after `then`."""
        headers = {"Content-Type": "application/json", "Idempotency-Key": idempotency_key}
        if key:
            headers["Authorization"] = "Bearer " + key
        request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(), headers)
        begun = ""
        with urllib.request.urlopen(request, timeout=60) as stream:
            for line in stream:
                if line.startswith(b"data: "):
                    begun += json.loads(line[6:])["choices"][0]["text"]
                    if len(begun) > 200:
                        break
            then()
        return begun

    def test_keys_and_limits(self):
        url = self.gateways["gate-a"]
        time.sleep(2.5)  # each gateway has heard of the other before there is anything to count
        # As long as there is no tenant, anybody may ask.
        self.assertEqual(send(url, prompt=PROMPT, max_tokens=3).status, 200)
        key = self.new_tenant("acme", "requests_per_minute=4", "tokens_per_minute=100000", "concurrent=2")
        for wrong in (None, "mr-wrong"):
            answer = send(url, prompt=PROMPT, max_tokens=3, key=wrong)
            self.assertEqual((answer.status, answer.error["code"]), (401, "invalid_api_key"))
        answer = send(url, prompt=PROMPT, max_tokens=3, key=key)
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.headers["x-ratelimit-limit-requests"], "4")
        self.assertEqual(answer.headers["x-ratelimit-remaining-requests"], "3")
        self.assertEqual(answer.headers["x-ratelimit-limit-tokens"], "100000")
        self.assertRegex(answer.headers["x-ratelimit-reset-requests"], r"^1[0-9.]+s$")
        stream = send(url, prompt=PROMPT, max_tokens=3, key=key, stream=True)
        self.assertEqual(stream.headers["x-ratelimit-remaining-requests"], "2")
        # What one gateway lets through counts at the other, too.
        other = self.gateways["gate-b"]
        time.sleep(2.5)
        self.assertEqual(send(other, prompt=PROMPT, max_tokens=3, key=key).status, 200)
        answers = [send(other, prompt=PROMPT, max_tokens=3, key=key) for _ in range(3)]
        refused = [answer for answer in answers if answer.status == 429]
        self.assertGreaterEqual(len(refused), 1)
        self.assertEqual(refused[-1].error["type"], "rate_limit_error")
        self.assertEqual(refused[-1].error["code"], "rate_limit_exceeded")
        self.assertGreater(int(refused[-1].headers["retry-after"]), 5)
        self.assertGreater(int(refused[-1].headers["retry-after-ms"]), 5000)
        # A smaller minute than the prompt: trying again would not help.
        self.tenant("acme", "--set", "tokens_per_minute=2", "--set", "requests_per_minute=none")
        self.wait_for(lambda: send(url, prompt=PROMPT, max_tokens=3, key=key).status == 429, "the limit is known")
        self.assertEqual(send(url, prompt=PROMPT, max_tokens=3, key=key).headers["x-should-retry"], "false")
        def counted(name, **labels):
            return self.metric_at(url, f"millrace:tenant_{name}", tenant="acme", **labels)

        self.wait_for(lambda: counted("refused_requests_total", reason="too_large") >= 2, "refusals are counted")
        self.assertGreaterEqual(counted("admitted_requests_total"), 2)
        self.assertGreater(counted("tokens_total"), 2 * 3)
        self.assertEqual(counted("refused_requests_total", reason="account"), 0)
        # Disabled, revoked, removed.
        self.tenant("acme", "--set", "disabled=true")
        self.wait_for(lambda: self.models(url, key) == 403, "it is disabled")
        self.tenant("acme", "--set", "disabled=false")
        self.wait_for(lambda: self.models(url, key) == 200, "it is not disabled any more")
        listed = self.tenant("acme")["acme"]
        self.assertNotIn("sha256", json.dumps(listed))
        self.assertIn("has no key 123", self.tenant("acme", "--revoke", "123", fails=True))
        self.tenant("acme", "--revoke", listed["keys"][0]["id"])
        self.wait_for(lambda: self.models(url, key) == 401, "its key is revoked")
        self.tenant("acme", "--remove")
        time.sleep(1)
        self.assertEqual(self.models(url), 401, "the last tenant's removal does not open the door")
        self.start_gateway("gate-a")
        self.assertEqual(self.models(self.gateways["gate-a"]), 401, "nor does a restart")

    def test_a_gateway_that_finds_no_server_lets_nobody_in(self):
        self.server.kill()
        self.server.wait()
        self.start_gateway("gate-b")
        url = self.gateways["gate-b"]
        for path in ("/ready", "/v1/models"):
            with self.assertRaises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(url + path, timeout=10)
            self.assertEqual(refused.exception.code, 503)
            self.assertIn("does not know yet who may ask", refused.exception.read().decode())
        self.start(NATS, "--config", os.path.join(self.keys, "nats.conf"))

        def ready():
            try:
                with urllib.request.urlopen(url + "/ready", timeout=10) as answer:
                    return json.load(answer)["status"] == "ready"
            except urllib.error.HTTPError:
                return False

        self.wait_for(ready, "it has found the server, and who may ask")
        self.assertEqual(self.models(url), 200)

    def test_nodes_that_are_not_trusted_get_nothing(self):
        key = self.new_tenant("acme", "data_class=trusted", "regions=eu,us")
        url = self.gateways["gate-a"]
        answer = send(url, prompt=PROMPT, max_tokens=3, key=key, headers={"x-millrace-region": "mars"})
        self.assertEqual((answer.status, answer.error["code"]), (403, "region_not_allowed"))
        with self.assertRaises(TimeoutError):
            send(url, prompt=PROMPT, max_tokens=3, key=key, timeout=5)
        terms = [BINARY, "terms", "one", *self.identity("boss"), "--data-class", "trusted", "--region", "us"]
        subprocess.run(terms, check=True, stdout=subprocess.DEVNULL)
        self.wait_for(lambda: send(url, prompt=PROMPT, max_tokens=3, key=key).status == 200, "the node may serve it")

    def get(self, path, key, url=None):
        request = urllib.request.Request((url or self.gateways["gate-a"]) + path, headers={"Authorization": "Bearer " + key})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    def upload(self, key, lines):
        body = ('--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
                '--b\r\nContent-Disposition: form-data; name="file"; filename="f.jsonl"\r\n\r\n'
                + "".join(json.dumps(line) + "\n" for line in lines) + "\r\n--b--\r\n")
        request = urllib.request.Request(self.gateways["gate-a"] + "/v1/files", body.encode(),
                                         {"Content-Type": "multipart/form-data; boundary=b",
                                          "Authorization": "Bearer " + key})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.headers, error.read())

    def test_batches_obey_the_record(self):
        url = self.gateways["gate-a"]
        lines = [{"custom_id": f"c{i}", "method": "POST", "url": "/v1/completions",
                  "body": {"prompt": PROMPT, "max_tokens": 20, "ignore_eos": True}} for i in range(6)]
        none = self.new_tenant("small", "batches=false")
        for refused in (self.upload(none, lines), send(url, "/v1/batches", key=none, input_file_id="file-x")):
            self.assertEqual((refused.status, refused.error["code"]), (403, "batches_not_allowed"))

        key = self.new_tenant("acme", "usd_per_million_prompt=100", "usd_per_million_answer=1000", "spend_usd=1",
                              "data_class=trusted")
        file = self.upload(key, lines).json["id"]

        def make():
            return send(url, "/v1/batches", key=key, input_file_id=file, endpoint="/v1/completions",
                        completion_window="24h").json["id"]

        def batch(id):
            return json.loads(self.get("/v1/batches/" + id, key))

        def completes(id):
            self.wait_for(lambda: batch(id)["status"] == "completed", "the batch is completed", 120)
            records = self.get(f"/v1/files/{batch(id)['output_file_id']}/content", key).splitlines()
            self.assertEqual(len(records), len(lines))
            return sum(self.price(json.loads(record)["response"]["body"]) for record in records)

        first = make()
        self.wait_for(lambda: batch(first)["status"] == "in_progress", "the batch is begun")
        time.sleep(4)
        self.assertEqual(batch(first)["request_counts"]["completed"], 0, "its lines wait for a node that may read them")
        terms = [BINARY, "terms", "one", *self.identity("boss"), "--data-class", "trusted", "--region", "us"]
        subprocess.run(terms, check=True, stdout=subprocess.DEVNULL)
        cost = completes(first)
        self.wait_for(lambda: abs(self.spent("acme")[0] - cost) < 1e-9, "each line is charged once")

        # Less is left than a line may cost.
        self.tenant("acme", "--set", f"spend_usd={cost + 0.001}")
        let_through = []

        def is_limited():
            answer = send(url, prompt=PROMPT, max_tokens=40, key=key)
            if answer.status == 200:
                let_through.append(self.price(answer.json))
            return answer.status == 429

        self.wait_for(is_limited, "the limit is known")
        cost += sum(let_through)
        second = make()
        self.wait_for(lambda: batch(second)["status"] == "in_progress", "the batch is begun")
        time.sleep(4)
        self.assertEqual(batch(second)["request_counts"]["completed"], 0)
        self.assertAlmostEqual(self.spent("acme")[0], cost)
        self.tenant("acme", "--set", "spend_usd=1")
        cost += completes(second)
        self.wait_for(lambda: abs(self.spent("acme")[0] - cost) < 1e-9, "they were waited for")

    def test_money_of_two_gateways(self):
        key = self.new_tenant("acme", "usd_per_million_prompt=100", "usd_per_million_answer=1000", "spend_usd=1")
        first = send(self.gateways["gate-a"], prompt=PROMPT, max_tokens=50, key=key, ignore_eos=True)
        self.assertEqual(first.status, 200)
        one = self.price(first.json)
        self.wait_for(lambda: abs(self.spent("acme")[0] - one) < 1e-9, "it is charged")
        # Everybody asks until nothing is left.
        dice = random.Random(1)
        charged, refused = [one], []

        def ask(number):
            url = self.gateways[self.GATEWAYS[number % 2]]
            answer = send(url, prompt=PROMPT, max_tokens=dice.randint(1, 50), key=key, ignore_eos=True, seed=number)
            if answer.status == 200:
                charged.append(self.price(answer.json))
            else:
                refused.append(answer)

        with concurrent.futures.ThreadPoolExecutor(4) as together:
            list(together.map(ask, range(80)))
        self.assertLessEqual(sum(charged), 1.0)
        self.assertGreater(sum(charged), 0.9)
        self.assertGreater(len(refused), 0)
        for answer in refused:
            self.assertEqual(answer.status, 429)
            self.assertIn(answer.error["code"], ("insufficient_quota", "rate_limit_exceeded"))
        self.wait_for(lambda: abs(self.spent("acme")[0] - sum(charged)) < 1e-9, "what was charged is written down")
        self.wait_for(lambda: self.spent("acme")[1] == 0, "what is not used is given back")
        last = send(self.gateways["gate-b"], prompt=PROMPT, max_tokens=500, key=key)
        self.assertEqual((last.status, last.error["type"]), (429, "insufficient_quota"))
        self.assertEqual(last.headers["x-should-retry"], "false")
        self.tenant("acme", "--set", "spend_usd=2")
        self.wait_for(lambda: send(self.gateways["gate-b"], prompt=PROMPT, max_tokens=5, key=key).status == 200,
                      "a higher limit counts at once")

    def test_a_gateway_that_ends_leaves_nothing_leased(self):
        key = self.new_tenant("acme", "usd_per_million_answer=1000", "spend_usd=1")
        self.assertEqual(send(self.gateways["gate-a"], prompt=PROMPT, max_tokens=5, key=key).status, 200)
        self.assertGreater(self.spent("acme")[1], 0)
        self.processes["gate-a"].terminate()
        self.assertEqual(self.processes["gate-a"].wait(30), 0)
        self.assertEqual(self.spent("acme")[1], 0)

    def test_a_retry_is_told_the_same(self):
        key = self.new_tenant("acme", "usd_per_million_prompt=100", "usd_per_million_answer=1000", "spend_usd=1")
        a, b = self.gateways["gate-a"], self.gateways["gate-b"]
        body = {"prompt": PROMPT, "max_tokens": 40, "temperature": 1, "ignore_eos": True}
        once = {"key": key, "idempotency_key": str(uuid.uuid4())}
        first = send(a, **once, **body)
        self.assertEqual(first.status, 200)
        self.assertNotIn("idempotent-replayed", first.headers)
        self.wait_for(lambda: self.spent("acme")[0] > 0, "it is charged")
        for url in (a, b):
            again = send(url, **once, **body)
            self.assertEqual(again.headers["idempotent-replayed"], "true")
            self.assertEqual(again.body, first.body, "id and time included")
        other = send(b, **once, **{**body, "max_tokens": 41})
        self.assertEqual((other.status, other.error["code"]), (422, "idempotency_key_reused"))
        # A stream has its own key; its events are told again as they were.
        once["idempotency_key"] = "stream-1"
        first_stream = send(b, **once, **body, stream=True)
        again = send(a, **once, **body, stream=True)
        self.assertEqual(again.body, first_stream.body)
        self.assertEqual(again.headers["content-type"], "text/event-stream; charset=utf-8")
        # Two answers were charged, however often they were told.
        self.wait_for(lambda: abs(self.spent("acme")[0] - 2 * self.price(first.json)) < 1e-9, "two are charged")
        self.assertEqual(send(a, **{**once, "idempotency_key": "a b"}, **body).status, 400)
        # Another tenant's key of the same name is another key.
        stranger = self.new_tenant("other")
        self.assertNotEqual(send(a, key=stranger, idempotency_key="stream-1", **body).body, first_stream.body)

    def test_duplicates_at_once_are_run_once(self):
        key = self.new_tenant("acme", "usd_per_million_answer=1000", "spend_usd=1")
        body = {"prompt": PROMPT, "max_tokens": 100, "temperature": 1, "ignore_eos": True}
        with concurrent.futures.ThreadPoolExecutor(8) as together:
            answers = list(together.map(
                lambda i: send(self.gateways[self.GATEWAYS[i % 2]], key=key, idempotency_key="k", **body), range(8)))
        self.assertEqual({answer.status for answer in answers}, {200})
        self.assertEqual(len({answer.body for answer in answers}), 1)
        self.wait_for(lambda: abs(self.spent("acme")[0] - 0.1) < 1e-9, "one is charged")

    def test_a_retry_after_a_gateways_death_is_charged_and_answered_once(self):
        key = self.new_tenant("acme", "usd_per_million_prompt=100", "usd_per_million_answer=1000", "spend_usd=5")
        body = {"prompt": PROMPT, "max_tokens": 900, "temperature": 1, "ignore_eos": True, "stream": True}
        once = {"key": key, "idempotency_key": str(uuid.uuid4())}
        begun = self.begin(self.gateways["gate-a"], once["idempotency_key"], body, key,
                           lambda: self.processes["gate-a"].send_signal(signal.SIGKILL))
        killed = time.monotonic()
        again = send(self.gateways["gate-b"], **once, **body)
        took = time.monotonic() - killed
        self.assertEqual(again.status, 200)
        text = text_of(again)
        self.assertTrue(text.startswith(begun), "the seed is the key's, so it is the same answer")
        third = send(self.gateways["gate-b"], **once, **body)
        self.assertEqual(third.body, again.body)
        prompt_tokens = send(self.gateways["gate-b"], key=key, prompt=PROMPT, max_tokens=1).json["usage"]["prompt_tokens"]
        expected = (prompt_tokens * 100 + 900 * 1000) / 1e6 + (prompt_tokens * 100 + 1000) / 1e6
        self.wait_for(lambda: abs(self.spent("acme")[0] - expected) < 1e-9, "one of both is charged")
        print(f"taken over, and answered whole, {took:.1f} s after the gateway's death", flush=True)
        # The dead gateway's lease comes back.
        self.wait_for(lambda: self.spent("acme")[1] == 0, "nothing stays leased", seconds=100)

    def test_a_client_that_comes_back_finds_its_answer(self):
        body = {"prompt": PROMPT, "max_tokens": 1200, "temperature": 1, "ignore_eos": True, "stream": True}
        url = self.gateways["gate-a"]
        begun = self.begin(url, "k", body)  # and it leaves
        answer = send(url, idempotency_key="k", **body)
        self.assertTrue(text_of(answer).startswith(begun))
        again = send(self.gateways["gate-b"], idempotency_key="k", **body)
        self.assertEqual(again.headers["idempotent-replayed"], "true")
        self.assertEqual(again.body, answer.body)


if __name__ == "__main__":
    unittest.main()
