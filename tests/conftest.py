"""Fixtures: one cluster for all tests that only use it, and what prints the servers' logs where a test failed."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))

from clients import CLIENTS, new_bucket, s3_client  # noqa: E402
from cluster import Cluster, Server, Standalone  # noqa: E402

running: list[Server] = []


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.failed and report.when in ("setup", "call"):
        for server in running:
            report.sections.append(("servers' logs", server.tails()))


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
