"""`millrace run --batch`: the binary itself, killed at random moments, stopped, out of space, beside a server."""

import contextlib
import fcntl
import json
import os
import pathlib
import random
import resource
import signal
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.request

BINARY = os.environ["MILLRACE"]
REQUESTS = 500
KILLS = 20
MODEL = "millrace-tiny"


def line(custom_id, url, **body):
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": f"/v1/{url}", "body": {"model": MODEL} | body})


def requests(count, seed=1):
    """Short requests of all kinds; most sample, and few name a seed."""
    draw = random.Random(seed)
    lines = []
    for i in range(count):
        tokens = draw.randint(1, 24)
        kind = draw.randrange(6)
        if kind < 3:
            message = {"role": "user", "content": f"What happened on day {i}?"}
            lines.append(line(f"request-{i}", "chat/completions", messages=[message], max_tokens=tokens))
        elif kind < 5:
            extra = {"seed": i} if i % 2 else {}
            lines.append(line(f"request-{i}", "completions", prompt=f"In the year {i}", max_tokens=tokens, **extra))
        else:
            lines.append(line(f"request-{i}", "embeddings", input=f"The number {i}"))
    return lines


def answer(body):
    """What a response says, without its id and time."""
    return {key: body.get(key) for key in ("object", "model", "choices", "data", "error")}


class BatchTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.input, self.output = self.path("requests.jsonl"), self.path("results.jsonl")

    def path(self, name):
        return pathlib.Path(self.folder.name, name)

    def write(self, lines):
        self.input.write_text("".join(text + "\n" for text in lines))

    def command(self, output=None):
        return [BINARY, "run", "--batch", str(self.input), "-o", str(output or self.output), "--json"]

    def start(self, *flags):
        return subprocess.Popen([*self.command(), *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run_batch(self, output=None, **options):
        result = subprocess.run(self.command(output), capture_output=True, text=True, timeout=300, **options)
        self.assertEqual(result.returncode, 0, result.stderr)
        return json.loads(result.stdout)

    def failure(self, **options):
        result = subprocess.run(self.command(), capture_output=True, text=True, timeout=300, **options)
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertEqual(result.stdout, "")
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
        self.assertTrue(result.stderr.startswith("millrace: "), result.stderr)
        return result.stderr

    def records(self, output=None):
        """Records by custom_id; each is there once, and every line is whole."""
        text = (output or self.output).read_bytes()
        self.assertTrue(text.endswith(b"\n"))
        records = {}
        for entry in map(json.loads, text.splitlines()):
            self.assertNotIn(entry["custom_id"], records)
            records[entry["custom_id"]] = entry
        return records

    def answers(self, output=None):
        return {name: answer(entry["response"]["body"]) for name, entry in self.records(output).items()}


class Killed(BatchTest):
    def test_each_request_is_answered_once_with_the_same_text(self):
        seed = int(os.environ.get("MILLRACE_BATCH_SEED", time.time_ns() % 2**32))
        print(f"seed of the kills: {seed}")
        draw = random.Random(seed)
        self.write(requests(REQUESTS))
        undisturbed = self.path("undisturbed.jsonl")
        summary = self.run_batch(undisturbed)
        self.assertEqual(summary["answered"], REQUESTS)

        # A machine that hangs at the wrong moment lets the run reach its end; then all kills come again.
        self.assertTrue(any(self.kill_again_and_again(draw) for _ in range(5)), "it is always faster than the kills")
        before = self.lines()
        summary = self.run_batch()
        self.assertEqual(summary["skipped"], before)
        self.assertEqual(summary["answered"], REQUESTS - before)
        self.assertEqual(len(self.records()), REQUESTS)
        self.assertEqual(self.answers(), self.answers(undisturbed))
        self.assertEqual(self.run_batch()["skipped"], REQUESTS)

    def kill_again_and_again(self, draw):
        self.output.unlink(missing_ok=True)
        for kill in range(KILLS):
            # Each kill waits for its share of the answers, and then for a moment that has nothing to do with them.
            share = int(REQUESTS * 0.8 * (kill + draw.random()) / KILLS)
            process = self.start("--max-sequences", "4")
            if draw.random() < 0.15:
                time.sleep(draw.uniform(0, 0.1))  # also while it starts
            else:
                while self.lines() < share and process.poll() is None:
                    time.sleep(0.001)
                time.sleep(draw.uniform(0, 0.01))
            process.kill()
            _, errors = process.communicate()
            if process.returncode == 0:
                return False
            self.assertEqual(process.returncode, -signal.SIGKILL, errors)
            if draw.random() < 0.3 and self.lines() > 0:  # a write that was cut in its middle
                with self.output.open("ab") as torn:
                    torn.write(self.output.read_bytes().splitlines()[0][: draw.randint(1, 200)])
        return self.lines() < REQUESTS

    def lines(self):
        return self.output.read_bytes().count(b"\n") if self.output.exists() else 0


class Ends(BatchTest):
    def test_a_signal_keeps_what_is_answered(self):
        self.write(requests(200))
        for number in (signal.SIGTERM, signal.SIGINT):
            process = self.start()
            before = self.output.stat().st_size if self.output.exists() else 0
            while not self.output.exists() or self.output.stat().st_size <= before:
                self.assertIsNone(process.poll(), "it ended by itself")
                time.sleep(0.001)
            process.send_signal(number)
            output, errors = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 1, errors)
            self.assertEqual(output, "")
            answered = len(self.records())
            self.assertEqual(errors, f"millrace: stopped by {number.name}; {answered} of 200 requests are answered, and "
                                     "the same command goes on from there\n")
        self.assertEqual(self.run_batch()["answered"], 200 - answered)
        self.assertEqual(len(self.records()), 200)

    def test_a_full_disk(self):
        self.write(requests(60))
        # Python ignores SIGXFSZ, and a child gets back its default, which kills: so does the shell's `ulimit -f`.
        message = self.failure(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)))
        answered = len(self.records())
        self.assertIn(f"{answered} of 60 requests are answered", message)
        self.assertGreater(answered, 0)
        self.assertEqual(self.run_batch()["skipped"], answered)
        self.assertEqual(len(self.records()), 60)

    def test_what_is_wrong_is_told_before_anything_runs(self):
        self.write([line("a", "completions", prompt="x"), "", line("a", "completions", prompt="y")])
        self.assertIn('lines 1 and 3 have the same custom_id "a"', self.failure())
        self.assertFalse(self.output.exists())
        self.write([line("a", "completions", prompt="x", max_tokens=1)])
        with self.output.open("ab") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            self.assertIn("another run", self.failure())
        self.run_batch()
        self.write([line("b", "completions", prompt="x", max_tokens=1)])
        self.assertIn("another batch", self.failure())
        self.output = self.input
        self.assertIn("this is the input", self.failure())

    def test_wrong_usage(self):
        batch = ["--batch", "x", "-o", "y"]
        for flags in (["--batch", "x"], ["-o", "x"], [*batch, "-p", "z"], [*batch, "-n", "5"], [*batch, "--chat"],
                      [*batch, "--seed", "1"], ["-p", "x", "--max-sequences", "4"]):
            self.assertEqual(subprocess.run([BINARY, "run", *flags], capture_output=True, timeout=60).returncode, 2, flags)

    def test_lines_with_errors_and_the_summary(self):
        self.write([line("good", "completions", prompt=[[5, 6, 7]], max_tokens=3, ignore_eos=True), "not json", "  ",
                    line("bad", "completions", prompt="x", temperature="hot"), line("url", "files")])
        summary = self.run_batch()
        seconds, rate = summary.pop("seconds"), summary.pop("output_tokens_per_second")
        self.assertEqual(summary, {"requests": 4, "answered": 1, "failed": 3, "skipped": 0, "prompt_tokens": 3,
                                   "cached_tokens": 0, "output_tokens": 3})
        self.assertAlmostEqual(rate, 3 / seconds)
        records = self.records()
        self.assertEqual(records["good"]["response"]["status_code"], 200)
        for name in (None, "bad", "url"):
            self.assertEqual(records[name]["response"]["status_code"], 400)
            self.assertEqual(records[name]["response"]["body"]["error"]["type"], "invalid_request_error")
        self.assertEqual(records[None]["error"]["code"], "invalid_json_line")
        self.assertIsNone(records["bad"]["error"])

    def test_an_empty_batch(self):
        self.write([])
        self.assertEqual(self.run_batch()["requests"], 0)


