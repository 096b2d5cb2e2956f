"""Nodes that want more trust than they have earned: many at once, anew under another name, or back under their own."""

import shutil

import pytest

from clients import new_bucket, s3_client
from cluster import ABSENT, Cluster, psql
from conftest import run_server
from data import make_bytes
from raw import Signed

OLD, NEW = 8, 2
# They may have 5 % of what is written; of a hundred stripes that is some more or less. By their number they would have 20 %.
SHARE = 0.08


@pytest.fixture(scope="module")
def grown(workspace):
    """Eight nodes that are known for long, and two that came today. Nobody is audited: a proof would clear who is suspect, and is
    asked for soon."""
    for cluster in run_server(Cluster(workspace / "newcomers", nodes=OLD, rebalancer_env={"AUDIT_INTERVAL_SECS": "0"})):
        psql(cluster.database_url, "UPDATE nodes SET vetted_at = now()")
        for _ in range(NEW):
            cluster.add_node()
        cluster.wait_online(OLD + NEW)
        yield cluster


def nodes(cluster) -> dict[str, dict]:
    return {node["label"]: node for node in Signed(cluster, "GET", "/api/v1/admin/nodes").send().json()["nodes"]}


def locations(cluster, bucket: str, more: str = "") -> int:
    return int(psql(cluster.database_url, f"""SELECT count(*) FROM chunk_locations l JOIN nodes n ON n.id = l.node_id
        JOIN file_segments s USING (segment_id) JOIN files f ON f.id = s.file_id WHERE f.bucket = '{bucket}' {more}"""))


def test_adv_41_the_unproven_are_given_little(grown):
    s3 = s3_client(grown)
    bucket = new_bucket(s3)

    def put(name: str, count: int):
        for number in range(count):
            s3.put_object(Bucket=bucket, Key=f"{name}-{number}", Body=make_bytes(200_000, f"{name}{number}"))

    unproven = "AND n.vetted_at IS NULL"
    # By then whoever places shards knows of them.
    for round_ in range(20):
        put(f"first-{round_}", 10)
        if locations(grown, bucket, unproven):
            break
    assert locations(grown, bucket, unproven), "the new are given nothing at all"
    bucket = new_bucket(s3)
    put("then", 100)
    theirs, all_ = locations(grown, bucket, unproven), locations(grown, bucket)
    assert all_ >= 100 * 3
    assert theirs / all_ <= SHARE, f"{theirs} of {all_} locations are on nodes that proved nothing yet"


def test_adv_41_nobody_vouches_for_himself(grown):
    """A node that registers again is as new as it was, and as suspect; one that comes under a new name is new."""
    newcomer, suspect, runaway = OLD, 1, 2
    psql(grown.database_url, "UPDATE nodes SET quarantined = true, audits_failed = 7 WHERE label = 'node-2'")
    before = nodes(grown)
    for index in (newcomer, suspect, runaway):
        assert grown.nodes[index].stop() == 0
    # One forgets who it was, which its failures would be told by.
    shutil.rmtree(grown.directory / "node-3")
    for index in (newcomer, suspect):
        grown.nodes[index].start()
    # Before it is known to be gone nobody else may be where it was.
    grown.wait_silent(runaway, ABSENT, "offline")
    grown.nodes[runaway].start()
    for index in (newcomer, suspect):
        grown.restart_wait(index)
    names = {label: node["id"] for label, node in before.items()}
    grown.gateway.wait_for("it registered as somebody else", lambda: grown.online() and psql(
        grown.database_url, f"SELECT count(*) FROM nodes WHERE label = 'node-3' AND id::text <> '{names['node-3']}' AND vetted_at IS NULL") == "1")
    after = nodes(grown)
    assert after["node-9"]["id"] == names["node-9"] and not after["node-9"]["vetted"]
    assert after["node-2"]["id"] == names["node-2"] and after["node-2"]["quarantined"]
    assert after["node-2"]["upkeep"]["audits_failed"] == 7
