"""A server under a real trace and much else for MILLRACE_SOAK_SECONDS (180, at least 60): nothing lost, memory flat.

In the middle of the run comes a crowd of slow readers. Memory is flat when the server's resident size, sampled once a
second, keeps to its level from WARM_UP (a share of the time) to the crowd, and keeps to its new level from the crowd's
end to the end of the run: each of these two parts is cut into WINDOWS equal windows, and the median of each window is
within TOLERANCE of the first one's. They are judged apart since the heap that a crowd leaves behind could hide a leak.
A slow reader may cost READER_BYTES. The tokenizer's cache of words is filled before.
"""

import contextlib
import csv
import datetime
import json
import os
import pathlib
import re
import resource
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.parse
import urllib.request

import soak_traffic

BINARY = os.environ["MILLRACE"]
SECONDS = float(os.environ.get("MILLRACE_SOAK_SECONDS", 180))
ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "millrace-tiny"
TRACE = ROOT.parent / "shared" / "data" / "traces" / "AzureLLMInferenceTrace_conv.csv"

# The trace at one rate however long the run is: its 3,502 s in 30 minutes, 10.8 requests a second, a tenth as long. Its
# longest request then has 1,409 tokens; KV memory holds about 1,600, fewer than the side traffic alone wants at times.
TIME_SCALE = 0.514
LENGTH_SCALE = 0.1
KV_MEMORY = "4M"

WARM_UP = 0.2  # of the time, as these
CROWD_AT = 0.5
AFTER_CROWD = 0.2  # at least; the run goes on for it where the machine was slow
CROWD = 2000
CROWD_SECONDS = min(45, 0.12 * SECONDS)
READER_BYTES = 96 << 10
WINDOWS = 6
TOLERANCE = 0.02
PATIENCE = 600  # seconds that the last answers may take
MIB = 1 << 20


class Server:
    """`millrace serve` with the built-in model; as a context it is gone in the end, whatever happened."""

    def __init__(self, port=0):
        self.log = tempfile.TemporaryFile()
        command = [BINARY, "serve", str(MODEL), "--port", str(port), "--json", "--kv-memory", KV_MEMORY,
                   "--max-waiting", "16384", "--max-connections", "8192", "--stream-buffer", "8K"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log)
        line = self.process.stdout.readline()
        self.listening = time.monotonic()
        if not line:
            self.kill()
            raise RuntimeError(f"the server did not start: {self.messages()}")
        self.url = json.loads(line)["listening"]
        parts = urllib.parse.urlsplit(self.url)
        self.address = (parts.hostname, parts.port)

    def __enter__(self):
        return self

    def __exit__(self, failure, *_):
        if failure is not None:
            print(f"the server (exit code {self.process.poll()}) said last: {self.messages()}")
        self.kill()
        self.process.stdout.close()
        self.log.close()

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        return self.process.wait()

    def messages(self):
        size = os.fstat(self.log.fileno()).st_size
        # Not read(): the offset is the server's too.
        return os.pread(self.log.fileno(), 4000, max(0, size - 4000)).decode(errors="replace")

    def memory(self):
        """Resident bytes: now, the highest so far, and without mapped files."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return tuple(int(re.search(rf"^{name}:\s+(\d+) kB", status, re.M)[1]) * 1024
                     for name in ("VmRSS", "VmHWM", "RssAnon"))

    def metrics(self):
        """Values by name; of several with one name and other labels the sum."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=60) as response:
            text = response.read().decode()
        values = {}
        for line in text.splitlines():
            if not line.startswith("#"):
                name, value = re.fullmatch(r"([^{ ]+)(?:\{.*\})? (\S+)", line).groups()
                values[name] = values.get(name, 0) + float(value)
        return values


class MemorySeries(threading.Thread):
    """The server's resident bytes, once a second, until stop(); it ends by itself when the server does."""

    def __init__(self, server):
        super().__init__()
        self.server, self.samples, self.over = server, [], threading.Event()

    def run(self):
        with contextlib.suppress(OSError, TypeError):  # the process has gone
            while not self.over.wait(1):
                self.samples.append((time.monotonic(), *self.server.memory()))

    def stop(self):
        self.over.set()
        self.join()

    def between(self, begin, end, field=0):
        return [sample[1 + field] for sample in self.samples if begin <= sample[0] < end]

    def medians(self, begin, end, field=0):
        """Of each window of this part; `field` as memory() has it."""
        edges = [begin + (end - begin) * i / WINDOWS for i in range(WINDOWS + 1)]
        return [statistics.median(self.between(*edge, field)) for edge in zip(edges, edges[1:])]


