"""The life of a node as its operator and its gateway see it: absent, back, gone, and back with an empty disk."""

import shutil
import time

import pytest

from clients import new_bucket, put_all, s3_client, verify
from cluster import ABSENT, FORGOTTEN, GIVEN_UP, Cluster, psql
from conftest import run_server
from data import MIB, make_bytes
from process import wait_until

SIZES = [70_000, 300_000, 5 * MIB + 3]
# Long enough to be looked at while it lasts; see `wait_trusted`.
QUARANTINE = {"NODE_RECOVERY_QUARANTINE_SECS": "60"}


@pytest.fixture(scope="module")
def short_lived(workspace):
    """Nobody repairs what absence leaves: that is another test's business."""
    for cluster in run_server(Cluster(workspace / "node-lives", nodes=5, gateway_env=QUARANTINE)):
        cluster.rebalancer.stop()
        yield cluster


def wait_status(cluster: Cluster, node: int, wanted: str):
    """Until it is that; by the gateway, which must live on."""
    cluster.gateway.wait_for(f"node {node + 1} is {wanted}", lambda: cluster.status(node) == wanted)


def wait_trusted(cluster: Cluster, node: int):
    """Until it is online, as if its quarantine had begun long ago."""

    def trusted():
        psql(cluster.database_url, f"""UPDATE nodes SET status_changed_at = now() - interval '1 hour'
            WHERE label = 'node-{node + 1}' AND status = 'recovering'""")
        return cluster.status(node) == "online"

    cluster.gateway.wait_for(f"node {node + 1} is trusted", trusted)


def test_absent_then_back_then_trusted_again(short_lived):
    cluster, s3 = short_lived, s3_client(short_lived)
    bucket = new_bucket(s3, "absent")
    bodies = put_all(s3, bucket, SIZES)
    cluster.nodes[0].kill()
    cluster.wait_silent(0, ABSENT, "offline")
    assert psql(cluster.database_url, "SELECT failure_count FROM nodes WHERE label = 'node-1'") == "1"
    verify(s3, bucket, bodies)
    cluster.wait_silent(0, GIVEN_UP, "draining")
    verify(s3, bucket, bodies)
    # What it holds is all that some stripes have of a shard: it is not forgotten, however long it is silent. The gateway looks
    # every second.
    cluster.silence(0, FORGOTTEN)
    time.sleep(2.5)
    assert cluster.status(0) == "draining"

    cluster.nodes[0].start()
    wait_status(cluster, 0, "recovering")
    stored = "SELECT count(*) FROM chunk_locations l JOIN nodes n ON n.id = l.node_id WHERE n.label = 'node-1'"
    before = psql(cluster.database_url, stored)
    s3.put_object(Bucket=bucket, Key="meanwhile", Body=make_bytes(300_000, "meanwhile"))
    assert psql(cluster.database_url, stored) == before, "a recovering node takes nothing new"
    assert cluster.status(0) == "recovering"
    wait_trusted(cluster, 0)
    assert psql(cluster.database_url, "SELECT first_offline_at IS NULL FROM nodes WHERE label = 'node-1'") == "t"
    verify(s3, bucket, bodies)

    def takes_its_part():
        s3.put_object(Bucket=bucket, Key="after", Body=make_bytes(5 * MIB, "after"))
        return int(psql(cluster.database_url, stored)) > int(before)

    # Who places chunks may have looked at the nodes a moment before.
    wait_until("an online node takes its part", takes_its_part, interval=1)


def test_an_emptied_disk_is_a_new_life(short_lived):
    """Same identity, nothing on it: reads go on and report what is not there; what was reported is queued for repair."""
    cluster, s3 = short_lived, s3_client(short_lived)
    bucket = new_bucket(s3, "emptied")
    bodies = put_all(s3, bucket, SIZES)
    life = "SELECT incarnation FROM nodes WHERE label = 'node-2'"
    before = psql(cluster.database_url, life)
    cluster.nodes[1].kill()
    for path in (cluster.directory / "node-2").iterdir():
        if path.name != "identity.key":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    cluster.nodes[1].start()
    cluster.nodes[1].wait_for("its new life is known", lambda: psql(cluster.database_url, life) != before)
    assert psql(cluster.database_url, "SELECT count(*) FROM nodes WHERE label = 'node-2'") == "1"
    verify(s3, bucket, bodies)

    missing = "SELECT count(*) FROM chunk_locations l JOIN nodes n ON n.id = l.node_id WHERE n.label = 'node-2' AND l.status = 'missing'"
    # Whatever its reason says: a stripe that a busy machine committed short waits already.
    queued = f"SELECT count(*) FROM repair_jobs j WHERE EXISTS ({missing.replace('count(*)', '1')} AND "\
             "(l.segment_id, l.stripe_index) = (j.segment_id, j.stripe_index))"

    def reported():
        verify(s3, bucket, bodies)
        return int(psql(cluster.database_url, missing)) > 0 and int(psql(cluster.database_url, queued)) > 0

    cluster.gateway.wait_for("readers report what is missing", reported)
    wait_trusted(cluster, 1)
    more = put_all(s3, new_bucket(s3, "refilled"), SIZES)
    assert len(more) == len(SIZES)


def test_a_node_that_never_returns_and_holds_nothing_is_forgotten(workspace):
    for cluster in run_server(Cluster(workspace / "forgotten", nodes=3)):
        # The start's probe write may have put something on any of them.
        psql(cluster.database_url, "DELETE FROM chunk_locations WHERE node_id = (SELECT id FROM nodes WHERE label = 'node-3')")
        cluster.nodes[2].kill()
        cluster.wait_silent(2, GIVEN_UP, "draining")
        cluster.wait_silent(2, FORGOTTEN, "")
        assert psql(cluster.database_url, "SELECT count(*) FROM nodes") == "2"
        s3 = s3_client(cluster)
        bucket = new_bucket(s3)
        verify(s3, bucket, put_all(s3, bucket, SIZES))
        # Its operator starts it after all: it is a new node.
        cluster.nodes[2].start()
        wait_status(cluster, 2, "online")
