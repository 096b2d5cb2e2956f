"""What administrators ask of nodes: to be emptied, to come back, to check what they hold."""

import re

import pytest
import requests

from clients import new_bucket, s3_client
from cluster import Cluster, psql
from conftest import run_server
from data import MIB, make_bytes
from raw import Signed


@pytest.fixture(scope="module")
def asked(workspace):
    yield from run_server(Cluster(workspace / "asked", nodes=5, rebalancer_env={"SCAN_INTERVAL_SECS": "1", "REPAIR_DELAY_SECS": "1"}))


def ask(cluster: Cluster, label: str, what: str) -> requests.Response:
    node = psql(cluster.database_url, f"SELECT id FROM nodes WHERE label = '{label}'")
    return Signed(cluster, "POST", f"/api/v1/admin/nodes/{node}/{what}").send()


def status(cluster: Cluster, label: str) -> str:
    return psql(cluster.database_url, f"SELECT status FROM nodes WHERE label = '{label}'")


@pytest.mark.timeout(300)
def test_a_drain_goes_on_over_restarts_until_it_is_taken_back(asked):
    s3 = s3_client(asked)
    bucket = new_bucket(s3)
    bodies = {f"k{n}": make_bytes(MIB + n, f"{bucket}{n}") for n in range(5)}
    for key, body in bodies.items():
        s3.put_object(Bucket=bucket, Key=key, Body=body)
    assert ask(asked, "node-1", "resume").status_code == 409
    for _ in range(2):
        answer = ask(asked, "node-1", "drain")
        assert (answer.status_code, answer.json()["status"]) == (202, "draining"), answer.text
    asked.nodes[0].kill()
    asked.nodes[0].start()
    registered = "SELECT count(*) FROM nodes WHERE label = 'node-1' AND last_heartbeat > now() - interval '3 seconds'"
    asked.nodes[0].wait_for("it is heard again", lambda: "registered" in asked.nodes[0].output() and psql(asked.database_url, registered) == "1")
    # What is deleted stays where it is for its grace.
    left = """SELECT count(*) FROM chunk_locations l JOIN nodes n ON n.id = l.node_id JOIN segments s ON s.id = l.segment_id
        WHERE n.label = 'node-1' AND s.state = 'live'"""
    asked.rebalancer.wait_for("it is empty", lambda: psql(asked.database_url, left) == "0", 120)
    assert status(asked, "node-1") == "draining"
    for key, body in bodies.items():
        assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == body
    answer = ask(asked, "node-1", "resume")
    assert (answer.status_code, answer.json()["status"]) == (202, "recovering"), answer.text
    asked.gateway.wait_for("it is one of them again", lambda: status(asked, "node-1") == "online")

    def given_something() -> bool:
        s3.put_object(Bucket=bucket, Key="more", Body=bodies["k0"])
        return psql(asked.database_url, left) != "0"

    asked.gateway.wait_for("it is given something", given_something)


def test_who_failed_too_often_is_taken_back_by_an_administrator_only(asked):
    """Its proofs change nothing, nor that it has nothing left to prove. A drain that was asked for is ended first."""
    record = "SELECT quarantined, vetted_at IS NULL, coalesce(audit_beta, 0) FROM nodes WHERE label = 'node-3'"
    psql(asked.database_url, "UPDATE nodes SET quarantined = true, vetted_at = now(), audit_alpha = 150, audit_beta = 50 WHERE label = 'node-3'")
    assert ask(asked, "node-3", "drain").status_code == 202
    answer = ask(asked, "node-3", "resume")
    assert (answer.status_code, answer.json()["status"]) == (202, "recovering"), answer.text
    assert psql(asked.database_url, record) == "t|f|50"
    answer = ask(asked, "node-3", "resume")
    assert (answer.status_code, answer.json()["status"]) == (202, "forgiven"), answer.text
    assert psql(asked.database_url, record) == "f|t|0"
    assert ask(asked, "node-3", "resume").status_code == 409
    asked.gateway.wait_for("it is one of them again", lambda: status(asked, "node-3") == "online")


def test_a_node_checks_what_it_holds_when_it_is_asked(asked):
    def scrubs() -> int:
        text = requests.get(f"http://127.0.0.1:{asked.node_ports[1][1]}/metrics", timeout=10).text
        return int(re.search(r"^cyxcloud_node_scrubs_total (\d+)", text, re.M).group(1))

    before = scrubs()
    answer = ask(asked, "node-2", "scrub")
    assert (answer.status_code, answer.json()["status"]) == (202, "queued"), answer.text
    asked.nodes[1].wait_for("it was through once more", lambda: scrubs() == before + 1)