class Server(BatchTest):
    def test_the_same_answers_as_the_server(self):
        lines = [line(f"c{i}", "chat/completions", messages=[{"role": "user", "content": f"Tell me of {i}"}], seed=i,
                      max_tokens=12, n=1 + i % 2, logprobs=True, top_logprobs=2) for i in range(4)]
        lines += [line("t", "completions", prompt=["Once", "Upon"], seed=3, max_tokens=9, stop=["e"]),
                  line("v", "embeddings", input=["Once", "Upon"]),
                  line("e", "completions", prompt="Once", top_p=7), line("m", "chat/completions", messages="no"),
                  line("w", "completions", prompt="Once", model="other")]
        self.write(lines)
        self.run_batch()
        records = self.records()
        with self.server() as url:
            for text in lines:
                request = json.loads(text)
                status, body = self.post(url + request["url"], request["body"])
                record = records[request["custom_id"]]
                self.assertIsNone(record["error"])
                self.assertEqual(record["response"]["status_code"], status)
                self.assertEqual(answer(record["response"]["body"]), answer(body))

    def post(self, url, body):
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    @contextlib.contextmanager
    def server(self):
        process = subprocess.Popen([BINARY, "serve", "--port", "0", "--json", "--access-log", "off"],
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            yield json.loads(process.stdout.readline())["listening"]
        finally:
            process.terminate()
            process.wait(timeout=60)
            process.stdout.close()


if __name__ == "__main__":
    unittest.main()
