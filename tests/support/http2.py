"""HTTP/2 frame by frame, as no library would send them."""

import socket

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def length(number: int) -> bytes:
    """HPACK's integer with a prefix of seven bits."""
    if number < 127:
        return bytes([number])
    out, number = b"\x7f", number - 127
    while number >= 128:
        out += bytes([number % 128 | 128])
        number //= 128
    return out + bytes([number])


def literal(name: str, value: str) -> bytes:
    """A header that is neither indexed nor compressed."""
    return b"\0" + length(len(name)) + name.encode() + length(len(value)) + value.encode()


def request(method: str, path: str, authority: str, *more: tuple[str, str]) -> bytes:
    fields = [(":method", method), (":scheme", "http"), (":path", path), (":authority", authority), *more]
    return b"".join(literal(name, value) for name, value in fields)


class Connection:
    """Sends what it is given and takes what comes, without waiting for either."""

    def __init__(self, port: int, settings: bytes = b""):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.authority = f"127.0.0.1:{port}"
        self.sock.settimeout(1)
        self.sock.sendall(PREFACE + frame(SETTINGS, 0, 0, settings))
        self.stream = 1

    def send(self, data: bytes, *, read: bool = True) -> bool:
        """Whether the server still takes it."""
        try:
            self.sock.sendall(data)
            while read:
                self.sock.setblocking(False)
                try:
                    if not self.sock.recv(1 << 16):
                        return False
                except BlockingIOError:
                    break
                finally:
                    self.sock.settimeout(1)
        except OSError:
            return False
        return True

    def close(self):
        self.sock.close()
