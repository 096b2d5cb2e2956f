"""Attacks on `/ws`: who opens a socket, what is heard on it, and what is sent to it."""

import subprocess
import time
import uuid

import pytest
import requests
from websockets.exceptions import ConnectionClosed

from clients import bearer
from data import MIB
from people import Owner, coming_from, next_address
from process import wait_until
from raw import presign
from sockets import BINARY, CONTINUATION, PING, TEXT, Listener, RawPeer, handshake, ticket, told
from watch import GROWTH_MAX, Watch, memory


def refused(answer: requests.Response, status: int, kind: str):
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    assert answer.json()["type"] == f"urn:cyxcloud:problem:{kind}", answer.text


def redis(cluster, *command: str) -> str:
    done = subprocess.run(["redis-cli", "-u", cluster.redis_url, *command], check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.strip()


def test_adv_33_nobody_without_credentials(cluster, owners):
    one, _ = owners
    key = one.key()
    said = set()
    for headers, query in [
        ({}, {}), ({}, {"topics": "file"}), ({}, {"topics": "nonsense"}), ({"origin": "https://evil.example"}, {}), ({"cookie": f"token={one.token}"}, {}),
        ({"sec-websocket-protocol": one.token}, {}), ({"authorization": f"Basic {one.token}"}, {}),
        ({"authorization": f"Bearer {one.token}x"}, {}), ({}, {"token": ""}), ({}, {"token": one.token[:-4] + "AAAA"}), ({}, {"TOKEN": one.token}),
        ({}, {"access_token": one.token}), ({}, {"ticket": ""}), ({}, {"ticket": "0" * 64}), ({}, {"ticket": one.token}), ({}, {"token": "0" * 64}),
        ({}, {"token": bearer(cluster, typ="refresh")}), ({}, {"token": bearer(cluster, typ="node")}), ({}, {"token": bearer(cluster, algorithm="none")}),
        ({}, {"token": bearer(cluster, exp=int(time.time()) - 100, iat=int(time.time()) - 200)}), ({}, {"token": bearer(cluster, aud="cyxwiz-api")}),
        ({}, {"token": key["secret_access_key"]}), ({}, {"ticket": key["access_key_id"]}),
    ]:
        answer = handshake(cluster, headers=headers, **query)
        refused(answer, 401, "unauthenticated")
        assert one.token not in answer.text
        said.add(answer.headers["www-authenticate"])
    assert said == {"Bearer"}
    # More than one is none.
    for headers, query in [({"authorization": f"Bearer {one.token}"}, {"token": one.token}), ({}, {"token": one.token, "ticket": ticket(cluster, one.token)}),
                           ({"authorization": f"Bearer {one.token}"}, {"ticket": ticket(cluster, one.token)})]:
        assert handshake(cluster, headers=headers, **query).status_code == 400
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        assert requests.request(method, f"{cluster.url}/ws", timeout=30).status_code == 401, method
        assert requests.request(method, f"{cluster.url}/ws", params={"token": one.token}, timeout=30).status_code == 405, method
    # A link to something else opens no socket.
    assert requests.get(presign(cluster, "GET", "/bucket/k").replace("/bucket/k", "/ws"), timeout=30).status_code == 401


def test_adv_33_a_ticket_is_good_once_and_for_half_a_minute(cluster, owners):
    one, _ = owners
    once = ticket(cluster, one.token)
    assert len(once) == 64 and once != ticket(cluster, one.token)
    with Listener(cluster, ticket=once) as listener:
        refused(handshake(cluster, ticket=once), 401, "unauthenticated")
        assert listener.all() == []
    # Refused for another reason it is spent all the same.
    for more, status in (({"topics": "nonsense"}, 400), ({}, 403)):
        spent = ticket(cluster, one.token)
        assert handshake(cluster, headers={"origin": "https://evil.example"} if status == 403 else {}, ticket=spent, **more).status_code == status
        refused(handshake(cluster, ticket=spent), 401, "unauthenticated")
    # Redis forgets it after 30 s; so that nobody waits for it, this one's time is cut short.
    asked = time.monotonic()
    late = ticket(cluster, one.token)
    left = int(redis(cluster, "PTTL", f"cyxcloud:ticket:{late}"))
    assert 29_000 - 1000 * (time.monotonic() - asked) < left <= 30_000, left
    assert redis(cluster, "PEXPIRE", f"cyxcloud:ticket:{late}", "1") == "1"
    wait_until("it is over", lambda: redis(cluster, "EXISTS", f"cyxcloud:ticket:{late}") == "0")
    refused(handshake(cluster, ticket=late), 401, "unauthenticated")
    # A limited key gets none, for a ticket would be without its limits.
    limited = one.key(read_only=True)["token"]
    assert one.api("POST", "/api/v1/ws-ticket", token=limited).status_code == 403
    # It opens a socket and nothing else.
    for path in ("/api/v1/account", "/api/v1/auth/me", "/"):
        other = ticket(cluster, one.token)
        answers = [requests.get(cluster.url + path, params={"ticket": other}, timeout=30),
                   requests.get(cluster.url + path, headers={"authorization": f"Bearer {other}"}, timeout=30)]
        assert {answer.status_code for answer in answers} <= {401, 403}, path


def test_adv_33_pages_of_others(cluster, owners):
    one, _ = owners
    for origin in ("https://evil.example", "null", "http://127.0.0.1", f"http://127.0.0.1:{cluster.http_port + 1}", f"{cluster.url}.evil.example",
                   f"http://localhost:{cluster.http_port}", f"{cluster.url}/", "file://", f"http://evil.example@127.0.0.1:{cluster.http_port}", ""):
        refused(handshake(cluster, bearer=one.token, headers={"origin": origin}), 403, "foreign-origin")
        refused(handshake(cluster, headers={"origin": origin}, ticket=ticket(cluster, one.token)), 403, "foreign-origin")
    # What a page may not say for itself does not help.
    for headers in ({"x-forwarded-host": "evil.example"}, {"x-forwarded-proto": "https"}, {"referer": cluster.url}):
        refused(handshake(cluster, bearer=one.token, headers={"origin": "https://evil.example"} | headers), 403, "foreign-origin")
    with Listener(cluster, bearer=one.token, origin=cluster.url) as listener:
        assert listener.all() == []


def test_adv_33_nobody_hears_of_anothers(cluster, owners):
    """Whatever one does, and whatever the other asks for."""
    one, two = owners
    mine, name, own = one.s3(), f"mine-{uuid.uuid4().hex[:12]}", f"own-{uuid.uuid4().hex[:12]}"
    theirs = two.s3()
    mine.create_bucket(Bucket=name)
    keys = two.key(buckets=[name])["token"]
    with Listener(cluster, bearer=one.token) as owner, Listener(cluster, bearer=two.token) as stranger, Listener(cluster, bearer=keys) as by_key, \
            Listener(cluster, ticket=ticket(cluster, two.token), topics="file,bucket,node") as by_ticket:
        for listener in (stranger, by_ticket):
            listener.socket.send('{"type":"subscribe","topics":["file"],"owner":"%s"}' % one.id)
        mine.put_object(Bucket=name, Key="secret", Body=b"x" * 300_000)
        upload = mine.create_multipart_upload(Bucket=name, Key="parts")["UploadId"]
        mine.upload_part(Bucket=name, Key="parts", UploadId=upload, PartNumber=1, Body=b"x")
        mine.copy_object(Bucket=name, Key="copy", CopySource=f"{name}/secret")
        # What the other tries and is refused is told to nobody.
        for act in (lambda: theirs.put_object(Bucket=name, Key="evil", Body=b"x"), lambda: theirs.delete_object(Bucket=name, Key="secret"),
                    lambda: theirs.create_bucket(Bucket=name), lambda: theirs.delete_bucket(Bucket=name)):
            with pytest.raises(Exception, match="AccessDenied|BucketAlreadyExists"):
                act()
        mine.delete_objects(Bucket=name, Delete={"Objects": [{"Key": "secret"}, {"Key": "copy"}]})
        mine.abort_multipart_upload(Bucket=name, Key="parts", UploadId=upload)
        mine.delete_bucket(Bucket=name)
        # A name that was another's is one's own once it is.
        theirs.create_bucket(Bucket=name)
        theirs.create_bucket(Bucket=own)
        heard = [(event["type"], event["data"].get("key")) for event in owner.all() if event["data"].get("progress", 100) == 100]
        assert heard == [("file.created", "secret"), ("file.progress", "parts"), ("file.created", "copy"), ("file.deleted", "secret"),
                         ("file.deleted", "copy"), ("bucket.deleted", None)]
        wanted = told(("bucket.created", {"bucket": name}), ("bucket.created", {"bucket": own}))
        for listener in (stranger, by_ticket):
            assert [event for event in listener.all() if not event["type"].startswith("cluster.")] == wanted
        assert [event for event in by_key.all() if not event["type"].startswith("cluster.")] == wanted[:1]
    # Of nodes no more than id and status: none of the addresses that administrators see.
    assert all(event["data"].keys() <= {"node_id", "status"} for event in stranger.heard if event["type"].startswith("cluster."))


def test_adv_33_messages_have_64_kib(cluster, owners, stored):
    one, _ = owners
    with Watch(cluster, stored):
        for most in ("x" * 65_536, b"x" * 65_536, iter(["x" * 32_768] * 2)):
            with Listener(cluster, bearer=one.token) as fine:
                fine.socket.send(most)
                assert fine.all() == []
        for more in ("x" * 65_537, b"x" * 65_537, "ü" * 32_769, b"x" * 4 * MIB, iter(["x" * 32_768] * 3)):
            listener = Listener(cluster, bearer=one.token)
            try:
                listener.socket.send(more)
            except ConnectionClosed:
                pass
            assert listener.ended()[0] == 1009
        # Words about lengths are not believed: nothing is set aside for what does not come.
        for length in (65_537, 1 << 32, (1 << 63) - 1, (1 << 64) - 1):
            peer = RawPeer(cluster, one.token)
            peer.sock.sendall(peer.frame(BINARY, b"", length=length))
            assert peer.close_code() == 1009, length
            peer.close()


def test_adv_33_messages_without_an_end(cluster, owners, stored):
    """Fragments for ever, of something and of nothing, with control frames between them."""
    one, _ = owners
    with Watch(cluster, stored):
        before = memory(cluster.gateway)
        peer = RawPeer(cluster, one.token)
        piece, sent = peer.frame(CONTINUATION, b"x" * 1024, final=False), 0
        peer.send(TEXT, b"x" * 1024, final=False)
        try:
            while sent < 64 * MIB:
                peer.sock.sendall(piece)
                sent += 1024
            raise AssertionError("it was taken")
        except (BrokenPipeError, ConnectionError, TimeoutError):
            pass
        assert sent < 16 * MIB, "it was taken for far too long"
        peer.close()
        slowly = RawPeer(cluster, one.token)
        slowly.send(TEXT, b"x" * 60_000, final=False)
        slowly.send(PING, b"between")
        slowly.send(CONTINUATION, b"x" * 5_537, final=False)
        assert slowly.close_code() == 1009
        slowly.close()
        # Empty ones: no message ever, and no memory either. Others are served meanwhile.
        nothing = RawPeer(cluster, one.token)
        nothing.send(TEXT, b"", final=False)
        many = nothing.frame(CONTINUATION, b"", final=False) * 10_000
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            nothing.sock.sendall(many)
        nothing.close()
        assert memory(cluster.gateway) - before < GROWTH_MAX


def test_adv_33_frames_that_are_none(cluster, owners, stored):
    one, _ = owners
    with Watch(cluster, stored):
        for what, code, frames in [
            ("unmasked", 1002, [dict(opcode=TEXT, payload=b"x", masked=False)]), ("a reserved opcode", 1002, [dict(opcode=3, payload=b"x")]),
            ("a reserved control", 1002, [dict(opcode=11)]), ("a reserved bit", 1002, [dict(opcode=TEXT | 0x40, payload=b"x")]),
            ("a long ping", 1002, [dict(opcode=PING, payload=b"x" * 126)]), ("a ping in pieces", 1002, [dict(opcode=PING, final=False)]),
            ("the end of nothing", 1002, [dict(opcode=CONTINUATION, payload=b"x")]),
            ("a message within another", 1002, [dict(opcode=TEXT, payload=b"x", final=False), dict(opcode=TEXT, payload=b"y")]),
            ("text that is none", 1007, [dict(opcode=TEXT, payload=b"\xff\xfe")]),
        ]:
            peer = RawPeer(cluster, one.token)
            for frame in frames:
                peer.send(**frame)
            assert peer.close_code() == code, what
            peer.close()
        junk = RawPeer(cluster, one.token)
        junk.sock.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n" * 100)
        with pytest.raises((EOFError, ConnectionError)):
            while junk.receive():
                pass


def test_adv_33_one_user_takes_no_place_of_others(cluster, owners, stored):
    """Eleven sockets, by whatever credentials, and from wherever; half-open ones count as long as they are there."""
    one, two = owners
    open_now = [RawPeer(cluster, one.token, address=next_address()) for _ in range(10)]
    key = one.key()["token"]
    for answer in (handshake(cluster, bearer=one.token), handshake(cluster, ticket=ticket(cluster, one.token)), handshake(cluster, bearer=key)):
        refused(answer, 429, "too-many-sockets")
    with Listener(cluster, bearer=two.token) as other, Watch(cluster, stored):
        assert other.all() == []
    for peer in open_now:
        peer.close()
    wait_until("its places are free", lambda: Listener(cluster, bearer=one.token).socket.close() or True)
    assert coming_from(next_address()).get(f"{cluster.url}/health", timeout=30).ok
