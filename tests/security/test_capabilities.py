"""Tokens that open nodes: made here by their format, presented to nodes that a gateway of these tests told its keys.

The gateway speaks gRPC by Google's library and signs with a Solana library's Ed25519: nothing of ours is on this side.
"""

import secrets
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from blake3 import blake3
from solders.keypair import Keypair

import rpc
from process import Process, binary, free_ports, wait_until

STORE, GET, HAS, DELETE, RESTORE, LIST, REPLICATE, VERIFY = (1 << bit for bit in range(8))
SESSION, CHUNK = 1, 2
NOBODY = bytes(32)
# Nothing listens there: a copy that passes the door fails behind it.
DEAD_END = "http://127.0.0.1:9"


def now() -> int:
    return int(time.time() * 1000)


class Gateway(grpc.GenericRpcHandler):
    """Registers whoever comes, and tells them whose tokens they must see."""

    def __init__(self):
        self.key = Keypair()
        # Public keys of nodes by their labels.
        self.nodes: dict[str, bytes] = {}
        self.server = grpc.server(ThreadPoolExecutor(4), handlers=[self])
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def service(self, details):
        method = {"RegisterNode": self.register, "Heartbeat": self.heartbeat}.get(details.method.rsplit("/", 1)[1])
        return method and grpc.unary_unary_rpc_method_handler(method)

    def register(self, request: bytes, _) -> bytes:
        said = rpc.fields(request)
        self.nodes[said[3][0].decode()] = said[1][0]
        return rpc.message(_1=secrets.token_bytes(16), _3=1 << 40, _4=1000, _5="online", _6="unused", _7=1, _9=now(),
                           _10=bytes(self.key.pubkey()), _11=1)

    def heartbeat(self, _request: bytes, _) -> bytes:
        return rpc.message(_1="online", _3=now(), _5=bytes(self.key.pubkey()), _6=1)

    def session(self, node: bytes, operations: int, holder: bytes = NOBODY, issued: int | None = None, lifetime: float = 600) -> bytes:
        return self.signed(SESSION, node, operations, holder, issued, lifetime)

    def chunk(self, node: bytes, operation: int, chunk: bytes, holder: Keypair, issued: int | None = None, lifetime: float = 600) -> bytes:
        """As its holder presents it."""
        token = self.signed(CHUNK, node, operation, bytes(holder.pubkey()), issued, lifetime, chunk)
        return token + bytes(holder.sign_message(b"cyx/holder/v1" + token))

    def signed(self, kind, node, operations, holder, issued, lifetime, chunk=b"") -> bytes:
        issued = now() if issued is None else issued
        key_id = blake3(bytes(self.key.pubkey())).digest(8)
        token = (bytes([kind]) + key_id + secrets.token_bytes(16) + node + operations.to_bytes(2, "big") + holder
                 + issued.to_bytes(8, "big") + (issued + int(lifetime * 1000)).to_bytes(8, "big") + chunk)
        domain = {SESSION: b"cyx/session/v1", CHUNK: b"cyx/chunk/v1"}[kind]
        return token + bytes(self.key.sign_message(domain + token))


class Node:
    """A node of that gateway, and what it is asked."""

    def __init__(self, gateway: Gateway, directory, name: str):
        self.gateway, self.name = gateway, name
        self.port, metrics, libp2p = free_ports(3)
        self.process = Process(name, [binary("cyxcloud-node")], {
            "NODE_ID": name, "GRPC_HOST": "127.0.0.1", "GRPC_PORT": str(self.port), "METRICS_HOST": "127.0.0.1",
            "METRICS_PORT": str(metrics), "LIBP2P_PORT": str(libp2p), "STORAGE_PATH": str(directory / name),
            "STORAGE_CAPACITY_GB": "20", "STORAGE_RESERVED_BYTES": "0", "CENTRAL_SERVER_ADDR": f"http://127.0.0.1:{gateway.port}",
            "ADVERTISE_ADDR": "127.0.0.1", "NODE_NETWORKS": "127.0.0.0/8", "NODE_LOOPBACK": "true", "HEARTBEAT_INTERVAL_SECS": "1",
        }, directory / f"{name}.log")

    def start(self) -> "Node":
        self.process.start()
        self.process.wait_for("it takes tokens", lambda: self.has(self.token(HAS)) == rpc.OK)
        return self

    @property
    def key(self) -> bytes:
        return self.gateway.nodes[self.name]

    def token(self, operations: int, **how) -> bytes:
        return self.gateway.session(self.key, operations, **how)

    def calls(self, chunk: bytes, body: bytes, token: bytes) -> dict[int, tuple[str, bytes]]:
        """Every call by its operation: each would be in order but for the token."""
        generation = rpc.message(_1=b"\1" * 16, _2=1)
        return {
            STORE: (f"{rpc.CHUNKS}/StoreChunk", rpc.message(_1=chunk, _2=body, _4=token)),
            GET: (f"{rpc.CHUNKS}/GetChunk", rpc.message(_1=chunk, _3=token)),
            HAS: (f"{rpc.CHUNKS}/HasChunk", rpc.message(_1=chunk, _2=token)),
            DELETE: (f"{rpc.CHUNKS}/DeleteChunk", rpc.message(_1=chunk, _2=generation, _3=token)),
            RESTORE: (f"{rpc.CHUNKS}/RestoreChunk", rpc.message(_1=chunk, _3=token)),
            LIST: (f"{rpc.CHUNKS}/ListChunks", rpc.message(_4=token)),
            REPLICATE: (f"{rpc.CHUNK_DATA}/ReplicateChunk", rpc.message(_1=chunk, _2=DEAD_END, _4=token, _5=b"for another")),
            VERIFY: (f"{rpc.CHUNK_DATA}/VerifyChunk", rpc.message(_1=chunk, _2=token)),
        }

    def ask(self, operation: int, chunk: bytes, body: bytes, token: bytes) -> int:
        return rpc.call(self.port, *self.calls(chunk, body, token)[operation])[0]

    def store(self, body: bytes, token: bytes) -> int:
        return self.ask(STORE, blake3(body).digest(), body, token)

    def has(self, token: bytes, chunk: bytes = bytes(32)) -> int:
        return self.ask(HAS, chunk, b"", token)


