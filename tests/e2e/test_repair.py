"""What is lost is made again, what is deleted goes, and nodes prove what they hold: the rebalancer at work."""

import re

import pytest
import requests

from clients import CLIENTS, bearer, new_bucket, put_all, s3_client, verify
from cluster import ABSENT, FORGOTTEN, Cluster, psql
from conftest import run_server
from data import MIB, make_bytes
from process import wait_until
from raw import Signed

SIZES = [70_000, 300_000, 5 * MIB + 3, 9 * MIB]
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
    """A cluster whose rebalancer looks at everything all the time, and whose garbage lasts some seconds."""
    return run_server(Cluster(workspace / name, nodes=nodes, rebalancer_env=UPKEEP | env, node_env=NODE))


@pytest.fixture(scope="module")
def mended(workspace):
    yield from lasting(workspace, "mended", 7)


def count(cluster: Cluster, sql: str) -> int:
    return int(psql(cluster.database_url, sql))


def wait_for(cluster: Cluster, what: str, check, seconds: float = 150):
    cluster.rebalancer.wait_for(what, check, seconds)


def wait_whole(cluster: Cluster):
    wait_for(cluster, "every stripe is whole", lambda: count(cluster, SHORT) == 0)


def wait_even(cluster: Cluster):
    """14 shards on 7 nodes, two on each: any two may be lost."""
    crowded = """SELECT count(*) FROM (SELECT 1 FROM chunk_locations l JOIN segments s ON s.id = l.segment_id AND s.data_shards > 1
        WHERE l.status = 'stored' GROUP BY l.segment_id, l.stripe_index, l.node_id HAVING count(*) > 2) c"""
    wait_whole(cluster)
    wait_for(cluster, "shards lie evenly", lambda: count(cluster, crowded) == 0)


def rebalancer_metric(cluster: Cluster, line: str) -> float:
    """0 where it is not there yet."""
    text = requests.get(f"http://127.0.0.1:{cluster.rebalancer_port}/metrics", timeout=30).text
    found = re.search(rf"^cyxcloud_rebalancer_{re.escape(line)} (\S+)$", text, re.M)
    return float(found[1]) if found else 0.0


def wait_swept(cluster: Cluster, times: int = 2):
    """Until the rebalancer has looked at every stripe so often since now, whatever else made it look. It goes round."""
    # One round has begun already.
    looks = (times + 1) * count(cluster, "SELECT count(*) FROM stripes")
    swept = lambda: rebalancer_metric(cluster, "swept_stripes_total")  # noqa: E731
    before = swept()
    wait_for(cluster, "every stripe was looked at", lambda: swept() >= before + looks)


def wait_scanned(cluster: Cluster, index: int, reason: str):
    """Until the rebalancer has judged all that a node holds, for this change of it."""
    done = f"SELECT done FROM node_scans WHERE node_id = '{node_id(cluster, index)}' AND reason = '{reason}'"
    wait_for(cluster, f"node {index + 1} was looked through", lambda: psql(cluster.database_url, done) == "t")


def wait_settled(cluster: Cluster):
    """Until nothing is left to be moved: all was looked at, and no repair was wanted or is under way."""
    busy = "SELECT count(*) FROM repair_jobs WHERE status IN ('pending', 'in_progress')"
    wait_even(cluster)

    def settled():
        began = count(cluster, "SELECT count(*) FROM repair_jobs")
        wait_swept(cluster, 1)
        return count(cluster, busy) == 0 and count(cluster, "SELECT count(*) FROM repair_jobs") == began

    wait_for(cluster, "nothing is left to be done", settled)


def admin(cluster: Cluster, method: str, path: str, **query: str):
    return Signed(cluster, method, f"/api/v1/admin/{path}", query=query).send()


def node_id(cluster: Cluster, index: int) -> str:
    return psql(cluster.database_url, f"SELECT id FROM nodes WHERE label = 'node-{index + 1}'")


