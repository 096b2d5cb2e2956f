"""Processes die; what was acknowledged stays, and what is read is right."""

import shutil
import signal
import subprocess
import threading
import time

import pytest
import requests
from botocore.exceptions import BotoCoreError, ClientError

from clients import new_bucket, s3_client
from cluster import Cluster, Standalone, psql
from conftest import run_server
from data import KIB, MIB, make_bytes
from process import Process, free_ports, wait_until
from raw import Signed, code


def body_of(name: str) -> bytes:
    """Every object's bytes follow from its name."""
    sizes = [100, 5000, 70_000, 200_000, 5 * MIB]
    return make_bytes(sizes[int(name.rsplit("-", 1)[1]) % len(sizes)], name)


class Load:
    """Writes and reads until it is told to stop. A wrong byte or a refused request is kept in `problems`."""

    def __init__(self, server, bucket: str, writers: int = 2, readers: int = 2):
        self.s3, self.bucket = s3_client(server), bucket
        self.written: list[str] = []
        self.read = 0
        self.problems: list[str] = []
        self.over = threading.Event()
        work = [self.write] * writers + [self.verify] * readers
        self.threads = [threading.Thread(target=each, args=(n,), daemon=True) for n, each in enumerate(work)]

    def write(self, worker: int):
        number = 0
        while not self.over.is_set():
            name = f"w{worker}-{number}"
            try:
                self.s3.put_object(Bucket=self.bucket, Key=name, Body=body_of(name))
                self.written.append(name)
            except (ClientError, BotoCoreError) as error:
                self.problems.append(f"PUT {name}: {error}")
            number += 1

    def verify(self, worker: int):
        number = worker
        while not self.over.is_set():
            if not self.written:
                time.sleep(0.01)
                continue
            name = self.written[number % len(self.written)]
            number += 7
            try:
                if self.s3.get_object(Bucket=self.bucket, Key=name)["Body"].read() != body_of(name):
                    self.problems.append(f"GET {name}: other bytes")
                self.read += 1
            except (ClientError, BotoCoreError) as error:
                self.problems.append(f"GET {name}: {error}")

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join(240)
        assert not any(thread.is_alive() for thread in self.threads), "a request hangs"

    def expect_progress(self, what: str, more: int = 6):
        """Until both writes and reads have gone on since now."""
        written, read = len(self.written), self.read
        wait_until(f"writes and reads go on {what} {self.problems[:3]}",
                   lambda: len(self.written) >= written + more and self.read >= read + more, 240)


def verify_all(s3, bucket: str, names) -> None:
    for name in names:
        assert s3.get_object(Bucket=bucket, Key=name)["Body"].read() == body_of(name), name


@pytest.mark.timeout(900)
def test_any_one_node_can_die_under_load(own_cluster):
    """Each of the six in turn: killed, everything read, restarted, awaited. No request may fail or answer wrongly."""
    cluster = own_cluster
    s3 = s3_client(cluster)
    bucket = new_bucket(s3, "load")
    with Load(cluster, bucket) as load:
        load.expect_progress("before any fault")
        for number, node in enumerate(cluster.nodes):
            node.kill()
            load.expect_progress(f"with node {number + 1} dead")
            verify_all(s3, bucket, load.written[-20:] + load.written[:10])
            cluster.restart_node(number)
            assert load.problems == []
    assert load.problems == []
    verify_all(s3, bucket, load.written)


