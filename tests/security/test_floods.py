"""Floods, each for some seconds and over loopback: a server keeps its memory, and a good client is served all the while.

Speed is not judged: the attacker, the servers and whatever else runs share the machine.
"""

import base64
import contextlib
import hashlib
import re
import selectors
import socket
import struct
import threading
import time

import pytest
import requests

import http2
import rpc
from clients import new_bucket, s3_client
from data import MIB, make_bytes
from people import As, Owner, Wallet, coming_from, next_address
from process import PATIENCE, wait_until
from raw import Signed, head, presign, send_bytes
from watch import Watch

SECONDS = 3.0
# Who is to be cut off after ten seconds may take so much longer on a busy machine: but for that rule he would stay longer still.
CUT_WITHIN = 28


def resets(connection) -> bytes:
    """Requests that are taken back at once (CVE-2023-44487)."""
    out = b""
    for _ in range(100):
        ask = http2.request("GET", "/bucket/key", connection.authority)
        out += http2.frame(http2.HEADERS, http2.END_STREAM | http2.END_HEADERS, connection.stream, ask)
        out += http2.frame(http2.RST_STREAM, 0, connection.stream, struct.pack(">I", 8))
        connection.stream += 2
    return out


def continuations(connection) -> bytes:
    """A head that never ends (CVE-2024-27316)."""
    junk = b"".join(http2.literal(f"x-junk-{number}", "j" * 500) for number in range(30))
    if connection.stream == 1:
        connection.stream = 3
        return http2.frame(http2.HEADERS, 0, 1, http2.request("GET", "/bucket/key", connection.authority))
    return http2.frame(http2.CONTINUATION, 0, 1, junk)


def empty_data(connection) -> bytes:
    """A body of frames that hold nothing (RUSTSEC-2026-0258)."""
    if connection.stream == 1:
        connection.stream = 3
        ask = http2.request("PUT", "/bucket/key", connection.authority)
        return http2.frame(http2.HEADERS, http2.END_HEADERS, 1, ask)
    return http2.frame(http2.DATA, 0, 1) * 2000


def settings(connection) -> bytes:
    """Settings and pings, all of which want an answer that nobody reads."""
    return (http2.frame(http2.SETTINGS, 0, 0, struct.pack(">HI", 1, 4096)) + http2.frame(http2.PING, 0, 0, b"12345678")) * 500


def open_streams(connection) -> bytes:
    """Requests whose bodies never come, as many as there may be and more."""
    out = b""
    for _ in range(100):
        ask = http2.request("PUT", "/bucket/key", connection.authority, ("content-length", "1000000"))
        out += http2.frame(http2.HEADERS, http2.END_HEADERS, connection.stream, ask)
        connection.stream += 2
    return out


@pytest.mark.parametrize("door", ["http", "grpc"])
@pytest.mark.parametrize("flood", [resets, continuations, empty_data, settings, open_streams], ids=lambda flood: flood.__name__)
def test_adv_29_floods_of_frames(flood, door, cluster, stored):
    port = cluster.http_port if door == "http" else cluster.grpc_port
    with Watch(cluster, stored):
        deadline, sent, connections = time.monotonic() + SECONDS, 0, 0
        while time.monotonic() < deadline and connections < 200:
            connection = http2.Connection(port)
            connections += 1
            while time.monotonic() < deadline:
                data = flood(connection)
                if not connection.send(data, read=flood is not settings):
                    break
                sent += len(data)
            connection.close()
        assert sent > 0


def test_adv_29_streams_have_a_number(cluster, stored):
    """What the server says of itself before anything is asked: so many streams and 16 KiB of head."""
    for port, streams in ((cluster.http_port, 128), (cluster.grpc_port, 64)):
        connection = http2.Connection(port)
        connection.sock.settimeout(PATIENCE)
        data = b""
        while len(data) < 9 or len(data) < 9 + int.from_bytes(data[:3], "big"):
            data += connection.sock.recv(4096)
        payload = data[9:9 + int.from_bytes(data[:3], "big")]
        said = dict(struct.iter_unpack(">HI", payload))
        assert data[3] == http2.SETTINGS and said[3] == streams and said[6] == 16 << 10, said
        connection.close()


