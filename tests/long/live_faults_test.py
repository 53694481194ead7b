"""Real processes of a cluster on this machine, and faults that happen to them while clients read streams
(docs/cluster-tests.md). What is checked is what docs/cluster-protocol.md promises: no token lost, doubled or out of order,
every answer as an undisturbed server gives it, no stuck stream, nothing that stays behind on nodes.

MILLRACE_FAULT_SEED=N draws another schedule, and again the same; MILLRACE_LIVE_FAULTS and MILLRACE_LIVE_STREAMS say how
much of it (100 faults over 200 streams).
"""

import os
import signal
import statistics
import threading
import time
import unittest

import live_clients
import live_cluster
from cluster_processes import BINARY, nats_version, needs_nats

SEED = int(os.environ.get("MILLRACE_FAULT_SEED", 1))
FAULTS = int(os.environ.get("MILLRACE_LIVE_FAULTS", 100))
STREAMS = int(os.environ.get("MILLRACE_LIVE_STREAMS", 200))
AT_ONCE = 4
SHARES = {"kill": 25, "freeze": 14, "cut off": 14, "NATS restarts": 9, "server lost": 11, "gateway killed": 12,
          "reads slowly": 8, "stops reading": 7}  # of a hundred faults
NOTICED = 3.5  # seconds
ORPHANED = 20  # seconds after which a node gives up what nobody asks for, such as one whose end did not reach it
LOOKS = 2      # seconds in which it has looked for that

NO_NAMESPACE = None


def setUpModule():
    global NO_NAMESPACE
    NO_NAMESPACE = live_cluster.isolate()


