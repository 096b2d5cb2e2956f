"""Fixtures: one cluster for all tests that only use it, what prints the servers' logs where a test failed, and what searches all logs
for secrets."""

import os
import shutil
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))

from clients import CLIENTS, new_bucket, s3_client  # noqa: E402
from cluster import Cluster, Server, Standalone  # noqa: E402
from data import MIB  # noqa: E402
from process import logs  # noqa: E402
from redaction import known, watching  # noqa: E402

running: list[Server] = []
SEARCHED = pytest.StashKey[str]()

# All that programs can log, so that the search below sees it. Another level is for people who look for something in logs.
os.environ.setdefault("CYXCLOUD_E2E_LOG", "trace")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.failed and report.when in ("setup", "call"):
        for server in running:
            report.sections.append(("servers' logs", server.tails()))


@pytest.fixture(scope="session", autouse=True)
def no_secret_is_in_any_log(request, tmp_path_factory):
    """Begins before all others and ends after them: then every log of the session is searched. A finding is an error of its last test."""
    with watching(tmp_path_factory.mktemp("commands")):
        yield
    known.learn_files(tmp_path_factory.getbasetemp())
    size, started = sum(log.stat().st_size for log in logs), time.monotonic()
    leaks = known.search(logs)
    request.config.stash[SEARCHED] = (
        f"{len(logs)} logs of {size / MIB:.1f} MiB, at {os.environ['CYXCLOUD_E2E_LOG']}, were searched for {len(known)} secrets in "
        f"{time.monotonic() - started:.1f} s: {len(leaks) or 'none'} found")
    if leaks:
        pytest.fail("secrets are in logs:\n" + "\n".join(leaks), pytrace=False)


def pytest_terminal_summary(terminalreporter, config):
    if said := config.stash.get(SEARCHED, None):
        terminalreporter.section("secrets in logs")
        terminalreporter.line(said)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    """Where servers keep data and logs. Kept where a test failed; the data of nodes goes either way."""
    return tmp_path_factory.mktemp("servers")


def run_server(server: Server):
    running.append(server)
    try:
        server.start()
        yield server
        server.check_logs()
    finally:
        running.remove(server)
        server.stop()
        known.learn_files(server.directory)
        for path in server.directory.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster(workspace):
    """Six nodes, over PostgreSQL and Redis. Shared: a test that stops something starts a cluster of its own."""
    yield from run_server(Cluster(workspace / "shared"))


@pytest.fixture(scope="module")
def own_cluster(workspace, request):
    """A cluster for the tests of one file, which may kill and restart its parts."""
    yield from run_server(Cluster(workspace / request.module.__name__))


@pytest.fixture
def standalone(workspace, request):
    """A fresh standalone server."""
    yield from run_server(Standalone(workspace / f"standalone-{request.node.name[:40]}".replace("/", "_")))


@pytest.fixture
def s3(cluster):
    return s3_client(cluster)


@pytest.fixture
def bucket(s3):
    """A new bucket, left behind full: emptying it would test deletion once more."""
    return new_bucket(s3)


@pytest.fixture(params=list(CLIENTS))
def client(request, cluster, tmp_path):
    """Each client in turn, at the root of the HTTP port."""
    return CLIENTS[request.param](cluster, "root", tmp_path / "home")