REFUSED = (rpc.UNAUTHENTICATED, rpc.PERMISSION_DENIED)


@pytest.fixture(scope="module")
def pair(workspace):
    directory = workspace / "capabilities"
    directory.mkdir()
    gateway = Gateway()
    nodes = [Node(gateway, directory, name).start() for name in ("here", "there")]
    yield nodes
    for node in nodes:
        assert node.process.stop() == 0
        assert "panicked" not in node.process.output()
    gateway.server.stop(None)


@pytest.mark.parametrize("operation", [STORE, GET, HAS, DELETE, RESTORE, LIST, REPLICATE, VERIFY])
def test_adv_03_a_session_for_one_operation_opens_no_other(pair, operation):
    here, there = pair
    body = secrets.token_bytes(3000)
    chunk, token = blake3(body).digest(), here.token(operation)
    for called in here.calls(chunk, body, token):
        status = here.ask(called, chunk, body, token)
        assert (status in REFUSED) == (called != operation), (called, status)
    # Nor another node, nor whoever has it where it was made for somebody.
    assert there.ask(operation, chunk, body, token) in REFUSED
    assert here.ask(operation, chunk, body, here.token(operation, holder=bytes(Keypair().pubkey()))) in REFUSED


def test_adv_03_a_captured_chunk_token_opens_nothing_else(pair):
    """Who sees the token of a store gets nothing read, deleted or stored by it but what it was made for."""
    here, there = pair
    gateway, holder, thief = here.gateway, Keypair(), Keypair()
    body, other = secrets.token_bytes(3000), secrets.token_bytes(3000)
    chunk = blake3(body).digest()
    token = gateway.chunk(here.key, STORE, chunk, holder)
    for called in here.calls(chunk, body, token).keys() - {STORE}:
        assert here.ask(called, chunk, body, token) in REFUSED, called
    assert here.store(other, token) in REFUSED, "another chunk"
    assert there.store(body, token) in REFUSED, "another node"
    bare = token[:-64]
    for presented in (bare, bare + bytes(thief.sign_message(b"cyx/holder/v1" + bare)), bare + bytes(holder.sign_message(bare))):
        assert here.store(body, presented) in REFUSED, "not by its holder"
    for at in (0, 1, 9, 25, 57, 59, 91, 99, 107, len(bare) - 1, len(token) - 1):
        changed = bytearray(token)
        changed[at] ^= 1
        assert here.store(body, bytes(changed)) in REFUSED, f"a bit of byte {at}"
    # It is for the holder yet: refusals did not use it up.
    assert here.has(here.token(HAS), chunk) == rpc.OK
    assert here.store(body, token) == rpc.OK


def test_adv_04_what_was_used_is_used_up(pair):
    here, _ = pair
    for operation in (STORE, DELETE, RESTORE):
        body = secrets.token_bytes(3000)
        chunk = blake3(body).digest()
        token = here.gateway.chunk(here.key, operation, chunk, Keypair())
        assert here.ask(operation, chunk, body, token) == rpc.OK, operation
        assert here.ask(operation, chunk, body, token) == rpc.UNAUTHENTICATED, operation


def test_adv_04_a_restart_forgives_no_replay(pair):
    """Used or not: what was made for the node's life before changes nothing in this one."""
    here, _ = pair
    bodies = [secrets.token_bytes(3000) for _ in range(2)]
    used, unused = (here.gateway.chunk(here.key, STORE, blake3(body).digest(), Keypair()) for body in bodies)
    assert here.store(bodies[0], used) == rpc.OK
    here.process.kill()
    here.start()
    for body, token in zip(bodies, (used, unused)):
        assert here.store(body, token) == rpc.UNAUTHENTICATED
    assert here.store(bodies[1], here.gateway.chunk(here.key, STORE, blake3(bodies[1]).digest(), Keypair())) == rpc.OK


def test_adv_04_tokens_end_and_none_is_for_ever(pair):
    here, _ = pair
    at = now()
    for issued, lifetime, good in [
        (at, 600, True), (at - 590_000, 600, True), (at - 700_000, 600, False), (at + 120_000, 600, False), (at, 2 * 3600, False),
        (at, 0, False), (at, -60, False), (0, 10 * 365 * 86_400, False),
    ]:
        status = here.has(here.token(HAS, issued=issued, lifetime=lifetime))
        assert status == (rpc.OK if good else rpc.UNAUTHENTICATED), (issued - at, lifetime)
    # A gateway's key that is not named any more is nobody's.
    before, here.gateway.key = here.gateway.key, Keypair()
    wait_until("the key is gone", lambda: here.has(here.gateway.session(here.key, HAS)) == rpc.OK)
    new, here.gateway.key = here.gateway.key, before
    assert here.has(here.token(HAS)) == rpc.UNAUTHENTICATED
    here.gateway.key = new
