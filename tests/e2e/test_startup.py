"""Servers that cannot start say so in one clear line; those that run say how they are, and end when asked to."""

import os
import re
import socket
import stat
import subprocess

import pytest
import requests

from clients import new_bucket, s3_client
from cluster import Standalone
from conftest import run_server
from process import binary, free_ports
from raw import Signed

SECRETS = {
    "JWT_SECRET": "0123456789abcdef" * 4,
    "CYXCLOUD_MASTER_KEY": "00112233445566778899aabbccddeeff" * 2,
}
SERVERS = ["cyxcloud-gateway", "cyxcloud-node", "cyxcloud-rebalancer", "cyxcloud-standalone", "cyxcloud-cli"]


def run(name: str, *args: str, env: dict[str, str] | None = None, timeout: float = 60) -> subprocess.CompletedProcess:
    base = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    return subprocess.run([binary(name), *args], env=base | (env or {}), capture_output=True, text=True, timeout=timeout)


def one_clear_line(done: subprocess.CompletedProcess, *words: str):
    """Failed, said why in a line that has these words, and did not panic."""
    text = done.stdout + done.stderr
    assert done.returncode not in (0, 101, -6), (done.returncode, text)
    assert "panicked" not in text and "stack backtrace" not in text, text
    lines = [line for line in done.stderr.splitlines() if line.strip()] or done.stdout.splitlines()
    assert lines, "it said nothing"
    for word in words:
        assert any(re.search(word, line, re.I) for line in lines), f"no {word!r} in:\n{text}"
    errors = [line for line in lines if re.match(r"(error|.*\bERROR\b)", line, re.I)]
    assert len(errors) <= 1, f"more than one line:\n{text}"


@pytest.mark.parametrize("name", SERVERS)
def test_help_version_and_wrong_flags(name):
    assert run(name, "--help").returncode == 0
    version = run(name, "--version")
    assert version.returncode == 0 and re.search(r"\d+\.\d+\.\d+", version.stdout)
    done = run(name, "--no-such-flag")
    assert done.returncode == 2 and "--no-such-flag" in done.stderr and "panicked" not in done.stderr


def test_a_gateway_with_nothing_set():
    one_clear_line(run("cyxcloud-gateway"), "DATABASE_URL")


@pytest.mark.parametrize("name,args", [
    ("cyxcloud-gateway", ["--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0"]),
    ("cyxcloud-rebalancer", []),
])
def test_a_database_that_is_not_there(name, args):
    (port,) = free_ports(1)
    done = run(name, *args, env=SECRETS | {"DATABASE_URL": f"postgres://u:sesame-open@127.0.0.1:{port}/db"})
    one_clear_line(done, "database|postgres")
    assert "sesame-open" not in done.stdout + done.stderr, "the password is not to be shown"


def test_a_database_url_that_is_none():
    for url in ("nonsense", "mysql://x/y", "postgres://"):
        one_clear_line(run("cyxcloud-gateway", env=SECRETS | {"DATABASE_URL": url}))


def test_redis_that_is_not_there():
    (port,) = free_ports(1)
    env = SECRETS | {"REDIS_URL": f"redis://127.0.0.1:{port}"}
    # Redis holds only what may be lost: whether a gateway waits for it or ends is its choice; a panic is not.
    try:
        done = run("cyxcloud-gateway", "--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0", "--memory-only",
                   env=env, timeout=5)
    except subprocess.TimeoutExpired as running:
        assert b"panicked" not in (running.stderr or b"") + (running.stdout or b"")
    else:
        one_clear_line(done)


def test_addresses_that_are_taken_or_nonsense():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        one_clear_line(run("cyxcloud-gateway", "--memory-only", "--http-addr", address, "--grpc-addr", "127.0.0.1:0", env=SECRETS),
                       "address|in use|bind|listen")
    assert run("cyxcloud-gateway", "--http-addr", "nonsense", env=SECRETS).returncode == 2


@pytest.mark.parametrize("args", [["--enable-blockchain"], ["--solana-rpc-url", "http://x"], ["--keypair-path", "/x"]])
def test_blockchain_flags_refuse_to_start(args):
    one_clear_line(run("cyxcloud-gateway", "--memory-only", *args, env=SECRETS), "blockchain")