def test_adv_30_heads_that_drip(cluster, stored):
    """500 sockets that send a byte now and then: all are cut after ten seconds however they drip, and nobody waits for them."""
    drips = {
        "first": b"GET /bucket HTTP/1.1\r\nhost: a\r\nx-slow: ", "nothing": b"", "a letter": b"G", "http/2": http2.PREFACE[:20],
        "kept alive": b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n",
        "half a head": http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0) + http2.frame(http2.HEADERS, 0, 1, b"\0"),
    }
    address, selector = next_address(), selectors.DefaultSelector()
    with Watch(cluster, stored):
        began, kinds = {}, list(drips)
        for number in range(500):
            kind = kinds[number % len(kinds)]
            sock = socket.create_connection(("127.0.0.1", cluster.http_port), timeout=PATIENCE, source_address=(address, 0))
            sock.sendall(drips[kind])
            if kind == "kept alive":
                assert sock.recv(4096).startswith(b"HTTP/1.1 200")
            sock.setblocking(False)
            began[sock] = kind
            selector.register(sock, selectors.EVENT_READ)
        deadline = time.monotonic() + CUT_WITHIN
        while began and time.monotonic() < deadline:
            for key, _ in selector.select(timeout=0.5):
                try:
                    gone = key.fileobj.recv(65536) == b""
                except BlockingIOError:
                    continue
                except OSError:
                    gone = True
                if gone:
                    del began[key.fileobj]
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
            for sock, kind in list(began.items()):
                if kind in ("first", "kept alive", "half a head"):
                    try:
                        sock.send(b"G" if kind == "kept alive" else b"a" if kind == "first" else http2.frame(http2.CONTINUATION, 0, 1, b"\0"))
                    except OSError:
                        pass
        assert not began, f"still open: {sorted(set(began.values()))}"


def test_adv_30_uploads_that_drip(cluster, stored):
    """30 uploads of six owners that begin and then drip, of small stripes and of the largest: others are stored beside them, and who drips is told so."""
    length, drips = 100 * MIB, []
    keys = [As(cluster, Owner(cluster).key()) for _ in range(6)]
    buckets = [new_bucket(s3_client(key)) for key in keys]
    good = Owner(cluster).s3()
    kept = new_bucket(good)
    stop = threading.Event()

    def drip():
        while not stop.wait(1):
            for sock in drips:
                with contextlib.suppress(OSError):
                    sock.send(b"x" * 600)

    with Watch(cluster, stored):
        for number in range(30):
            key, bucket = keys[number % 6], buckets[number % 6]
            stripe = str(64 * MIB if number % 3 == 0 else 4 * MIB)
            put = Signed(cluster, "PUT", f"/{bucket}/drip-{number}", payload="UNSIGNED-PAYLOAD", headers={"x-cyxcloud-stripe-size": stripe},
                         access_key=key.credentials.access_key, secret=key.credentials.secret_key)
            sock = socket.create_connection(("127.0.0.1", cluster.http_port), timeout=PATIENCE, source_address=(next_address(), 0))
            sock.sendall(head(put, content_length=str(length)) + b"x" * 1000)
            drips.append(sock)
        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            body = make_bytes(9 * MIB, "good")
            for number in range(3):
                began = time.monotonic()
                good.put_object(Bucket=kept, Key=f"k{number}", Body=body)
                assert time.monotonic() - began < PATIENCE
            assert good.get_object(Bucket=kept, Key="k0")["Body"].read() == body

            def told():
                for sock in drips:
                    sock.setblocking(False)
                    with contextlib.suppress(OSError):
                        if b"RequestTimeout" in sock.recv(65536, socket.MSG_PEEK):
                            return True
                return False

            wait_until("who drips is told so", told)
        finally:
            stop.set()
            dripping.join()
            for sock in drips:
                sock.close()


