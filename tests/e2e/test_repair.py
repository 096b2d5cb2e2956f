"""What is lost is made again, what is deleted goes, and nodes prove what they hold: the rebalancer at work."""

import pytest
import requests

from clients import CLIENTS, bearer, new_bucket, s3_client
from cluster import Cluster, psql
from conftest import run_server
from data import MIB, make_bytes
from process import wait_until
from raw import Signed

SIZES = [70_000, 300_000, 5 * MIB + 3, 9 * MIB]
TIMERS = {
    "NODE_OFFLINE_THRESHOLD_SECS": "3",
    "NODE_RECOVERY_QUARANTINE_SECS": "1",
    "NODE_DRAIN_THRESHOLD_SECS": "6",
    "NODE_REMOVE_THRESHOLD_SECS": "9",
}
UPKEEP = {
    "SCAN_INTERVAL_SECS": "1",
    "REPAIR_DELAY_SECS": "1",
    "REPAIR_LEASE_SECS": "2",
    "REPAIR_BYTES_PER_SEC": "0",
    "REPAIR_NODE_BYTES_PER_SEC": "0",
    "GC_GRACE_SECS": "4",
    "RECONCILE_INTERVAL_SECS": "5",
    "AUDIT_INTERVAL_SECS": "3",
    "AUDIT_TIMEOUT_SECS": "2",
}
# Trash would keep what these tests want to see go.
NODE = {"NODE_TRASH_SECS": "0"}

# Stripes that lack a shard (or a copy) on nodes that are there, by what is recorded.
SHORT = """SELECT count(*) FROM stripes st JOIN segments s ON s.id = st.segment_id AND s.state = 'live'
    CROSS JOIN LATERAL (
        SELECT count(DISTINCT l.shard_index) AS shards, count(*) AS places FROM chunk_locations l
        JOIN nodes n ON n.id = l.node_id AND n.status = 'online'
        WHERE l.segment_id = st.segment_id AND l.stripe_index = st.stripe_index AND l.status = 'stored') h
    WHERE h.shards < s.data_shards + s.parity_shards OR h.places < s.copies"""


def lasting(workspace, name: str, nodes: int, **env):
    """A cluster whose absences last seconds and whose garbage does not last much longer."""
    return run_server(Cluster(workspace / name, nodes=nodes, gateway_env=TIMERS, rebalancer_env=UPKEEP | env, node_env=NODE))


@pytest.fixture(scope="module")
def mended(workspace):
    yield from lasting(workspace, "mended", 7)


def put_all(s3, bucket: str) -> dict[str, bytes]:
    bodies = {f"k-{size}": make_bytes(size, bucket) for size in SIZES}
    for key, body in bodies.items():
        s3.put_object(Bucket=bucket, Key=key, Body=body)
    return bodies


def verify(s3, bucket: str, bodies: dict[str, bytes]):
    for key, body in bodies.items():
        assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == body, key


def count(cluster: Cluster, sql: str) -> int:
    return int(psql(cluster.database_url, sql))


def wait_for(cluster: Cluster, what: str, check, seconds: float = 90):
    cluster.rebalancer.wait_for(what, check, seconds)


def wait_whole(cluster: Cluster):
    wait_for(cluster, "every stripe is whole", lambda: count(cluster, SHORT) == 0)


def wait_even(cluster: Cluster):
    """14 shards on 7 nodes, two on each: any two may be lost, and nothing is left to be moved."""
    crowded = """SELECT count(*) FROM (SELECT 1 FROM chunk_locations l JOIN segments s ON s.id = l.segment_id AND s.data_shards > 1
        WHERE l.status = 'stored' GROUP BY l.segment_id, l.stripe_index, l.node_id HAVING count(*) > 2) c"""
    wait_whole(cluster)
    wait_for(cluster, "shards lie evenly", lambda: count(cluster, crowded) == 0)


def admin(cluster: Cluster, method: str, path: str, **query: str):
    return Signed(cluster, method, f"/api/v1/admin/{path}", query=query).send()


