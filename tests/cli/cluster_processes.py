"""Programs that tests of the cluster start on loopback: NATS servers, gateways, nodes."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time
import unittest
import urllib.request

BINARY = os.environ["MILLRACE"]
ROOT = pathlib.Path(__file__).resolve().parents[2]
# tools/nats_server sets MILLRACE_NATS_SERVER; else the system's.
NATS = os.environ.get("MILLRACE_NATS_SERVER") or shutil.which("nats-server", path="/usr/sbin:/usr/bin:/usr/local/bin")
needs_nats = unittest.skipIf(NATS is None, "this machine has no nats-server (Debian: apt install nats-server)")


def nats_version():
    """(2, 9, 10)"""
    text = subprocess.run([NATS, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(part) for part in text.split("v")[-1].split("-")[0].split("."))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port, host="127.0.0.1", seconds=10):
    """Whether something listens there in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex((host, port)) == 0:
                return True
        time.sleep(0.05)
    return False


class Processes(unittest.TestCase):
    """Starts programs, and ends those that are left when a test ends."""

    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)

    def start(self, *command):
        log = open(os.path.join(self.folder, f"log-{time.monotonic_ns()}"), "w+")
        process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=log)
        process.log = log

        def end():
            process.kill()
            process.communicate()
            log.close()

        self.addCleanup(end)
        return process

    def first_line(self, process):
        line = process.stdout.readline()
        if not line:
            process.log.seek(0)
            self.fail(process.log.read())
        return json.loads(line)

    def metric_at(self, url, name, **labels):
        """Of this gateway or node."""
        with urllib.request.urlopen(url + "/metrics") as answer:
            text = answer.read().decode()
        for line in text.splitlines():
            if line.startswith(name + "{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
                return float(line.rsplit(" ", 1)[1])
        self.fail(f"no {name} {labels}")

    def said(self, process):
        """What it has written to standard error by now."""
        return pathlib.Path(process.log.name).read_text()