def test_adv_30_answers_that_nobody_takes(cluster, s3, bucket, stored):
    """60 reads on one connection that grants no window and answers every ping: they hold all the memory there is, and not for long."""
    body = make_bytes(8 * MIB, "wanted")
    s3.put_object(Bucket=bucket, Key="large", Body=body)
    path = presign(cluster, "GET", f"/{bucket}/large").removeprefix(cluster.url)
    connection = http2.Connection(cluster.http_port, settings=struct.pack(">HI", 4, 0))
    gone, pong = threading.Event(), http2.frame(http2.SETTINGS, http2.ACK, 0)

    def stay():
        data = b""
        with contextlib.suppress(OSError):
            while True:
                try:
                    more = connection.sock.recv(1 << 16)
                except TimeoutError:
                    continue
                if not more:
                    break
                data += more
                while len(data) >= 9 and len(data) >= (size := 9 + int.from_bytes(data[:3], "big")):
                    if data[3] == http2.PING and not data[4] & http2.ACK:
                        connection.sock.sendall(http2.frame(http2.PING, http2.ACK, 0, data[9:size]))
                    data = data[size:]
        gone.set()

    connection.sock.sendall(pong)
    staying = threading.Thread(target=stay)
    staying.start()
    try:
        for number in range(60):
            ask = http2.request("GET", path, connection.authority)
            connection.sock.sendall(http2.frame(http2.HEADERS, http2.END_STREAM | http2.END_HEADERS, 1 + 2 * number, ask))

        def held():
            text = requests.get(f"http://127.0.0.1:{cluster.metrics_port}/metrics", timeout=30).text
            return float(re.search(r'^\S*budget_bytes\{\S*"read"\S* (\S+)$', text, re.M).group(1)) > 100 * MIB

        wait_until("they hold the memory for reads", held)
        assert not gone.is_set()
        began = time.monotonic()
        signed = Signed(cluster, "GET", f"/{bucket}/large")
        answer = coming_from(next_address()).get(signed.url, headers=signed.headers, timeout=PATIENCE)
        assert answer.status_code == 200 and answer.content == body
        assert time.monotonic() - began < PATIENCE
        assert gone.wait(PATIENCE), "the connection is still open"
    finally:
        connection.close()
        staying.join()


def test_adv_30_silence_where_grpc_is_spoken(cluster, stored):
    """On the gateway's port and on a node's: who says nothing, or too little to be a client, is cut off after ten seconds."""
    openings = {"nothing": b"", "a letter": b"P", "half a preface": http2.PREFACE[:12], "a preface": http2.PREFACE, "http/1": b"GET / HTTP/1.1\r\n"}
    address = next_address()
    with Watch(cluster, stored):
        for port in (cluster.grpc_port, cluster.node_ports[0][0]):
            silent, since = [], time.monotonic()
            for number in range(100):
                name = list(openings)[number % len(openings)]
                sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE, source_address=(address, 0))
                sock.sendall(openings[name])
                silent.append((name, sock))
            # One that drips is no quicker than its first byte.
            drip = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE, source_address=(address, 0))
            for byte in http2.PREFACE[:4]:
                with contextlib.suppress(OSError):
                    drip.sendall(bytes([byte]))
                time.sleep(2)
            for name, sock in [*silent, ("drip", drip)]:
                sock.settimeout(max(0.1, CUT_WITHIN - (time.monotonic() - since)))
                try:
                    while sock.recv(65536):
                        pass
                except TimeoutError:
                    pytest.fail(f"still open at port {port} after {time.monotonic() - since:.0f} s: {name}")
                except OSError:
                    pass
                finally:
                    sock.close()
            assert rpc.call(port, "grpc.health.v1.Health/Check")[0] == rpc.OK


