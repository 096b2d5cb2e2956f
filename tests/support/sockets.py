"""WebSockets at a gateway: listeners that keep what they hear, and peers that behave badly."""

import asyncio
import base64
import json
import os
import socket
import ssl
import struct
import threading
import time
from functools import cache
from urllib.parse import urlencode

import requests
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from cluster import Server
from process import PATIENCE
from raw import Signed

TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10


@cache
def loop() -> asyncio.AbstractEventLoop:
    """In which all sockets live. The library's clients with threads read in one and write in another, and of what is written
    that way over TLS some is never sent (Python 3.11: 2 of 1,000 dials, with any server)."""
    made = asyncio.new_event_loop()
    threading.Thread(target=made.run_forever, daemon=True).start()
    return made


class Wire:
    """A WebSocket for who does not wait in a loop."""

    def __init__(self, uri: str, **how):
        async def dial():
            return await connect(uri, **how)

        self.connection = self._wait(dial())

    @staticmethod
    def _wait(what):
        return asyncio.run_coroutine_threadsafe(what, loop()).result()

    def recv(self, timeout: float) -> str | bytes:
        return self._wait(asyncio.wait_for(self.connection.recv(), timeout))

    def send(self, message: str | bytes):
        self._wait(self.connection.send(message))

    def close(self):
        self._wait(self.connection.close())


class Listener:
    """Hears events until it is closed. `heard` is all that it was told, in order."""

    def __init__(self, server: Server, *, bearer: str | None = None, headers: dict[str, str] | None = None, origin: str | None = None,
                 address: str | None = None, **query: str):
        headers = (headers or {}) | ({"authorization": f"Bearer {bearer}"} if bearer else {})
        scheme, context = ("wss", ssl.create_default_context(cafile=str(server.ca))) if server.ca else ("ws", None)
        uri = f"{scheme}://127.0.0.1:{server.http_port}/ws" + (f"?{urlencode(query)}" if query else "")
        # Pings are the server's to send here.
        self.socket = Wire(uri, ssl=context, additional_headers=headers, origin=origin, proxy=None, ping_interval=None, max_queue=None,
                           open_timeout=PATIENCE, close_timeout=5, **({"local_addr": (address, 0)} if address else {}))
        self.heard: list[dict] = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def poll(self, seconds: float) -> dict | None:
        """The next event, if one comes by then."""
        try:
            event = json.loads(self.socket.recv(timeout=seconds))
        except TimeoutError:
            return None
        self.heard.append(event)
        return event

    def until(self, kind: str, seconds: float = PATIENCE, **data) -> dict:
        """Waits for an event of this type with this data; what the data was."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            event = self.poll(left)
            if event and event["type"] == kind and data.items() <= event.get("data", {}).items():
                return event.get("data", {})
        raise AssertionError(f"{kind} {data} was not told within {seconds} s, but {self.heard[-20:]}")

    def all(self) -> list[dict]:
        """Everything that happened at its gateway by now and was not looked at before: an answer comes after it."""
        before = len(self.heard)
        self.socket.send('{"type":"ping"}')
        self.until("pong")
        self.heard.pop()
        return self.heard[before:]

    def ended(self, seconds: float = PATIENCE) -> tuple[int, str]:
        """The code and reason with which the server ends it, after whatever it still says."""
        try:
            while self.poll(seconds) is not None:
                pass
        except ConnectionClosed as closed:
            assert closed.rcvd is not None, f"it was cut off without a word: {closed}"
            return closed.rcvd.code, closed.rcvd.reason
        raise AssertionError(f"it is still open after {seconds} s")


def told(*events: tuple) -> list[dict]:
    """Events as they are sent, from `(type, data)`."""
    return [{"type": kind, "data": data} for kind, data in events]


def ticket(server: Server, token: str) -> str:
    answer = requests.post(f"{server.url}/api/v1/ws-ticket", headers={"authorization": f"Bearer {token}"}, timeout=30,
                           verify=str(server.ca) if server.ca else True)
    assert answer.status_code == 200 and answer.json()["expires_in"] == 30, answer.text
    return answer.json()["ticket"]


def as_root(server: Server) -> Listener:
    """The administrator, who has no token but signs."""
    headers = Signed(server, "GET", "/ws").headers
    # The client writes that one.
    del headers["host"]
    return Listener(server, headers=headers)


def handshake(server: Server, *, bearer: str | None = None, headers: dict[str, str] | None = None, **query: str) -> requests.Response:
    """Asks for a socket as a browser does, and answers what was said instead of 101."""
    asked = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13",
             "sec-websocket-key": base64.b64encode(os.urandom(16)).decode()} | (headers or {})
    if bearer:
        asked["authorization"] = f"Bearer {bearer}"
    return requests.get(f"{server.url}/ws", params=query, headers=asked, timeout=30, verify=str(server.ca) if server.ca else True)


class RawPeer:
    """A connection that became a WebSocket, and says and reads only what a test wants."""

    def __init__(self, server: Server, bearer: str, receive_buffer: int | None = None, address: str | None = None):
        self.sock = socket.socket()
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if address:
            self.sock.bind((address, 0))
        self.sock.settimeout(PATIENCE)
        self.sock.connect(("127.0.0.1", server.http_port))
        key = base64.b64encode(os.urandom(16)).decode()
        self.sock.sendall(
            f"GET /ws HTTP/1.1\r\nhost: 127.0.0.1:{server.http_port}\r\nauthorization: Bearer {bearer}\r\nconnection: Upgrade\r\n"
            f"upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: {key}\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            piece = self.sock.recv(1)
            assert piece, head
            head += piece
        assert head.startswith(b"HTTP/1.1 101 "), head

    def frame(self, opcode: int, payload: bytes = b"", final: bool = True, length: int | None = None, masked: bool = True) -> bytes:
        """One frame; `length` is what it claims where that is not true."""
        length = len(payload) if length is None else length
        size = struct.pack(">B", length) if length < 126 else struct.pack(">BH", 126, length) if length < 1 << 16 else struct.pack(">BQ", 127, length)
        mask = b"\x05\x06\x07\x08"
        start = bytes([(0x80 if final else 0) | opcode, size[0] | (0x80 if masked else 0)]) + size[1:]
        if not masked:
            return start + payload
        return start + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))

    def send(self, *args, **kwargs):
        self.sock.sendall(self.frame(*args, **kwargs))

    def receive(self) -> tuple[int, bytes]:
        """The next frame of the server; nothing where it has closed."""
        head = self._exactly(2)
        length = head[1] & 0x7F
        if length >= 126:
            length = int.from_bytes(self._exactly(2 if length == 126 else 8), "big")
        return head[0] & 0x0F, self._exactly(length)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.sock.recv(size - len(data))
            if not piece:
                raise EOFError("the server closed")
            data += piece
        return data

    def close_code(self) -> int:
        """With which the server ends it."""
        while True:
            opcode, payload = self.receive()
            if opcode == CLOSE:
                return int.from_bytes(payload[:2], "big")

    def close(self):
        self.sock.close()
