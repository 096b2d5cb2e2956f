"""The life of a node as its operator and its gateway see it: absent, back, gone, and back with an empty disk."""

import shutil

import pytest

from clients import new_bucket, s3_client
from cluster import Cluster, psql
from conftest import run_server
from data import MIB, make_bytes

SIZES = [70_000, 300_000, 5 * MIB + 3]
TIMERS = {
    "NODE_OFFLINE_THRESHOLD_SECS": "3",
    "NODE_RECOVERY_QUARANTINE_SECS": "2",
    "NODE_DRAIN_THRESHOLD_SECS": "6",
    "NODE_REMOVE_THRESHOLD_SECS": "9",
}


@pytest.fixture(scope="module")
def short_lived(workspace):
    """Absence leads on within seconds, and nobody repairs what it leaves: that is another test's business."""
    for cluster in run_server(Cluster(workspace / "node-lives", nodes=5, gateway_env=TIMERS)):
        cluster.rebalancer.stop()
        yield cluster


def status(cluster: Cluster, node: int) -> str:
    return psql(cluster.database_url, f"SELECT status FROM nodes WHERE label = 'node-{node + 1}'")


def wait_status(cluster: Cluster, node: int, *wanted: str):
    """Until it is one of these; by the gateway, which must live on."""
    cluster.gateway.wait_for(f"node {node + 1} is {wanted}", lambda: status(cluster, node) in wanted, 60)


def put_all(s3, bucket: str) -> dict[str, bytes]:
    bodies = {f"k-{size}": make_bytes(size, bucket) for size in SIZES}
    for key, body in bodies.items():
        s3.put_object(Bucket=bucket, Key=key, Body=body)
    return bodies


def verify(s3, bucket: str, bodies: dict[str, bytes]):
    for key, body in bodies.items():
        assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == body, key


@pytest.mark.timeout(300)
def test_absent_then_back_then_trusted_again(short_lived):
    cluster, s3 = short_lived, s3_client(short_lived)
    bucket = new_bucket(s3, "absent")
    bodies = put_all(s3, bucket)
    cluster.nodes[0].kill()
    wait_status(cluster, 0, "offline")
    assert psql(cluster.database_url, "SELECT failure_count FROM nodes WHERE label = 'node-1'") == "1"
    verify(s3, bucket, bodies)
    wait_status(cluster, 0, "draining")
    verify(s3, bucket, bodies)
    # What it holds is all that some stripes have of a shard: it is not forgotten, however long it is silent.
    silent = "SELECT now() - last_heartbeat > interval '10 s' FROM nodes WHERE label = 'node-1'"
    cluster.gateway.wait_for("longer than the remove threshold", lambda: psql(cluster.database_url, silent) == "t")

    cluster.nodes[0].start()
    wait_status(cluster, 0, "recovering")
    stored = "SELECT count(*) FROM chunk_locations l JOIN nodes n ON n.id = l.node_id WHERE n.label = 'node-1'"
    before = psql(cluster.database_url, stored)
    s3.put_object(Bucket=bucket, Key="meanwhile", Body=make_bytes(300_000, "meanwhile"))
    if status(cluster, 0) == "recovering":
        assert psql(cluster.database_url, stored) == before, "a recovering node takes nothing new"
    wait_status(cluster, 0, "online")
    assert psql(cluster.database_url, "SELECT first_offline_at IS NULL FROM nodes WHERE label = 'node-1'") == "t"
    verify(s3, bucket, bodies)
    s3.put_object(Bucket=bucket, Key="after", Body=make_bytes(5 * MIB, "after"))
    assert int(psql(cluster.database_url, stored)) > int(before), "an online node takes its part"


@pytest.mark.timeout(300)
def test_an_emptied_disk_is_a_new_life(short_lived):
    """Same identity, nothing on it: reads go on and report what is not there; what was reported is queued for repair."""
    cluster, s3 = short_lived, s3_client(short_lived)
    bucket = new_bucket(s3, "emptied")
    bodies = put_all(s3, bucket)
    life = "SELECT incarnation FROM nodes WHERE label = 'node-2'"
    before = psql(cluster.database_url, life)
    cluster.nodes[1].kill()
    for path in (cluster.directory / "node-2").iterdir():
        if path.name != "identity.key":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    cluster.restart_node(1)
    assert psql(cluster.database_url, life) != before
    assert psql(cluster.database_url, "SELECT count(*) FROM nodes WHERE label = 'node-2'") == "1"
    verify(s3, bucket, bodies)

    missing = "SELECT count(*) FROM chunk_locations l JOIN nodes n ON n.id = l.node_id WHERE n.label = 'node-2' AND l.status = 'missing'"
    queued = "SELECT count(*) FROM repair_jobs WHERE reason IN ('bad location', 'missing')"

    def reported():
        verify(s3, bucket, bodies)
        return int(psql(cluster.database_url, missing)) > 0 and int(psql(cluster.database_url, queued)) > 0

    cluster.gateway.wait_for("readers report what is missing", reported)
    wait_status(cluster, 1, "online")
    more = put_all(s3, new_bucket(s3, "refilled"))
    assert len(more) == len(SIZES)


@pytest.mark.timeout(300)
def test_a_node_that_never_returns_and_holds_nothing_is_forgotten(workspace):
    for cluster in run_server(Cluster(workspace / "forgotten", nodes=3, gateway_env=TIMERS)):
        # The start's probe write may have put something on any of them.
        psql(cluster.database_url, "DELETE FROM chunk_locations WHERE node_id = (SELECT id FROM nodes WHERE label = 'node-3')")
        cluster.nodes[2].kill()
        wait_status(cluster, 2, "draining", "")
        wait_status(cluster, 2, "")
        assert psql(cluster.database_url, "SELECT count(*) FROM nodes") == "2"
        s3 = s3_client(cluster)
        bucket = new_bucket(s3)
        verify(s3, bucket, put_all(s3, bucket))
        # Its operator starts it after all: it is a new node.
        cluster.nodes[2].start()
        wait_status(cluster, 2, "online")
