"""Rotating the key that tokens for nodes are signed with: two gateways, a rebalancer, nodes of which one is away meanwhile."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import requests

from clients import new_bucket, s3_client
from cluster import Cluster, Server, psql
from conftest import run_server
from data import make_bytes
from process import free_ports, wait_until
from raw import Signed

# Nobody waits for its end: see `let_overlap_pass`.
OVERLAP = 600
ROTATE = "/api/v1/admin/token-keys/rotate"


class Second(Server):
    """The other gateway over the same databases."""

    def __init__(self, cluster: Cluster):
        self.credentials = cluster.credentials
        self.http_port, grpc_port, self.metrics_port = free_ports(3)
        ours = {cluster.http_port: self.http_port, cluster.grpc_port: grpc_port, cluster.metrics_port: self.metrics_port}
        addresses = {f"127.0.0.1:{old}": f"127.0.0.1:{new}" for old, new in ours.items()}
        args = [addresses.get(arg, arg) for arg in cluster.gateway_args()]
        self.gateway = cluster._process("gateway-2", args, cluster.gateway.env)
        self.processes = [self.gateway]


@pytest.fixture(scope="module")
def house(workspace):
    cluster = Cluster(workspace / "keys", nodes=7)
    cluster.second = Second(cluster)
    cluster.processes.append(cluster.second.gateway)
    for server in run_server(cluster):
        cluster.second.gateway.start()
        cluster.second.wait_ready(cluster.second.gateway)
        cluster.second.wait_writable()
        yield server


def keys(house) -> list[tuple[int, str]]:
    answer = Signed(house, "GET", "/api/v1/admin/token-keys").send()
    assert answer.status_code == 200, answer.text
    return [(key["number"], key["state"]) for key in answer.json()["keys"]]


def rotate(house, **wanted) -> requests.Response:
    return Signed(house, "POST", ROTATE, body=json.dumps(wanted).encode()).send()


def let_overlap_pass(house):
    """The newest key signs from now on, and all that follows from that comes as much sooner."""
    psql(house.database_url, """WITH newest AS (SELECT number, signs_from - now() AS sooner FROM token_keys ORDER BY number DESC LIMIT 1)
        UPDATE token_keys k SET accepted_until = k.accepted_until - n.sooner,
            signs_from = CASE WHEN k.number = n.number THEN now() ELSE k.signs_from END FROM newest n""")


def signing(port: int) -> int:
    text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
    return int(re.search(r"^cyxcloud_dataplane_signing_key (\d+)$", text, re.M)[1])


def all_sign_with(house, number: int) -> bool:
    ports = (house.metrics_port, house.second.metrics_port, house.rebalancer_port)
    return {signing(port) for port in ports} == {number}


def trusted(house, node) -> list[str]:
    """The keys in a node's data directory."""
    required, *believed = (house.directory / node.name / "trust").read_text().splitlines()
    assert required == "required"
    return believed


def refused(house, index: int) -> int:
    text = requests.get(f"http://127.0.0.1:{house.node_ports[index][1]}/metrics", timeout=30).text
    return int(re.search(r"^cyxcloud_node_tokens_refused_total (\d+)$", text, re.M)[1])


def traffic(server: Server, bucket: str, name: str, done: list[str], over: Event) -> list[str]:
    """Puts and gets until it is over, and notes what is done; what failed."""
    s3, number, failed = s3_client(server), 0, []
    while not over.is_set():
        key = f"{name}-{number}"
        body = make_bytes(200_000 + number, key)
        try:
            s3.put_object(Bucket=bucket, Key=key, Body=body)
            if s3.get_object(Bucket=bucket, Key=key)["Body"].read() != body:
                failed.append(f"{key}: other bytes")
        except Exception as error:  # noqa: BLE001: whatever it is, a client saw it
            failed.append(f"{key}: {error}")
        done.append(key)
        number += 1
    return failed


