"""A whole cluster of real processes for the live fault suite, and what is done to it: three NATS servers that form a
cluster, two gateways, five nodes, of which one stands behind a network of its own that can be cut."""

import contextlib
import ctypes
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "cli"))
from cluster_processes import BINARY, NATS, free_port, wait_for_port  # noqa: E402
from nats_client import NatsClient  # noqa: E402

CLONE_NEWNET, CLONE_NEWUSER = 0x40000000, 0x10000000
NEAR, FAR = "10.77.0.1", "10.77.0.2"  # the two ends of the network that can be cut


def isolate():
    """Puts this process, and all that it starts, into a network namespace of its own, where NATS may listen on all
    addresses without anybody outside reaching it. Returns why that is not permitted, or None. Call it before any thread
    is started."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWNET) != 0:
        if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
            return os.strerror(ctypes.get_errno())
        pathlib.Path("/proc/self/setgroups").write_text("deny")
        pathlib.Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        pathlib.Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    try:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True, capture_output=True)
        # Small buffers in the kernel: a reader that stops is felt by its node and not only by the gateway's socket.
        for name, sizes in (("tcp_wmem", "4096 16384 65536"), ("tcp_rmem", "4096 16384 65536")):
            pathlib.Path("/proc/sys/net/ipv4", name).write_text(sizes)
        return None
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"in the network namespace: {error} {getattr(error, 'stderr', b'').decode()}")


def beat_of(message):
    """What a beat says (docs/cluster-protocol.md)."""
    assert message[:2] == bytes([1, 32]), message
    values, at = [], 10  # behind the version, the kind and the incarnation
    while len(values) < 7:
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        values.append(value)
    return dict(zip(("number", "draining", "running", "waiting", "waiting_tokens", "kv_tokens", "kv_free"), values))


def listen_to_beats(port, seconds):
    """The last beat of each node within this time."""
    client = NatsClient(port)
    try:
        client.subscribe("mr.beat.*")
        client.listen(seconds)
        return {subject.rsplit(".", 1)[1]: beat_of(message) for subject, message in client.heard}
    finally:
        client.close()


def is_ready(url):
    try:
        with urllib.request.urlopen(url + "/ready", timeout=10):
            return True
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise
        return False


class Program:
    """A process with its log."""

    def __init__(self, folder, name, command, prefix=()):
        self.name, self.died = name, False
        self.log = pathlib.Path(folder, f"{name}-{time.monotonic_ns()}.log")
        with open(self.log, "w") as log:
            self.process = subprocess.Popen([*prefix, *map(str, command)], stdout=subprocess.PIPE, stderr=log)

    def first_line(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} did not start: {self.log.read_text()[-2000:]}")
        return json.loads(line)

    def kill(self):
        self.died = True
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.communicate()

    def ticks(self):
        """Of the processor that it has used."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])


