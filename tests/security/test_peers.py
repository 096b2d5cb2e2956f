"""Attacks by nodes, on nodes, and by way of what nodes say of themselves."""

import contextlib
import os
import re
import secrets
import socket
import threading
import time
import uuid
from urllib.parse import urlsplit

import pytest
import requests
from solders.keypair import Keypair

import http2
import rpc
from clients import bearer, new_bucket, s3_client
from cluster import free_redis_database, give_redis_database_back, psql
from data import MIB, base58, make_bytes
from people import next_address, owner_of_root
from process import PATIENCE, Process, binary, free_ports, wait_until

SECRETS = {"JWT_SECRET": "0123456789abcdef" * 4, "CYXCLOUD_MASTER_KEY": "00112233445566778899aabbccddeeff" * 2}


def gateway(workspace, name: str, *args: str):
    """A gateway by itself, whose nodes would be whoever registers."""
    http, grpc = free_ports(2)
    command = [binary("cyxcloud-gateway"), "--memory-only", "--http-addr", f"127.0.0.1:{http}", "--grpc-addr", f"127.0.0.1:{grpc}", *args]
    process = Process(name, command, SECRETS, workspace / f"{name}.log").start()
    process.url, process.grpc_port = f"http://127.0.0.1:{http}", grpc
    process.wait_for("/health answers", lambda: requests.get(process.url + "/health", timeout=30).ok)
    yield process
    assert "panicked" not in process.output()
    process.stop()


@pytest.fixture(scope="module")
def closed(workspace):
    """It lets nodes be at public addresses only."""
    yield from gateway(workspace, "closed")


@pytest.fixture(scope="module")
def open_(workspace):
    """It lets nodes be on this machine."""
    redis_url = free_redis_database()
    yield from gateway(workspace, "open", "--node-networks", "127.0.0.0/8", "--redis-url", redis_url)
    give_redis_database_back(redis_url)


@pytest.fixture
def fresh(workspace):
    """One that nobody has asked yet."""
    yield from gateway(workspace, "fresh")


class Machine:
    """Who would be a node: an identity, and where it says it is reached."""

    def __init__(self, key: Keypair | None = None):
        self.key = key or Keypair()
        self.public = bytes(self.key.pubkey())
        self.incarnation = secrets.token_bytes(16)

    def request(self, host: str, grpc: int, metrics: int, **changes) -> bytes:
        """As it should be, but for `changes` of fields by number; they are not signed."""
        fields = {
            "_1": self.public, "_2": base58(bytes.fromhex("002408011220") + self.public), "_3": "label", "_4": "name", "_5": host,
            "_6": grpc, "_7": metrics, "_8": 10**12, "_9": 0, "_10": "", "_11": "", "_12": "0.1.0", "_13": 1, "_14": 1, "_15": self.incarnation,
            "_16": int(time.time() * 1000), "_18": 0, "_19": 0, "_20": 0,
        }
        signed = b"cyx/register/v2"
        for value in fields.values():
            if isinstance(value, int):
                signed += value.to_bytes(8, "big")
            else:
                raw = value.encode() if isinstance(value, str) else value
                signed += len(raw).to_bytes(8, "big") + raw
        return rpc.message(**(fields | {"_17": bytes(self.key.sign_message(signed))} | changes))

    def register(self, gateway, *address, **changes) -> tuple[int, str]:
        status, said, _ = rpc.call(gateway.grpc_port, f"{rpc.NODE}/RegisterNode", self.request(*address, **changes))
        return status, said