def node_id(cluster: Cluster, index: int) -> str:
    return psql(cluster.database_url, f"SELECT id FROM nodes WHERE label = 'node-{index + 1}'")


@pytest.mark.timeout(300)
def test_a_node_that_never_returns_is_replaced_and_forgotten(workspace):
    for cluster in lasting(workspace, "replaced", 7):
        s3 = s3_client(cluster)
        bucket = new_bucket(s3)
        bodies = put_all(s3, bucket)
        assert count(cluster, "SELECT count(*) FROM chunk_locations l JOIN nodes n ON n.id = l.node_id WHERE n.label = 'node-1'") > 0
        cluster.nodes[0].kill()
        wait_for(cluster, "the node is forgotten", lambda: node_id(cluster, 0) == "")
        wait_whole(cluster)
        verify(s3, bucket, bodies)
        # As many as the stripes' tolerance may follow.
        cluster.nodes[1].kill()
        verify(s3, bucket, bodies)
        wait_for(cluster, "the next one is forgotten", lambda: node_id(cluster, 1) == "")
        wait_whole(cluster)
        verify(s3, bucket, bodies)


@pytest.mark.timeout(300)
def test_a_short_absence_moves_nothing(mended):
    """Absence is not loss: a stripe that can lose more waits for its node to return."""
    s3 = s3_client(mended)
    bucket = new_bucket(s3, "absence")
    bodies = put_all(s3, bucket)
    wait_even(mended)
    places = f"""SELECT count(*), sum(l.generation) FROM chunk_locations l JOIN file_segments e USING (segment_id)
        JOIN files f ON f.id = e.file_id WHERE f.bucket = '{bucket}'"""
    before = psql(mended.database_url, places)
    mended.nodes[2].kill()
    status = "SELECT status FROM nodes WHERE label = 'node-3'"
    mended.gateway.wait_for("the node is offline", lambda: psql(mended.database_url, status) == "offline")
    verify(s3, bucket, bodies)
    mended.restart_node(2)
    assert psql(mended.database_url, places) == before
    verify(s3, bucket, bodies)


@pytest.mark.timeout(300)
def test_an_emptied_disk_is_filled_again(mended):
    """Nobody has to read: the node's new life is noticed, its inventory compared, and what it lacks is made again."""
    import shutil

    s3 = s3_client(mended)
    bucket = new_bucket(s3, "emptied")
    bodies = put_all(s3, bucket)
    wait_whole(mended)
    mended.nodes[1].kill()
    for path in (mended.directory / "node-2").iterdir():
        if path.name != "identity.key":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = psql(mended.database_url, "SELECT now()")
    mended.restart_node(1)
    compared = f"SELECT count(*) FROM nodes WHERE label = 'node-2' AND reconciled_at > '{before}'"
    wait_for(mended, "its inventory is compared", lambda: count(mended, compared) == 1)
    wait_for(mended, "nothing is missing", lambda: count(mended, "SELECT count(*) FROM chunk_locations WHERE status <> 'stored'") == 0)
    wait_whole(mended)
    # What it is said to hold it does: all others but what decoding needs may go.
    life = "SELECT count(*) FROM chunk_locations l JOIN nodes n ON n.id = l.node_id WHERE n.label = 'node-2' AND l.incarnation <> n.incarnation"
    assert count(mended, life) == 0
    verify(s3, bucket, bodies)


@pytest.mark.timeout(300)
def test_a_node_is_emptied_by_request(workspace):
    for cluster in lasting(workspace, "drained", 6):
        s3 = s3_client(cluster)
        bucket = new_bucket(s3)
        bodies = put_all(s3, bucket)
        leaving = node_id(cluster, 0)
        answer = admin(cluster, "POST", f"nodes/{leaving}/drain")
        assert answer.status_code == 202, answer.text
        held = f"SELECT count(*) FROM chunk_locations WHERE node_id = '{leaving}'"
        wait_for(cluster, "the node is empty", lambda: verify(s3, bucket, bodies) or count(cluster, held) == 0)
        wait_whole(cluster)
        # It may be switched off now, and another one beside it.
        cluster.nodes[0].kill()
        cluster.nodes[1].kill()
        verify(s3, bucket, bodies)