@pytest.mark.parametrize("port", ["http", "grpc", "node"])
def test_adv_30_an_address_has_so_many_connections(cluster, stored, port):
    """However busy they look; and others have theirs."""
    address, many = next_address(), []
    number = {"http": cluster.http_port, "grpc": cluster.grpc_port, "node": cluster.node_ports[0][0]}[port]
    opening = http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0)

    def greets(address: str) -> bool:
        """Whether who comes from there is answered."""
        with socket.create_connection(("127.0.0.1", number), timeout=PATIENCE, source_address=(address, 0)) as sock:
            try:
                sock.sendall(opening)
                return sock.recv(1) != b""
            except ConnectionError:
                return False

    with Watch(cluster, stored):
        try:
            def refused():
                closed = 0
                for sock in many:
                    sock.setblocking(False)
                    try:
                        closed += sock.recv(1, socket.MSG_PEEK) == b""
                    except BlockingIOError:
                        pass
                    except OSError:
                        closed += 1
                return closed >= 600 - 512

            def crowded():
                while many:
                    many.pop().close()
                for _ in range(600):
                    many.append(socket.create_connection(("127.0.0.1", number), timeout=PATIENCE, source_address=(address, 0)))
                    with contextlib.suppress(ConnectionError):
                        many[-1].sendall(opening)
                wait_until("those beyond the limit are closed", refused, 15)
                # Who answers no pings is cut off after half a minute: it may have taken too long to look.
                return not greets(address)

            wait_until("an address has no more places", crowded, 180)
            assert greets(next_address())
        finally:
            for sock in many:
                sock.close()
    wait_until("the address is served again", lambda: greets(address))
    metric, metrics = {
        "http": ("cyxcloud_gateway_http_connections_refused_total", cluster.metrics_port),
        "grpc": ("cyxcloud_gateway_grpc_connections_refused_total", cluster.metrics_port),
        "node": ("cyxcloud_node_connections_refused_total", cluster.node_ports[0][1]),
    }[port]
    text = requests.get(f"http://127.0.0.1:{metrics}/metrics", timeout=30).text
    assert re.search(rf"^{metric} [1-9]", text, re.M), text


def test_adv_31_heads_that_are_too_long(cluster, stored):
    for mount, wanted in (("", "<Code>RequestHeaderSectionTooLarge"), ("/api/v1", "head-too-long")):
        path = stored if mount == "" else "/account"
        for size in (17_000, 100_000):
            answer = requests.get(cluster.url + mount + path, headers={"x-junk": "j" * size}, timeout=30)
            assert answer.status_code == 431 and wanted in answer.text, answer.text
    junk = {f"x-junk-{number}": "j" for number in range(200)}
    assert requests.get(cluster.url + stored, headers=junk, timeout=30).status_code == 431
    assert requests.get(f"{cluster.url}/{'x' * 60_000}", timeout=30).status_code in (414, 431)
    assert send_bytes(cluster, b"GET /" + b"x" * 400_000 + b" HTTP/1.1\r\n\r\n").split(b"\r\n")[0].split()[1:2] in (
        [], [b"431"], [b"414"], [b"400"])
    # A long key, and as much metadata as there may be, are fine.
    good = Signed(cluster, "GET", stored, headers={"x-amz-meta-a": "a" * 2000}, query={"response-content-type": "t/" + "x" * 1000})
    assert good.send().content == b"kept"


def chunked(cluster, path: str, body: bytes, declared: int, *more: str, trailer: str | None = None) -> requests.Response:
    headers = {"content-encoding": "aws-chunked", "x-amz-decoded-content-length": str(declared)}
    if trailer:
        headers["x-amz-trailer"] = trailer
    return Signed(cluster, "PUT", path, body=body, payload="STREAMING-UNSIGNED-PAYLOAD-TRAILER", headers=headers).send()


