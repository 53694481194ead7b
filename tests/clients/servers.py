"""Servers of our own on loopback, started for a test and ended by SIGTERM."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
STORIES = ROOT / "models" / "stories260K"
START_SECONDS = 60
END_SECONDS = 30
NATS = shutil.which("nats-server", path="/usr/sbin:/usr/bin:/usr/local/bin")


def binary():
    return os.environ.get("MILLRACE", str(ROOT / "build" / "release" / "bin" / "millrace"))


class Server:
    """`millrace serve --port 0 --json` with further arguments; as a context it ends in good order, or fails."""

    def __init__(self, *arguments):
        self.begin([binary(), "serve", *map(str, arguments), "--port", "0", "--json", "--kv-memory", "64M"])

    def begin(self, command):
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log)
        watchdog = threading.Timer(START_SECONDS, self.process.kill)
        watchdog.start()
        line = self.process.stdout.readline()
        watchdog.cancel()
        try:
            self.url = json.loads(line)["listening"]
        except ValueError:
            self.process.kill()
            self.process.wait()
            raise RuntimeError(f"{' '.join(command)} did not start: {line!r} {self.messages()}") from None

    def __enter__(self):
        return self

    def __exit__(self, failure, *_):
        code = self.end()
        if failure is None and code != 0:
            raise RuntimeError(f"the server ended with {code}, expected 0: {self.messages()}")

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def end(self):
        """SIGTERM, and the exit code: negative for a signal, -9 where it did not end in time."""
        if self.process.poll() is None:
            self.terminate()
        try:
            code = self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.process.stdout.close()
        return code

    def messages(self):
        """The end of what it wrote to standard error."""
        size = os.fstat(self.log.fileno()).st_size
        # Not read(): the offset is the server's too.
        return os.pread(self.log.fileno(), 4000, max(0, size - 4000)).decode(errors="replace")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Cluster(Server):
    """A gateway with a NATS server and a node behind it, where this machine has nats-server (NATS)."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        port = free_port()
        self.others = [subprocess.Popen([NATS, "--addr", "127.0.0.1", "--port", str(port), "--jetstream", "--store_dir",
                                         self.folder.name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)]
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        nats = ["--nats", f"nats://127.0.0.1:{port}", "--json"]
        self.others.append(subprocess.Popen([binary(), "node", *nats, "--name", "one", "--kv-memory", "64M"],
                                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        self.begin([binary(), "gateway", *nats, "--name", "gate", "--port", "0"])

    def end(self):
        code = super().end()
        for process in reversed(self.others):
            process.terminate()
            process.wait(END_SECONDS)
        self.folder.cleanup()
        return code