def test_a_node_that_never_returns_is_replaced_and_forgotten(workspace):
    for cluster in lasting(workspace, "replaced", 7):
        s3 = s3_client(cluster)
        bucket = new_bucket(s3)
        bodies = put_all(s3, bucket, SIZES)
        assert count(cluster, "SELECT count(*) FROM chunk_locations l JOIN nodes n ON n.id = l.node_id WHERE n.label = 'node-1'") > 0
        cluster.nodes[0].kill()
        # Not before what it held is elsewhere.
        cluster.wait_silent(0, FORGOTTEN, "", 150)
        wait_whole(cluster)
        verify(s3, bucket, bodies)
        # As many as the stripes' tolerance may follow.
        cluster.nodes[1].kill()
        verify(s3, bucket, bodies)
        cluster.wait_silent(1, FORGOTTEN, "", 150)
        wait_whole(cluster)
        verify(s3, bucket, bodies)


def test_a_short_absence_moves_nothing(mended):
    """Absence is not loss: a stripe that can lose more waits for its node to return, however often it is looked at."""
    s3 = s3_client(mended)
    bucket = new_bucket(s3, "absence")
    bodies = put_all(s3, bucket, SIZES)
    wait_settled(mended)
    places = f"""SELECT l.segment_id, l.stripe_index, l.shard_index, l.node_id, l.generation, l.status FROM chunk_locations l
        JOIN file_segments e USING (segment_id) JOIN files f ON f.id = e.file_id WHERE f.bucket = '{bucket}' ORDER BY 1, 2, 3, 4"""
    before = psql(mended.database_url, places).splitlines()
    mended.nodes[2].kill()
    mended.wait_silent(2, ABSENT, "offline")
    wait_scanned(mended, 2, "offline")
    wait_swept(mended)
    verify(s3, bucket, bodies)
    assert psql(mended.database_url, places).splitlines() == before
    mended.restart_node(2)
    wait_scanned(mended, 2, "returned")
    wait_swept(mended, 1)
    assert psql(mended.database_url, places).splitlines() == before
    verify(s3, bucket, bodies)


def test_an_emptied_disk_is_filled_again(mended):
    """Nobody has to read: the node's new life is noticed, its inventory compared, and what it lacks is made again."""
    import shutil

    s3 = s3_client(mended)
    bucket = new_bucket(s3, "emptied")
    bodies = put_all(s3, bucket, SIZES)
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


def test_a_node_is_emptied_by_request(workspace):
    for cluster in lasting(workspace, "drained", 6):
        s3 = s3_client(cluster)
        bucket = new_bucket(s3)
        bodies = put_all(s3, bucket, SIZES)
        leaving = node_id(cluster, 0)
        answer = admin(cluster, "POST", f"nodes/{leaving}/drain")
        assert answer.status_code == 202, answer.text
        held = f"SELECT count(*) FROM chunk_locations WHERE node_id = '{leaving}'"
        wait_for(cluster, "the node is empty", lambda: verify(s3, bucket, bodies) or count(cluster, held) == 0)
        wait_whole(cluster)
        # Nodes sent each other what the one had: not by way of the rebalancer.
        assert rebalancer_metric(cluster, 'repaired_shards_total{how="pushed"}') > 0
        # It may be switched off now, and another one beside it.
        cluster.nodes[0].kill()
        cluster.nodes[1].kill()
        verify(s3, bucket, bodies)


def test_what_is_deleted_leaves_the_disks(mended):
    s3 = s3_client(mended)
    bucket, kept = new_bucket(s3, "deleted"), new_bucket(s3, "kept")
    bodies = put_all(s3, kept, SIZES)
    put_all(s3, bucket, SIZES)
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


