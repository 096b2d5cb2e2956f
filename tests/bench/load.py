"""The load: a small S3 client that costs little, so that what is measured is the server.

Requests are signed before the clock starts (`UNSIGNED-PAYLOAD`), connections are kept, bodies go from a file by sendfile
and are received into one buffer. Bytes are counted and not compared: correctness is the end-to-end tests' business.
"""

import datetime
import hashlib
import hmac
import multiprocessing
import os
import re
import selectors
import socket
import time
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
UNSIGNED = "UNSIGNED-PAYLOAD"
# Server and load share the machine: more than this for one answer means that something hangs.
PATIENCE_SECS = 300


@dataclass(frozen=True)
class Target:
    """An S3 server and who asks it."""

    url: str
    access_key: str
    secret_key: str
    region: str = "us-east-1"

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname, parts.port or 80

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc


class Signer:
    """Makes heads of signed requests; the key of the day is derived once."""

    def __init__(self, target: Target):
        self.target = target
        self.when = datetime.datetime.now(datetime.UTC)
        self.amz_date = self.when.strftime("%Y%m%dT%H%M%SZ")
        self.scope = f"{self.amz_date[:8]}/{target.region}/s3/aws4_request"
        key = ("AWS4" + target.secret_key).encode()
        for part in (self.amz_date[:8], target.region, "s3", "aws4_request"):
            key = hmac.digest(key, part.encode(), hashlib.sha256)
        self.key = key

    def head(self, method: str, path: str, length: int | None = None, query: dict[str, str] | None = None) -> bytes:
        path = quote(path, safe="/-_.~")
        text = "&".join(sorted(f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in (query or {}).items()))
        canonical = (
            f"{method}\n{path}\n{text}\nhost:{self.target.host}\nx-amz-content-sha256:{UNSIGNED}\n"
            f"x-amz-date:{self.amz_date}\n\nhost;x-amz-content-sha256;x-amz-date\n{UNSIGNED}"
        )
        to_sign = f"AWS4-HMAC-SHA256\n{self.amz_date}\n{self.scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        signature = hmac.digest(self.key, to_sign.encode(), hashlib.sha256).hex()
        return (
            f"{method} {path}{'?' + text if text else ''} HTTP/1.1\r\nhost: {self.target.host}\r\n"
            f"x-amz-content-sha256: {UNSIGNED}\r\nx-amz-date: {self.amz_date}\r\n"
            f"authorization: AWS4-HMAC-SHA256 Credential={self.target.access_key}/{self.scope}, "
            f"SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature={signature}\r\n"
            + (f"content-length: {length}\r\n" if length is not None else "") + "\r\n"
        ).encode()


class Connection:
    """A kept connection that sends heads and reads answers."""

    def __init__(self, target: Target, buffer: bytearray | None = None):
        self.target = target
        self.buffer = memoryview(buffer or bytearray(256 * KIB))
        self.connect()

    def connect(self):
        self.sock = socket.create_connection(self.target.address, timeout=PATIENCE_SECS)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def read_head(self) -> tuple[int, int, int]:
        """Status, length of the body, and how much of the body came along."""
        got = 0
        while True:
            count = self.sock.recv_into(self.buffer[got:])
            if count == 0:
                raise ConnectionError("the server closed the connection")
            got += count
            head, found, rest = bytes(self.buffer[:got]).partition(b"\r\n\r\n")
            if found:
                length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
                if b"chunked" in head.lower():
                    raise ValueError("an answer of unknown length is not understood here")
                return int(head[9:12]), int(length[1]) if length else 0, len(rest)

    def answer(self) -> tuple[int, int]:
        """Reads a whole answer; its status and the length of its body."""
        status, length, got = self.read_head()
        while got < length:
            count = self.sock.recv_into(self.buffer)
            if count == 0:
                raise ConnectionError("the server closed the connection")
            got += count
        return status, length

    def request(self, head: bytes, body: bytes = b"") -> tuple[int, int]:
        self.sock.sendall(head + body)
        return self.answer()

    def text(self, head: bytes) -> tuple[int, str]:
        """For the few requests whose answer is read; of any framing."""
        import http.client

        self.sock.sendall(head)
        answer = http.client.HTTPResponse(self.sock)
        answer.begin()
        return answer.status, answer.read().decode()


@dataclass
class Result:
    """What one worker saw. Times in seconds."""

    started: float
    ended: float
    latencies: list[float]
    bytes: int
    errors: list[str]
    cpu: float


