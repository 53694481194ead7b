"""A gateway, nodes and a NATS server on loopback: what a client sees is what one good server would have said, whatever
becomes of the nodes."""

import concurrent.futures
import json
import os
import pathlib
import pty
import random
import signal
import subprocess
import tempfile
import termios
import time
import unittest
import urllib.error
import urllib.request

from cluster_processes import BINARY, NATS, ROOT, Processes, free_port, needs_nats, wait_for_port

PROMPT = "First Citizen: Before we proceed any further, hear me speak."


@needs_nats
class Cluster(Processes):
    def setUp(self):
        super().setUp()
        self.port = free_port()
        self.nats = f"nats://127.0.0.1:{self.port}"
        self.start_nats()
        process = self.start(BINARY, "gateway", "--nats", self.nats, "--name", "gate", "--port", 0, "--json",
                             "--access-log", "off")
        self.gateway = self.first_line(process)["listening"]

    def start_nats(self):
        self.server = self.start(NATS, "--addr", "127.0.0.1", "--port", self.port, "--jetstream", "--store_dir",
                                 os.path.join(self.folder, "jetstream"))
        self.assertTrue(wait_for_port(self.port), "nats-server does not listen")

    def node(self, name, *arguments):
        process = self.start(BINARY, "node", "--nats", self.nats, "--name", name, "--threads", 1, "--json",
                             "--kv-memory", "64M", *arguments)
        self.assertEqual(self.first_line(process)["node"], name)
        return process

    def ask(self, url, path="/v1/completions", **body):
        request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def stream(self, url, on_chunk=lambda count: None, path="/v1/completions", **body):
        """The chunks of a stream."""
        request = urllib.request.Request(url + path, json.dumps({**body, "stream": True}).encode(),
                                         {"Content-Type": "application/json"})
        chunks = []
        with urllib.request.urlopen(request, timeout=120) as answer:
            for line in answer:
                if not line.startswith(b"data: "):
                    continue
                if line.strip() == b"data: [DONE]":
                    return chunks
                chunk = json.loads(line[6:])
                self.assertNotIn("error", chunk)
                chunks.append(chunk)
                on_chunk(len(chunks))
        self.fail("the stream ended without [DONE]")

    def text(self, chunks):
        """Of each choice."""
        texts = {}
        for chunk in chunks:
            for choice in chunk["choices"]:
                texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
        return texts

    def metric(self, name, url=None, **labels):
        """Of a gateway, or of whoever has this address."""
        return self.metric_at(url or self.gateway, name, **labels)

    def until(self, holds):
        for _ in range(200):
            if holds():
                return
            time.sleep(0.05)
        self.fail("it did not come about")

    def ready_nodes(self, count):
        self.until(lambda: self.metric("millrace:cluster_nodes", state="ready") == count)

    def single(self):
        """A server of its own, with the same engine."""
        process = self.start(BINARY, "serve", "--port", 0, "--json", "--threads", 1, "--kv-memory", "64M",
                             "--access-log", "off")
        return self.first_line(process)["listening"]

    def test_says_what_a_single_server_says(self):
        self.node("one")
        single = self.single()
        dice = random.Random(1)
        bodies = []
        for i in range(16):
            body = {"prompt": PROMPT[dice.randint(0, 20):], "max_tokens": dice.randint(1, 60), "seed": i,
                    "temperature": dice.choice([0, 0.9])}
            body |= dice.choice([{}, {"n": 3}, {"logprobs": 2}, {"stop": ["the", "\n\n"]},
                                 {"frequency_penalty": 0.8}, {"logprobs": 1, "echo": True}, {"ignore_eos": True}])
            bodies.append(body)
        with concurrent.futures.ThreadPoolExecutor(8) as together:
            by_cluster = list(together.map(lambda body: self.ask(self.gateway, **body), bodies))
        for body, answer in zip(bodies, by_cluster):
            with self.subTest(body=body):
                expected = self.ask(single, **body)
                self.assertEqual(answer["choices"], expected["choices"])
                for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
                    self.assertEqual(answer["usage"][key], expected["usage"][key])

    def test_answers_with_a_schema(self):
        self.node("one")
        single = self.single()
        schema = {"type": "object", "properties": {"name": {"enum": ["Romeo", "Juliet"]}, "age": {"type": "integer",
                  "minimum": 1, "maximum": 99}}, "required": ["name", "age"], "additionalProperties": False}
        body = {"prompt": PROMPT, "guided_json": schema, "max_tokens": 200, "temperature": 1, "seed": 3, "n": 4}
        answer = self.ask(self.gateway, **body)
        self.assertEqual(answer["choices"], self.ask(single, **body)["choices"])
        whole = [json.loads(choice["text"]) for choice in answer["choices"] if choice["finish_reason"] == "stop"]
        self.assertGreater(len(whole), 0)
        for value in whole:
            self.assertIn(value["name"], ("Romeo", "Juliet"))

    def kill_in_mid_stream(self, how, **more):
        first, second = self.node("one"), self.node("two")
        time.sleep(2.5)  # both have said that they are there
        body = {"prompt": PROMPT, "max_tokens": 1200, "temperature": 0.8, "seed": 5, "ignore_eos": True, **more}
        undisturbed = self.stream(self.gateway, **body)
        struck = []

        def strike(count):
            if count == 100:
                busy = max((first, second), key=self.cpu_seconds_since)
                struck.append(busy)
                busy.send_signal(how)

        self.marks = {process.pid: self.cpu_seconds(process) for process in (first, second)}
        chunks = self.stream(self.gateway, strike, **body)
        self.assertEqual(len(struck), 1)
        self.assertEqual(self.text(chunks), self.text(undisturbed))
        self.assertEqual(len(chunks), len(undisturbed))
        return struck[0]

    def cpu_seconds(self, process):
        fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    def cpu_seconds_since(self, process):
        return self.cpu_seconds(process) - self.marks[process.pid]

    def test_a_node_is_killed_in_mid_stream(self):
        self.kill_in_mid_stream(signal.SIGKILL)

    def test_constrained_choices_with_penalties_and_logprobs_move_too(self):
        self.kill_in_mid_stream(signal.SIGKILL, n=4, guided_regex="([a-zA-Z']+ ){150,}", logprobs=2,
                                frequency_penalty=0.5, max_tokens=400)

    def test_a_node_freezes_in_mid_stream_and_thaws(self):
        frozen = self.kill_in_mid_stream(signal.SIGSTOP)
        frozen.send_signal(signal.SIGCONT)
        time.sleep(1.5)
        self.ask(self.gateway, prompt=PROMPT, max_tokens=5)
        frozen.terminate()
        self.assertEqual(frozen.wait(30), 0, "what it had is not wanted any more, so it ends at once")

    def test_a_node_drains_in_mid_stream(self):
        drained = self.kill_in_mid_stream(signal.SIGTERM)
        self.assertEqual(drained.wait(30), 0)

    def test_where_only_another_numeric_class_is_left_it_goes_on(self):
        recipe = os.path.join(self.folder, "int8.json")
        pathlib.Path(recipe).write_text('{"millrace_recipe": 1, "weights": {"default": "int8"}}')
        first = self.node("one")
        time.sleep(2.5)
        body = {"prompt": PROMPT, "max_tokens": 1000, "temperature": 0, "ignore_eos": True, "logprobs": 0,
                "stream_options": {"include_usage": True}}
        undisturbed = self.stream(self.gateway, **body)
        other = self.node("two", "--recipe", recipe)
        time.sleep(2.5)
        self.marks = {process.pid: self.cpu_seconds(process) for process in (first, other)}
        count_of = []

        def strike(count):
            if count == 100:
                count_of.append(count)
                max((first, other), key=self.cpu_seconds_since).kill()

        chunks = self.stream(self.gateway, strike, **body)
        self.assertEqual(count_of, [100])
        usage = chunks[-1]["usage"]
        self.assertEqual(usage["completion_tokens"], 1000)
        self.assertEqual((usage["millrace"]["continuation"], usage["millrace"]["migrations"]), ("valid", 1))
        tokens, expected = ([token for chunk in answer for choice in chunk["choices"]
                             for token in (choice["logprobs"] or {"tokens": []})["tokens"]] for answer in (chunks, undisturbed))
        self.assertEqual(len(tokens), 1000)
        if usage["millrace"]["node"] == "two":  # it began on the one that was asked before
            self.assertEqual(tokens[:100], expected[:100])

    def test_the_server_restarts_in_mid_stream(self):
        self.node("one")
        body = {"prompt": PROMPT, "max_tokens": 1200, "temperature": 0.8, "seed": 5, "ignore_eos": True}
        undisturbed = self.stream(self.gateway, **body)

        def strike(count):
            if count == 100:
                self.server.terminate()
                self.server.wait()
                time.sleep(1)
                self.start_nats()

        self.assertEqual(self.text(self.stream(self.gateway, strike, **body)), self.text(undisturbed))

    def test_an_answer_is_cut_to_what_a_node_has_room_for(self):
        self.node("one", "--max-model-len", 256)
        body = {"messages": [{"role": "user", "content": "Tell me of the sea."}], "temperature": 0, "ignore_eos": True}
        answer = self.ask(self.gateway, path="/v1/chat/completions", **body)
        self.assertEqual(answer["usage"]["total_tokens"], 256)
        self.assertEqual(answer["choices"][0]["finish_reason"], "length")
        # What is wrong with a request is known late here, and told as a server would all the same.
        for stream in (False, True):
            with self.assertRaises(urllib.error.HTTPError) as caught:
                self.ask(self.gateway, prompt="a b c d e f g h " * 60, max_tokens=5, stream=stream)
            self.assertEqual(caught.exception.code, 400)
            error = json.load(caught.exception)["error"]
            self.assertIn("have sequences of at most 256", error["message"])
            self.assertEqual(error["type"], "invalid_request_error")

    def test_embeddings_are_those_of_a_single_server(self):
        self.node("one")
        single = self.single()
        for body in ({"input": "Tell me of the sea."}, {"input": ["a", PROMPT], "pooling": "last"},
                     {"input": [[1, 2, 3]], "encoding_format": "base64", "normalize": False}):
            with self.subTest(body=body):
                answer = self.ask(self.gateway, path="/v1/embeddings", **body)
                expected = self.ask(single, path="/v1/embeddings", **body)
                self.assertEqual(answer["data"], expected["data"])
                self.assertEqual(answer["usage"], expected["usage"])

    def test_embeddings_when_a_node_is_killed(self):
        nodes = [self.node("one"), self.node("two")]
        self.ready_nodes(2)
        inputs = [f"{i}: " + "Speak, speak. " * 90 for i in range(96)]
        body = {"path": "/v1/embeddings", "input": inputs}
        undisturbed = self.ask(self.gateway, **body)
        with concurrent.futures.ThreadPoolExecutor(1) as other:
            answer = other.submit(self.ask, self.gateway, **body)
            time.sleep(0.15)
            nodes[0].kill()
            self.assertEqual(answer.result()["data"], undisturbed["data"])
        # Each input twice, and those that the dead node had once more.
        self.until(lambda: self.metric("millrace:cluster_ended_streams_total", how="done") == 2 * len(inputs))
        self.assertGreater(self.metric("millrace:cluster_placements_total"), 2 * len(inputs))

    def test_metrics(self):
        node = self.start(BINARY, "node", "--nats", self.nats, "--name", "one", "--threads", 1, "--json", "--kv-memory",
                          "64M", "--metrics-port", 0)
        url = self.first_line(node)["metrics"]
        self.ready_nodes(1)
        for _ in range(2):
            self.ask(self.gateway, prompt=PROMPT * 2, max_tokens=20, ignore_eos=True)
        for at in (self.gateway, url):
            self.until(lambda: self.metric("vllm:generation_tokens_total", url=at) == 40)
            self.assertEqual(self.metric("vllm:request_success_total", url=at, finished_reason="length"), 2)
            self.assertEqual(self.metric("vllm:num_requests_running", url=at), 0)
            self.assertGreater(self.metric("vllm:prompt_tokens_total", url=at), 20)
            self.assertGreater(self.metric("vllm:prefix_cache_hits_total", url=at), 0)
            self.assertEqual(self.metric("millrace:nats_connected", url=at), 1)
        self.assertEqual(self.metric("vllm:time_to_first_token_seconds_count"), 2)
        self.assertEqual(self.metric("millrace:cluster_nodes", state="dead"), 0)
        self.assertEqual(self.metric("millrace:cluster_quarantined_nodes"), 0)
        self.assertEqual(self.metric("millrace:batches", status="in_progress"), 0)
        self.assertEqual(self.metric("millrace:cluster_placements_total"), 2)
        self.assertEqual(self.metric("millrace:cluster_ended_streams_total", how="done"), 2)
        self.assertEqual(self.metric("millrace:cluster_dropped_messages_total", why="malformed"), 0)
        self.until(lambda: self.metric("millrace:node_ended_streams_total", url=url, how="completed") == 2)
        self.assertGreater(self.metric("millrace:node_frames_total", url=url, what="sent"), 1)
        self.assertEqual(self.metric("millrace:node_refused_placements_total", url=url), 0)
        self.assertEqual(self.metric("vllm:num_preemptions_total", url=url), 0)
        with urllib.request.urlopen(url + "/ready") as answer:
            self.assertEqual(json.load(answer)["status"], "ready")
        node.terminate()
        self.assertEqual(node.wait(30), 0)
        self.until(lambda: self.metric("millrace:cluster_nodes", state="ready") == 0)

    def status(self, *arguments):
        run = subprocess.run([BINARY, "status", *map(str, arguments)], capture_output=True, text=True, timeout=60)
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        return run.stdout

    def test_status_once(self):
        killed = self.node("one")
        self.node("two", "--max-sequences", 3)
        self.ready_nodes(2)
        killed.kill()
        state = json.loads(self.status("--nats", self.nats, "--json", "--wait", 4.5))
        one, two = state["nodes"]
        (gate,) = state["gateways"]
        self.assertEqual((one["node"], one["state"]), ("one", "dead"))
        self.assertEqual((two["node"], two["state"], two["places"], two["running"]), ("two", "ready", 3, 0))
        self.assertEqual(two["model"], "millrace-tiny")
        self.assertEqual(two["tokens_per_second"], 0)
        self.assertGreater(two["kv_tokens"], 1000)
        self.assertLess(two["beat_age_s"], 2)
        self.assertIn("f32", two["numeric_class"])
        self.assertEqual((gate["gateway"], gate["state"], gate["ready_nodes"]), ("gate", "ready", 1))
        table = self.status("--nats", self.nats, "--once").splitlines()
        self.assertTrue(table[0].startswith("NODE  STATE  MODEL          PLACES  RUNNING  WAITING  KV FREE"), table)
        self.assertEqual(table[2].split()[:4], ["two", "ready", "millrace-tiny", "3"])
        self.assertEqual(table[-1].split()[:2], ["gate", "ready"])

    def test_status_of_a_terminal(self):
        self.node("one")
        leader, terminal = pty.openpty()
        self.addCleanup(os.close, leader)
        before = termios.tcgetattr(terminal)
        process = subprocess.Popen([BINARY, "status", "--nats", self.nats], stdin=terminal, stdout=terminal,
                                   stderr=terminal, start_new_session=True)
        self.addCleanup(process.kill)
        shown = b""
        while shown.count(b"\x1b[H") < 4 or b"gate " not in shown:  # drawn again, every second
            shown += os.read(leader, 4096)
        self.assertTrue(shown.startswith(b"\x1b[?1049h\x1b[?25l"), shown)
        self.assertIn(b"one   ready", shown)
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(10), 0)
        while not shown.endswith(b"\x1b[?25h\x1b[?1049l"):
            shown += os.read(leader, 4096)
        self.assertEqual(termios.tcgetattr(terminal), before)
        os.close(terminal)

    def test_status_without_a_server(self):
        run = subprocess.run([BINARY, "status", "--nats", f"nats://127.0.0.1:{free_port()}", "--once", "--wait", "0.5"],
                             capture_output=True, text=True, timeout=60)
        self.assertEqual((run.returncode, run.stdout), (1, ""))
        self.assertIn("can't be reached", run.stderr)

    def test_with_credentials_that_deny_by_default(self):
        folder, port = os.path.join(self.folder, "keys"), free_port()
        subprocess.run([ROOT / "deploy/issue_credentials", folder, "--gateway", "gate", "--node", "one", "two",
                        "--observer", "eye", "--listen", f"127.0.0.1:{port}"], check=True, stdout=subprocess.DEVNULL)
        self.start(NATS, "--config", os.path.join(folder, "nats.conf"))
        url = f"nats://127.0.0.1:{port}"

        def keys(name):
            public = pathlib.Path(folder, name + ".pub").read_text().strip()
            return "--nats", url, "--name", name, "--nkey-seed", os.path.join(folder, name + ".seed"), "--nkey", public

        process = self.start(BINARY, "gateway", *keys("gate"), "--port", 0, "--json", "--access-log", "off")
        gateway = self.first_line(process)["listening"]
        self.first_line(self.start(BINARY, "node", *keys("one"), "--json", "--kv-memory", "64M"))
        answer = self.ask(gateway, prompt=PROMPT, max_tokens=5)
        self.assertEqual(answer["usage"]["completion_tokens"], 5)
        state = json.loads(self.status(*keys("eye"), "--json"))
        self.assertEqual([(node["node"], node["state"]) for node in state["nodes"]], [("one", "ready")])
        self.assertEqual([gate["gateway"] for gate in state["gateways"]], ["gate"])
        # Without a key nobody comes in, and is told.
        run = subprocess.run([BINARY, "node", "--nats", url, "--name", "two", "--kv-memory", "64M"], capture_output=True,
                             text=True, timeout=60)
        self.assertEqual(run.returncode, 1)
        self.assertIn(f"millrace: NATS at {url} refuses two: ", run.stderr)

    def terms(self, *arguments):
        run = subprocess.run([BINARY, "terms", *arguments, "--nats", self.nats, "--name", "owner"], capture_output=True,
                             text=True, timeout=60)
        return run.returncode, run.stdout, run.stderr

    def served_by(self, node, headers=None, **more):
        """The gateway's report on a request that went there, in the end."""
        for _ in range(100):
            request = urllib.request.Request(
                self.gateway + "/v1/completions",
                json.dumps({"prompt": PROMPT, "max_tokens": 8, "ignore_eos": True, **more}).encode(),
                {"Content-Type": "application/json", **(headers or {})})
            with urllib.request.urlopen(request, timeout=120) as answer:
                report = json.load(answer)["usage"]["millrace"]
            if report["node"] == node:
                return report
            time.sleep(0.1)
        self.fail(f"{report['node']} has answered, not {node}")

    def test_requests_go_by_terms_and_wishes(self):
        self.assertEqual(self.terms("slow", "--usd-per-hour", "0.1", "--busy-watts", "100", "--tariff", "0.2")[0], 0)
        self.assertEqual(self.terms("fast", "--usd-per-hour", "20", "--region", "north", "--data-class", "trusted")[0], 0)
        self.node("slow", "--pace", "1000,40,2")
        self.node("fast", "--pace", "8000,2,0.1")
        report = self.served_by("slow")
        self.assertGreater(report["cost_usd"], 0)
        self.assertGreater(report["energy_j"], 0)
        self.assertEqual({key: report[key] for key in ("energy_is", "recipe", "migrations", "continuation")},
                         {"energy_is": "modelled", "recipe": "default", "migrations": 0, "continuation": "identical"})
        for headers in ({"x-slo-tpot-ms": "20"}, {"x-millrace-region": "north"}, {"x-millrace-data-class": "trusted"}):
            with self.subTest(headers):
                self.served_by("fast", headers)
        with self.assertRaises(urllib.error.HTTPError) as caught:
            self.served_by("fast", {"x-slo-tpot-ms": "soon"})
        self.assertEqual(caught.exception.code, 400)
        # The terms change while it serves; and it leaves, in the middle of an answer, when it is put into quarantine.
        self.assertEqual(self.terms("slow", "--usd-per-hour", "5000")[0], 0)
        self.served_by("fast")
        self.assertEqual(self.terms("slow", "--usd-per-hour", "0.1")[0], 0)
        self.served_by("slow")
        body = {"prompt": PROMPT, "max_tokens": 60, "seed": 1, "ignore_eos": True, "stream_options": {"include_usage": True}}
        undisturbed = self.stream(self.gateway, **body)

        def strike(count):
            if count == 10:
                self.assertEqual(self.terms("slow", "--quarantine", "to be looked at")[0], 0)

        chunks = self.stream(self.gateway, strike, **body)
        self.assertEqual(self.text(chunks), self.text(undisturbed))
        report = chunks[-1]["usage"]["millrace"]
        self.assertEqual((report["node"], report["migrations"], report["continuation"]), ("fast", 1, "identical"))
        code, out, _ = self.terms("--json")
        self.assertEqual(json.loads(out)["slow"]["quarantine"], "to be looked at")
        self.assertEqual(self.terms("slow", "--release")[0], 0)
        self.served_by("slow")

    def test_terms_that_are_wrong_are_refused(self):
        for arguments, expected in ((["A.b"], "expected 1 to 32"), (["one", "--pue", "0.5"], '"pue"'),
                                    (["one", "--tariff", "nowhere.csv:home"], "nowhere.csv"),
                                    (["one", "--tariff", "much"], "--tariff much"), (["one", "--release"], "not in quarantine"),
                                    (["one", "--remove"], "no terms of one")):
            with self.subTest(arguments):
                code, out, err = self.terms(*arguments)
                self.assertEqual((code, out), (1, ""))
                self.assertIn(expected, err)
                self.assertEqual(err.count("\n"), 1)

    def test_a_slow_node_is_left_for_one_that_keeps_the_objective(self):
        # It said that it is fast when it was, and is slow now: several sequences share it.
        self.terms("cheap", "--usd-per-hour", "0.01")
        self.terms("dear", "--usd-per-hour", "5")
        self.node("cheap", "--pace", "8000,4,6")
        self.node("dear", "--pace", "8000,4,0.1")
        headers = {"x-slo-tpot-ms": "12"}
        self.served_by("cheap")
        body = {"prompt": PROMPT, "max_tokens": 200, "seed": 3, "ignore_eos": True}
        with concurrent.futures.ThreadPoolExecutor(8) as together:
            reports = list(together.map(lambda i: self.served_report(headers, **{**body, "seed": i}), range(8)))
        self.assertGreater(sum(report["node"] == "dear" for report in reports), 0)
        self.assertEqual({report["continuation"] for report in reports}, {"identical"})

    def test_a_late_first_token_is_asked_for_once_more(self):
        process = self.start(BINARY, "gateway", "--nats", self.nats, "--name", "hedger", "--port", 0, "--json",
                             "--access-log", "off", "--hedge-ms", 300)
        self.gateway = self.first_line(process)["listening"]
        self.terms("cheap", "--usd-per-hour", "0.01")
        self.terms("dear", "--usd-per-hour", "5")
        stuck = self.node("cheap", "--pace", "2000,4,0.1")
        self.node("dear", "--pace", "2000,4,0.1")
        body = {"max_tokens": 20, "seed": 3, "ignore_eos": True}
        undisturbed = self.served_by("cheap", **body)
        self.assertEqual(undisturbed["migrations"], 0)
        text = self.ask(self.gateway, prompt=PROMPT, **body)["choices"][0]["text"]
        stuck.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        answer = self.ask(self.gateway, prompt=PROMPT, **body)
        self.assertLess(time.monotonic() - began, 2, "long before the node is taken for dead")
        stuck.send_signal(signal.SIGCONT)
        self.assertEqual(answer["choices"][0]["text"], text)
        self.assertEqual(answer["usage"]["millrace"]["node"], "dear")
        self.until(lambda: self.metric("millrace:hedges_won_total") == 1)
        self.assertEqual(self.metric("millrace:hedges_started_total"), 1)

    def test_a_new_gateway_finds_what_nodes_have_in_their_caches(self):
        nodes = ("one", "two", "three")
        for name in nodes:
            self.node(name)
        dice = random.Random(2)
        prompts = [[dice.randint(300, 900) for _ in range(200)] for _ in range(5)]
        first = {i: self.served_report({}, prompt=prompt, max_tokens=2)["node"] for i, prompt in enumerate(prompts)}
        process = self.start(BINARY, "gateway", "--nats", self.nats, "--name", "later", "--port", 0, "--json",
                             "--access-log", "off")
        self.gateway = self.first_line(process)["listening"]
        # Nodes tell it all that they have once they hear of it.
        met = set()
        while met < set(nodes):
            met.add(self.served_report({}, prompt=[dice.randint(300, 900) for _ in range(40)], max_tokens=1)["node"])
        time.sleep(2.5)
        for i, prompt in enumerate(prompts):
            answer = self.ask(self.gateway, prompt=prompt + [301, 302, 303], max_tokens=2)
            self.assertEqual(answer["usage"]["millrace"]["node"], first[i])
            self.assertGreaterEqual(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 192)

    def served_report(self, headers, **body):
        request = urllib.request.Request(self.gateway + "/v1/completions", json.dumps(body).encode(),
                                         {"Content-Type": "application/json", **headers})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["usage"]["millrace"]

    def test_what_is_wrong_is_said(self):
        with self.assertRaises(urllib.error.HTTPError) as caught:
            self.ask(self.gateway, prompt=PROMPT, max_tokens=-1)
        self.assertEqual(caught.exception.code, 400)
        for command in ("node", "gateway", "status"):
            run = subprocess.run([BINARY, command, "--name", "A.b"], capture_output=True, text=True)
            self.assertEqual((run.returncode, run.stdout), (1, ""))
            self.assertEqual(run.stderr, "millrace: --name A.b: expected 1 to 32 of a-z, 0-9 and -\n")


if __name__ == "__main__":
    unittest.main()
