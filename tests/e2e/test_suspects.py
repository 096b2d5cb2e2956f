"""Nodes that lie to readers, or say nothing while they are heard, are found out and held back; what they have is made elsewhere."""

import pytest

from clients import new_bucket, put_all, s3_client, verify
from cluster import Cluster, psql
from conftest import run_server
from data import MIB
from process import wait_until

SIZES = [70_000, 300_000, 5 * MIB + 3]
UPKEEP = {
    "SCAN_INTERVAL_SECS": "1",
    "REPAIR_DELAY_SECS": "1",
    "REPAIR_LEASE_SECS": "2",
    "REPAIR_BYTES_PER_SEC": "0",
    "REPAIR_NODE_BYTES_PER_SEC": "0",
    "AUDIT_TIMEOUT_SECS": "2",
}
# What is believed of it, of objects that there are.
SUSPECT = """SELECT count(*) FROM chunk_locations l JOIN nodes n ON n.id = l.node_id AND n.label = 'node-1'
    WHERE l.status = 'stored' AND EXISTS (SELECT FROM file_segments f WHERE f.segment_id = l.segment_id)"""


def watched(workspace, name: str, **env):
    return run_server(Cluster(workspace / name, nodes=8, rebalancer_env=UPKEEP | env))


def count(cluster, sql: str) -> int:
    return int(psql(cluster.database_url, sql))


def held_back(cluster) -> str:
    return psql(cluster.database_url, "SELECT string_agg(label, ',') FROM nodes WHERE quarantined")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("lie", ["wrong-bytes", "audits-only", "lost"])
def test_who_lies_to_a_reader_is_audited_before_its_turn(workspace, lie):
    """Its turn comes once when the rebalancer starts and then in an hour. Repair goes on meanwhile, and takes away what it would be audited for."""
    for cluster in watched(workspace, f"lied-{lie}", AUDIT_INTERVAL_SECS="86400", AUDIT_RISK_SECS="0"):
        s3 = s3_client(cluster)
        bucket = new_bucket(s3)
        bodies = put_all(s3, bucket, SIZES)
        node = cluster.nodes[0]
        node.kill()
        node.env["CYXCLOUD_FAULT_LIE"] = lie
        cluster.restart_node(0)
        wait_until("the liar is held back", lambda: verify(s3, bucket, bodies) or held_back(cluster) == "node-1", 20)
        wait_until("nothing is believed of it", lambda: count(cluster, SUSPECT) == 0, 60)
        verify(s3, bucket, bodies)
        assert count(cluster, "SELECT sum(audits_failed) FROM nodes WHERE label <> 'node-1'") == 0


@pytest.mark.timeout(300)
def test_who_is_heard_and_does_not_answer_is_found_out(workspace):
    """As behind a router that closed the port: heartbeats come, and nobody gets through."""
    for cluster in watched(workspace, "silent", AUDIT_INTERVAL_SECS="3", AUDIT_AGAIN_SECS="2"):
        s3 = s3_client(cluster)
        bucket = new_bucket(s3)
        bodies = put_all(s3, bucket, SIZES)
        assert count(cluster, SUSPECT) > 0
        psql(cluster.database_url, "UPDATE nodes SET grpc_address = 'http://127.0.0.1:1' WHERE label = 'node-1'")
        wait_until("the silent one is held back", lambda: held_back(cluster) == "node-1", 60)
        wait_until("what it has is made elsewhere", lambda: count(cluster, SUSPECT) == 0, 60)
        assert psql(cluster.database_url, "SELECT status FROM nodes WHERE label = 'node-1'") == "online"
        verify(s3, bucket, bodies)
        assert count(cluster, "SELECT sum(audits_failed) FROM nodes WHERE label <> 'node-1'") == 0
