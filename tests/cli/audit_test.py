"""Audits among real processes: two honest nodes, one that is trusted, and one that serves INT4 and says that it does not."""

import collections
import concurrent.futures
import json
import os
import pathlib
import subprocess
import time
import unittest

import cluster_test
from cluster_test import BINARY, NATS, ROOT

LIAR = os.environ["AUDIT_LIAR"]


@unittest.skipIf(NATS is None, "this machine has no nats-server (Debian: apt install nats-server)")
class Audits(cluster_test.Processes):
    def setUp(self):
        super().setUp()
        port = cluster_test.free_port()
        self.nats = f"nats://127.0.0.1:{port}"
        self.start(NATS, "--addr", "127.0.0.1", "--port", port, "--jetstream", "--store_dir",
                   os.path.join(self.folder, "jetstream"))
        self.state = pathlib.Path(self.folder, "audits.json")
        for _ in range(100):
            if self.terms("trusted", "--data-class", "trusted").returncode == 0:
                break
            time.sleep(0.1)
        prompts = pathlib.Path(ROOT, "models/millrace-tiny/README.md").read_text()
        self.prompts = [prompts[i:i + 150] for i in range(0, len(prompts) - 150, 37)]
        self.answered = collections.Counter()

    def terms(self, *arguments):
        return subprocess.run([BINARY, "terms", *arguments, "--nats", self.nats, "--name", "operator", "--json"],
                              capture_output=True, text=True, timeout=60)

    def in_quarantine(self):
        told = json.loads(self.terms().stdout)
        return {name: terms["quarantine"] for name, terms in told.items() if "quarantine" in terms}

    def gateway(self):
        process = self.start(BINARY, "gateway", "--nats", self.nats, "--name", "gate", "--port", 0, "--json",
                             "--access-log", "off", "--policy", "round_robin", "--audit-share", "1", "--audit-state",
                             self.state)
        return process, self.first_line(process)["listening"]

    def node(self, name, *arguments, program=(BINARY, "node")):
        process = self.start(*program, ROOT / "models/millrace-tiny", "--nats", self.nats, "--name", name, "--threads",
                             1, "--kv-memory", "64M", *arguments)
        if not process.stdout.readline():
            process.log.seek(0)
            self.fail(process.log.read())
        return process

    def ask(self, url, count):
        def one(i):
            body = {"prompt": self.prompts[i % len(self.prompts)], "max_tokens": 32, "seed": i, "temperature": 0.8}
            if i % 4 == 0:
                body["temperature"] = 0
            if i % 8 != 7:  # else it is what the model's generation_config.json has
                body["repetition_penalty"] = 1
            answer = cluster_test.Cluster.ask(self, url, **body)
            return answer["usage"]["millrace"]["node"]

        begin = sum(self.answered.values())
        with concurrent.futures.ThreadPoolExecutor(4) as together:
            self.answered.update(together.map(one, range(begin, begin + count)))

    def test_the_liar_is_found_and_the_honest_are_not(self):
        recipe = os.path.join(self.folder, "int4.json")
        pathlib.Path(recipe).write_text(json.dumps(
            {"millrace_recipe": 1, "weights": {"default": "int4", "lm_head": "int8"}}))
        self.node("trusted")
        self.node("one")
        self.node("two", "--compute-dtype", "bf16")  # of another numeric class
        process, url = self.gateway()
        time.sleep(2)
        self.ask(url, 40)
        self.assertEqual(self.in_quarantine(), {})
        # What was found until now outlives the gateway.
        process.terminate()
        self.assertEqual(process.wait(30), 0)
        found = json.loads(self.state.read_text())
        self.assertGreater(found["tests"]["two"]["answers"], 5)
        process, url = self.gateway()
        self.node("liar", "--lies-with", recipe, program=(LIAR,))
        time.sleep(2)
        for _ in range(40):
            self.ask(url, 8)
            if self.in_quarantine():
                break
        # The liar's part of each batch is two answers; the last ones may have come when it was found already.
        told = self.in_quarantine()
        print(f"{sum(self.answered.values())} answers: {dict(self.answered)}; {told}")
        self.assertEqual(list(told), ["liar"])
        self.assertIn("audit: its answers are not those of ", told["liar"])
        self.assertEqual(self.metric_at(url, "millrace:audit_alarms_total"), 1)
        self.assertEqual(self.metric_at(url, "millrace:cluster_quarantined_nodes"), 1)
        self.assertGreater(self.metric_at(url, "millrace:audits_total", outcome="judged"), 5)
        self.assertLessEqual(self.answered["liar"], 50)
        # From now on it gets nothing, and the others go on as before.
        time.sleep(1)
        before = self.answered["liar"]
        self.ask(url, 60)
        self.assertEqual(self.answered["liar"], before)
        self.assertEqual(list(self.in_quarantine()), ["liar"])
        for name in ("one", "two", "trusted"):
            self.assertGreater(self.answered[name], 20)


if __name__ == "__main__":
    unittest.main()