@pytest.mark.parametrize("env,word", [
    ({"JWT_SECRET": ""}, "JWT_SECRET"), ({"JWT_SECRET": "short"}, "JWT_SECRET"), ({"JWT_SECRET": "your-secret-here"}, "JWT_SECRET"),
    ({"CYXCLOUD_MASTER_KEY": "abc"}, "MASTER_KEY"), ({"CYXCLOUD_MASTER_KEY": "00" * 32}, "MASTER_KEY"),
    ({"CYXCLOUD_ROOT_ACCESS_KEY": "root"}, "ROOT_SECRET_KEY"),
])
def test_secrets_that_are_none(env, word):
    one_clear_line(run("cyxcloud-gateway", "--memory-only", env=SECRETS | env), word)


ROOT = "89abcdef01234567" * 3
GATEWAY = ["--memory-only", "--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0"]


@pytest.mark.parametrize("name,args,env", [
    ("cyxcloud-gateway", GATEWAY, ["JWT_SECRET", "CYXCLOUD_MASTER_KEY", "CYXCLOUD_ROOT_SECRET_KEY", "REDIS_URL"]),
    ("cyxcloud-gateway", GATEWAY[1:], ["DATABASE_URL"]),
    ("cyxcloud-rebalancer", [], ["DATABASE_URL", "REDIS_URL", "CYXCLOUD_MASTER_KEY"]),
    ("cyxcloud-standalone", ["--data-dir", "data"], ["CYXCLOUD_ROOT_SECRET_KEY"]),
    ("cyxcloud-node", [], ["CYXWIZ_PASSWORD"]),
    ("cyxwiz-api", [], ["DATABASE_URL", "JWT_SECRET", "REGISTRATION_TOKEN"]),
    ("cyxcloud-cli", ["list"], ["CYXCLOUD_SECRET_KEY"]),
])
def test_secrets_come_from_one_place(name, args, env, tmp_path, monkeypatch):
    """From the variable or from the file that it names: not from both, not from a file that is empty or not there."""
    monkeypatch.chdir(tmp_path)
    url = f"postgres://u:sesame-open@127.0.0.1:{free_ports(1)[0]}/db"
    good = SECRETS | {
        "DATABASE_URL": url, "REDIS_URL": "redis://127.0.0.1:1", "CYXCLOUD_ROOT_ACCESS_KEY": "root", "CYXCLOUD_ROOT_SECRET_KEY": ROOT,
        "CENTRAL_SERVER_ADDR": "http://127.0.0.1:1", "STORAGE_PATH": str(tmp_path / "node"), "CYXWIZ_PASSWORD": "correct horse",
        "REGISTRATION_TOKEN": "a party for friends", "CYXCLOUD_ACCESS_KEY": "A", "CYXCLOUD_SECRET_KEY": "S3cret",
    }
    file = tmp_path / "secret"
    for secret in env:
        value = good[secret]
        file.write_text(value + "\n")
        both = run(name, *args, env=good | {f"{secret}_FILE": str(file)})
        one_clear_line(both, f"{secret} and {secret}_FILE are both set")
        assert value not in both.stdout + both.stderr
        others = {key: text for key, text in good.items() if key != secret}
        one_clear_line(run(name, *args, env=others | {f"{secret}_FILE": str(tmp_path / "none")}), f"{secret}_FILE.*No such file")
        file.write_text("\n")
        one_clear_line(run(name, *args, env=others | {f"{secret}_FILE": str(file)}), f"{secret} is not usable: it is empty")


def test_servers_run_on_secrets_in_files(tmp_path, workspace):
    """As in containers: no secret is in the environment."""
    standalone = Standalone(workspace / "secret-files", nodes=3)
    (tmp_path / "root").write_text(standalone.credentials.secret_key + "\n")
    env = standalone.process.env
    del env["CYXCLOUD_ROOT_SECRET_KEY"]
    env["CYXCLOUD_ROOT_SECRET_KEY_FILE"] = str(tmp_path / "root")
    for server in run_server(standalone):
        bucket = new_bucket(s3_client(server))
        (tmp_path / "cli").write_text(server.credentials.secret_key + "\n")
        listed = run("cyxcloud-cli", "--gateway", server.url, "list", env={
            "CYXCLOUD_ACCESS_KEY": server.credentials.access_key, "CYXCLOUD_SECRET_KEY_FILE": str(tmp_path / "cli")})
        assert listed.returncode == 0 and bucket in listed.stdout, listed.stderr


