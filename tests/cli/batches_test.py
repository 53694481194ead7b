"""/v1/files and /v1/batches of gateways: nodes and gateways are killed while a batch runs, and every line has its answer
once, the one that an undisturbed run gives."""

import json
import os
import random
import signal
import subprocess
import threading
import time
import unittest
import urllib.error
import urllib.request
import uuid

import cluster_test
from cluster_test import BINARY, NATS, free_port

MODEL = "millrace-tiny"
GATEWAYS, NODES = ("gate-a", "gate-b"), ("one", "two", "three")
PATIENCE = 300  # seconds


def line(custom_id, **body):
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions",
                       "body": {"model": MODEL, **body}})


def requests(count, dice):
    """Some sample and name a seed, some sample and name none, some do not sample; a few are refused."""
    lines = []
    for i in range(count):
        message = {"role": "user", "content": f"What happened on day {i}? " + "And then? " * dice.randint(0, 10)}
        more = dice.choice([{"temperature": 0}, {"temperature": 0.9}, {"temperature": 0.7, "seed": i},
                            {"temperature": 0, "logprobs": True, "top_logprobs": 2}, {"n": 2}])
        if i % 50 == 7:
            more = {"temperature": "hot"}
        lines.append(line(f"request-{i}", messages=[message], max_tokens=dice.randint(10, 90), ignore_eos=True, **more))
    return lines


def answer(record):
    """What a record says, without what differs from run to run."""
    body = record["response"]["body"]
    usage = {key: value for key, value in (body.get("usage") or {}).items() if key.endswith("tokens")}
    return (record["response"]["status_code"], body.get("choices"), usage, body.get("error"), record["error"])


