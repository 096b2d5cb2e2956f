"""What servers say of themselves while PostgreSQL and Redis are away: what they know, never 500, and never nothing."""

import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
import requests
from clients import new_bucket, s3_client
from cluster import Cluster
from conftest import run_server
from cut import Line
from process import wait_until
from raw import Signed
from solders.keypair import Keypair

# A part of an answer may take 5 s, and some have three.
ANSWERED_WITHIN = 60


def behind(url: str) -> tuple[Line, str]:
    parts = urlsplit(url)
    line = Line(parts.hostname, parts.port or 5432)
    user = f"{parts.username}:{parts.password}@" if parts.password else f"{parts.username}@" if parts.username else ""
    return line, parts._replace(netloc=f"{user}127.0.0.1:{line.port}").geturl()


@pytest.fixture(scope="module")
def lines(workspace):
    """A cluster of which the lines to its databases can be cut."""
    cluster = Cluster(workspace / "degraded", nodes=3)
    postgres, database_url = behind(cluster.database_url)
    redis, redis_url = behind(cluster.redis_url)
    for process in (cluster.gateway, cluster.rebalancer):
        process.env |= {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
    for cluster in run_server(cluster):
        yield cluster, postgres, redis


def get(cluster: Cluster, path: str) -> requests.Response:
    query = {"wallet_address": str(Keypair().pubkey())} if path.endswith("/challenge") else {}
    return Signed(cluster, "GET", path, query=query).send()


def routes(cluster: Cluster) -> list[str]:
    """Every route that is read from, as the gateway itself describes them, with something in place of what varies. A socket answers no such request."""
    paths = requests.get(f"{cluster.url}/api/v1/openapi.json", timeout=30).json()["paths"]
    return [re.sub(r"\{[^}]+\}", str(uuid.uuid4()), path) for path, methods in paths.items() if "get" in methods and path != "/ws"]


@pytest.mark.parametrize("how", ["refused", "silent"])
def test_without_databases_every_answer_is_what_is_known_or_503(lines, how):
    cluster, postgres, redis = lines
    bucket = new_bucket(s3_client(cluster))
    known = routes(cluster)
    assert {"/api/v1/admin/status", "/api/v1/admin/nodes", "/api/v1/auth/me"} <= set(known)
    for line in (postgres, redis):
        line.cut() if how == "refused" else line.silent()
    try:
        assert requests.get(cluster.url + "/health", timeout=ANSWERED_WITHIN).text == "OK"
        assert requests.get(cluster.url + "/version", timeout=ANSWERED_WITHIN).ok
        wait_until("the gateway is not ready",
                   lambda: requests.get(cluster.url + "/ready", timeout=ANSWERED_WITHIN).status_code == 503)
        with ThreadPoolExecutor(len(known)) as pool:
            answers = list(pool.map(lambda path: get(cluster, path), known))
        for path, answer in zip(known, answers):
            assert answer.status_code in (200, 503), f"{path}: {answer.status_code} {answer.text}"
            if answer.status_code == 503:
                assert answer.headers["content-type"].startswith("application/problem+json"), path
                assert answer.json()["detail"] and answer.json()["status"] == 503, path
        status = get(cluster, "/api/v1/admin/status").json()
        assert status["nodes"] is None and any("nodes" in problem for problem in status["problems"])
        answer = Signed(cluster, "GET", f"/{bucket}").send()
        assert answer.status_code == 503 and "<Code>" in answer.text
        for port in (cluster.metrics_port, cluster.rebalancer_port):
            assert requests.get(f"http://127.0.0.1:{port}/metrics", timeout=ANSWERED_WITHIN).ok
        health = requests.get(f"http://127.0.0.1:{cluster.rebalancer_port}/health", timeout=ANSWERED_WITHIN)
        assert health.status_code == 503 and "metadata store" in health.text
    finally:
        for line in (postgres, redis):
            if how == "silent":
                line.cut()
            line.open()
    cluster.wait_ready(cluster.gateway)
    wait_until("the status is whole again", lambda: get(cluster, "/api/v1/admin/status").json()["problems"] == [])
