"""Events over WebSockets, with a client that is not ours: what is told to whom, at which gateway, and how it ends."""

import re
import subprocess
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from websockets.exceptions import InvalidStatus

from certificates import Authority
from clients import bearer, new_bucket, s3_client
from cluster import ABSENT, Cluster, Standalone, psql
from conftest import run_server
from data import MIB
from people import Owner, Wallet, next_address
from process import Process, free_ports, wait_until
from raw import Signed
from sockets import PING, Listener, RawPeer, as_root, handshake, ticket, told

# So short that a test can wait for it, and long enough for a busy machine to answer within two of them.
PING_SECS = 3
APP = "https://app.example"


class OwnRedis(Process):
    """A Redis that may be killed: nobody else uses it."""

    def __init__(self, directory):
        directory.mkdir(parents=True, exist_ok=True)
        (self.port,) = free_ports(1)
        self.url = f"redis://127.0.0.1:{self.port}"
        args = ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--dir", str(directory)]
        super().__init__("redis", args, {}, directory / "redis.log")

    def start(self):
        super().start()
        ping = ["redis-cli", "-u", self.url, "ping"]
        self.wait_for("it answers", lambda: subprocess.run(ping, capture_output=True, timeout=60).stdout == b"PONG\n")
        return self


@pytest.fixture(scope="module")
def house(workspace):
    """Two gateways, `house` and `house.other`, with a Redis of their own."""
    redis = OwnRedis(workspace / "websocket-redis").start()
    env = {"REDIS_URL": redis.url, "WS_PING_SECS": "120", "WS_ORIGINS": APP, "CYXCLOUD_CONNECTIONS_PER_ADDRESS": "40"}
    cluster = Cluster(workspace / "websocket", nodes=2, gateway_env=env)
    cluster.redis = redis
    try:
        for cluster in run_server(cluster):
            cluster.other = cluster.another_gateway()
            yield cluster
    finally:
        redis.kill()


@pytest.fixture
def owner(house):
    return Owner(house)


def fresh(prefix: str = "b") -> str:
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def metric(server, line: str) -> float:
    text = requests.get(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=30).text
    found = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_what_is_done_is_told_in_order(house, owner):
    s3, name = owner.s3(), fresh()
    with Listener(house, ticket=ticket(house, owner.token)) as by_ticket, Listener(house, token=owner.token) as by_token, \
            Listener(house, bearer=owner.token) as by_header:
        s3.create_bucket(Bucket=name)
        s3.put_object(Bucket=name, Key="a b/ü.txt", Body=b"hello")
        s3.put_object(Bucket=name, Key="large", Body=b"x" * 300_000)
        s3.copy_object(Bucket=name, Key="copy", CopySource=f"{name}/large")
        upload = s3.create_multipart_upload(Bucket=name, Key="parts")["UploadId"]
        part = s3.upload_part(Bucket=name, Key="parts", UploadId=upload, PartNumber=3, Body=b"tail")
        s3.complete_multipart_upload(Bucket=name, Key="parts", UploadId=upload,
                                     MultipartUpload={"Parts": [{"PartNumber": 3, "ETag": part["ETag"]}]})
        s3.get_object(Bucket=name, Key="large")["Body"].read()
        s3.delete_object(Bucket=name, Key="none")
        s3.delete_object(Bucket=name, Key="copy")
        s3.delete_objects(Bucket=name, Delete={"Objects": [{"Key": key} for key in ("a b/ü.txt", "large", "none", "parts")]})
        s3.delete_bucket(Bucket=name)
        wanted = told(
            ("bucket.created", {"bucket": name}),
            ("file.created", {"bucket": name, "key": "a b/ü.txt", "size": 5}),
            ("file.created", {"bucket": name, "key": "large", "size": 300_000}),
            ("file.created", {"bucket": name, "key": "copy", "size": 300_000}),
            ("file.progress", {"bucket": name, "key": "parts", "progress": 100, "part": 3}),
            ("file.created", {"bucket": name, "key": "parts", "size": 4}),
            ("file.deleted", {"bucket": name, "key": "copy"}),
            ("file.deleted", {"bucket": name, "key": "a b/ü.txt"}),
            ("file.deleted", {"bucket": name, "key": "large"}),
            ("file.deleted", {"bucket": name, "key": "parts"}),
            ("bucket.deleted", {"bucket": name}),
        )
        for listener in (by_ticket, by_token, by_header):
            # A slow machine may tell of the progress of the large one.
            assert [event for event in listener.all() if event["data"].get("key") != "large" or event["type"] != "file.progress"] == wanted
        assert metric(house, 'cyxcloud_gateway_websocket_events_sent_total{topic="file"}') >= 27


