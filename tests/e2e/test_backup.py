"""Metadata goes into a backup while servers run, and comes back from it with garbage collection frozen."""

import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
import tempfile
from pathlib import Path

import pytest

from clients import new_bucket, s3_client
from cluster import database_url, psql
from data import MIB, make_bytes
from process import REPO, Process, free_ports, wait_until


def run(script: str, *args, fails: bool = False) -> str:
    done = subprocess.run([REPO / "script" / script, *map(str, args)], capture_output=True, text=True, timeout=300)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_standalone_server_comes_back_as_it_was(standalone, tmp_path):
    s3 = s3_client(standalone)
    bucket = new_bucket(s3)
    bodies = {"old": make_bytes(5 * MIB, "old"), "gone-later": make_bytes(70_000, "gone")}
    for key, body in bodies.items():
        s3.put_object(Bucket=bucket, Key=key, Body=body)
    copy = tmp_path / "metadata.backup"
    run("backup", "sqlite", "--data-dir", standalone.data_dir, "--to", copy)
    assert copy.stat().st_mode & 0o077 == 0, "readable by others"
    assert "exists already" in run("backup", "sqlite", "--data-dir", standalone.data_dir, "--to", copy, fails=True)

    s3.delete_object(Bucket=bucket, Key="gone-later")
    s3.put_object(Bucket=bucket, Key="new", Body=b"after the backup")
    assert "stop the server" in run("restore", "sqlite", "--from", copy, "--to", standalone.data_dir, fails=True)
    standalone.process.stop()
    run("restore", "sqlite", "--from", copy, "--to", standalone.data_dir)
    standalone.start()
    for key, body in bodies.items():
        assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == body
    assert [each["Key"] for each in s3.list_objects_v2(Bucket=bucket)["Contents"]] == sorted(bodies)
    with sqlite3.connect(f"file:{standalone.data_dir}/metadata.sqlite?mode=ro", uri=True) as database:
        ((why,),) = database.execute("SELECT CAST(value AS TEXT) FROM constants WHERE name = 'gc_frozen'").fetchall()
    assert why.startswith("restored from a backup")


def test_a_damaged_copy_changes_nothing(standalone, tmp_path):
    s3 = s3_client(standalone)
    bucket = new_bucket(s3)
    s3.put_object(Bucket=bucket, Key="k", Body=b"kept")
    copy = tmp_path / "metadata.backup"
    run("backup", "sqlite", "--data-dir", standalone.data_dir, "--to", copy)
    damaged = bytearray(copy.read_bytes())
    for at in range(5000, len(damaged), 4096):
        damaged[at : at + 64] = bytes(64)
    copy.write_bytes(damaged)
    standalone.process.stop()
    run("restore", "sqlite", "--from", copy, "--to", standalone.data_dir, fails=True)
    standalone.start()
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"kept"


@pytest.fixture
def readable_by_postgres():
    """The restored server may run as another user than we do."""
    directory = Path(tempfile.mkdtemp(prefix="cyxcloud-backup."))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def copied_log(url: str, backups: Path, tmp_path: Path):
    """What is written meanwhile is in the copy of the write-ahead log afterwards."""
    slot = f"test_{os.getpid()}"
    copying = Process("wal", [str(REPO / "script/backup"), "wal", "--database-url", url, "--to", str(backups), "--slot", slot], {},
                      tmp_path / "wal.log").start()
    try:
        copying.wait_for("copies", lambda: psql(url, f"SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'") == "t")
        yield
        written = psql(url, "SELECT pg_current_wal_flush_lsn()")
        copying.wait_for("all is copied", lambda: psql(
            url, f"SELECT restart_lsn IS NOT NULL AND flush_lsn >= '{written}' FROM pg_replication_slots s "
                 f"JOIN pg_stat_replication r ON r.pid = s.active_pid WHERE slot_name = '{slot}'") == "t")
    finally:
        copying.kill()
        wait_until("the slot is free", lambda: psql(
            url, f"SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}' AND active") == "0")
        psql(url, f"SELECT pg_drop_replication_slot('{slot}') FROM pg_replication_slots WHERE slot_name = '{slot}'")
    (backups / "wal").chmod(0o755)
    for each in (backups / "wal").iterdir():
        each.chmod(0o644)


