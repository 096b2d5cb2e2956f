"""gRPC by hand: messages as numbered fields, sent by curl, so that what is sent can be wrong in every way."""

import re
import subprocess
import tempfile
from pathlib import Path

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


# curl's "stream error": a server may refuse before it has read the body, and end the stream; curl then sometimes forgets the answer.
STREAM_ERROR = 92
TRIES = 5


def call(port: int, method: str, body: bytes = b"", *, raw: bytes | None = None, headers: tuple[str, ...] = ()) -> tuple[int, str, bytes]:
    """The status, its message, and the first message answered. `raw` is sent instead of a framed body."""
    with tempfile.TemporaryDirectory() as directory:
        head, answer = Path(directory) / "head", Path(directory) / "answer"
        named = [arg for header in headers for arg in ("-H", header)]
        command = [
            "curl", "-sS", "--noproxy", "*", "--http2-prior-knowledge", "-X", "POST", "-H", "content-type: application/grpc",
            "-H", "te: trailers", *named, "--data-binary", "@-", "-D", str(head), "-o", str(answer), "--max-time", "60",
            f"http://127.0.0.1:{port}/{method}",
        ]
        for _ in range(TRIES):
            done = subprocess.run(command, input=framed(body) if raw is None else raw, capture_output=True, timeout=90)
            if done.returncode != STREAM_ERROR:
                break
        text = head.read_text(errors="replace") if head.exists() else ""
        status = re.search(r"^grpc-status: *(\d+)", text, re.M | re.I)
        assert status, f"no status: curl ended with {done.returncode}\n{text}\n{done.stderr.decode()}"
        said = re.search(r"^grpc-message: *(.*)$", text, re.M | re.I)
        data = answer.read_bytes() if answer.exists() else b""
        return int(status.group(1)), said.group(1).strip() if said else "", data[5:]
