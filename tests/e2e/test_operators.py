"""The queries of the operators' handbook (specification, sections 11, 12 and 14.6, appendix A), as printed there."""

import pytest

from cluster import psql
from data import MIB, make_bytes
from process import wait_until


@pytest.fixture(scope="module")
def query(cluster):
    from clients import new_bucket, s3_client

    s3 = s3_client(cluster)
    bucket = new_bucket(s3, "ops")
    for name, size in (("dir/inline.txt", 100), ("dir/copies.bin", 20_000), ("stripes.bin", 9 * MIB)):
        s3.put_object(Bucket=bucket, Key=name, Body=make_bytes(size, name))
    return lambda sql: psql(cluster.database_url, sql)


def test_useful_queries(query):
    assert len(query("SELECT * FROM nodes;").splitlines()) == 6
    assert len(query("SELECT * FROM files ORDER BY created_at DESC LIMIT 10;").splitlines()) >= 3
    # Stragglers are left to repair, so a stripe may be short for a moment; the query works and knows three answers.
    query("SELECT * FROM chunk_replication_status WHERE health_status != 'healthy';")
    kinds = set(query("SELECT DISTINCT health_status FROM chunk_replication_status").splitlines())
    assert kinds and kinds <= {"healthy", "under_replicated", "missing"}


def test_quick_reference(query):
    def all_online():
        rows = [line.split("|") for line in query("SELECT peer_id, status, storage_used FROM nodes;").splitlines()]
        return len({row[0] for row in rows}) == 6 and {row[1] for row in rows} == {"online"}

    wait_until("all six are online", all_online)
    newest = query("SELECT name, size_bytes, chunk_count FROM files ORDER BY created_at DESC LIMIT 5;").splitlines()
    assert f"stripes.bin|{9 * MIB}|42" in newest  # three stripes of 10 and 4 shards
    assert "copies.bin|20000|1" in newest
    assert any(line.startswith("inline.txt|100|") for line in newest)


def test_views_have_their_columns(query):
    query("SELECT chunk_id, file_id, replication_factor, current_replicas, replicas_needed, health_status "
          "FROM chunk_replication_status")
    query("SELECT id, peer_id, grpc_address, storage_total, storage_reserved, storage_used, storage_available, "
          "storage_allocatable, utilization_percent, chunk_count, status, last_heartbeat FROM node_storage_summary")
    total, reserved, available = query(
        "SELECT storage_total, storage_reserved, storage_available FROM node_storage_summary LIMIT 1").split("|")
    assert int(reserved) == 0 and 0 < int(available) <= int(total)


def test_tables_have_their_columns(query):
    for table, columns in {
        "users": "id, wallet_address, email, username, storage_quota, storage_used, status, created_at",
        "buckets": "id, name, owner_id",
        "files": "id, name, path, owner_id, bucket, content_hash, size_bytes, chunk_count, data_shards, parity_shards, chunk_size, "
                 "status, content_type, metadata",
        "chunks": "id, chunk_id, shard_index, is_parity, size_bytes, replication_factor, status",
        "chunk_locations": "id, chunk_id, node_id, status, last_verified, verification_failures",
        "nodes": "id, peer_id, grpc_address, storage_total, storage_used, storage_reserved, status, last_heartbeat, "
                 "first_offline_at, status_changed_at, failure_count, region",
        "repair_jobs": "id, chunk_id, source_node_id, target_node_id, status, priority, retry_count",
    }.items():
        query(f"SELECT {columns} FROM {table} LIMIT 1")


def test_shards_lie_as_placement_promises(query):
    """Whichever node is lost, enough different shards of every stripe are left; copies are on different nodes.

    Not: no node holds more than 4. Where most nodes kept writes waiting, the rest hold 10 each, some of them twice."""
    stripes, short = query("""
        WITH held AS (
            SELECT l.segment_id, l.stripe_index, l.shard_index, l.node_id
            FROM chunk_locations l JOIN segments s ON s.id = l.segment_id
            WHERE s.data_shards = 10 AND l.status = 'stored'),
        left_without AS (
            SELECT h.segment_id, h.stripe_index, lost.node_id,
                   count(DISTINCT h.shard_index) FILTER (WHERE h.node_id <> lost.node_id) AS shards
            FROM held h JOIN (SELECT DISTINCT segment_id, stripe_index, node_id FROM held) lost
                USING (segment_id, stripe_index)
            GROUP BY h.segment_id, h.stripe_index, lost.node_id)
        SELECT count(DISTINCT (segment_id, stripe_index)), count(*) FILTER (WHERE shards < 10) FROM left_without""").split("|")
    assert int(stripes) >= 3 and int(short) == 0
    copies = query("""
        SELECT min(n) FROM (
            SELECT count(DISTINCT l.node_id) AS n FROM chunk_locations l JOIN segments s ON s.id = l.segment_id
            WHERE s.copies > 1 GROUP BY l.segment_id) t""")
    assert int(copies) >= 2


def test_heartbeats_arrive(query):
    def fresh():
        return query("SELECT count(*) FROM nodes WHERE last_heartbeat > now() - interval '5 seconds'") == "6"

    wait_until("six nodes have sent a heartbeat within 5 s", fresh, interval=0.5)


def test_uploads_leave_no_intents(query):
    wait_until("no upload is under way", lambda: query("SELECT count(*) FROM upload_intents") == "0", interval=0.5)