def test_a_gateway_killed_and_started_again_has_everything(own_cluster):
    cluster = own_cluster
    s3 = s3_client(cluster)
    bucket = new_bucket(s3, "restart")
    names = [f"k-{number}" for number in range(25)]
    for name in names:
        s3.put_object(Bucket=bucket, Key=name, Body=body_of(name))
    upload_id = s3.create_multipart_upload(Bucket=bucket, Key="multipart")["UploadId"]
    part = s3.upload_part(Bucket=bucket, Key="multipart", UploadId=upload_id, PartNumber=1, Body=b"part")["ETag"]
    with Load(cluster, bucket) as load:
        load.expect_progress("before the kill")
        cluster.gateway.kill()
    acknowledged = list(load.written)
    cluster.gateway.start()
    cluster.wait_ready(cluster.gateway)
    verify_all(s3, bucket, names + acknowledged)
    listed = {entry["Key"] for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket) for entry in page["Contents"]}
    assert set(names + acknowledged) <= listed
    # What was not acknowledged may be there, whole, or not at all.
    verify_all(s3, bucket, listed - {"multipart"})
    parts = {"Parts": [{"PartNumber": 1, "ETag": part}]}
    s3.complete_multipart_upload(Bucket=bucket, Key="multipart", UploadId=upload_id, MultipartUpload=parts)
    assert s3.get_object(Bucket=bucket, Key="multipart")["Body"].read() == b"part"


def test_all_nodes_killed_at_once_lose_nothing(own_cluster):
    cluster = own_cluster
    s3 = s3_client(cluster)
    bucket = new_bucket(s3, "power")
    with Load(cluster, bucket, writers=3, readers=1) as load:
        load.expect_progress("before the power cut")
        for process in (*cluster.nodes, cluster.gateway, cluster.rebalancer):
            process.kill()
    cluster.gateway.start()
    cluster.rebalancer.start()
    cluster.gateway.wait_for("/health answers", lambda: requests.get(cluster.url + "/health", timeout=30).ok)
    for number in range(len(cluster.nodes)):
        cluster.restart_node(number)
    cluster.wait_ready(cluster.gateway)
    cluster.wait_writable()
    verify_all(s3, bucket, load.written)


def test_a_node_that_stops_answering_does_not_stop_reads(own_cluster):
    """Frozen, not dead: its connections stay open and say nothing."""
    cluster = own_cluster
    s3 = s3_client(cluster)
    bucket = new_bucket(s3, "frozen")
    names = [f"k-{number}" for number in range(10)]
    for name in names:
        s3.put_object(Bucket=bucket, Key=name, Body=body_of(name))
    frozen = cluster.nodes[2]
    frozen.child.send_signal(signal.SIGSTOP)
    try:
        verify_all(s3, bucket, names)
        s3.put_object(Bucket=bucket, Key="while-0", Body=body_of("while-0"))
        s3.put_object(Bucket=bucket, Key="while-4", Body=body_of("while-4"))
    finally:
        frozen.child.send_signal(signal.SIGCONT)
    verify_all(s3, bucket, ["while-0", "while-4", *names])
    cluster.wait_online(len(cluster.nodes))


def test_a_node_whose_disk_was_wiped_is_read_around(own_cluster):
    cluster = own_cluster
    s3 = s3_client(cluster)
    bucket = new_bucket(s3, "wiped")
    names = [f"k-{number}" for number in range(15)]
    for name in names:
        s3.put_object(Bucket=bucket, Key=name, Body=body_of(name))
    node = cluster.nodes[4]
    node.kill()
    path = cluster.directory / "node-5"
    kept = path.with_name("node-5-kept")
    shutil.move(path, kept)
    verify_all(s3, bucket, names)
    shutil.move(kept, path)
    cluster.restart_node(4)
    verify_all(s3, bucket, names)


def test_too_few_nodes_is_said_with_a_number(workspace):
    """One node keeps no promise: 503, how many are needed, and nothing visible. With two it works."""
    cluster = Cluster(workspace / "few", nodes=2)
    second = cluster.nodes.pop()
    cluster.processes.remove(second)
    cluster.wait_writable = lambda *_: None
    cluster.wait_ready = lambda *_: None
    for started in run_server(cluster):
        s3 = s3_client(started)
        bucket = new_bucket(s3)
        wait_until("the gateway knows its node", lambda: started.online() == 1)
        for size in (10 * KIB, 300 * KIB):
            answer = Signed(started, "PUT", f"/{bucket}/k", body=b"x" * size).send()
            assert answer.status_code == 503 and code(answer) in ("SlowDown", "ServiceUnavailable"), answer.text
            assert "2" in answer.text and "node" in answer.text.lower(), answer.text
        assert "Contents" not in s3.list_objects_v2(Bucket=bucket)
        cluster.nodes.append(second)
        cluster.processes.append(second)
        second.start()
        started.wait_online(2)
        wait_until("writes work", lambda: s3.put_object(Bucket=bucket, Key="k-4", Body=body_of("k-4")), interval=0.3)
        second.kill()
        verify_all(s3, bucket, ["k-4"])