def test_what_nobody_knows_is_collected_and_what_is_known_is_not(mended):
    """Chunks without a location are found by comparing inventories; freezing stops it all."""
    s3 = s3_client(mended)
    bucket = new_bucket(s3, "orphans")
    bodies = put_all(s3, bucket, SIZES)
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
def test_a_brake_is_shown_and_holds_up_nothing_else(workspace):
    """What would be condemned beyond the brake waits for an operator, and goes when one says so; what was condemned before goes."""
    for cluster in lasting(workspace, "braked", 3, GC_BRAKE_FLOOR="20", GC_MAX_FRACTION="0.01"):
        s3 = s3_client(cluster)
        bucket = new_bucket(s3)
        for number in range(30):
            s3.put_object(Bucket=bucket, Key=f"k-{number}", Body=make_bytes(70_000, str(number)))
        garbage = lambda: admin(cluster, "GET", "gc").json()["gc"]  # noqa: E731
        assert garbage()["halted"] is None
        segment = psql(cluster.database_url, f"SELECT s.segment_id FROM file_segments s JOIN files f ON f.id = s.file_id WHERE f.path = 'k-0' AND f.bucket = '{bucket}'")
        s3.delete_object(Bucket=bucket, Key="k-0")
        # It may be collected before we look.
        condemned = f"SELECT count(*) FROM segments WHERE id = '{segment}' AND state = 'live'"
        wait_for(cluster, "a segment is condemned", lambda: count(cluster, condemned) == 0)
        s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": f"k-{number}"} for number in range(1, 26)]})
        wait_for(cluster, "the brake is shown", lambda: "would be condemned" in (garbage()["halted"] or ""))
        wait_for(cluster, "what was condemned before is collected", lambda: count(cluster, f"SELECT count(*) FROM segments WHERE id = '{segment}'") == 0)
        wait_for(cluster, "its chunks are deleted", lambda: garbage()["chunk_deletes"] == 0)
        now = garbage()
        assert "would be condemned" in now["halted"] and now["frozen"] is None and now["candidates"] >= 25, now
        assert admin(cluster, "POST", "gc/thaw").json() == {"status": "released"}
        wait_for(cluster, "what waited is collected", lambda: count(cluster, "SELECT count(*) FROM segments") == 4)
        assert garbage()["halted"] is None


def test_nodes_prove_what_they_hold(mended, tmp_path):
    s3 = s3_client(mended)
    bucket = new_bucket(s3, "audited")
    s3.put_object(Bucket=bucket, Key="k", Body=make_bytes(100_000, bucket))
    s3.put_object(Bucket=bucket, Key="everywhere", Body=make_bytes(5 * MIB, bucket))
    # An answer that is late is an audit as well, and says nothing.
    audited = "SELECT count(*) FROM nodes WHERE status = 'online' AND audits_proven + audits_failed > 0"
    wait_for(mended, "every node was audited", lambda: count(mended, audited) == len(mended.nodes))
    audits = admin(mended, "GET", "audits", limit="1000").json()["audits"]
    assert audits and {audit["slice_bytes"] <= 16384 for audit in audits} == {True}
    nodes = admin(mended, "GET", "nodes").json()["nodes"]
    assert all(node["upkeep"]["audits_proven"] + node["upkeep"]["audits_failed"] > 0 for node in nodes), nodes
    # Who lost something (another test empties a disk) is held back from new data, and nobody else is.
    assert all(node["quarantined"] <= (node["upkeep"]["audits_failed"] > 0) for node in nodes), nodes

    def well():
        status = admin(mended, "GET", "status").json()
        return status["problems"] == [] and status["nodes"]["by_status"]["online"] == len(mended.nodes)

    wait_for(mended, "all is well", well)
    cli = CLIENTS["cyxcloud-cli"](mended, "root", tmp_path / "home")
    # A copy that kept the write waiting is made later.
    wait_for(mended, "three copies", lambda: "3/3 shards, tolerates 2 more losses" in cli.cli("info", "--bucket", bucket, "--key", "k"))
    assert rebalancer_metric(mended, 'audits_total{outcome="proven"}') > 0