@pytest.mark.timeout(300)
def test_what_is_deleted_leaves_the_disks(mended):
    s3 = s3_client(mended)
    bucket, kept = new_bucket(s3, "deleted"), new_bucket(s3, "kept")
    bodies = put_all(s3, kept)
    put_all(s3, bucket)
    s3.copy_object(Bucket=kept, Key="copied", CopySource={"Bucket": bucket, "Key": f"k-{SIZES[2]}"})
    # A multipart upload that is given up leaves nothing either.
    upload = s3.create_multipart_upload(Bucket=bucket, Key="given-up")["UploadId"]
    s3.upload_part(Bucket=bucket, Key="given-up", UploadId=upload, PartNumber=1, Body=make_bytes(6 * MIB, "part"))
    s3.abort_multipart_upload(Bucket=bucket, Key="given-up", UploadId=upload)
    for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]:
        s3.delete_object(Bucket=bucket, Key=entry["Key"])
    unreferenced = """SELECT count(*) FROM segments s WHERE NOT EXISTS (SELECT 1 FROM file_segments f WHERE f.segment_id = s.id)
        AND NOT EXISTS (SELECT 1 FROM part_segments p WHERE p.segment_id = s.id)"""
    wait_for(mended, "segments are collected", lambda: count(mended, unreferenced) == 0)
    wait_for(mended, "chunks are deleted", lambda: count(mended, "SELECT count(*) FROM chunk_deletes") == 0)
    # What nodes say they hold is what locations name, each chunk of a node once.
    named = """SELECT coalesce(sum(size), 0) FROM (SELECT DISTINCT l.node_id, l.chunk_id, c.size_bytes AS size FROM chunk_locations l
        JOIN chunks c USING (segment_id, stripe_index, shard_index)) d"""
    held = "SELECT sum(storage_used) FROM nodes"
    wait_for(mended, "disks hold what is named", lambda: count(mended, held) == count(mended, named))
    verify(s3, kept, bodies)
    assert s3.get_object(Bucket=kept, Key="copied")["Body"].read() == make_bytes(SIZES[2], bucket)


@pytest.mark.timeout(300)
def test_what_nobody_knows_is_collected_and_what_is_known_is_not(mended):
    """Chunks without a location are found by comparing inventories; freezing stops it all."""
    s3 = s3_client(mended)
    bucket = new_bucket(s3, "orphans")
    bodies = put_all(s3, bucket)
    wait_whole(mended)
    assert admin(mended, "POST", "gc/freeze").status_code == 200
    # As if a gateway had died between its stores and its commit.
    lost = f"k-{SIZES[1]}"
    segments = f"SELECT e.segment_id FROM file_segments e JOIN files f ON f.id = e.file_id WHERE f.bucket = '{bucket}' AND f.path = '{lost}'"
    psql(mended.database_url, f"""BEGIN; CREATE TEMP TABLE gone AS {segments};
        DELETE FROM files WHERE bucket = '{bucket}' AND path = '{lost}';
        DELETE FROM stripes WHERE segment_id IN (SELECT segment_id FROM gone);
        DELETE FROM segments WHERE id IN (SELECT segment_id FROM gone); COMMIT""")
    # More where a store came too late for its commit.
    wait_for(mended, "orphans are seen", lambda: count(mended, "SELECT count(*) FROM orphans") >= 14)
    frozen = admin(mended, "GET", "gc").json()["gc"]
    assert frozen["frozen"] and frozen["orphans"] >= 14, frozen
    assert admin(mended, "POST", "gc/thaw").status_code == 200
    deleted = "SELECT (SELECT count(*) FROM orphans) + (SELECT count(*) FROM chunk_deletes)"
    wait_for(mended, "orphans are deleted", lambda: count(mended, deleted) == 0)
    del bodies[lost]
    verify(s3, bucket, bodies)


