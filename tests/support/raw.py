"""Requests made by hand: signed by the rules of Signature Version 4, then spoilt as a test wants."""

import datetime
import hashlib
import hmac
import re
from urllib.parse import quote

import requests

from cluster import REGION, Server
from process import PATIENCE
from redaction import known

UNSIGNED = "UNSIGNED-PAYLOAD"


def encode(text: str | bytes, slash: bool = True) -> str:
    return quote(text, safe="-_.~" + ("/" if slash else ""))


def signing_key(secret: str, date: str, region: str = REGION) -> bytes:
    key = ("AWS4" + secret).encode()
    for part in (date, region, "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key


class Signed:
    """A signed request. Change what you like of it before `send`."""

    def __init__(self, server: Server, method: str, path: str, *, query: dict[str, str] | None = None,
                 headers: dict[str, str] | None = None, body: bytes = b"", payload: str | None = None,
                 when: datetime.datetime | None = None, access_key: str | None = None, secret: str | None = None):
        self.server, self.method, self.body = server, method, body
        self.when = when or datetime.datetime.now(datetime.UTC)
        self.access_key = access_key or server.credentials.access_key
        self.secret = secret or server.credentials.secret_key
        # `path` is as it stands in a bucket's address: plain text. What is signed and sent is its encoding.
        self.path = encode(path)
        self.query = "&".join(sorted(f"{encode(k, False)}={encode(v, False)}" for k, v in (query or {}).items()))
        self.headers = {k.lower(): v for k, v in (headers or {}).items()} | {
            "host": f"127.0.0.1:{server.http_port}",
            "x-amz-date": self.when.strftime("%Y%m%dT%H%M%SZ"),
            "x-amz-content-sha256": payload or hashlib.sha256(body).hexdigest(),
        }
        self.sign()

    def sign(self):
        self.headers.pop("authorization", None)
        amz_date = self.headers["x-amz-date"]
        scope = f"{amz_date[:8]}/{REGION}/s3/aws4_request"
        names = sorted(self.headers)
        canonical = "\n".join([
            self.method, self.path, self.query,
            *(f"{name}:{re.sub(' +', ' ', self.headers[name].strip())}" for name in names), "",
            ";".join(names), self.headers["x-amz-content-sha256"],
        ])
        to_sign = "\n".join(["AWS4-HMAC-SHA256", amz_date, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        self.signature = hmac.new(signing_key(self.secret, amz_date[:8]), to_sign.encode(), hashlib.sha256).hexdigest()
        known.add("secret key", self.secret)
        known.add("signature", self.signature)
        self.headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self.access_key}/{scope}, SignedHeaders={';'.join(names)}, "
            f"Signature={self.signature}"
        )
        return self

    @property
    def url(self) -> str:
        return self.server.url + self.path + (f"?{self.query}" if self.query else "")

    def send(self) -> requests.Response:
        session = requests.Session()
        session.trust_env = False
        request = requests.Request(self.method, self.url, data=self.body or None).prepare()
        # As signed, byte by byte: requests would tidy the path up.
        request.url = self.url
        request.headers.clear()
        request.headers.update(self.headers)
        if self.body or self.method in ("PUT", "POST"):
            request.headers.setdefault("content-length", str(len(self.body)))
        return session.send(request, timeout=120)


def signed_chunks(server: Server, path: str, body: bytes, spoil: int | str | None = None) -> Signed:
    """A PUT whose body is sent in signed chunks; all signatures are in `chunk_signatures`. `spoil` names a chunk whose bytes are
    changed after they were signed, or `last` for the signature of the last, empty one."""
    empty = hashlib.sha256(b"").hexdigest()
    signed = Signed(server, "PUT", path, payload="STREAMING-AWS4-HMAC-SHA256-PAYLOAD", headers={
        "content-encoding": "aws-chunked", "x-amz-decoded-content-length": str(len(body)),
    })
    date = signed.headers["x-amz-date"]
    scope, previous, framed = f"{date[:8]}/{REGION}/s3/aws4_request", signed.signature, b""
    signed.chunk_signatures = []
    pieces = [body[at:at + 65536] for at in range(0, len(body), 65536)] + [b""]
    for number, piece in enumerate(pieces):
        text = "\n".join(["AWS4-HMAC-SHA256-PAYLOAD", date, scope, previous, empty, hashlib.sha256(piece).hexdigest()])
        previous = hmac.new(signing_key(server.credentials.secret_key, date[:8]), text.encode(), hashlib.sha256).hexdigest()
        sent = b"X" + piece[1:] if spoil == number and piece else piece
        signature = "0" * 64 if spoil == "last" and not piece else previous
        signed.chunk_signatures.append(signature)
        known.add("signature of a chunk", signature)
        framed += f"{len(piece):x};chunk-signature={signature}\r\n".encode() + sent + b"\r\n"
    signed.body = framed
    return signed


def presign(server: Server, method: str, path: str, expires: int = 300, *, when: datetime.datetime | None = None,
            query: dict[str, str] | None = None, headers: dict[str, str] | None = None) -> str:
    """A presigned URL; `headers` are signed with it."""
    when = when or datetime.datetime.now(datetime.UTC)
    amz_date = when.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{amz_date[:8]}/{REGION}/s3/aws4_request"
    signed = {"host": f"127.0.0.1:{server.http_port}"} | {k.lower(): v for k, v in (headers or {}).items()}
    parameters = (query or {}) | {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{server.credentials.access_key}/{scope}",
        "X-Amz-Date": amz_date,
        "X-Amz-Expires": str(expires),
        "X-Amz-SignedHeaders": ";".join(sorted(signed)),
    }
    text = "&".join(sorted(f"{encode(k, False)}={encode(v, False)}" for k, v in parameters.items()))
    canonical = "\n".join([
        method, encode(path), text, *(f"{k}:{signed[k]}" for k in sorted(signed)), "", ";".join(sorted(signed)), UNSIGNED,
    ])
    to_sign = "\n".join(["AWS4-HMAC-SHA256", amz_date, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    mac = hmac.new(signing_key(server.credentials.secret_key, amz_date[:8]), to_sign.encode(), hashlib.sha256)
    known.add("signature of an address", mac.hexdigest())
    return f"{server.url}{encode(path)}?{text}&X-Amz-Signature={mac.hexdigest()}"


def code(answer: requests.Response) -> str:
    """S3's error code in an answer; empty where there is none."""
    found = re.search(r"<Code>([^<]+)</Code>", answer.text)
    return found.group(1) if found else ""


def send_bytes(server: Server, data: bytes, *, half_close: bool = False, seconds: float = PATIENCE) -> bytes:
    """Sends bytes as they are, perhaps ends the sending side, and reads until the server closes or is silent."""
    import socket

    with socket.create_connection(("127.0.0.1", server.http_port), timeout=seconds) as sock:
        answer = b""
        try:
            sock.sendall(data)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
        except ConnectionError:
            pass  # refused before it was read: the answer may be there all the same
        try:
            while piece := sock.recv(65536):
                answer += piece
                if b"\r\n\r\n" in answer and b"</Error>" in answer:
                    break
        except (TimeoutError, ConnectionError):
            pass
        return answer


def head(signed: Signed, **changes: str) -> bytes:
    """The request line and headers of a signed request, for `send_bytes`."""
    headers = signed.headers | {k.replace("_", "-"): v for k, v in changes.items()}
    lines = [f"{signed.method} {signed.path}{'?' + signed.query if signed.query else ''} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