def shares_of(faults):
    """As many of each kind, by largest remainder, and at least one of each where there are that many faults."""
    counts = {kind: max(1 if faults >= len(SHARES) else 0, faults * share // 100) for kind, share in SHARES.items()}
    kinds = sorted(SHARES, key=lambda kind: counts[kind] - faults * SHARES[kind] / 100)
    for i in range(faults - sum(counts.values())):
        counts[kinds[i % len(kinds)]] += 1
    while sum(counts.values()) > faults:
        counts[max(counts, key=counts.get)] -= 1
    return counts


def undisturbed(folder):
    """The chunks of every request of the catalogue, by a single server."""
    server = live_cluster.Program(folder, "single", [BINARY, "serve", "--port", 0, "--json", "--threads", 1, "--kv-memory",
                                                     "64M", "--access-log", "off"])
    try:
        url = server.first_line()["listening"]
        return [live_clients.read_stream(url, path, body, lambda count: None)
                for _, path, body in live_clients.catalogue()]
    finally:
        server.kill()


def show_times(what, seconds):
    if seconds:
        print(f"{what}: {len(seconds)} of them, {min(seconds):.2f} to {max(seconds):.2f} s, median "
              f"{statistics.median(seconds):.2f} s")


@needs_nats
class LiveFaults(unittest.TestCase):
    def setUp(self):
        self.cluster = live_cluster.Cluster(has_namespace=NO_NAMESPACE is None)
        self.cluster.__enter__()
        self.addCleanup(self.cluster.__exit__, None, None, None)
        self.expected = undisturbed(self.cluster.folder)
        self.cluster.wait_until_ready()
        print(f"seed {SEED}, nats-server {'.'.join(map(str, nats_version()))}", flush=True)

    def strike(self, kind, client, luck):
        cluster = self.cluster
        if kind == "reads slowly":
            cluster.struck(kind, client.name_of_request)
            client.slow = [(0.05, 4, 40 + int(60 * luck))]
        elif kind == "stops reading":
            cluster.struck(kind, client.name_of_request)
            client.slow = [(8 + 16 * luck, 1, 1)]
        elif kind == "gateway killed":
            cluster.kill_a_gateway(client.on)
        else:
            {"kill": cluster.kill_a_node, "freeze": cluster.freeze_a_node, "cut off": cluster.cut_a_node_off,
             "NATS restarts": cluster.restart_nats, "server lost": cluster.lose_a_server}[kind](luck)

    def run_streams(self, plan):
        """Some at once; each strikes its fault when it has come so far."""
        requests, clients, strikers = live_clients.catalogue(), [], []
        for number, (request, gateway, at, kind, luck) in plan:
            client = live_clients.Client(number, requests[request], self.cluster, at, gateway,
                                         len(self.expected[request]))
            client.request, client.pauses = request, kind in ("reads slowly", "stops reading")
            clients.append(client)

            def strike(client=client, kind=kind, luck=luck):
                client.reached.wait()
                try:
                    self.strike(kind, client, luck)
                except Exception as error:  # told by check_nothing_stays
                    self.cluster.failures.append(f"{kind}: {error!r}")

            if kind is not None:
                strikers.append(threading.Thread(target=strike))
        for thread in clients + strikers:
            thread.start()
        for thread in clients + strikers:
            thread.join()
        return clients

    def check(self, client):
        self.assertIsNone(client.wrong, f"stream {client.number}, {client.name_of_request} (seed {SEED})")
        self.assertEqual(live_clients.fold(client.chunks), live_clients.fold(self.expected[client.request]),
                         f"stream {client.number}, {client.name_of_request} (seed {SEED})")
        self.assertEqual(client.told()["continuation"], "identical")

    def check_nothing_stays(self):
        """Within the time in which nodes give up what nobody asks for, no stream, sequence or KV memory is held any more,
        and all end at once."""
        cluster = self.cluster
        for thread in list(cluster.healing):
            thread.join()
        self.assertEqual(cluster.failures, [])
        end = time.monotonic() + ORPHANED + 5
        while True:
            held = {name: {key: beat[key] for key in ("running", "waiting", "waiting_tokens")}
                    | {"kv": beat["kv_tokens"] - beat["kv_free"]} for name, beat in cluster.wait_until_ready().items()}
            if not any(value for own in held.values() for value in own.values()) or time.monotonic() >= end:
                break
        self.assertEqual(held, {name: {"running": 0, "waiting": 0, "waiting_tokens": 0, "kv": 0} for name in cluster.names})
        time.sleep(max(0, cluster.healed + ORPHANED + LOOKS - time.monotonic()))
        for program in [*cluster.nodes.values(), *cluster.gateways]:
            begun = time.monotonic()
            program.process.send_signal(signal.SIGTERM)
            self.assertEqual(program.process.wait(30), 0, program.name)
            self.assertLess(time.monotonic() - begun, 5, f"{program.name} held something when it was told to end")
        for name, node in cluster.nodes.items():
            self.assertIn("draining: 0 streams", node.log.read_text(), name)

    def test_a_hundred_faults(self):
        kinds = shares_of(FAULTS)
        if NO_NAMESPACE is not None:
            print(f"{kinds.pop('cut off')} faults are left out, a node that is cut off: this machine permits no network "
                  f"namespace ({NO_NAMESPACE})")
        plan = list(enumerate(live_clients.draw(SEED, STREAMS, kinds)))
        clients, begun = [], time.monotonic()
        for first in range(0, len(plan), AT_ONCE):
            done = self.run_streams(plan[first:first + AT_ONCE])
            for client in done:
                self.check(client)
            clients += done
            if len(clients) % 40 == 0:
                print(f"{len(clients)} streams, {len(self.cluster.strikes)} faults", flush=True)
        self.check_nothing_stays()
        struck = [kind for _, kind, _ in self.cluster.strikes]
        self.assertEqual(len(struck), sum(kinds.values()))
        print(f"{len(struck)} faults over {len(clients)} streams in {time.monotonic() - begun:.0f} s: "
              + ", ".join(f"{struck.count(kind)} x {kind}" for kind in sorted(set(struck))))
        print(f"{sum(map(len, (client.chunks for client in clients)))} chunks, every answer as undisturbed; "
              f"{sum(client.retries for client in clients)} asked another gateway again")
        moved = [client for client in clients if client.told()["migrations"] > 0]
        print(f"{len(moved)} streams moved, {sum(client.told()['migrations'] for client in moved)} times")
        show_times("the longest pause of a stream that moved and was read at full speed",
                   [client.longest_gap(0, float("inf")) for client in moved if not client.pauses])
        if FAULTS >= 50:
            self.assertGreater(len(moved), FAULTS // 20)

    def test_a_dead_node_is_noticed(self):
        """Without other faults: how long a client waits when the node of its stream is killed."""
        pauses = []  # of streams that moved
        for i in range(max(2, FAULTS // 10)):
            request = i % len(self.expected)
            client = live_clients.Client(i, live_clients.catalogue()[request], self.cluster, 0.3, i,
                                         len(self.expected[request]))
            client.request = request
            client.start()
            client.reached.wait()
            begun = time.monotonic()
            self.cluster.kill_a_node(0, back=NOTICED + 3)  # a node that is back sooner says that it knows of nothing
            client.join()
            self.check(client)
            self.cluster.wait_while(lambda: self.cluster.down)
            if client.told()["migrations"] == 1:
                pauses.append(client.longest_gap(begun, begun + NOTICED + 5))
        show_times("pauses of a client whose node was killed", pauses)
        self.assertGreater(len(pauses), 0)
        self.assertLess(max(pauses), NOTICED + 1, "noticed, and placed elsewhere, with its prompt computed there")
        self.check_nothing_stays()


if __name__ == "__main__":
    unittest.main()