class Cluster:
    """As a context all of it is gone in the end. Its faults return once they have struck, and heal by themselves."""

    def __init__(self, has_namespace, nodes=5):
        self.has_namespace = has_namespace
        self.ends = contextlib.ExitStack()
        self.folder = self.ends.enter_context(tempfile.TemporaryDirectory())
        self.lock = threading.RLock()  # of what is up and what is not
        self.healing = []              # threads
        self.failures = []             # of healing
        self.names = [f"node-{i}" for i in range(nodes)]
        self.far = self.names[-1] if has_namespace else None
        self.nodes, self.gateways, self.servers, self.down = {}, [None, None], {}, set()
        self.strikes = []  # (time, kind, what)
        self.healed = 0    # when the last of them was

    def __enter__(self):
        try:
            if self.has_namespace:
                self.make_far_network()
            self.ports = [free_port() for _ in range(3)]
            self.routes = [free_port() for _ in range(3)]
            for i in range(3):
                self.start_server(i)
            for i in range(2):
                self.start_gateway(i)
            for name in self.names:
                self.start_node(name)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_):
        for thread in self.healing:
            thread.join()
        for program in [*self.nodes.values(), *self.gateways, *self.servers.values()]:
            if program is not None:
                program.kill()
        self.ends.close()

    # What there is.

    def make_far_network(self):
        holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        self.ends.callback(lambda: (holder.kill(), holder.wait()))
        own = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{holder.pid}/ns/net") == own:
            time.sleep(0.01)
        self.into_far = ("nsenter", "--target", str(holder.pid), "--net")
        for command in (f"ip link add mr-near type veth peer name mr-far netns {holder.pid}",
                        f"ip address add {NEAR}/30 dev mr-near", "ip link set mr-near up"):
            subprocess.run(command.split(), check=True)
        for command in (f"ip address add {FAR}/30 dev mr-far", "ip link set mr-far up", "ip link set lo up"):
            subprocess.run([*self.into_far, *command.split()], check=True)

    def urls(self, host="127.0.0.1"):
        return ",".join(f"nats://{host}:{port}" for port in self.ports)

    def start_server(self, i):
        config = pathlib.Path(self.folder, f"nats-{i}.conf")
        routes = ", ".join(f'"nats-route://127.0.0.1:{port}"' for port in self.routes)
        host = "0.0.0.0" if self.has_namespace else "127.0.0.1"  # all addresses of the namespace
        config.write_text(f'server_name: "s{i}"\nlisten: "{host}:{self.ports[i]}"\n'
                          f'jetstream {{store_dir: "{self.folder}/jetstream-{i}"}}\n'
                          f'cluster {{name: "mr", listen: "127.0.0.1:{self.routes[i]}", routes: [{routes}], '
                          f'no_advertise: true}}\n')
        server = Program(self.folder, f"nats-{i}", [NATS, "--config", config])
        if not wait_for_port(self.ports[i]):
            raise RuntimeError(f"nats-server does not listen: {server.log.read_text()[-2000:]}")
        with self.lock:
            self.servers[i] = server

    def start_gateway(self, i):
        gateway = Program(self.folder, f"gate-{i}",
                          [BINARY, "gateway", "--nats", self.urls(), "--name", f"gate-{i}", "--port", 0, "--json",
                           "--access-log", "off", "--replicas", 3, "--stream-buffer", "16K"])
        gateway.url = gateway.first_line()["listening"]
        end = time.monotonic() + 60
        while not is_ready(gateway.url):  # as what stands before several of them would
            if time.monotonic() >= end:
                raise RuntimeError(f"{gateway.name} is not ready: {gateway.log.read_text()[-2000:]}")
            time.sleep(0.1)
        with self.lock:
            self.gateways[i] = gateway

    def start_node(self, name):
        far = name == self.far
        node = Program(self.folder, name,
                       [BINARY, "node", "--nats", self.urls(NEAR if far else "127.0.0.1"), "--name", name, "--threads", 1,
                        "--json", "--kv-memory", "64M"], prefix=self.into_far if far else ())
        node.first_line()
        with self.lock:
            self.nodes[name] = node

    def gateway(self, i):
        """(number, gateway): the one of this number, or the other where it is not there."""
        while True:
            with self.lock:
                for k in (i % 2, (i + 1) % 2):
                    if not self.gateways[k].died:
                        return k, self.gateways[k]
            time.sleep(0.05)

    def wait_until_ready(self, seconds=60):
        """Until all nodes are heard; it returns what they say."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            beats = listen_to_beats(self.ports[0], 2.5)
            if set(beats) == set(self.names):
                return beats
        raise RuntimeError(f"of {self.names} only {sorted(beats)} say that they are there")

    # What happens to it.

    def heal(self, seconds, what, call):
        """Does it later, with what is down."""

        def later():
            time.sleep(seconds)
            try:
                call()
            except Exception as error:  # told by the main thread
                self.failures.append(f"{what}: {error!r}")
            with self.lock:
                self.down.remove(what)
                self.healed = time.monotonic()

        thread = threading.Thread(target=later)
        self.healing.append(thread)
        thread.start()

    def wait_while(self, holds, then=lambda: None):
        """And does `then` before anybody else may change what is up."""
        while True:
            with self.lock:
                if not holds():
                    return then()
            time.sleep(0.05)

    def take_down(self, kind, what):
        """Once nothing of this kind is down."""
        self.wait_while(lambda: any(other.startswith(kind) for other in self.down), lambda: self.down.add(what))

    def struck(self, kind, what):
        self.strikes.append((time.monotonic(), kind, what))

    def some_node(self, luck, among=None):
        """Mostly the one that computes most; nobody else gets it until it is healed. At least two others stay."""
        names = among or self.names

        def up():
            enough = sum(name in self.down for name in self.names) <= len(self.names) - 3
            return [name for name in names if name not in self.down] if enough else []

        while True:
            self.wait_while(lambda: not up())
            with self.lock:
                before = {name: self.nodes[name].ticks() for name in up()}
            time.sleep(0.1)
            with self.lock:
                used = {name: self.nodes[name].ticks() - before[name] for name in up() if name in before}
                if not used:
                    continue
                name = max(used, key=used.get) if luck < 0.8 else list(used)[int(luck * 1000) % len(used)]
                self.down.add(name)
                return name

    def kill_a_node(self, luck, back=None):
        """It is back after so many seconds."""
        name = self.some_node(luck)
        self.struck("kill", name)
        self.heal(1 + 4 * luck if back is None else back, name, lambda: self.start_node(name))
        self.nodes[name].kill()

    def freeze_a_node(self, luck):
        name = self.some_node(luck, [name for name in self.names if name != self.far])
        process = self.nodes[name].process
        self.struck("freeze", name)
        process.send_signal(signal.SIGSTOP)
        self.heal(10, name, lambda: process.send_signal(signal.SIGCONT))

    def cut_a_node_off(self, luck):
        name = self.some_node(luck, [self.far])
        self.struck("cut off", name)
        link = [*self.into_far, "ip", "link", "set", "mr-far"]
        subprocess.run([*link, "down"], check=True)
        self.heal(4 + 8 * luck, name, lambda: subprocess.run([*link, "up"], check=True))

    def restart_nats(self, luck):
        self.take_down("server", "servers")
        self.struck("NATS restarts", "")
        with self.lock:
            for i in range(3):
                self.servers[i].process.terminate()
            for i in range(3):
                self.servers[i].process.communicate()

        def start():
            for i in range(3):
                self.start_server(i)

        self.heal(0.5 + 2 * luck, "servers", start)

    def lose_a_server(self, luck):
        i = int(luck * 1000) % 3
        self.take_down("server", f"server {i}")
        self.struck("one of three NATS servers lost", str(i))
        self.servers[i].kill()
        self.heal(6, f"server {i}", lambda: self.start_server(i))

    def kill_a_gateway(self, i):
        self.take_down("gate", f"gate-{i}")
        gateway = self.gateways[i]
        self.struck("gateway killed", gateway.name)
        self.heal(3, gateway.name, lambda: self.start_gateway(i))
        gateway.kill()