@pytest.mark.timeout(300)
def test_nodes_prove_what_they_hold(mended, tmp_path):
    s3 = s3_client(mended)
    bucket = new_bucket(s3, "audited")
    s3.put_object(Bucket=bucket, Key="k", Body=make_bytes(100_000, bucket))
    online = "SELECT count(*) FROM nodes WHERE status = 'online' AND last_audit IS NULL"
    wait_for(mended, "every node was audited", lambda: count(mended, online) == 0)
    audits = admin(mended, "GET", "audits", limit="1000").json()["audits"]
    assert audits and {audit["slice_bytes"] <= 16384 for audit in audits} == {True}
    nodes = admin(mended, "GET", "nodes").json()["nodes"]
    audited = [node for node in nodes if node["status"] == "online"]
    assert all(node["upkeep"]["audits_proven"] + node["upkeep"]["audits_failed"] > 0 for node in audited), audited
    # Who lost something (another test empties a disk) is held back from new data, and nobody else is.
    assert all(node["quarantined"] <= (node["upkeep"]["audits_failed"] > 0) for node in audited), audited
    status = admin(mended, "GET", "status").json()
    assert status["problems"] == [] and status["nodes"]["by_status"]["online"] == len(mended.nodes)
    info = CLIENTS["cyxcloud-cli"](mended, "root", tmp_path / "home").cli("info", "--bucket", bucket, "--key", "k")
    assert "3/3 shards, tolerates 2 more losses" in info, info
    metrics = requests.get(f"http://127.0.0.1:{mended.rebalancer_port}/metrics", timeout=5).text
    assert 'cyxcloud_rebalancer_audits_total{outcome="proven"}' in metrics


@pytest.mark.timeout(300)
def test_joining_nodes_raise_what_is_survived(workspace):
    for cluster in lasting(workspace, "joined", 4):
        s3 = s3_client(cluster)
        bucket = new_bucket(s3)
        s3.put_object(Bucket=bucket, Key="k", Body=make_bytes(5 * MIB, "k"))
        for index in range(4, 7):
            cluster.add_node()
        cluster.wait_online(7)
        wait_even(cluster)
        cluster.nodes[0].kill()
        cluster.nodes[3].kill()
        verify(s3, bucket, {"k": make_bytes(5 * MIB, "k")})


def test_strangers_and_users_are_kept_out(mended):
    assert requests.get(mended.url + "/api/v1/admin/status", timeout=5).status_code in (401, 403)
    user = {"Authorization": "Bearer " + bearer(mended)}
    assert requests.get(mended.url + "/api/v1/admin/status", headers=user, timeout=5).status_code in (401, 403)
    assert requests.post(mended.url + "/api/v1/admin/gc/freeze", headers=user, timeout=5).status_code in (401, 403)
    assert admin(mended, "GET", "gc").json()["gc"]["frozen"] is None


def test_contradicting_thresholds_are_refused(mended):
    import subprocess

    from process import binary

    env = mended.rebalancer.env | {"GC_GRACE_SECS": "1", "REPAIR_LEASE_SECS": "60"}
    done = subprocess.run([binary("cyxcloud-rebalancer")], env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and "GC_GRACE_SECS (1)" in done.stderr and "panicked" not in done.stderr, done.stderr


def test_a_rebalancer_needs_the_gateways_key(mended):
    import secrets
    import subprocess

    from process import binary

    for key, said in (None, "CYXCLOUD_MASTER_KEY is not set"), ("abc", "64 hexadecimal"), (secrets.token_hex(32), "not the one"):
        env = {name: value for name, value in mended.rebalancer.env.items() if name != "CYXCLOUD_MASTER_KEY"}
        env["HTTP_ADDR"] = "127.0.0.1:0"
        if key:
            env["CYXCLOUD_MASTER_KEY"] = key
        done = subprocess.run([binary("cyxcloud-rebalancer")], env=env, capture_output=True, text=True, timeout=30)
        assert done.returncode == 1 and said in done.stderr.splitlines()[-1] and "panicked" not in done.stderr, done.stderr
