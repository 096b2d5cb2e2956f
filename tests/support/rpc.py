"""gRPC by hand: messages as numbered fields, so that what is sent can be wrong in every way."""

import socket
import time

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived

OK, INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, PERMISSION_DENIED, RESOURCE_EXHAUSTED = 0, 3, 5, 6, 7, 8
FAILED_PRECONDITION, UNIMPLEMENTED, UNAUTHENTICATED = 9, 12, 16

NODE, DATA = "cyxcloud.gateway.v1.NodeService", "cyxcloud.gateway.v1.DataService"
CHUNKS, CHUNK_DATA = "cyxcloud.node.v1.ChunkService", "cyxcloud.node.v1.DataService"


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def message(**fields: int | bool | str | bytes) -> bytes:
    """A message of fields named `_1`, `_2`... by their numbers."""
    out = b""
    for name, value in fields.items():
        number = int(name.lstrip("_"))
        if isinstance(value, int):
            out += varint(number << 3) + varint(int(value))
        else:
            data = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def fields(message: bytes) -> dict[int, list[int | bytes]]:
    """What a message says, by the numbers of its fields: integers, and bytes as they are."""

    def number(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = message[at]
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                return value, at

    found, at = {}, 0
    while at < len(message):
        key, at = number(at)
        value, at = number(at)
        match key & 7:
            case 0:
                pass
            case 2:
                value, at = message[at:at + value], at + value
            case kind:
                raise ValueError(f"wire type {kind} of field {key >> 3} is read by nothing here")
        found.setdefault(key >> 3, []).append(value)
    return found


def framed(body: bytes) -> bytes:
    return b"\0" + len(body).to_bytes(4, "big") + body


def call(port: int, method: str, body: bytes = b"", *, raw: bytes | None = None, headers: tuple[str, ...] = ()) -> tuple[int, str, bytes]:
    """The status, its message, and the first message answered. `raw` is sent instead of a framed body."""
    exchange = Exchange(port)
    exchange.run([
        (":method", "POST"), (":scheme", "http"), (":path", f"/{method}"), (":authority", f"127.0.0.1:{port}"),
        ("content-type", "application/grpc"), ("te", "trailers"), *(tuple(header.split(": ", 1)) for header in headers),
    ], framed(body) if raw is None else raw)
    status = exchange.head.get("grpc-status")
    assert status is not None, f"{method}: no status; the answer began {exchange.head} and ended {exchange.end}"
    return int(status), exchange.head.get("grpc-message", ""), bytes(exchange.answer[5:])


PATIENCE = 60.0
STREAM = 1


class Exchange:
    """One request on a connection of its own. A server may answer before it has read the body, and then end the stream by
    RST_STREAM(NO_ERROR) (RFC 9113, 8.1): what it said stands. Any other end before the answer's own is told in `end`."""

    def __init__(self, port: int):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.http = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.head: dict[str, str] = {}
        self.answer = bytearray()
        self.end: str | None = None

    def run(self, head: list[tuple[str, str]], body: bytes):
        self.http.initiate_connection()
        self.http.send_headers(STREAM, head)
        deadline, sent = time.monotonic() + PATIENCE, False
        with self.sock:
            while self.end is None:
                while not sent and (room := min(self.http.local_flow_control_window(STREAM), self.http.max_outbound_frame_size)) > 0:
                    sent = len(body) <= room
                    self.http.send_data(STREAM, body[:room], end_stream=sent)
                    body = body[room:]
                try:
                    self.sock.settimeout(max(deadline - time.monotonic(), 0.001))
                    self.sock.sendall(self.http.data_to_send())
                except (BrokenPipeError, ConnectionResetError):
                    sent = True  # nobody reads; what was answered before that may still be there
                try:
                    self.take(self.sock.recv(1 << 16))
                except OSError as error:
                    self.end = repr(error)

    def take(self, data: bytes):
        if not data:
            self.end = "the connection was closed"
        for event in self.http.receive_data(data):
            match event:
                case ResponseReceived() | TrailersReceived():
                    self.head.update(event.headers)
                case DataReceived():
                    self.answer += event.data
                    self.http.acknowledge_received_data(event.flow_controlled_length, STREAM)
                case StreamEnded():
                    self.end = "in order"
                    return
                case StreamReset() | ConnectionTerminated():
                    self.end = repr(event)
                    return