class Healthy:
    """Answers every request on a port in the same way, and counts who comes."""

    def __init__(self, answer: bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nOK"):
        self.listener, self.answer, self.visits = socket.create_server(("127.0.0.1", 0)), answer, 0
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            with peer:
                self.visits += 1
                peer.settimeout(5)
                try:
                    peer.recv(4096)
                    peer.sendall(self.answer)
                except OSError:
                    pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()


def test_adv_01_no_constant_opens_a_node(cluster):
    """No metadata that somebody could know makes a node or a gateway take a call for one of ours."""
    node = cluster.node_ports[0][0]
    known = ("authorization: rustfs rpc", "authorization: Bearer cyxcloud", "x-internal-token: cyxcloud", "x-cyx-internal-node: 1",
             "authorization: Bearer minioadmin", "x-api-key: cyxcloud", "authorization: cyxcloud rpc")
    for method in ("Shutdown", "Admin/Reset", "DeleteAll"):
        for header in known:
            assert rpc.call(node, f"{rpc.CHUNKS}/{method}", headers=(header,))[0] in (rpc.UNIMPLEMENTED, rpc.UNAUTHENTICATED)
    beat = rpc.message(_1=uuid.uuid4().bytes, _2=1, _3=1, _9=b"\1" * 16)
    for header in known:
        assert rpc.call(cluster.grpc_port, f"{rpc.NODE}/Heartbeat", beat, headers=(header,))[0] == rpc.UNAUTHENTICATED
        for method in ("ListChunks", "HasChunk", "DeleteChunk", "GetChunk", "StoreChunk"):
            assert rpc.call(node, f"{rpc.CHUNKS}/{method}", rpc.message(_1=b"\0" * 32), headers=(header,))[0] == rpc.UNAUTHENTICATED
        # Objects are for tokens of people, whatever else is said.
        ask = rpc.message(_1="bucket", _2="key")
        assert rpc.call(cluster.grpc_port, f"{rpc.DATA}/GetDatasetInfo", ask, headers=(header,))[0] != rpc.OK
    assert rpc.call(node, "grpc.health.v1.Health/Check")[0] == rpc.OK


ADDRESSES = [
    "127.0.0.1", "127.1", "0.0.0.0", "0", "localhost", "::1", "[::1]", "::", "::ffff:127.0.0.1", "::ffff:7f00:1", "10.0.0.1", "172.16.0.1",
    "192.168.1.1", "100.64.0.1", "169.254.169.254", "100.100.100.200", "fd00:ec2::254", "fe80::1", "fc00::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001", "224.0.0.1", "255.255.255.255", "240.0.0.1",
    "192.0.2.1", "198.18.0.1", "2001:db8::1", "::127.0.0.1", "ff02::1",
]


def test_adv_25_addresses_that_nobody_should_dial(closed, open_):
    """What a node says of where it is, is a stranger's word: judged before anything is sent there."""
    with Healthy() as inside:
        for address in ADDRESSES:
            status, said = Machine().register(closed, address, 50051, inside.port)
            assert status in (rpc.PERMISSION_DENIED, rpc.INVALID_ARGUMENT), (address, status, said)
        for name in ("", "a b", "http://127.0.0.1/", "127.0.0.1:80", "user@127.0.0.1", "127.0.0.1/x", "no.such.host.invalid", "x" * 256, "a\r\nb", "%00"):
            status, said = Machine().register(closed, name, 50051, inside.port)
            assert status in (rpc.PERMISSION_DENIED, rpc.INVALID_ARGUMENT), (name, status, said)
        assert inside.visits == 0, "the gateway went where it was sent"
        # Where the operator says so, nodes may be here; and it is called back.
        assert Machine().register(open_, "127.0.0.1", *free_ports(1), inside.port) == (rpc.OK, "")
        assert inside.visits == 1
        for address in ("::1", "10.0.0.1", "169.254.169.254", "64:ff9b::7f00:1", "0.0.0.0"):
            # Anything else would say that it was called.
            status, said = Machine().register(open_, address, 50051, inside.port)
            assert status == rpc.PERMISSION_DENIED, (address, status, said)
        # Never our own servers; never where an answer sends on.
        redis = urlsplit(os.environ["CYXCLOUD_TEST_REDIS"]).port
        for ports in ((50051, redis), (redis, inside.port)):
            assert Machine().register(open_, "127.0.0.1", *ports)[0] == rpc.PERMISSION_DENIED
        redirect = b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:%d/health\r\ncontent-length: 0\r\n\r\n" % inside.port
        before = inside.visits
        for answer in (redirect, b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nNOK", b"HTTP/1.1 200 OK\r\n\r\n" + b"OK" * 10_000, b"+OK\r\n"):
            with Healthy(answer) as other:
                status, said = Machine().register(open_, "127.0.0.1", 50051, other.port)
                assert status == rpc.FAILED_PRECONDITION and other.visits == 1, (answer[:40], status, said)
        assert inside.visits == before


def test_adv_26_another_nodes_identity(open_):
    """A node is its key: without it nobody registers under it, however much of it he knows, nor where it is."""
    victim, thief = Machine(), Machine()
    port, another = free_ports(2)
    with Healthy() as at:
        where = ("127.0.0.1", port, at.port)
        assert victim.register(open_, *where)[0] == rpc.OK
        visits = at.visits
        peer_id = base58(bytes.fromhex("002408011220") + victim.public)
        for what, changes in {
            "the victim's key": {"_1": victim.public, "_2": peer_id}, "the victim's peer id": {"_2": peer_id}, "no signature": {"_17": b""},
            "no key": {"_1": b""}, "zeros": {"_17": bytes(64)}, "another port": {"_6": 50052}, "another host": {"_5": "localhost"},
            "another life": {"_15": b"\2" * 16}, "an old signature": {"_16": 1}, "a later one": {"_16": int(time.time() * 1000) + 1},
            "more space": {"_8": 10**13}, "less space": {"_8": 10**10}, "another use": {"_9": 1}, "another region": {"_10": "r"},
            "another operator": {"_11": "o"}, "another label": {"_3": "l"}, "another name": {"_4": "n"}, "another version": {"_12": "9"},
            "another format": {"_14": 2}, "a reserve": {"_18": 1, "_19": 1}, "a token": {"_30": "t"},
            "a small key": {"_1": b"\1" + bytes(31), "_2": base58(bytes.fromhex("002408011220") + b"\1" + bytes(31)), "_17": b"\1" + bytes(63)},
        }.items():
            status, said = thief.register(open_, *where, **changes)
            assert status in (rpc.PERMISSION_DENIED, rpc.INVALID_ARGUMENT), (what, status, said)
        assert at.visits == visits, "proof is asked for before anybody is called"
        status, said = thief.register(open_, *where)
        assert status == rpc.ALREADY_EXISTS and "ADVERTISE_ADDR" in said, (status, said)
        assert thief.register(open_, "127.0.0.1", another, at.port)[0] == rpc.OK
        assert thief.register(open_, *where)[0] == rpc.ALREADY_EXISTS, "nor does a node move there"
        assert victim.register(open_, *where)[0] == rpc.OK, "the victim is who it was, and where"


def test_adv_26_a_registration_is_good_once(open_):
    """Whoever saw one sends it again in vain, be it that it was refused at first: it would move the node to where he is."""
    with Healthy() as at:
        for host in ("127.0.0.1", ""):
            seen = Machine().request(host, *free_ports(1), at.port)
            visits = at.visits
            status, said, _ = rpc.call(open_.grpc_port, f"{rpc.NODE}/RegisterNode", seen)
            assert (status, at.visits) == (rpc.OK, visits + 1), said
            for _ in range(3):
                status, said, answer = rpc.call(open_.grpc_port, f"{rpc.NODE}/RegisterNode", seen)
                assert (status, answer, at.visits) == (rpc.PERMISSION_DENIED, b"", visits + 1) and "anew" in said, said
        machine, (grpc, port) = Machine(), free_ports(2)
        early = machine.request("127.0.0.1", grpc, port)
        assert rpc.call(open_.grpc_port, f"{rpc.NODE}/RegisterNode", early)[0] == rpc.FAILED_PRECONDITION
        assert rpc.call(open_.grpc_port, f"{rpc.NODE}/RegisterNode", early)[0] == rpc.PERMISSION_DENIED
        assert machine.register(open_, "127.0.0.1", grpc, at.port)[0] == rpc.OK, "signed anew it is another one"


def test_adv_25_what_was_seen_there_is_not_told(open_):
    """Who registers learns of an address that it does not do, and not what is there."""
    told = set()
    answers = (b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 6\r\n\r\nsecret", b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret", b"+OK secret\r\n")
    for answer in answers:
        with Healthy(answer) as inside:
            status, said = Machine().register(open_, "127.0.0.1", 50051, inside.port)
            assert status == rpc.FAILED_PRECONDITION and inside.visits == 1 and "secret" not in said, said
            told.add(said)
    (closed_port,) = free_ports(1)
    told.add(Machine().register(open_, "127.0.0.1", 50051, closed_port)[1])
    assert len(told) == 1, told


def test_adv_25_what_a_name_leads_to_is_not_told(closed):
    """The gateway's resolver may know names that nobody outside does: it is not asked for them by way of a registration."""
    told = {Machine().register(closed, name, 50051, 9090) for name in ("localhost", "127.1", "2130706433", "no.such.host.invalid")}
    assert len(told) == 1 and "127.0.0.1" not in str(told), told
    # An address is no secret to whoever gave it.
    assert "private" in Machine().register(closed, "10.0.0.1", 50051, 9090)[1]


def test_adv_30_strangers_register_so_often(fresh):
    """Something may be dialled for each try: an address has so many in a minute."""
    tries = [Machine().register(fresh, "10.0.0.1", 50051, 9090) for _ in range(70)]
    refused = [said for status, said in tries if status == rpc.RESOURCE_EXHAUSTED]
    assert tries[0][0] == rpc.PERMISSION_DENIED and refused and "wait" in refused[0], tries[-1]


# A node that failed an audit is given nothing until it has proven itself, or an administrator takes it back.
TAKE_BACK = "UPDATE nodes SET quarantined = false, audit_alpha = NULL, audit_beta = NULL WHERE label = 'node-1'"


@pytest.mark.parametrize("lie", ["wrong-bytes", "short", "long", "garbled", "audits-only"])
def test_adv_27_a_node_that_hands_over_other_bytes(cluster, lie):
    """Every byte is held against what it should be: readers get the truth, and the liar is noticed."""
    s3 = s3_client(cluster)
    bucket = new_bucket(s3, "liar")
    sizes = enumerate([70_000, 300_000, 1_000_000, 5_000_000] * 2)
    bodies = {f"k{number}": make_bytes(size, f"{bucket}{number}") for number, size in sizes}
    # Of these objects what a read of all of them asks this node for first.
    held = f"""SELECT count(*) FROM chunk_locations l JOIN nodes n ON n.id = l.node_id AND n.label = 'node-1'
        WHERE l.shard_index < 10 AND l.segment_id IN (
            SELECT e.segment_id FROM file_segments e JOIN files f ON f.id = e.file_id WHERE f.bucket = '{bucket}'
        ) AND l.status"""
    failed = "SELECT audits_failed FROM nodes WHERE label = 'node-1'"

    def given() -> bool:
        # Again and again: an audit of before may end late.
        psql(cluster.database_url, TAKE_BACK)
        for key, body in bodies.items():
            s3.put_object(Bucket=bucket, Key=key, Body=body)
        return psql(cluster.database_url, f"{held} = 'stored'") != "0"

    wait_until("the liar is given something to lie about", given, 60)
    node = cluster.nodes[0]
    try:
        node.kill()
        node.env["CYXCLOUD_FAULT_LIE"] = lie
        cluster.restart_node(0)
        before = int(psql(cluster.database_url, failed))

        def noticed() -> bool:
            for key, body in bodies.items():
                got = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
                if got != body:
                    pytest.fail(f"{key} was read wrong while a node answered {lie}")
            # What is marked is soon made anew elsewhere; that the node was audited for it, and failed, stays.
            marked = psql(cluster.database_url, f"{held} <> 'stored'") != "0"
            return marked or int(psql(cluster.database_url, failed)) > before

        wait_until(f"a node that answers {lie} is noticed", noticed, 120)
    finally:
        node.kill()
        del node.env["CYXCLOUD_FAULT_LIE"]
        cluster.restart_node(0)
        psql(cluster.database_url, TAKE_BACK)


METHODS = [(f"{rpc.CHUNKS}/{name}", True) for name in ("StoreChunk", "GetChunk", "DeleteChunk", "RestoreChunk", "HasChunk", "ListChunks")]
METHODS += [(f"{rpc.CHUNK_DATA}/{name}", True) for name in ("ReplicateChunk", "VerifyChunk")]
METHODS += [(f"{rpc.NODE}/{name}", False) for name in ("RegisterNode", "Heartbeat", "GetNodeInfo", "ListNodes")]
METHODS += [(f"{rpc.DATA}/{name}", False) for name in ("StreamData", "GetDatasetInfo")]


# What a node says to who has no token for what he asks, if not that it makes no sense.
STRANGER = (rpc.INVALID_ARGUMENT, rpc.UNAUTHENTICATED)


def nonsense() -> list[bytes]:
    """Messages that decode to nothing sensible, and some that do not decode."""
    huge, most = b"\xff" * 10, (1 << 64) - 1
    return [
        b"", b"\0", b"\xff" * 64, rpc.message(_1=b"", _2=b""), rpc.message(_1=b"x" * 31), rpc.message(_1=b"x" * 33, _2=b"y"),
        rpc.message(_1=b"\0" * 32, _2=rpc.message(_1=most, _2=most)), rpc.message(_1=b"\0" * 32, _2=rpc.message(_1=b"\0" * 16, _2=most)),
        rpc.message(_1=b"\0" * 32, _2=b"x", _3=b"y" * 257), b"\x0a" + huge, b"\x0a\xff\xff\xff\xff\x0f", b"\x0b" * 200, b"\x0a\x20" + b"\0" * 32 + b"\x12\x80",
        rpc.message(_1=b"\0" * 32, _2=most, _3=most, _4=most), rpc.message(**{f"_{n}": most for n in range(1, 20)}),
        rpc.message(**{f"_{n}": b"\xff\xfe" * 40 for n in range(1, 20)}), rpc.message(_1="x" * 100_000), b"\x12\0" * 50_000,
    ]


def test_adv_28_no_message_ends_a_server(cluster):
    node = cluster.node_ports[1][0]
    held = psql(cluster.database_url, "SELECT encode(l.chunk_id, 'hex') FROM chunk_locations l JOIN nodes n ON n.id = l.node_id "
                                      "WHERE n.label = 'node-2' AND l.status = 'stored' LIMIT 1")
    assert held, "a node holds something"
    pids = [process.pid for process in cluster.processes]
    for method, of_node in METHODS:
        port = node if of_node else cluster.grpc_port
        for body in nonsense():
            status, _, _ = rpc.call(port, method, body)
            # INTERNAL is what a message that does not decode is answered with; UNKNOWN would be a handler that broke.
            assert status != 2, (method, body[:40], status)
        for raw in (b"\1\0\0\0\1x", b"\0\xff\xff\xff\xff", b"\0\0\0\0\5x", b"\7", b"\0" * 1000):
            status, _, _ = rpc.call(port, method, raw=raw)
            assert status != 2, (method, raw[:20], status)
    # Slices beyond everything, of a chunk that is there.
    chunk, most = bytes.fromhex(held), (1 << 64) - 1
    for offset, length in ((0, 0), (0, most), (most, 1), (most, most), (1 << 40, 1), (0, 1 << 40)):
        slice_ = rpc.message(_1=offset, _2=length)
        assert rpc.call(node, f"{rpc.CHUNKS}/GetChunk", rpc.message(_1=chunk, _2=slice_))[0] in STRANGER, (offset, length)
    many = b"".join(rpc.message(_2=rpc.message(_1=0, _2=1)) for _ in range(5000))
    assert rpc.call(node, f"{rpc.CHUNKS}/GetChunk", rpc.message(_1=chunk) + many)[0] in STRANGER
    # Bytes that are not what their id says are not stored.
    lie = rpc.message(_1=secrets.token_bytes(32), _2=b"evil" * 10)
    assert rpc.call(node, f"{rpc.CHUNKS}/StoreChunk", lie)[0] in STRANGER
    # All are there still, and answer.
    for port in (node, cluster.grpc_port):
        assert rpc.call(port, "grpc.health.v1.Health/Check")[0] == rpc.OK
    assert [process.pid for process in cluster.processes if process.running()] == pids
    token = (f"authorization: Bearer {bearer(cluster, sub=owner_of_root(cluster))}",)
    assert rpc.call(cluster.grpc_port, f"{rpc.NODE}/ListNodes", headers=token)[0] == rpc.OK
    cluster.check_logs()


# Who is to be cut off after ten seconds may take so much longer on a busy machine; after half a minute a connection that answers no
# pings is closed for that.
CUT_WITHIN = 28


def begin(port: int, address: str, method: str, times: int = 1, body: bytes | None = None) -> socket.socket:
    """A connection to a node, from this address of the machine, on which a method is called so many times; without a body these are
    the heads and nothing more."""
    head = http2.request("POST", f"/{rpc.CHUNKS}/{method}", f"127.0.0.1:{port}", ("content-type", "application/grpc"), ("te", "trailers"))
    frames = [http2.PREFACE, http2.frame(http2.SETTINGS, 0, 0)]
    for stream in range(1, 2 * times, 2):
        frames.append(http2.frame(http2.HEADERS, http2.END_HEADERS, stream, head))
        if body is not None:
            frames.append(http2.frame(http2.DATA, http2.END_STREAM, stream, rpc.framed(body)))
    sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE, source_address=(address, 0))
    sock.sendall(b"".join(frames))
    return sock


def answered(sock: socket.socket, seconds: float) -> bool:
    """Whether some stream is answered before the time is over, and before the connection is."""
    deadline, data = time.monotonic() + seconds, b""
    while (left := deadline - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            more = sock.recv(1 << 16)
        except OSError:
            return False
        if not more:
            return False
        data += more
        while len(data) >= 9 and len(data) >= (size := 9 + int.from_bytes(data[:3], "big")):
            if data[3] == http2.HEADERS:
                return True
            data = data[size:]
    return False


def test_adv_30_stores_that_never_come(cluster, s3, bucket):
    """Heads of stores on every node, by whoever has no token: what a gateway stores and reads goes on beside them."""
    ports, body, held = [grpc for grpc, *_ in cluster.node_ports], make_bytes(9 * MIB, "good"), []

    def counted(node: int, name: str) -> float:
        text = requests.get(f"http://127.0.0.1:{cluster.node_ports[node][1]}/metrics", timeout=30).text
        return float(re.search(rf"^cyxcloud_node_{name}_total (\S+)$", text, re.M).group(1))

    def served(key: str):
        began = time.monotonic()
        s3.put_object(Bucket=bucket, Key=key, Body=body)
        assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == body
        assert time.monotonic() - began < PATIENCE

    def let_go(socks: list[socket.socket]):
        while socks:
            socks.pop().close()

    # However idle the cluster was: its nodes have seen a token of the gateway.
    served("before")
    refused = [counted(node, "strangers_refused") for node in range(len(ports))]
    try:
        one = next_address()
        held += [begin(port, one, "StoreChunk", 200) for port in ports]
        for node, before in enumerate(refused):
            wait_until("what is too much is refused", lambda: counted(node, "strangers_refused") > before)
        served("beside one")
        # Somebody else whom nobody knows is asked for a token, as ever.
        before, other = counted(0, "tokens_refused"), begin(ports[0], next_address(), "HasChunk", body=rpc.message(_1=bytes(32)))
        held.append(other)
        assert answered(other, CUT_WITHIN) and counted(0, "tokens_refused") > before
        let_go(held)
        # And who begins a store is told that it did not come.
        silent = begin(ports[0], next_address(), "StoreChunk")
        held.append(silent)
        assert answered(silent, CUT_WITHIN)
    finally:
        let_go(held)

    crowd, stop = [next_address() for _ in range(9)], threading.Event()

    def flood():
        while not stop.is_set():
            fresh = []
            for port in ports:
                for address in crowd:
                    with contextlib.suppress(OSError):
                        fresh.append(begin(port, address, "StoreChunk", 60))
            let_go(held)
            held.extend(fresh)
            stop.wait(8)

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        wait_until("they have begun", lambda: held)
        deadline, number = time.monotonic() + 20, 0
        while time.monotonic() < deadline:
            served(f"beside many {number}")
            number += 1
    finally:
        stop.set()
        flooding.join()
        let_go(held)
    cluster.check_logs()