def test_all_of_what_is_at_risk_is_proven_soon(workspace):
    """Ten stripes could lose nothing more and wait for their nodes to return: each of their 100 other shards is asked for. Audits by
    turns would be fewer than sixty in the time that a slow machine may take."""
    upkeep = UPKEEP | {"REPAIR_DELAY_SECS": "3600", "AUDIT_INTERVAL_SECS": "50", "AUDIT_RISK_SECS": "20"}
    for cluster in run_server(Cluster(workspace / "risk", nodes=7, rebalancer_env=upkeep, node_env=NODE)):
        s3 = s3_client(cluster)
        bucket = new_bucket(s3, "risk")
        s3.put_object(Bucket=bucket, Key="k", Body=make_bytes(40 * MIB, bucket))
        wait_even(cluster)
        cluster.nodes[3].kill()
        cluster.nodes[5].kill()
        for index in (3, 5):
            cluster.wait_silent(index, ABSENT, "offline")
        # What was stored while the cluster started is not asked about.
        ours = f"(SELECT segment_id FROM file_segments e JOIN files f ON f.id = e.file_id WHERE f.bucket = '{bucket}')"
        waiting = f"SELECT count(*) FROM repair_jobs WHERE status = 'pending' AND priority = 0 AND segment_id IN {ours}"
        wait_for(cluster, "all ten stripes wait", lambda: count(cluster, waiting) == 10)
        since = psql(cluster.database_url, "SELECT now()")
        here = f"""SELECT count(*) FROM chunk_locations l JOIN nodes n ON n.id = l.node_id AND n.status = 'online'
            WHERE l.segment_id IN {ours}"""
        assert count(cluster, here) == 100
        proven = f"{here} AND l.last_verified >= '{since}'"
        wait_for(cluster, "each was asked for", lambda: count(cluster, proven) == 100)


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
    assert requests.get(mended.url + "/api/v1/admin/status", timeout=30).status_code in (401, 403)
    user = {"Authorization": "Bearer " + bearer(mended)}
    assert requests.get(mended.url + "/api/v1/admin/status", headers=user, timeout=30).status_code in (401, 403)
    assert requests.post(mended.url + "/api/v1/admin/gc/freeze", headers=user, timeout=30).status_code in (401, 403)
    assert admin(mended, "GET", "gc").json()["gc"]["frozen"] is None


def test_contradicting_thresholds_are_refused(mended):
    import subprocess

    from process import binary

    env = mended.rebalancer.env | {"GC_GRACE_SECS": "1", "REPAIR_LEASE_SECS": "60"}
    done = subprocess.run([binary("cyxcloud-rebalancer")], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "GC_GRACE_SECS (1)" in done.stderr and "panicked" not in done.stderr, done.stderr


def test_a_rebalancer_needs_the_gateways_key(mended):
    import secrets
    import subprocess

    from process import binary

    for key, said in (None, "CYXCLOUD_MASTER_KEY is required"), ("abc", "64 hexadecimal"), (secrets.token_hex(32), "not the one"):
        env = {name: value for name, value in mended.rebalancer.env.items() if name != "CYXCLOUD_MASTER_KEY"}
        env["HTTP_ADDR"] = "127.0.0.1:0"
        if key:
            env["CYXCLOUD_MASTER_KEY"] = key
        done = subprocess.run([binary("cyxcloud-rebalancer")], env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and said in done.stderr.splitlines()[-1] and "panicked" not in done.stderr, done.stderr


def test_owners_see_what_a_lost_node_means_for_their_object(workspace, tmp_path):
    # A node that is away is waited for: nothing is repaired while this looks.
    slow = {"REPAIR_DELAY_SECS": "3600"}
    for cluster in run_server(Cluster(workspace / "seen", nodes=14, rebalancer_env=UPKEEP | slow, node_env=NODE)):
        s3 = s3_client(cluster)
        bucket = new_bucket(s3)
        # Two stripes of one length: of the chunks of a shorter one less is asked.
        s3.put_object(Bucket=bucket, Key="k", Body=make_bytes(8 * MIB, bucket))
        wait_until("every stripe is whole", lambda: psql(cluster.database_url, SHORT) == "0")
        cli = CLIENTS["cyxcloud-cli"](cluster, "root", tmp_path / "home")

        def says(what: str):
            return lambda: re.search(what, cli.cli("info", "--bucket", bucket, "--key", "k"))

        wait_until("whole and proven", says(r"14/14 shards, tolerates 4 more losses, last proven"), 150)
        cluster.nodes[3].kill()
        cluster.wait_silent(3, ABSENT, "offline")
        wait_until("one is missing", says(r"13/14 shards, tolerates 3 more losses, last proven"))
        health = Signed(cluster, "GET", f"/api/v1/buckets/{bucket}/objects/k").send().json()["health"]
        assert (health["condition"], health["shards_present"], health["tolerates"]) == ("degraded", 13, 3), health
        cluster.nodes[5].kill()
        cluster.wait_silent(5, ABSENT, "offline")
        wait_until("two are missing", says(r"12/14 shards, tolerates 2 more losses, last proven"))
        cluster.restart_node(3)
        cluster.restart_node(5)
        wait_until("they are back", says(r"14/14 shards, tolerates 4 more losses"))