class Hesitant:
    """A body that is sent at once to its half, then little by little until `seen` is something, then to its end."""

    def __init__(self, size: int, look):
        self.size, self.look, self.sent, self.seen = size, look, 0, None

    def __len__(self):
        return self.size

    def __iter__(self):
        raise NotImplementedError("it is read")

    def read(self, count: int = -1) -> bytes:
        if self.sent >= self.size // 2 and not self.seen:
            self.seen = self.look()
            assert self.sent < self.size - 64_000, "nothing was told of it"
        count = min(count, self.size - self.sent)
        self.sent += count
        return b"x" * count


def test_an_upload_that_takes_long_is_told_of(house, owner):
    s3, name, size = owner.s3(), fresh(), 8 * MIB
    s3.create_bucket(Bucket=name)
    with Listener(house, bearer=owner.token, topics="file") as here, Listener(house.other, bearer=owner.token, topics="file") as there:
        body = Hesitant(size, lambda: here.poll(0.1))
        put = requests.put(f"{house.url}/{name}/slow", data=body, timeout=60, headers={"authorization": f"Bearer {owner.token}"})
        seen = body.seen
        assert put.status_code == 200, put.text
        assert seen["type"] == "file.progress" and seen["data"].keys() == {"bucket", "key", "progress"}
        assert seen["data"] | {"progress": 0} == {"bucket": name, "key": "slow", "progress": 0} and 50 <= seen["data"]["progress"] <= 99
        for listener in (here, there):
            listener.until("file.created", bucket=name, key="slow", size=size)
            shown = [event["data"]["progress"] for event in listener.heard if event["type"] == "file.progress"]
            assert shown == sorted(set(shown)) and 1 <= len(shown) < 50, shown


def test_owners_hear_of_their_own_and_limited_keys_of_what_they_may_read(house, owner):
    other, name, second = Owner(house), fresh(), fresh()
    s3, theirs = owner.s3(), other.s3()
    s3.create_bucket(Bucket=name)
    narrow = owner.key(buckets=[name], prefixes=["in/"], read_only=True)["token"]
    with Listener(house, bearer=owner.token) as mine, Listener(house, bearer=other.token) as stranger, Listener(house, bearer=narrow) as limited, \
            Listener(house.other, bearer=other.token) as elsewhere:
        s3.create_bucket(Bucket=second)
        for bucket, key in ((name, "in/a"), (name, "out/b"), (second, "in/c")):
            s3.put_object(Bucket=bucket, Key=key, Body=b"x")
        theirs.create_bucket(Bucket=(own := fresh("own")))
        assert [event["data"].get("key") for event in mine.all()] == [None, "in/a", "out/b", "in/c"]
        assert limited.all() == told(("file.created", {"bucket": name, "key": "in/a", "size": 1}))
        assert stranger.all() == told(("bucket.created", {"bucket": own}))
        elsewhere.until("bucket.created", bucket=own)
        assert len(elsewhere.heard) == 1