def test_adv_31_bodies_without_bounds(cluster, s3, bucket, empty, stored):
    # The buffers that uploads share are there before memory is looked at.
    s3.put_object(Bucket=bucket, Key="warm", Body=make_bytes(32 * MIB, "warm"))
    with Watch(cluster, stored):
        for length in (10**12, 5 * 1024**3 + 1, 2**63, 2**64 - 1, 2**64, -1):
            for path, query in ((f"/{empty}/k", None), (f"/{empty}/k", {"partNumber": "1", "uploadId": "none"})):
                put = Signed(cluster, "PUT", path, query=query, payload="UNSIGNED-PAYLOAD")
                answer = send_bytes(cluster, head(put, content_length=str(length), expect="100-continue"))
                assert answer.split(b"\r\n")[0].split()[1][:1] == b"4", (length, answer[:300])
        for declared in (10**12, 2**63, 2**64):
            assert 400 <= chunked(cluster, f"/{empty}/k", b"1\r\nx\r\n0\r\n\r\n", declared).status_code < 500
        good = b"5\r\nhello\r\n0\r\n\r\n"
        assert chunked(cluster, f"/{bucket}/good", good, 5).status_code == 200
        million = b"1\r\nx\r\n" * 1_000_000 + b"0\r\n\r\n"
        trailers = "".join(f"x-amz-checksum-{number}:x\r\n" for number in range(101)).encode()
        for what, body, declared, trailer in [
            ("a chunk header of 1 MB", b"5;" + b"x" * MIB + b"\r\nhello\r\n0\r\n\r\n", 5, None),
            ("a size of many zeros", b"0" * MIB + b"5\r\nhello\r\n0\r\n\r\n", 5, None), ("no end of a line", b"5" * MIB, 5, None),
            ("a size beyond 64 bits", b"1" + b"0" * 16 + b"\r\nhello\r\n0\r\n\r\n", 5, None), ("a sign", b"+5\r\nhello\r\n0\r\n\r\n", 5, None),
            ("too few bytes", good, 6, None), ("too many", good, 4, None), ("none", b"0\r\n\r\n", 5, None), ("bytes after the end", good + good, 5, None),
            ("101 trailers", good[:-2] + trailers + b"\r\n", 5, None), ("a trailer of 1 MB", good[:-2] + b"x-a:" + b"x" * MIB + b"\r\n\r\n", 5, None),
            ("another trailer", good[:-2] + b"x-amz-meta-a:1\r\n\r\n", 5, "x-amz-checksum-crc32"), ("no trailer", good, 5, "x-amz-checksum-crc32"),
            ("half of it", million[:3_000_000], 1_000_000, None),
        ]:
            answer = chunked(cluster, f"/{empty}/k", body, declared, trailer=trailer)
            assert 400 <= answer.status_code < 500, (what, answer.status_code, answer.text)
        # Small chunks are slow for whoever sends them, and right all the same.
        assert chunked(cluster, f"/{bucket}/tiny", million, 1_000_000).status_code in (200, 400)
        for path in ("/api/v1/auth/challenge", "/api/v1/auth/wallet", "/api/v1/auth/api-keys"):
            token = {"authorization": f"Bearer {Owner(cluster).token}"}
            answer = requests.post(cluster.url + path, data=b'{"name": "' + b"x" * MIB + b'"}', headers=token, timeout=30)
            assert answer.status_code in (400, 413), (path, answer.status_code)


def test_adv_31_documents_that_never_end(cluster, stored):
    """300 strangers' documents but for their ends, from three addresses: each has a share of the memory, others are heard, and nobody
    is waited for longer than half a minute."""
    addresses, waiting, answers = [next_address() for _ in range(3)], [], []

    def look() -> bool:
        for sock in list(waiting):
            try:
                sock.send(b" ")
                answer = sock.recv(65536)
            except BlockingIOError:
                continue
            except OSError:
                answer = b""
            answers.append(answer)
            waiting.remove(sock)
            sock.close()
        return not waiting

    def refused() -> bool:
        look()
        return sum(answer.startswith(b"HTTP/1.1 503 ") for answer in answers) >= 50

    with Watch(cluster, stored):
        opening = b"POST /api/v1/auth/challenge HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 65536\r\n\r\n"
        for number in range(300):
            sock = socket.create_connection(("127.0.0.1", cluster.http_port), timeout=PATIENCE, source_address=(addresses[number % 3], 0))
            sock.sendall(opening + b" " * 65_000)
            sock.setblocking(False)
            waiting.append(sock)
        wait_until("what is more than an address's share is refused", refused, interval=0.5)
        assert Wallet(cluster).challenge().status_code == 200
        wait_until("nobody is waited for", look, 120, interval=0.5)
    assert any(b"did not come within 30 s" in answer for answer in answers), answers[:3]
    text = requests.get(f"http://127.0.0.1:{cluster.metrics_port}/metrics", timeout=30).text
    assert re.search(r"^cyxcloud_gateway_documents_refused_total [1-9]", text, re.M), text


