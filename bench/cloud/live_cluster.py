"""A cluster on loopback for measurements: a NATS server, a gateway and paced nodes of the built-in model."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("MILLRACE", ROOT / "build" / "release" / "bin" / "millrace"))


class LiveCluster:
    """Ends its programs when its `with` ends. `folder`: for the server's files and the programs' logs."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.processes, self.metrics = {}, {}

    def __enter__(self):
        nats = shutil.which("nats-server", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/bin")
        if nats is None:
            sys.exit("this machine has no nats-server (Debian: apt install nats-server)")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.nats = f"nats://127.0.0.1:{port}"
        self.start("nats", nats, "--addr", "127.0.0.1", "--port", port, "--jetstream", "--store_dir", self.folder)
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes.values()):
            process.kill()
            process.wait()

    def start(self, name, *command):
        with open(self.folder / f"{name}.log", "w") as log:
            self.processes[name] = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=log, text=True)

    def first_line(self, name):
        line = self.processes[name].stdout.readline()
        if not line:
            sys.exit(f"{name} did not start:\n{(self.folder / f'{name}.log').read_text()}")
        return json.loads(line)

    def start_gateway(self, *flags):
        """Its URL."""
        self.start("gateway", BINARY, "gateway", "--nats", self.nats, "--name", "gate", "--port", 0, "--json",
                   "--access-log", "off", *flags)
        return self.first_line("gateway")["listening"]

    def start_nodes(self, nodes, *flags):
        """`nodes`: for each name `pace` (--pace; None: as fast as it is) and `terms` (flags of `millrace terms`)."""
        for name, node in nodes.items():
            subprocess.run([BINARY, "terms", name, "--nats", self.nats, "--name", "owner", *map(str, node["terms"])],
                           check=True, stdout=subprocess.DEVNULL)
            self.start(name, BINARY, "node", "--nats", self.nats, "--name", name, "--threads", 1,
                       *(["--pace", node["pace"]] if node["pace"] else []), "--metrics-port", 0, "--json", *flags)
        for name in nodes:
            self.metrics[name] = self.first_line(name)["metrics"]

    def status(self):
        """What `millrace status` sees."""
        run = subprocess.run([BINARY, "status", "--nats", self.nats, "--name", "eye", "--json"], check=True,
                             capture_output=True, text=True)
        return json.loads(run.stdout)

    def busy_seconds(self, name):
        """Of the node's steps since it began, waits of its pace included."""
        with urllib.request.urlopen(f"{self.metrics[name]}/metrics") as page:
            lines = page.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("millrace:step_seconds_sum"))