def test_topics(house, owner):
    s3, name = owner.s3(), fresh()
    with Listener(house, bearer=owner.token, topics="bucket") as buckets, Listener(house, bearer=owner.token, topics="file,node") as files:
        s3.create_bucket(Bucket=name)
        s3.put_object(Bucket=name, Key="k", Body=b"x")
        assert [event["type"] for event in buckets.all()] == ["bucket.created"]
        assert [event["type"] for event in files.all()] == ["file.created"]
    for topics in ("files", "file,", "", "file,cluster", "*"):
        refused = handshake(house, bearer=owner.token, topics=topics)
        assert refused.status_code == 400 and refused.headers["content-type"] == "application/problem+json", refused.text
        assert all(topic in refused.json()["detail"] for topic in ("file", "bucket", "node")), refused.text


def test_nodes_come_and_go_and_only_administrators_hear_where_they_are(house, owner):
    with as_root(house) as root, Listener(house, bearer=owner.token, topics="node") as user, Listener(house.other, bearer=owner.token) as there:
        house.add_node()
        joined = root.until("cluster.node_joined")
        assert joined["address"] == f"http://127.0.0.1:{house.node_ports[-1][0]}" and joined["status"] == "online"
        for listener in (user, there):
            assert listener.until("cluster.node_joined") == {"node_id": joined["node_id"], "status": "online"}
        assert joined["node_id"] == psql(house.database_url, f"SELECT id FROM nodes WHERE label = '{house.nodes[-1].name}'")
        house.nodes[-1].kill()
        house.wait_silent(len(house.nodes) - 1, ABSENT, "offline")
        gone = {"node_id": joined["node_id"], "status": "offline"}
        for listener in (root, user, there):
            assert listener.until("cluster.node_status", node_id=joined["node_id"]) == gone
        psql(house.database_url, f"DELETE FROM nodes WHERE id = '{joined['node_id']}'")
        for listener in (root, user, there):
            assert listener.until("cluster.node_left") == {"node_id": joined["node_id"]}
            kinds = [event["type"] for event in listener.heard if event["data"].get("node_id") == joined["node_id"]]
            assert kinds == ["cluster.node_joined", "cluster.node_status", "cluster.node_left"]


def test_what_happens_at_one_gateway_is_told_at_the_other_and_redis_may_go(house, owner):
    key, name = owner.key(), fresh()
    here, there = owner.s3(key), owner.s3(key)
    with Listener(house, bearer=owner.token) as mine, Listener(house.other, bearer=owner.token) as elsewhere:
        here.create_bucket(Bucket=name)
        elsewhere.until("bucket.created", bucket=name)
        began = time.monotonic()
        for number in range(20):
            here.put_object(Bucket=name, Key=f"k{number}", Body=b"x")
        with_redis = time.monotonic() - began
        elsewhere.until("file.created", key="k19")
        assert [event["data"].get("key") for event in elsewhere.heard] == [None, *(f"k{number}" for number in range(20))]
        assert len(mine.all()) == 21, "each once, also where it happened"

        house.redis.kill()
        began = time.monotonic()
        for number in range(20):
            there.put_object(Bucket=name, Key=f"away{number}", Body=b"x")
        # Two seconds each is what Redis is waited for where it is needed.
        assert time.monotonic() - began < 20 + 3 * with_redis, "requests waited for Redis"
        assert [event["data"]["key"] for event in mine.all()] == [f"away{number}" for number in range(20)]
        # Places are counted here alone then.
        Listener(house, bearer=owner.token).socket.close()
        wait_until("what was not passed on is counted",
                   lambda: metric(house, 'cyxcloud_gateway_websocket_events_dropped_total{to="gateways"}') > 0)

        house.redis.start()
        heard = iter(range(1000))

        def told_again():
            here.put_object(Bucket=name, Key=f"back{next(heard)}", Body=b"x")
            return elsewhere.poll(0.5)

        wait_until("the other gateway hears again", told_again)
        # A ticket of one gateway opens a socket at the other; a minute has so many of them.
        listener = wait_until("both gateways have Redis again", lambda: Listener(house.other, ticket=ticket(house, owner.token)),
                              interval=2)
        assert listener.all() == []
        listener.socket.close()