@unittest.skipIf(NATS is None, "this machine has no nats-server (Debian: apt install nats-server)")
class Batches(cluster_test.Processes):
    def setUp(self):
        super().setUp()
        self.nats_port = free_port()
        self.start(NATS, "--addr", "127.0.0.1", "--port", self.nats_port, "--jetstream", "--store_dir",
                   os.path.join(self.folder, "jetstream"))
        self.ports = {name: free_port() for name in GATEWAYS}
        self.running = {}

    def command(self, name, *more):
        nats = ("--nats", f"nats://127.0.0.1:{self.nats_port}", "--name", name, "--json")
        if name in GATEWAYS:
            return (BINARY, "gateway", *nats, "--port", self.ports[name], "--access-log", "off", *more)
        return (BINARY, "node", *nats, "--threads", 1, "--kv-memory", "64M", *more)

    def run_program(self, name, *more):
        process = self.start(*self.command(name, *more))
        self.first_line(process)
        self.running[name] = process

    def url(self, gateway=GATEWAYS[0]):
        return f"http://127.0.0.1:{self.ports[gateway]}"

    def call(self, path, body=None, method=None, gateway=GATEWAYS[0], key=None):
        """The reply's JSON, or its bytes where it is a file; an error is its status."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        data = None
        if isinstance(body, dict):
            headers["Content-Type"], data = "application/json", json.dumps(body).encode()
        elif body is not None:
            boundary = uuid.uuid4().hex
            headers["Content-Type"] = f'multipart/form-data; boundary="{boundary}"'
            parts = [("purpose", b"batch", ""), ("file", body, '; filename="requests.jsonl"')]
            data = b"".join(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode()
                            + content + b"\r\n" for name, content, more in parts) + f"--{boundary}--\r\n".encode()
        request = urllib.request.Request(self.url(gateway) + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                content = reply.read()
                return json.loads(content) if reply.headers["Content-Type"] == "application/json" else content
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def ask(self, path, *arguments, **more):
        """Of whichever gateway lives."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for gateway in GATEWAYS:
                try:
                    reply = self.call(path, *arguments, gateway=gateway, **more)
                except OSError:
                    continue
                if reply != 503:
                    return reply
            time.sleep(0.2)
        self.fail("no gateway answers")

    def batch(self, lines, window="24h", **more):
        file = self.ask("/v1/files", "".join(text + "\n" for text in lines).encode(), **more)
        self.assertEqual((file["object"], file["purpose"], file["filename"]), ("file", "batch", "requests.jsonl"))
        batch = self.ask("/v1/batches", {"input_file_id": file["id"], "endpoint": "/v1/chat/completions",
                                         "completion_window": window, "metadata": {"of": "a test"}}, **more)
        self.assertEqual((batch["object"], batch["status"]), ("batch", "validating"))
        return batch["id"]

    def wait(self, id, *statuses, **more):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            batch = self.ask(f"/v1/batches/{id}", **more)
            if batch["status"] in statuses:
                return batch
            self.assertNotIn(batch["status"], ("completed", "failed", "expired", "cancelled"), batch)
            time.sleep(0.2)
        self.fail(f"{id} is not {statuses} within {PATIENCE} s: {batch}")

    def records(self, file, **more):
        content = self.ask(f"/v1/files/{file}/content", **more)
        self.assertTrue(content.endswith(b"\n"))
        return [json.loads(text) for text in content.splitlines()]

    def undisturbed(self, lines):
        """The answers of `millrace run --batch`, by custom_id."""
        files = [os.path.join(self.folder, f"{uuid.uuid4().hex}.jsonl") for _ in range(2)]
        with open(files[0], "w") as file:
            file.writelines(text + "\n" for text in lines)
        subprocess.run([BINARY, "run", "--batch", files[0], "-o", files[1], "--threads", "1"], check=True,
                       stderr=subprocess.DEVNULL)
        with open(files[1]) as file:
            return {record["custom_id"]: answer(record) for record in map(json.loads, file)}

    def check(self, batch, lines, expected, **more):
        """Every line has one answer, in the order of the input, and it is the expected one."""
        order = {json.loads(text)["custom_id"]: number for number, text in enumerate(lines)}
        good, bad = self.records(batch["output_file_id"], **more), self.records(batch["error_file_id"], **more)
        for records in (good, bad):
            numbers = [order[record["custom_id"]] for record in records]
            self.assertEqual(numbers, sorted(set(numbers)), "in order, and none twice")
        self.assertEqual(len(good) + len(bad), len(lines))
        self.assertEqual({record["custom_id"] for record in good + bad}, set(order))
        self.assertEqual(len({record["id"] for record in good + bad}), len(lines))
        self.assertEqual(batch["request_counts"],
                         {"total": len(lines), "completed": len(good), "failed": len(bad)})
        for record in good + bad:
            self.assertEqual(set(record), {"id", "custom_id", "response", "error"})
            self.assertEqual(set(record["response"]), {"status_code", "request_id", "body"})
            self.assertEqual(record["response"]["status_code"] == 200, record in good)
            self.assertEqual(answer(record), expected[record["custom_id"]], record["custom_id"])

    def controls(self, batch, lines, expected):
        """check() is one that finds something: a line twice, a line that is missing, another answer."""
        records = self.records
        wrong = [lambda file: records(file)[:1] + records(file), lambda file: records(file)[1:],
                 lambda file: [record | {"error": "x"} for record in records(file)],
                 lambda file: records(file)[::-1]]
        for self.records in wrong:
            with self.assertRaises(AssertionError):
                self.check(batch, lines, expected)
        self.records = records

    def kill_now_and_then(self, seed, seconds, killed, until):
        """Kills gateways and nodes at random, and starts them again; one gateway or node at a time. One of each comes
        first and soon: on a fast machine there is little time."""
        dice = random.Random(seed)
        end = time.monotonic() + seconds
        first = dice.sample([GATEWAYS, NODES], 2)
        while time.monotonic() < end and not until.wait(dice.uniform(0.3, 0.6 if first else 2.5)):
            kind = first.pop() if first else GATEWAYS if dice.random() < 0.4 else NODES
            name = dice.choice(kind)
            self.running[name].send_signal(signal.SIGKILL)
            self.running[name].wait()
            killed.append(name)
            if until.wait(dice.uniform(0, 1.5)):
                return
            self.run_program(name)

    def through_kills(self, count, seed, seconds):
        dice = random.Random(seed)
        lines = requests(count, dice)
        expected = self.undisturbed(lines)
        for name in (*GATEWAYS, *NODES):
            self.run_program(name)
        id = self.batch(lines)
        self.wait(id, "in_progress")
        killed, until = [], threading.Event()
        killer = threading.Thread(target=self.kill_now_and_then, args=(seed, seconds, killed, until))
        killer.start()
        self.addCleanup(until.set)
        batch = self.wait(id, "completed")
        until.set()
        killer.join()
        for name in (*GATEWAYS, *NODES):  # what was just killed
            if self.running[name].poll() is not None:
                self.run_program(name)
        print(f"{count} lines, seed {seed}: {batch['completed_at'] - batch['created_at']} s, killed {', '.join(killed)}",
              flush=True)
        self.assertGreater(len(set(killed) & set(GATEWAYS)), 0, "else this has shown little")
        self.assertGreater(len(set(killed) & set(NODES)), 0)
        self.check(batch, lines, expected)

    def test_nodes_and_gateways_are_killed(self):
        self.through_kills(500, seed=1, seconds=12)

    @unittest.skipUnless(os.environ.get("MILLRACE_LONG"), "the long form: MILLRACE_LONG=1")
    def test_nodes_and_gateways_are_killed_again_and_again(self):
        for seed in range(2, 6):
            with self.subTest(seed=seed):
                self.through_kills(500, seed, seconds=120)
                for process in self.running.values():
                    process.kill()
                    process.wait()

    def test_what_a_client_sees(self):
        self.run_program(GATEWAYS[0])
        lines = requests(60, random.Random(5))
        id = self.batch(lines)
        self.wait(id, "in_progress")
        time.sleep(1)
        self.assertEqual(self.call(f"/v1/batches/{id}")["request_counts"], {"total": 60, "completed": 0, "failed": 0},
                         "there is no node")
        file = self.call(f"/v1/batches/{id}")["input_file_id"]
        self.assertEqual(self.call(f"/v1/files/{file}", method="DELETE"), 409)
        self.assertEqual(self.call(f"/v1/files/{file}/content"), "".join(text + "\n" for text in lines).encode())
        with urllib.request.urlopen(urllib.request.Request(f"{self.url()}/v1/files/{file}/content", method="HEAD")) as reply:
            self.assertEqual((reply.status, reply.headers["Content-Type"], reply.read()),
                             (200, "application/octet-stream", b""))
        def counted(name, **labels):
            return self.metric_at(self.url(), f"millrace:batch{name}", **labels)

        self.assertEqual((counted("es", status="in_progress"), counted("_lines_left")), (1, 60))
        # Another waits behind it, and is cancelled.
        other = self.batch(lines)
        self.wait(other, "in_progress")
        self.assertEqual(self.call(f"/v1/batches/{other}/cancel", {})["status"], "cancelling")
        cancelled = self.wait(other, "cancelled")
        self.assertEqual(cancelled["request_counts"], {"total": 60, "completed": 0, "failed": 60})
        self.assertEqual({record["error"]["code"] for record in self.records(cancelled["error_file_id"])},
                         {"batch_cancelled"})
        # A third has too little time.
        late = self.wait(self.batch(lines, window="2s"), "expired")
        self.assertIsNone(late["output_file_id"])
        self.assertEqual([record["custom_id"] for record in self.records(late["error_file_id"])],
                         [json.loads(text)["custom_id"] for text in lines])
        # A fourth is none.
        failed = self.wait(self.batch([lines[0], "not json", lines[0]]), "failed")
        self.assertEqual([(problem["line"], problem["code"]) for problem in failed["errors"]["data"]],
                         [(2, "invalid_json_line"), (3, "duplicate_custom_id")])
        self.run_program(NODES[0])
        batch = self.wait(id, "completed")
        expected = self.undisturbed(lines)
        self.check(batch, lines, expected)
        self.controls(batch, lines, expected)
        time.sleep(1)  # figures are of the last half second
        for status in ("completed", "cancelled", "expired", "failed"):
            self.assertEqual(counted("es", status=status), 1)
        self.assertEqual((counted("_lines_left"), counted("_lines_running")), (0, 0))
        self.assertEqual([counted("_results_total", outcome=outcome) for outcome in ("completed", "failed")],
                         [batch["request_counts"][outcome] for outcome in ("completed", "failed")])
        self.assertEqual(batch["metadata"], {"of": "a test"})
        self.assertEqual(self.call(f"/v1/batches/{id}/cancel", {}), 409)
        listed = self.call("/v1/batches?limit=2")
        self.assertEqual((len(listed["data"]), listed["has_more"]), (2, True))
        files = self.call("/v1/files?purpose=batch_output")["data"]
        self.assertEqual(len(files), 4, "one output, three of errors")
        for file in files:
            self.assertEqual(self.call(f"/v1/files/{file['id']}", method="DELETE"),
                             {"id": file["id"], "object": "file", "deleted": True})
        self.assertEqual(self.call(f"/v1/files/{files[0]['id']}/content"), 404)
        self.assertEqual(self.call("/v1/files/none"), 404)
        self.assertEqual(self.call("/v1/batches/none"), 404)

    def test_interactive_requests_find_room(self):
        """While a batch runs on all that it may, a request waits for no place."""
        self.run_program(GATEWAYS[0])
        self.run_program(NODES[0], "--max-sequences", 4)
        dice = random.Random(3)
        id = self.batch([line(f"r{i}", messages=[{"role": "user", "content": f"Day {i}"}], max_tokens=300, ignore_eos=True,
                              temperature=0) for i in range(60)])
        end = time.monotonic() + PATIENCE
        while self.call(f"/v1/batches/{id}")["request_counts"]["completed"] < 5:
            self.assertLess(time.monotonic(), end)
            time.sleep(0.1)
        worst = 0
        for i in range(5):
            begin = time.monotonic()
            reply = self.call("/v1/completions", {"model": MODEL, "prompt": "The sea", "max_tokens": 1})
            worst = max(worst, time.monotonic() - begin)
            self.assertEqual(reply["usage"]["completion_tokens"], 1)
            time.sleep(dice.uniform(0, 0.5))
        self.assertLess(self.call(f"/v1/batches/{id}")["request_counts"]["completed"], 60, "it ran meanwhile")
        print(f"the slowest first token beside a batch: {worst:.3f} s", flush=True)
        self.assertLess(worst, 2)
        self.call(f"/v1/batches/{id}/cancel", {})
        self.wait(id, "cancelled")

    def test_tenants_see_what_is_theirs(self):
        keys = os.path.join(self.folder, "keys")
        with open(keys, "w") as file:
            file.write("first\nsecond\n")
        self.run_program(GATEWAYS[0], "--api-key-file", keys)
        self.run_program(NODES[0])
        id = self.batch([line("a", messages=[{"role": "user", "content": "b"}], max_tokens=3)], key="first")
        batch = self.wait(id, "completed", key="first")
        self.assertEqual(self.call(f"/v1/batches/{id}", key="second"), 404)
        self.assertEqual(self.call(f"/v1/batches/{id}/cancel", {}, key="second"), 404)
        for file in (batch["input_file_id"], batch["output_file_id"]):
            self.assertEqual(self.call(f"/v1/files/{file}", key="second"), 404)
            self.assertEqual(self.call(f"/v1/files/{file}/content", key="second"), 404)
            self.assertEqual(self.call(f"/v1/files/{file}", method="DELETE", key="second"), 404)
            self.assertEqual(self.call(f"/v1/files/{file}", key=None), 401)
        self.assertEqual(self.call("/v1/files", key="second")["data"], [])
        self.assertEqual(self.call("/v1/batches", key="second")["data"], [])
        self.assertEqual(len(self.call("/v1/files", key="first")["data"]), 2)


if __name__ == "__main__":
    unittest.main()
