"""NATS's text protocol (docs.nats.io, "Client Protocol"), without a library that would refuse to say what must not be said."""

import base64
import json
import pathlib
import socket
import ssl
import subprocess
import tempfile
import time


def sign(seed, nonce):
    """By openssl: of the seed's 36 bytes the 32 between its head and its checksum are an Ed25519 key."""
    raw = base64.b32decode(seed + "=" * (-len(seed) % 8))[2:34]
    with tempfile.TemporaryDirectory() as folder:
        key, text = pathlib.Path(folder, "key"), pathlib.Path(folder, "text")
        key.write_bytes(bytes.fromhex("302e020100300506032b657004220420") + raw)  # PKCS #8 (RFC 8410)
        text.write_text(nonce)
        signed = subprocess.run(["openssl", "pkeyutl", "-sign", "-inkey", key, "-keyform", "DER", "-rawin", "-in", text],
                                capture_output=True, check=True).stdout
    return base64.urlsafe_b64encode(signed).decode().rstrip("=")


class NatsClient:
    """A connection to a server on this machine. `heard`: (subject, bytes) of what came; `errors`: what the server denied."""

    def __init__(self, port, seed=None, public=None, tls=False):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.file = self.sock.makefile("rb")
        info = json.loads(self.file.readline().split(b" ", 1)[1])
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self.sock = context.wrap_socket(self.sock)
            self.file = self.sock.makefile("rb")
        options = {"verbose": False, "pedantic": False, "headers": True}
        if seed is not None:
            options |= {"nkey": public, "sig": sign(seed, info["nonce"])}
        self.say("CONNECT " + json.dumps(options))
        self.heard, self.errors, self.subscriptions = [], [], 0
        self.flush()

    def say(self, line):
        self.sock.sendall(line.encode() + b"\r\n")

    def subscribe(self, subject):
        self.subscriptions += 1
        self.say(f"SUB {subject} {self.subscriptions}")

    def publish(self, subject, body="x", reply=""):
        body = body if isinstance(body, bytes) else body.encode()
        self.sock.sendall(f"PUB {subject} {reply} {len(body)}\r\n".encode() + body + b"\r\n")

    def take(self):
        """One thing that the server says, its first word."""
        line = self.file.readline()
        if not line:
            raise ConnectionError(f"the server has closed the connection; it said {self.errors}")
        words = line.split()
        if words[0] == b"PING":
            self.say("PONG")
        elif words[0] == b"-ERR":
            self.errors.append(line.decode().strip())
        elif words[0] == b"MSG":
            self.heard.append((words[1].decode(), self.file.read(int(words[-1]) + 2)[:-2]))
        return words[0]

    def flush(self):
        """Takes what comes until the server has seen all that was said."""
        self.say("PING")
        while self.take() != b"PONG":
            pass

    def listen(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.flush()
            time.sleep(0.05)

    def request(self, subject, body, inbox):
        self.subscribe(inbox)
        self.publish(subject, body, reply=inbox)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            self.take()
            for heard, answer in self.heard:
                if heard == inbox:
                    self.heard.remove((heard, answer))
                    return answer
        raise TimeoutError(subject)

    def close(self):
        self.sock.close()