@pytest.mark.parametrize("env,words", [
    ({"CYXCLOUD_MASTER_KEY": SECRETS["JWT_SECRET"]}, "JWT_SECRET and CYXCLOUD_MASTER_KEY are the same"),
    ({"CYXCLOUD_ROOT_SECRET_KEY": SECRETS["JWT_SECRET"].upper()}, "JWT_SECRET and CYXCLOUD_ROOT_SECRET_KEY are the same"),
    ({"REDIS_URL": f"redis://:{SECRETS['JWT_SECRET']}@127.0.0.1:1"}, "JWT_SECRET and the password in REDIS_URL are the same"),
    ({"CYXCLOUD_ROOT_SECRET_KEY": ROOT[:31]}, "CYXCLOUD_ROOT_SECRET_KEY is not usable: it has fewer than 32"),
    ({"CYXCLOUD_ROOT_SECRET_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}, "the one of the examples"),
    ({"JWT_SECRET": "0" * 64}, "JWT_SECRET is not usable: it is not random"),
])
def test_secrets_that_others_know(env, words):
    done = run("cyxcloud-gateway", *GATEWAY, env=SECRETS | {"CYXCLOUD_ROOT_ACCESS_KEY": "root"} | env)
    one_clear_line(done, words)
    for value in env.values():
        assert value not in done.stdout + done.stderr


def test_a_node_without_a_gateway_address(tmp_path):
    one_clear_line(run("cyxcloud-node", env={"STORAGE_PATH": str(tmp_path)}), "CENTRAL_SERVER_ADDR|central-server-addr")


def test_a_node_whose_directory_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    ports = free_ports(3)
    env = {
        "STORAGE_PATH": str(tmp_path / "file" / "below"), "CENTRAL_SERVER_ADDR": "http://127.0.0.1:1",
        "GRPC_HOST": "127.0.0.1", "GRPC_PORT": str(ports[0]), "METRICS_PORT": str(ports[1]), "LIBP2P_PORT": str(ports[2]),
    }
    one_clear_line(run("cyxcloud-node", env=env))


def test_a_master_key_of_another_cluster_is_refused(cluster):
    """With it nothing stored could be read, and what is written could not be read by the others."""
    env = {k: cluster.gateway.env[k] for k in ("DATABASE_URL", "JWT_SECRET")} | {"CYXCLOUD_MASTER_KEY": "0f1e2d3c4b5a6978" * 4}
    one_clear_line(run("cyxcloud-gateway", "--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0", env=env), "master key|MASTER_KEY")


def test_health_version_and_metrics(cluster):
    health = requests.get(cluster.url + "/health", timeout=30)
    assert (health.status_code, health.text) == (200, "OK")
    assert requests.get(cluster.url + "/ready", timeout=30).status_code == 200
    assert re.search(r"\d+\.\d+\.\d+", requests.get(cluster.url + "/version", timeout=30).text)
    assert requests.get(cluster.url + "/metrics", timeout=30).status_code == 401
    metrics = requests.get(f"http://127.0.0.1:{cluster.metrics_port}/metrics", timeout=30)
    assert metrics.status_code == 200 and "# TYPE" in metrics.text and "cyxcloud_" in metrics.text
    same = Signed(cluster, "GET", "/metrics").send()
    types = lambda text: {line for line in text.splitlines() if line.startswith("# TYPE")}  # noqa: E731
    assert same.headers["content-type"] == metrics.headers["content-type"] and types(same.text) >= types(metrics.text)
    for _, port, _ in cluster.node_ports:
        assert requests.get(f"http://127.0.0.1:{port}/health", timeout=30).status_code == 200
        node = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=30)
        assert node.status_code == 200 and "# TYPE" in node.text
    for path in ("/health", "/metrics"):
        assert requests.get(f"http://127.0.0.1:{cluster.rebalancer_port}{path}", timeout=30).status_code == 200


def test_a_node_prints_its_reservation(cluster):
    text = cluster.nodes[0].output()
    for words in ("Storage Reservation Summary", "Total Capacity:", "System Reserved:", "Available:"):
        assert words in text, cluster.nodes[0].tail()


def test_servers_end_when_asked_to(workspace):
    for server in run_server(Standalone(workspace / "goodbye", nodes=3)):
        assert server.process.stop() == 0


def test_node_keys_are_private(cluster):
    """What identifies a node is readable by its owner only."""
    secret_like = [p for p in cluster.directory.glob("node-*/*") if re.search("key|identity|secret", p.name) and p.is_file()]
    assert secret_like, "a node keeps its identity in a file"
    for path in secret_like:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