def test_an_owner_has_so_many_sockets_and_an_address_so_many_connections(house, owner):
    address = next_address()
    # At whichever gateway.
    open_now = [Listener(house if number < 7 else house.other, bearer=owner.token) for number in range(10)]
    for gateway in (house, house.other):
        refused = handshake(gateway, bearer=owner.token)
        assert refused.status_code == 429 and refused.json()["type"] == "urn:cyxcloud:problem:too-many-sockets", refused.text
        assert refused.headers["retry-after"] == "30"
    with Listener(house, bearer=Owner(house).token):
        assert metric(house, "cyxcloud_gateway_websocket_connections") >= 8
    open_now.pop().socket.close()
    wait_until("a closed one makes room", lambda: open_now.append(Listener(house, bearer=owner.token)) or True)
    assert len({id(one) for one in open_now}) == 10
    for one in open_now:
        one.all()
        one.socket.close()
    wait_until("all are gone", lambda: metric(house, "cyxcloud_gateway_websocket_connections") == 0)

    # Sockets are connections of their address, of which there may be 40 here.
    crowd = []
    for _ in range(4):
        token = Owner(house).token
        crowd += [Listener(house, bearer=token, address=address) for _ in range(10)]
    stranger = Owner(house).token
    with pytest.raises((ConnectionError, EOFError, OSError)):
        RawPeer(house, stranger, address=address)
    RawPeer(house, stranger, address=next_address()).close()
    crowd.pop().socket.close()
    wait_until("its place is free", lambda: RawPeer(house, stranger, address=address).close() or True)
    for one in crowd:
        one.socket.close()


def test_a_socket_ends_with_its_credentials(house):
    wallet = Wallet(house)
    first, second = wallet.log_in(), wallet.log_in()
    by_ticket = ticket(house, first["access_token"])
    kept = Listener(house, token=second["access_token"])
    doomed = [Listener(house, token=first["access_token"]), Listener(house.other, token=first["access_token"]), Listener(house, ticket=by_ticket)]
    # A clock that is a minute behind may still use what has ended: 60 s are given to it, of which two are left. They may be over
    # before the socket is open.
    old = wait_until("a token opens a socket at its end",
                     lambda: Listener(house, token=bearer(house, exp=int(time.time()) - 57, iat=int(time.time()) - 600)))
    assert requests.post(f"{house.url}/api/v1/auth/logout", headers={"authorization": f"Bearer {first['access_token']}"}, timeout=30).status_code == 204
    for listener in (*doomed, old):
        assert listener.ended()[0] == 4001
    assert handshake(house, token=first["access_token"]).status_code == 401
    assert kept.all() == []
    # And with its user, or its key.
    me = requests.get(f"{house.url}/api/v1/auth/me", headers={"authorization": f"Bearer {second['access_token']}"}, timeout=30).json()
    owner = Owner(house)
    key = owner.key()
    by_key = Listener(house, bearer=key["token"])
    assert owner.api("DELETE", f"/api/v1/auth/api-keys/{key['id']}").status_code == 204
    assert by_key.ended()[0] == 4001
    suspend = Signed(house, "PATCH", f"/api/v1/admin/users/{me['id']}", body=b'{"status": "suspended"}').send()
    assert suspend.status_code == 200, suspend.text
    assert kept.ended()[0] == 4001