def planned_answers():
    """Lengths of the answers of the trace's requests that arrive in the time of the run."""
    answers, first = [], None
    with open(TRACE, newline="") as file:
        for row in csv.DictReader(file):
            at = datetime.datetime.fromisoformat(row["TIMESTAMP"][:26])
            first = first or at
            if (at - first).total_seconds() * TIME_SCALE > SECONDS:
                break
            answers.append(max(1, int(int(row["GeneratedTokens"]) * LENGTH_SCALE + 0.5)))
    return answers


def crowd_size():
    """As many connections as descriptors allow, up to CROWD; the server's are counted in its own process."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    others = 2048  # requests of the trace that wait for the crowd, on a slow machine
    size = CROWD if most == resource.RLIM_INFINITY else min(CROWD, most - others)
    if size < CROWD:
        print(f"only {most} files may be open (ulimit -Hn): a crowd of {size} instead of {CROWD}")
    return size


class Soak(unittest.TestCase):
    @unittest.skipUnless(TRACE.exists(), f"needs the trace {TRACE}")
    def test_nothing_is_lost_and_memory_stays_flat(self):
        size = crowd_size()
        answers = planned_answers()
        with contextlib.ExitStack() as stack:
            records = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()), "records.jsonl")
            server = stack.enter_context(Server())
            self.fill_word_cache(server)
            series = MemorySeries(server)
            series.start()
            stack.callback(series.stop)
            times = [time.monotonic()]
            with soak_traffic.Traffic(server.address) as traffic:
                load = stack.enter_context(self.start_load(server, len(answers), records))
                stack.callback(load.kill)
                time.sleep(CROWD_AT * SECONDS)
                times.append(time.monotonic())
                traffic.attempt(traffic.crowd, size, CROWD_SECONDS)
                times.append(time.monotonic())
                time.sleep(AFTER_CROWD * SECONDS)
                output, _ = load.communicate(timeout=SECONDS + PATIENCE)
                times.append(time.monotonic())
            self.assertEqual(load.returncode, 0)
            self.check_load(json.loads(output), records, answers)
            self.check_traffic(traffic)
            self.check_quiet(server)
            self.check_memory(server, series, times, size)
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(30), 0)

    def fill_word_cache(self, server):
        """The tokenizer (Hugging Face's) remembers how it cut the first 10,000 different words that it met. Those that
        trickle in with requests would look like a leak for half an hour."""
        for thousands in range(15):
            words = " ".join(f"word{thousands * 1000 + i}" for i in range(1000))
            request = urllib.request.Request(server.url + "/tokenize", json.dumps({"prompt": words}).encode(),
                                             {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as response:
                self.assertGreater(json.load(response)["count"], 1000)

    def start_load(self, server, requests, records):
        command = [BINARY, "bench-serve", "--url", server.url, "--trace", str(TRACE), "--requests", str(requests),
                   "--time-scale", str(TIME_SCALE), "--length-scale", str(LENGTH_SCALE), "--timeout", str(PATIENCE),
                   "--save", str(records), "--json"]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)

    def check_load(self, report, records, answers):
        print(f"trace: {report['requests']} requests, {report['failed']} failed, {report['input_tokens']} + "
              f"{report['output_tokens']} tokens in {report['duration_s']:.0f} s; TTFT p50 "
              f"{report['ttft_s']['p50'] * 1e3:.0f} ms, p99 {report['ttft_s']['p99'] * 1e3:.0f} ms")
        lines = [json.loads(line) for line in records.read_text().splitlines()]
        failed = [line for line in lines if line["failure"] is not None]
        self.assertEqual([(line["number"], line["failure"], line["detail"]) for line in failed[:10]], [])
        self.assertEqual((report["requests"], report["failed"]), (len(answers), 0))
        self.assertEqual([line["output_tokens"] for line in lines], answers)

    def check_traffic(self, traffic):
        print("beside it:", ", ".join(f"{name} {count}" for name, count in sorted(traffic.counts.items())))
        self.assertEqual(traffic.wrong[:10], [], f"the first of {len(traffic.wrong)}")
        for name in ("vanish", "cancel", "malformed_http", "malformed_json", "grammar_whole", "choices", "embeddings",
                     "same_again", "long_answers", "slow_readers"):
            self.assertGreater(traffic.counts[name], 0, name)

    def check_quiet(self, server):
        """Nothing runs, waits or holds memory, and only the connection that asks is open."""
        end = time.monotonic() + 10
        while True:
            now = server.metrics()
            quiet = {name: now[name] for name in ("vllm:num_requests_running", "vllm:num_requests_waiting",
                                                  "vllm:kv_cache_usage_perc", "millrace:http_connections")}
            if list(quiet.values()) == [0, 0, 0, 1]:
                break
            self.assertLess(time.monotonic(), end, quiet)
            time.sleep(0.2)
        preemptions, computed = now["vllm:num_preemptions_total"], now["vllm:prompt_tokens_total"]
        print(f"server: {now['millrace:http_requests_total']:.0f} requests of all kinds, {computed:.0f} prompt tokens "
              f"computed, {now['vllm:generation_tokens_total']:.0f} generated, {preemptions:.0f} preemptions")
        # Else the run was too easy: no sequence had to go, or the prefix cache never had to forget.
        self.assertGreater(preemptions, 0)
        self.assertGreater(computed, 10_000)

    def check_memory(self, server, series, times, size):
        begin, crowd, left, end = times
        before = series.medians(begin + WARM_UP * (crowd - begin) / CROWD_AT, crowd)
        after = series.medians(left, end)
        sizes = series.between(begin, end)
        peak = max(highest for _, _, highest, _ in series.samples)
        for name, values in (("min, median, max, peak", (min(sizes), statistics.median(sizes), max(sizes), peak)),
                             ("windows before the crowd", before), ("windows after it", after),
                             ("without mapped files after it", series.medians(left, end, field=2))):
            print(f"resident MiB, {name}:", ", ".join(f"{value / MIB:.2f}" for value in values))
        for medians in (before, after):
            for median in medians:
                self.assertLessEqual(abs(median / medians[0] - 1), TOLERANCE, medians)
        self.assertLessEqual(peak - before[-1], size * READER_BYTES)


class Killed(unittest.TestCase):
    def test_it_serves_again_on_the_same_port_at_once(self):
        port = 0
        for _ in range(3):
            with Server(port) as server:
                seconds = self.first_answer(server) - server.listening
                if port:
                    print(f"{seconds * 1e3:.0f} ms after it listened, {time.monotonic() - died:.2f} s after the kill")
                self.assertLess(seconds, 1)
                port = server.address[1]
                with contextlib.ExitStack() as stack:
                    streams = [stack.enter_context(socket.create_connection(server.address, 60)) for _ in range(32)]
                    for stream in streams:
                        stream.sendall(soak_traffic.talkative_stream(400))
                    for stream in streams:
                        self.await_token(stream)
                    self.assertEqual(server.kill(), -signal.SIGKILL)
                    died = time.monotonic()
                    for stream in streams:
                        self.assertNotIn(b"[DONE]", self.rest(stream))

    def first_answer(self, server):
        """When the answer to a first request was there."""
        body = json.dumps({"prompt": "Once", "max_tokens": 4, "ignore_eos": True}).encode()
        request = urllib.request.Request(server.url + "/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            self.assertEqual(json.load(response)["usage"]["completion_tokens"], 4)
        return time.monotonic()

    def await_token(self, stream):
        data = b""
        while b'"top_logprobs"' not in data:
            part = stream.recv(1 << 16)
            self.assertTrue(part, data)
            data += part

    def rest(self, stream):
        data = b""
        with contextlib.suppress(ConnectionError):
            while part := stream.recv(1 << 16):
                data += part
        return data


if __name__ == "__main__":
    unittest.main()
