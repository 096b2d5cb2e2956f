"""All in one process: what it prints works as printed, what it keeps survives, and it needs nothing else."""

import os
import re
import stat
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import requests

from clients import CLIENTS, new_bucket, s3_client
from cluster import Credentials, Standalone
from conftest import run_server
from data import MIB, SIZES, make_bytes
from process import REPO, Process, binary, free_ports


def test_all_sizes_and_a_restart(standalone):
    s3 = s3_client(standalone)
    bucket = new_bucket(s3)
    for size in SIZES[:-1]:
        s3.put_object(Bucket=bucket, Key=f"k{size}", Body=make_bytes(size, "standalone"))
    for how in ("stop", "kill"):
        getattr(standalone.process, how)()
        standalone.start()
        for size in SIZES[:-1]:
            assert s3.get_object(Bucket=bucket, Key=f"k{size}")["Body"].read() == make_bytes(size, "standalone"), (how, size)


@pytest.mark.parametrize("name", ["aws", "rclone", "s5cmd", "cyxcloud-cli"])
def test_each_client(name, standalone, tmp_path):
    client = CLIENTS[name](standalone, "root", tmp_path / "home")
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(make_bytes(9 * MIB + 1, name))
    bucket = f"each-{uuid.uuid4().hex[:12]}"
    client.make_bucket(bucket)
    client.put(source, bucket, "dir/file")
    client.get(bucket, "dir/file", back)
    assert back.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("nodes", [2, 3, 4, 14])
def test_any_number_of_nodes(nodes, workspace):
    for server in run_server(Standalone(workspace / f"nodes-{nodes}", nodes=nodes)):
        s3 = s3_client(server)
        bucket = new_bucket(s3)
        body = make_bytes(5 * MIB, nodes)
        s3.put_object(Bucket=bucket, Key="k", Body=body)
        s3.put_object(Bucket=bucket, Key="small", Body=body[:20_000])
        assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == body
        assert s3.get_object(Bucket=bucket, Key="small")["Body"].read() == body[:20_000]


def test_a_second_server_on_the_same_directory_is_refused(standalone):
    (port,) = free_ports(1)
    done = subprocess.run(
        [binary("cyxcloud-standalone"), "--data-dir", str(standalone.data_dir), "--http-addr", f"127.0.0.1:{port}"],
        env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=60)
    assert done.returncode not in (0, 101) and "panicked" not in done.stderr, done.stderr
    assert str(standalone.data_dir) in done.stderr or "use" in done.stderr, done.stderr
    assert standalone.ready()


def test_only_its_owner_can_read_what_it_keeps(standalone):
    for path in standalone.data_dir.rglob("*"):
        if path.is_file() and re.search("secret|key|identity|credential", path.name):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@pytest.mark.timeout(1800)
def test_script_server_and_its_three_examples(workspace, tmp_path):
    """`script/server`, then what it prints, line by line, in a shell. Credentials are made once and kept."""
    (port,) = free_ports(1)
    directory = workspace / "script-server"
    directory.mkdir()
    data = directory / "data"
    command = [str(REPO / "script/server"), "--data-dir", str(data), "--http-addr", f"127.0.0.1:{port}"]
    profile = {"debug": "dev", "release": "release"}[os.environ.get("CYXCLOUD_E2E_PROFILE", "debug")]
    kept = {k: os.environ[k] for k in ("CARGO_TARGET_DIR", "CARGO_HOME", "RUSTUP_HOME", "CCACHE_DIR", "CC", "CXX") if k in os.environ}
    server = Process("script-server", command, kept | {"CYXCLOUD_PROFILE": profile}, directory / "log")
    url = f"http://127.0.0.1:{port}"
    # aws is where the clients are; the build directory is on nobody's path.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    try:
        for run in range(2):
            started = len(server.output())
            server.start()
            server.wait_for("/ready answers 200", lambda: requests.get(url + "/ready", timeout=30).status_code == 200, 1500)
            printed = lambda: server.output()[started:].partition("to copy:\n")[2].splitlines()  # noqa: E731
            server.wait_for("three examples are printed", lambda: len(printed()) >= 3)
            examples = [line.strip() for line in printed()[:3]]
            for word, example in zip(("aws ", "cyxcloud-cli ", "curl "), examples):
                assert word in example, examples
                done = subprocess.run(["bash", "-c", "set -o pipefail; " + example], cwd=tmp_path, capture_output=True, text=True,
                                      timeout=120, env={"PATH": path, "HOME": str(tmp_path), "LANG": "C.UTF-8"})
                assert done.returncode == 0, f"{example}\n{done.stdout}\n{done.stderr}"
            assert "hello" in done.stdout
            server.stop()
        assert "panicked" not in server.output()
    finally:
        server.kill()


def test_credentials_from_the_environment_stay(workspace, tmp_path):
    """Given once, given again: the same; data written before is there."""
    server = Standalone(workspace / "env-credentials", nodes=2)
    for started in run_server(server):
        s3 = s3_client(started)
        bucket = new_bucket(s3)
        s3.put_object(Bucket=bucket, Key="k", Body=b"x" * 10_000)
        started.process.stop()
        started.credentials = Credentials(started.credentials.access_key)
        started.process.env["CYXCLOUD_ROOT_SECRET_KEY"] = started.credentials.secret_key
        started.start()
        assert s3_client(started).get_object(Bucket=bucket, Key="k")["Body"].read() == b"x" * 10_000