def test_who_says_nothing_is_cut_off_and_who_says_something_is_not(house, owner):
    asking = house.another_gateway({"WS_PING_SECS": str(PING_SECS)})
    silent, polite, chatty = RawPeer(asking, owner.token), RawPeer(asking, owner.token), Listener(asking, bearer=owner.token)
    # Never heard of again, which is too long after two pings; the other answers each.
    pings = 0
    while pings < 3:
        opcode, payload = polite.receive()
        if opcode == PING:
            pings += 1
            polite.send(10, payload)
    with pytest.raises((EOFError, ConnectionError)):
        while silent.receive():
            pass
    polite.send(1, b'{"type":"ping"}')
    while polite.receive() != (1, b'{"type":"pong"}'):
        pass
    for message in ("", "x", "{}", '{"type":"subscribe","topics":["node"]}', "[" * 1000, b"\x00\xff", "ü" * 10_000):
        chatty.socket.send(message)
    assert chatty.all() == []
    chatty.socket.close()
    polite.close()
    asking.process.kill()


def test_who_takes_nothing_is_cut_off_and_others_lose_nothing(house, owner):
    s3, name, many = owner.s3(), fresh(), 700
    s3.create_bucket(Bucket=name)
    wait_until("sockets of before are gone", lambda: metric(house, "cyxcloud_gateway_websocket_connections") == 0)
    stuck = RawPeer(house, owner.token, receive_buffer=4096)
    with Listener(house, bearer=owner.token, topics="file") as good:
        assert metric(house, "cyxcloud_gateway_websocket_connections") == 2
        # Each key is written as six bytes a letter: more than all buffers between us hold.
        keys = [f"{number:04}" + "\x01" * 1000 for number in range(many)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: s3.put_object(Bucket=name, Key=key, Body=b""), keys))
        heard = set()
        while len(heard) < many:
            heard.add(good.until("file.created", bucket=name)["key"])
        assert heard == set(keys)
        # After 10 s, and what a busy machine adds: well before the connection below would be given up, after a minute.
        wait_until("it is cut off", lambda: metric(house, "cyxcloud_gateway_websocket_connections") == 1, 50)
    stuck.close()


def test_a_gateway_that_stops_says_so(house, owner):
    last = house.another_gateway()
    listeners = [Listener(last, bearer=owner.token), Listener(last, bearer=Owner(house).token), as_root(last)]
    deaf = RawPeer(last, owner.token)
    assert last.process.stop() == 0
    for listener in listeners:
        assert listener.ended()[0] == 1001
    assert deaf.close_code() == 1001
    # Which it would say of who kept it from ending.
    assert "cut off" not in last.process.output()


def test_over_tls_and_from_pages(workspace):
    """A standalone server with a certificate; its own pages and those of nobody else."""
    authority = Authority(workspace / "websocket-authority")
    pair = authority.issue("gateway")
    server = Standalone(workspace / "websocket-standalone", nodes=2, args=pair.args(), ca=authority.cert)
    for server in run_server(server):
        with Listener(server, headers={}, **root_ticket(server)) as root:
            name = new_bucket(s3_client(server))
            assert root.all() == told(("bucket.created", {"bucket": name}))
        for origin, status in ((server.url, 101), ("https://evil.example", 403), ("null", 403)):
            if status == 101:
                Listener(server, origin=origin, **root_ticket(server)).socket.close()
                continue
            with pytest.raises(InvalidStatus) as refused:
                Listener(server, origin=origin, **root_ticket(server))
            assert refused.value.response.status_code == status
        # It says goodbye, too.
        root = Listener(server, **root_ticket(server))
        assert server.process.stop() == 0
        assert root.ended()[0] == 1001


def root_ticket(server) -> dict[str, str]:
    signed = Signed(server, "POST", "/api/v1/ws-ticket")
    answer = requests.post(signed.url, headers=signed.headers, timeout=30, verify=str(server.ca))
    assert answer.status_code == 200, answer.text
    return {"ticket": answer.json()["ticket"]}


def test_pages_that_the_operator_named(house, owner):
    Listener(house, bearer=owner.token, origin=APP).socket.close()
    Listener(house, bearer=owner.token, origin=house.url).socket.close()
    assert handshake(house, bearer=owner.token, headers={"origin": "https://other.example"}).status_code == 403