def test_postgresql_comes_back_to_a_moment(own_cluster, readable_by_postgres, tmp_path):
    """Base backup before, write-ahead log until after: a moment in between has the first of two later objects."""
    url = database_url()
    s3 = s3_client(own_cluster)
    bucket = new_bucket(s3)
    s3.put_object(Bucket=bucket, Key="1-base", Body=b"before the base backup")
    backups = readable_by_postgres
    run("backup", "base", "--database-url", url, "--to", backups)
    (base,) = backups.glob("base-*")

    with copied_log(url, backups, tmp_path):
        s3.put_object(Bucket=bucket, Key="2-between", Body=b"wanted")
        # A point in time between two commits.
        moment = psql(url, "SELECT clock_timestamp() FROM pg_sleep(0.2)")
        s3.put_object(Bucket=bucket, Key="3-after", Body=b"not wanted")
    restored = backups / "restored"
    user = psql(url, "SELECT current_user")
    run("restore", "postgres", "--from", base, "--wal", backups / "wal", "--until", moment, "--to", restored, "--user", user)
    assert "not empty" in run("restore", "postgres", "--from", base, "--to", restored, fails=True)

    (port,) = free_ports(1)
    bin_dir = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    become = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    pg_ctl = [*become, str(bin_dir / "pg_ctl"), "-D", str(restored), "-s", "-w", "-t", "240"]
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''"
    subprocess.run([*pg_ctl, "-l", str(restored / "log"), "-o", options, "start"], check=True, cwd="/", timeout=270)
    try:
        there = own_cluster.database_url.replace(f":{url.rsplit(':', 1)[1].split('/')[0]}/", f":{port}/")
        keys = psql(there, "SELECT path FROM files WHERE is_latest ORDER BY key").splitlines()
        assert keys == ["1-base", "2-between"]
        assert psql(there, "SELECT convert_from(value, 'UTF8') FROM constants WHERE name = 'gc_frozen'").startswith("restored from")
    finally:
        subprocess.run([*pg_ctl, "-m", "immediate", "stop"], check=True, cwd="/", timeout=270)


def test_a_gap_in_the_log_is_told(own_cluster, readable_by_postgres, tmp_path):
    """PostgreSQL takes a missing file for the end of the log: what was committed after it would be gone without a word."""
    url = database_url()
    s3 = s3_client(own_cluster)
    bucket = new_bucket(s3)
    backups = readable_by_postgres
    run("backup", "base", "--database-url", url, "--to", backups)
    (base,) = backups.glob("base-*")
    with copied_log(url, backups, tmp_path):
        for number in range(3):
            s3.put_object(Bucket=bucket, Key=f"{number}", Body=b"before a file ends")
            psql(url, "SELECT pg_switch_wal()")
        s3.put_object(Bucket=bucket, Key="last", Body=b"in the last file")
    *_, middle, newest = sorted(each for each in (backups / "wal").iterdir() if re.match("[0-9A-F]{24}", each.name))
    user = psql(url, "SELECT current_user")

    def restore(to: str, *more: str, fails: bool = False) -> str:
        return run("restore", "postgres", "--from", base, "--wal", backups / "wal", "--to", backups / to, "--user", user, *more, fails=fails)

    middle.rename(backups / middle.name)
    told = restore("short", fails=True)
    assert "breaks off" in told and newest.name[:24] in told and "--accept-gap" in told and "is ready" not in told
    told = restore("accepted", "--accept-gap")
    assert "given up" in told and "is ready" in told
    (backups / middle.name).rename(middle)
    told = restore("whole")
    assert "breaks off" not in told and "is ready" in told


@pytest.mark.parametrize("script", ["backup", "restore"])
def test_wrong_arguments_say_what_is_wrong(script):
    assert "usage:" in run(script, "--help")
    assert "unknown argument: everything" in run(script, "everything", fails=True)
    assert "is missing" in run(script, "sqlite", fails=True)
