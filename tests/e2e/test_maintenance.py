"""A planned pause of a node: it is announced, and then costs nothing but what the node would have been given meanwhile."""

from clients import new_bucket, put_all, s3_client, verify
from cluster import ABSENT, GIVEN_UP, Cluster, psql
from conftest import run_server
from data import MIB, make_bytes
from process import wait_until
from raw import Signed

SIZES = [70_000, 300_000, 5 * MIB + 3]
FLAG = "--maintenance"


def held(cluster: Cluster, index: int, bucket: str | None = None) -> int:
    """Locations on a node, of all objects or of one bucket's."""
    of = f"""AND l.segment_id IN (SELECT s.segment_id FROM file_segments s JOIN files f ON f.id = s.file_id
        WHERE f.bucket = '{bucket}')""" if bucket else ""
    return int(psql(cluster.database_url, f"""SELECT count(*) FROM chunk_locations l JOIN nodes n ON n.id = l.node_id
        WHERE n.label = '{cluster.nodes[index].name}' {of}"""))


def failures(cluster: Cluster, index: int) -> str:
    return psql(cluster.database_url, f"SELECT failure_count FROM nodes WHERE label = '{cluster.nodes[index].name}'")


def admin(cluster: Cluster, path: str) -> dict:
    return Signed(cluster, "GET", f"/api/v1/admin/{path}").send().json()


def is_paused(cluster: Cluster, index: int) -> bool:
    """As administrators see it, in the list and in numbers."""
    paused = {node["label"]: node["maintenance"] for node in admin(cluster, "nodes")["nodes"]}
    return paused[cluster.nodes[index].name] and admin(cluster, "status")["nodes"]["maintenance"] == 1


def restart(cluster: Cluster, index: int, paused: bool):
    """Ends it in order, if it runs, and starts it with the flag or without."""
    node = cluster.nodes[index]
    assert node.stop() in (0, -9)
    node.args = [arg for arg in node.args if arg != FLAG] + [FLAG] * paused
    cluster.restart_node(index)
    cluster.gateway.wait_for(f"{node.name} is paused: {paused}", lambda: is_paused(cluster, index) == paused)


def test_a_planned_pause(workspace):
    # 14 shards on 5 nodes, three on all but one; and nobody moves them.
    for cluster in run_server(Cluster(workspace / "maintenance", nodes=5)):
        cluster.rebalancer.stop()
        s3 = s3_client(cluster)
        bucket = new_bucket(s3, "before")
        bodies = put_all(s3, bucket, SIZES)
        before = held(cluster, 0, bucket)
        assert before > 0

        restart(cluster, 0, paused=True)
        assert cluster.status(0) == "online"
        # To be restarted for it takes a moment, in which a slow machine may miss the node.
        failed = failures(cluster, 0)

        # Who places chunks may have looked at the nodes a moment before.
        def passed_by():
            probe = new_bucket(s3, "probe")
            put_all(s3, probe, [300_000])
            return held(cluster, 0, probe) == 0

        wait_until("new objects pass it by", passed_by)
        meanwhile = new_bucket(s3, "meanwhile")
        others = put_all(s3, meanwhile, SIZES)
        assert held(cluster, 0, meanwhile) == 0 and held(cluster, 0, bucket) == before

        # It is read from: without its shards and those of the one that is killed nine would be left at most.
        cluster.nodes[1].kill()
        verify(s3, bucket, bodies)
        cluster.restart_node(1)

        # The pause itself.
        cluster.nodes[0].kill()
        cluster.wait_silent(0, ABSENT, "offline")
        verify(s3, bucket, bodies)
        verify(s3, meanwhile, others)
        # One that lasts too long is lived through as any absence: what it held is given up.
        cluster.wait_silent(0, GIVEN_UP, "draining")
        verify(s3, bucket, bodies)
        assert failures(cluster, 0) == failed

        restart(cluster, 0, paused=False)
        assert cluster.status(0) == "online" and failures(cluster, 0) == failed
        verify(s3, bucket, bodies)

        def takes_its_part():
            s3.put_object(Bucket=meanwhile, Key="after", Body=make_bytes(5 * MIB, "after"))
            return held(cluster, 0, meanwhile) > 0

        wait_until("it takes its part again", takes_its_part, interval=1)