def delete(cluster, bucket: str, body: bytes) -> requests.Response:
    md5 = base64.b64encode(hashlib.md5(body).digest()).decode()
    return Signed(cluster, "POST", f"/{bucket}", query={"delete": ""}, body=body, headers={"content-md5": md5}).send()


def test_adv_32_documents(cluster, s3, bucket, stored):
    s3.put_object(Bucket=bucket, Key="gone", Body=b"x")
    one, keep = b"<Object><Key>none</Key></Object>", b"<Object><Key>k</Key></Object>"
    with Watch(cluster, stored):
        for what, body in {
            "a definition": b"<!DOCTYPE Delete><Delete>" + keep + b"</Delete>",
            "an entity": b'<?xml version="1.0"?><!DOCTYPE d [<!ENTITY e "k">]><Delete><Object><Key>&e;</Key></Object></Delete>',
            "a file": b'<!DOCTYPE d [<!ENTITY e SYSTEM "file:///etc/passwd">]><Delete><Object><Key>&e;</Key></Object></Delete>',
            "laughs": b'<!DOCTYPE d [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><Delete><Object><Key>&b;</Key></Object></Delete>',
            "an unknown entity": b"<Delete><Object><Key>&e;</Key></Object></Delete>",
            "80,000 attributes": b"<Delete " + b" ".join(b'a%d="1"' % number for number in range(80_000)) + b">" + one + b"</Delete>",
            "depth": b"<Delete>" + b"<x>" * 33 + b"</x>" * 33 + one + b"</Delete>",
            "much depth": b"<a>" * 300_000, "1,001 keys": b"<Delete>" + one * 1001 + b"</Delete>", "8.5 MB": b"<Delete>" + b" " * (17 * MIB // 2) + b"</Delete>",
            "a comment of 8.5 MB": b"<Delete><!--" + b"x" * (17 * MIB // 2) + b"--></Delete>", "another root": b"<Other>" + keep + b"</Other>",
            "cut": b"<Delete>" + keep, "nothing": b"", "not UTF-8": b"<Delete><Object><Key>\xff\xfe</Key></Object></Delete>", "UTF-16": "<Delete/>".encode("utf-16"),
        }.items():
            began = time.monotonic()
            answer = delete(cluster, stored.split("/")[1], body)
            if what == "80,000 attributes" and answer.status_code == 200:
                pass
            else:
                assert 400 <= answer.status_code < 500, (what, answer.status_code, answer.text[:300])
            # What is expanded or nested without end would take minutes.
            assert "root:" not in answer.text and time.monotonic() - began < PATIENCE, what
        for what, path, query, body in [
            ("1 MB of another kind", f"/{bucket}-x", None, b"<CreateBucketConfiguration>" + b" " * MIB + b"</CreateBucketConfiguration>"),
            ("10,001 parts", f"/{bucket}/m", {"uploadId": s3.create_multipart_upload(Bucket=bucket, Key="m")["UploadId"]},
             b"<CompleteMultipartUpload>" + b"".join(b"<Part><PartNumber>%d</PartNumber><ETag>x</ETag></Part>" % n for n in range(1, 10_002))
             + b"</CompleteMultipartUpload>"),
        ]:
            answer = Signed(cluster, "POST" if query else "PUT", path, query=query, body=body).send()
            assert 400 <= answer.status_code < 500, (what, answer.status_code, answer.text[:300])
    good = delete(cluster, bucket, b'<?xml version="1.0"?><Delete><!-- fine --><Object><Key>gone</Key></Object>' + one * 999 + b"</Delete>")
    assert good.status_code == 200 and "<Error>" not in good.text and good.text.count("<Deleted>") == 1000
    assert "gone" not in str(s3.list_objects_v2(Bucket=bucket, Prefix="gone").get("Contents", ""))
