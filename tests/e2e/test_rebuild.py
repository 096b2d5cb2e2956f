"""Locations that are lost are found again in what the nodes hold: each chunk says, sealed, where it belongs."""

import sqlite3
import subprocess

from clients import new_bucket, put_all, s3_client, verify
from cluster import Cluster, Standalone, psql
from conftest import run_server
from data import MIB, make_bytes
from process import binary, wait_until
from raw import Signed

SIZES = [70_000, 300_000, 5 * MIB + 3, 9 * MIB]
# All that a location says, but for the receipt's own time: it is signed anew.
CENSUS = """SELECT segment_id, stripe_index, shard_index, node_id, encode(chunk_id, 'hex'), incarnation, generation, status,
    length(receipt) FROM chunk_locations ORDER BY 1, 2, 3, 4"""
# More copies than a node keeps descriptors of.
SAME = 20


def rebuild(cluster: Cluster, *args: str) -> subprocess.CompletedProcess:
    command = [binary("cyxcloud-rebalancer"), "rebuild-locations", *args]
    done = subprocess.run(command, env=cluster.rebalancer.env, capture_output=True, text=True, timeout=120)
    assert "panicked" not in done.stderr, done.stderr
    return done


def rows(cluster: Cluster) -> int:
    return int(psql(cluster.database_url, "SELECT count(*) FROM chunk_locations"))


def put_some(s3, bucket: str) -> dict[str, bytes]:
    # One owner's same bytes are the same chunks: one chunk in many places.
    return put_all(s3, bucket, SIZES, {f"same-{n}": make_bytes(400_000, "same") for n in range(SAME)})


def test_dropped_locations_are_rebuilt_from_the_nodes(workspace):
    # One that sees a node that was killed as gone at once would move on; here absence means nothing.
    for cluster in run_server(Cluster(workspace / "rebuilt", nodes=6)):
        s3 = s3_client(cluster)
        bucket = new_bucket(s3)
        bodies = put_some(s3, bucket)
        # Stripes are whole before, and nobody changes anything meanwhile.
        short = """SELECT count(*) FROM chunks c WHERE NOT EXISTS (SELECT 1 FROM chunk_locations l
            WHERE (l.segment_id, l.stripe_index, l.shard_index) = (c.segment_id, c.stripe_index, c.shard_index))"""
        wait_until("every stripe is whole", lambda: psql(cluster.database_url, short) == "0", 150)
        cluster.rebalancer.stop()
        wait_until("no claim is left", lambda: psql(cluster.database_url, """SELECT
            (SELECT count(*) FROM repair_jobs WHERE status = 'in_progress' AND lease_until > now()) +
            (SELECT count(*) FROM node_scans WHERE NOT done AND lease_until > now())""") == "0", 150)
        before, count = psql(cluster.database_url, CENSUS).splitlines(), rows(cluster)
        psql(cluster.database_url, "DELETE FROM chunk_locations")
        # What gateways remember of layouts is not what is tested.
        cluster.gateway.stop()
        cluster.gateway.start()
        cluster.wait_ready(cluster.gateway)

        done = rebuild(cluster, "--dry-run")
        assert done.returncode == 0 and " to record" in done.stdout and rows(cluster) == 0, done.stdout + done.stderr

        # Somebody who repairs by what is not there must not.
        psql(cluster.database_url, """INSERT INTO repair_jobs (segment_id, stripe_index, status, lease_until)
            SELECT segment_id, stripe_index, 'in_progress', now() + interval '1 hour' FROM stripes LIMIT 1
            ON CONFLICT (segment_id, stripe_index) WHERE status IN ('pending', 'in_progress')
            DO UPDATE SET status = 'in_progress', lease_until = excluded.lease_until""")
        done = rebuild(cluster)
        assert done.returncode == 1 and "stop all rebalancers" in done.stderr and rows(cluster) == 0, done.stdout + done.stderr
        psql(cluster.database_url, "DELETE FROM repair_jobs")

        # A node that is away: all others are read, and the tool says what is missing.
        cluster.nodes[5].kill()
        done = rebuild(cluster)
        assert done.returncode == 1 and "nodes read:      5 of 6" in done.stdout and "(node-6)" in done.stdout, done.stdout
        assert 0 < rows(cluster) < count
        cluster.restart_node(5)
        one = psql(cluster.database_url, "SELECT id FROM nodes WHERE label = 'node-6'")
        done = rebuild(cluster, "--node", one)
        assert done.returncode == 0 and "nodes read:      1 of 1" in done.stdout, done.stdout + done.stderr
        assert "of which 0 short and 0 unreadable" in done.stdout, done.stdout

        after = psql(cluster.database_url, CENSUS).splitlines()
        # What lies in more places than a node remembers is found by its id: wherever it is, which may be more than was recorded.
        # A chunk that was stored again for another place has the newest generation in all of them.
        where = {tuple(row.split("|")[:5]): int(row.split("|")[6]) for row in after}
        for row in before:
            columns = row.split("|")
            assert where.get(tuple(columns[:5]), -1) >= int(columns[6]), row
        same = psql(cluster.database_url, """SELECT DISTINCT e.segment_id FROM file_segments e JOIN files f ON f.id = e.file_id
            WHERE f.path LIKE 'same-%'""").splitlines()
        # A node may hold what was never recorded: a store that came too late for its commit. Nothing that was is missing or other.
        assert not [row for row in before if row.split("|")[0] not in same and row not in after]

        # Once more changes nothing.
        done = rebuild(cluster)
        assert done.returncode == 0 and "locations:       0 recorded" in done.stdout, done.stdout + done.stderr
        assert psql(cluster.database_url, CENSUS).splitlines() == after

        for node in range(6):
            cluster.nodes[node].kill()
            verify(s3, bucket, bodies)
            cluster.restart_node(node)
        # Nothing is collected before somebody has looked; then all goes on as ever.
        frozen = Signed(cluster, "GET", "/api/v1/admin/gc").send().json()["gc"]["frozen"]
        assert frozen and "rebuilt" in frozen, frozen
        assert Signed(cluster, "POST", "/api/v1/admin/gc/thaw").send().status_code == 200
        cluster.rebalancer.start()
        s3.delete_object(Bucket=bucket, Key="same-0")
        del bodies["same-0"]
        verify(s3, bucket, bodies)