def worker(prepare, work, pipe):
    """Runs in a process of its own: prepares, says so, waits for the start, works, answers."""
    try:
        state = prepare()
        pipe.send("ready")
        pipe.recv()
        cpu = time.process_time()
        started = time.monotonic()
        latencies, count, errors = work(state)
        pipe.send(Result(started, time.monotonic(), latencies, count, errors, time.process_time() - cpu))
    except BaseException as error:  # noqa: BLE001 - the parent must hear of it whatever it is
        pipe.send(error)


def run_workers(jobs: list[tuple], before_start) -> list[Result]:
    """Starts all jobs, `(prepare, work)` each, at once; `before_start()` is called when all are prepared."""
    context = multiprocessing.get_context("fork")
    pipes, children = [], []
    for prepare, work in jobs:
        ours, theirs = context.Pipe()
        child = context.Process(target=worker, args=(prepare, work, theirs))
        child.start()
        theirs.close()
        pipes.append(ours)
        children.append(child)

    def receive(pipe):
        got = pipe.recv()
        if isinstance(got, BaseException):
            raise got
        return got

    try:
        for pipe in pipes:
            receive(pipe)
        before_start()
        for pipe in pipes:
            pipe.send("go")
        return [receive(pipe) for pipe in pipes]
    finally:
        for child in children:
            child.join(5)
            if child.is_alive():
                child.kill()


def put_stream(target: Target, bucket: str, key: str, source: str, offset: int, size: int):
    """A job: one PUT of `size` bytes of the file `source` from `offset` on."""

    def prepare():
        return Connection(target), Signer(target).head("PUT", f"/{bucket}/{key}", size), open(source, "rb")

    def work(state):
        connection, head, file = state
        started = time.monotonic()
        connection.sock.sendall(head)
        connection.sock.setblocking(True)
        sent = 0
        while sent < size:
            sent += os.sendfile(connection.sock.fileno(), file.fileno(), offset + sent, min(size - sent, MIB))
        status, _ = connection.answer()
        errors = [] if status == 200 else [f"PUT {key}: {status}"]
        return [time.monotonic() - started], size, errors

    return prepare, work


def get_stream(target: Target, bucket: str, key: str, size: int, first_byte_only: bool = False):
    """A job: one GET; with `first_byte_only` it ends, and is timed, there."""

    def prepare():
        return Connection(target, bytearray(MIB)), Signer(target).head("GET", f"/{bucket}/{key}")

    def work(state):
        connection, head = state
        started = time.monotonic()
        connection.sock.sendall(head)
        status, length, got = connection.read_head()
        if status != 200 or length != size:
            return [time.monotonic() - started], 0, [f"GET {key}: {status}, {length} bytes"]
        if first_byte_only:
            if not got:
                got = connection.sock.recv_into(connection.buffer)
            took = time.monotonic() - started
            connection.sock.close()
            return [took], got, []
        while got < length:
            count = connection.sock.recv_into(connection.buffer)
            if count == 0:
                return [time.monotonic() - started], got, [f"GET {key}: cut off after {got} bytes"]
            got += count
        return [time.monotonic() - started], got, []

    return prepare, work


def small_objects(target: Target, bucket: str, method: str, keys: list[str], size: int, connections: int, seconds: float):
    """A job: requests for `keys` over `connections` kept connections, until all are done or `seconds` are over."""
    # Different bytes in every object: a store may know bytes that it has already.
    base = os.urandom(max(size, 16))

    def prepare():
        signer = Signer(target)
        heads = [signer.head(method, f"/{bucket}/{key}", size if method == "PUT" else None) for key in keys]
        return heads, [Connection(target) for _ in range(connections)]

    def body(number: int) -> bytes:
        if method != "PUT" or size == 0:
            return b""
        return (number.to_bytes(8, "little") + base)[:size] if size >= 8 else base[:size]

    def work(state):
        heads, open_connections = state
        selector, latencies, errors = selectors.DefaultSelector(), [], []
        done = sent = count = 0
        began: dict[int, float] = {}
        deadline = time.monotonic() + seconds
        clock = time.monotonic

        def send(connection):
            nonlocal sent
            began[connection.sock.fileno()] = clock()
            connection.sock.sendall(heads[sent] + body(sent))
            sent += 1

        for connection in open_connections[:len(heads)]:
            selector.register(connection.sock, selectors.EVENT_READ, connection)
            send(connection)
        while done < sent:
            for entry, _ in selector.select(PATIENCE_SECS):
                connection = entry.data
                status, length = connection.answer()
                now = clock()
                latencies.append(now - began[entry.fd])
                done += 1
                count += size if method == "PUT" else length
                if status != 200 or (method == "GET" and length != size):
                    errors.append(f"{method}: {status}, {length} bytes")
                if sent < len(heads) and now < deadline:
                    send(connection)
        return latencies, count, errors

    return prepare, work