def test_nobody_notices_a_rotation(house):
    bucket = new_bucket(s3_client(house), "rotate")
    away, here = house.nodes[-1], house.nodes[:-1]
    (old,) = trusted(house, away)
    assert keys(house) == [(1, "signing")] and all_sign_with(house, 1)
    away.kill()
    before = [refused(house, index) for index in range(len(here))]
    over, done = Event(), []

    def went_on():
        """As long as it takes: something was under way all the while."""
        until = len(done) + 8
        wait_until("puts and gets go on", lambda: len(done) >= until)

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(traffic, server, bucket, f"t{n}", done, over)
                   for n, server in enumerate((house, house.second, house, house.second))]
        try:
            begun = rotate(house, overlap_secs=OVERLAP)
            assert begun.status_code == 202, begun.text
            assert [key["state"] for key in begun.json()["keys"]] == ["signing", "announced"]
            new = begun.json()["keys"][1]["public_key"]
            assert rotate(house).status_code == 409
            wait_until("all nodes are told", lambda: all(trusted(house, node) == [new, old] for node in here))
            assert keys(house.second) == [(1, "signing"), (2, "announced")], "it was told before it signs"
            went_on()
            let_overlap_pass(house)
            wait_until("all servers sign with it", lambda: all_sign_with(house, 2))
            went_on()
            assert keys(house) == [(1, "retiring"), (2, "signing")]
            # As long afterwards as tokens of the old key are about.
            assert psql(house.database_url, "SELECT accepted_until - signs_from > interval '10 minutes' FROM (SELECT "
                        "min(accepted_until) AS accepted_until, max(signs_from) AS signs_from FROM token_keys) k") == "t"
            psql(house.database_url, "UPDATE token_keys SET accepted_until = now() WHERE number = 1")
            wait_until("nodes forget the old key", lambda: all(trusted(house, node) == [new] for node in here))
            went_on()
            house.restart_node(len(house.nodes) - 1)
            wait_until("who was away is told", lambda: trusted(house, away) == [new])
            held = f"SELECT count(*) FROM chunk_locations l JOIN nodes n ON n.id = l.node_id WHERE n.label = '{away.name}'"
            first = int(psql(house.database_url, held))
            wait_until("who was away stores and serves", lambda: int(psql(house.database_url, held)) > first + 10, 120)
        finally:
            over.set()
        results = [one.result() for one in running]
    assert [failed for failed in results if failed] == []
    assert [refused(house, index) for index in range(len(here))] == before
    assert keys(house) == [(2, "signing")]


def test_a_leaked_key_ends_at_once(house):
    s3 = s3_client(house.second)
    bucket = new_bucket(s3, "leaked")
    body = make_bytes(500_000, "leaked")
    s3.put_object(Bucket=bucket, Key="k", Body=body)
    before = keys(house)
    number = before[-1][0] + 1
    assert rotate(house.second, overlap_secs=OVERLAP, revoke=True).status_code == 202
    wait_until("all nodes are told", lambda: all(len(trusted(house, node)) == 2 for node in house.nodes))
    let_overlap_pass(house)
    wait_until("all servers sign with the next key", lambda: all_sign_with(house, number))
    assert keys(house) == [(number, "signing")]
    wait_until("nodes believe no other", lambda: all(len(trusted(house, node)) == 1 for node in house.nodes))
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == body
    s3.put_object(Bucket=bucket, Key="k", Body=body)
    # Not one second longer: whatever is under way fails until nodes know, and then goes on by itself.
    assert rotate(house, overlap_secs=0, revoke=True).status_code == 202
    assert keys(house.second) == [(number + 1, "signing")]
    wait_until("it is stored again", lambda: s3.put_object(Bucket=bucket, Key="k", Body=body))
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == body
    log = Signed(house, "GET", "/api/v1/admin/audit-log", query={"limit": "50"}).send().json()["entries"]
    assert [line["outcome"] for line in log if line["action"] == f"admin POST {ROTATE}"][:2] == ["202", "202"]


@pytest.mark.parametrize("body", [b"{", b'{"overlap_secs": -1}', b'{"overlap_secs": 1e9}', b'{"overlap_secs": 604801}', b'{"x": 1}'])
def test_nonsense_rotates_nothing(house, body):
    before = keys(house)
    assert Signed(house, "POST", ROTATE, body=body).send().status_code == 400
    assert keys(house) == before