def test_losing_redis_loses_nothing(workspace):
    """Redis holds only what may be lost."""
    directory = workspace / "no-redis"
    cluster = Cluster(directory, nodes=3)
    (port,) = free_ports(1)
    redis = Process("redis", ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)],
                    {}, directory / "redis.log")
    cluster.gateway.env["REDIS_URL"] = cluster.rebalancer.env["REDIS_URL"] = f"redis://127.0.0.1:{port}"
    redis.start()
    try:
        redis.wait_for("answers", lambda: subprocess.run(
            ["redis-cli", "-p", str(port), "ping"], capture_output=True, text=True).stdout.strip() == "PONG")
        for started in run_server(cluster):
            s3 = s3_client(started)
            bucket = new_bucket(s3)
            s3.put_object(Bucket=bucket, Key="k-4", Body=body_of("k-4"))
            redis.kill()
            # The rebalancer has no use for it, not even when it starts.
            started.rebalancer.kill()
            started.rebalancer.start()
            health = f"http://127.0.0.1:{started.rebalancer_port}/health"
            started.rebalancer.wait_for("runs without redis", lambda: requests.get(health, timeout=5).status_code == 200)
            assert "redis does not answer" in started.rebalancer.output()
            verify_all(s3, bucket, ["k-4"])
            s3.put_object(Bucket=bucket, Key="k-3", Body=body_of("k-3"))
            verify_all(s3, bucket, ["k-3", "k-4"])
            redis.start()
            verify_all(s3, bucket, ["k-3", "k-4"])
    finally:
        redis.kill()


def test_a_standalone_killed_under_load_keeps_what_it_acknowledged(workspace):
    server = Standalone(workspace / "standalone-kill")
    for started in run_server(server):
        s3 = s3_client(started)
        bucket = new_bucket(s3)
        acknowledged: list[str] = []
        for _ in range(2):
            with Load(started, bucket, writers=3, readers=1) as load:
                load.expect_progress("before the kill")
                started.process.kill()
            acknowledged += load.written
            started.start()
            verify_all(s3, bucket, acknowledged)
            for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]:
                verify_all(s3, bucket, [entry["Key"]])
                s3.delete_object(Bucket=bucket, Key=entry["Key"]) if entry["Key"] not in acknowledged else None
            bucket, acknowledged = new_bucket(s3), []
        assert started.process.stop() == 0
        started.start()
        assert len(s3.list_buckets()["Buckets"]) == 3


def test_usage_adds_up_after_all_of_it(own_cluster):
    """Last in this file: the counters say what the objects say."""
    cluster = own_cluster
    # At one moment: what was counted is folded all the while.
    told = psql(cluster.database_url, """
        SELECT f.objects, f.bytes, u.objects + d.objects, u.bytes + d.bytes FROM
            (SELECT count(*) AS objects, coalesce(sum(size_bytes), 0) AS bytes FROM files WHERE is_latest) f,
            (SELECT coalesce(sum(object_count), 0) AS objects, coalesce(sum(storage_used), 0) AS bytes FROM users) u,
            (SELECT coalesce(sum(objects), 0) AS objects, coalesce(sum(bytes), 0) AS bytes FROM usage_deltas) d""")
    real_objects, real_bytes, objects, size = (int(n) for n in told.split("|"))
    assert (objects, size) == (real_objects, real_bytes)