def test_a_node_that_is_not_there_is_refused(cluster):
    done = rebuild(cluster, "--dry-run", "--node", "00000000-0000-4000-8000-000000000000")
    assert done.returncode == 1 and "there is no node 00000000" in done.stderr, done.stderr


def test_a_standalone_server_rebuilds_as_it_starts(workspace):
    server = Standalone(workspace / "standalone-rebuilt", nodes=4)
    for _ in run_server(server):
        s3 = s3_client(server)
        bucket = new_bucket(s3)
        bodies = put_some(s3, bucket)
        server.process.stop()
        census = "SELECT segment_id, stripe_index, shard_index, node_id, chunk_id FROM chunk_locations"
        database = server.data_dir / "metadata.sqlite"
        with sqlite3.connect(database) as db:
            before = set(db.execute(census))
            db.execute("DELETE FROM chunk_locations")
        assert before
        db.close()
        server.process.args.append("--rebuild-locations")
        server.start()
        server.process.wait_for("locations are rebuilt", lambda: "0 unreadable" in server.process.output())
        verify(s3_client(server), bucket, bodies)
        server.process.stop()
        db = sqlite3.connect(database)
        assert before <= set(db.execute(census))
        db.close()


# Garbage is collected soon, and stays in the trash for long.
SOON = {"SCAN_INTERVAL_SECS": "1", "REPAIR_LEASE_SECS": "1", "GC_GRACE_SECS": "2", "RECONCILE_INTERVAL_SECS": "5"}


def test_what_was_collected_since_a_backup_comes_out_of_the_trash(workspace):
    for cluster in run_server(Cluster(workspace / "trashed", nodes=6, rebalancer_env=SOON)):
        s3 = s3_client(cluster)
        bucket = new_bucket(s3)
        bodies = put_some(s3, bucket)
        backup = subprocess.run(["pg_dump", "--clean", "--if-exists", cluster.database_url], capture_output=True, text=True, timeout=60)
        assert backup.returncode == 0, backup.stderr
        for key in bodies:
            s3.delete_object(Bucket=bucket, Key=key)
        left = """SELECT (SELECT count(*) FROM chunk_locations) + (SELECT count(*) FROM chunk_deletes)"""
        wait_until("all is collected", lambda: psql(cluster.database_url, left) == "0", 240)
        cluster.gateway.stop()
        cluster.rebalancer.stop()
        came_back = subprocess.run(["psql", "-q", "-v", "ON_ERROR_STOP=1", cluster.database_url], input=backup.stdout,
                                   capture_output=True, text=True, timeout=60)
        assert came_back.returncode == 0, came_back.stderr
        wait_until("no claim is left", lambda: psql(cluster.database_url, """SELECT
            (SELECT count(*) FROM repair_jobs WHERE status = 'in_progress' AND lease_until > now()) +
            (SELECT count(*) FROM node_scans WHERE NOT done AND lease_until > now())""") == "0", 150)
        # The inventories alone bring nothing back, and say nothing against what is recorded: comparing does.
        psql(cluster.database_url, "UPDATE chunk_locations SET status = 'missing'")
        done = rebuild(cluster)
        assert done.returncode == 1 and "0 recorded" in done.stdout, done.stdout + done.stderr
        refused = rebuild(cluster, "--dry-run", "--from-trash")
        assert refused.returncode == 2 and "cannot be used with" in refused.stderr, refused.stderr
        done = rebuild(cluster, "--from-trash")
        assert done.returncode == 0 and "from the trash:" in done.stdout, done.stdout + done.stderr
        assert "of which 0 short and 0 unreadable" in done.stdout, done.stdout
        cluster.gateway.start()
        cluster.wait_ready(cluster.gateway)
        verify(s3, bucket, bodies)
        # What is named again is not collected again.
        assert Signed(cluster, "POST", "/api/v1/admin/gc/thaw").send().status_code == 200
        cluster.rebalancer.start()
        s3.put_object(Bucket=bucket, Key="later", Body=b"x" * 200_000)
        s3.delete_object(Bucket=bucket, Key="later")
        wait_until("what nobody needs is collected", lambda: psql(cluster.database_url, """SELECT
            (SELECT count(*) FROM gc_candidates) + (SELECT count(*) FROM chunk_deletes)""") == "0", 240)
        verify(s3, bucket, bodies)
