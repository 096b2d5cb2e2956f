"""Real servers for tests: a gateway, nodes and a rebalancer over PostgreSQL and Redis, or all in one process."""

import os
import secrets
import subprocess
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import requests

from process import Process, binary, free_ports, wait_until

REGION = "us-east-1"


@dataclass
class Credentials:
    access_key: str = field(default_factory=lambda: "CYX" + secrets.token_hex(8).upper())
    secret_key: str = field(default_factory=lambda: secrets.token_hex(20))


def database_url() -> str:
    url = os.environ.get("CYXCLOUD_TEST_POSTGRES")
    if not url:
        raise RuntimeError("CYXCLOUD_TEST_POSTGRES is not set; run by script/test, or: script/databases -- pytest ...")
    return url


def psql(url: str, sql: str) -> str:
    """What psql prints, unaligned and without headers."""
    done = subprocess.run(
        ["psql", url, "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{sql}\n{done.stderr}"
    return done.stdout.strip()


def free_redis_database() -> str:
    """Clusters on one Redis must not meet: each takes a numbered database of its own."""
    free_redis_database.taken += 1
    return f"{os.environ['CYXCLOUD_TEST_REDIS']}/{free_redis_database.taken % 16}"


free_redis_database.taken = 0


class Server:
    """What clients need to know: where, and as whom."""

    credentials: Credentials
    http_port: int
    processes: list[Process]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def ready(self) -> bool:
        return requests.get(self.url + "/ready", timeout=5).status_code == 200

    def wait_ready(self, process: Process, seconds: float = 60.0):
        process.wait_for("/ready answers 200", self.ready, seconds)

    def wait_writable(self, seconds: float = 60.0):
        """Until an object that needs nodes is stored: the servers' view of the nodes may be a second old."""
        from clients import s3_client  # here, because clients needs Server

        s3 = s3_client(self)
        name = f"probe-{uuid.uuid4().hex[:12]}"
        wait_until("a bucket can be made", lambda: s3.create_bucket(Bucket=name), seconds)
        wait_until("an object can be stored", lambda: s3.put_object(Bucket=name, Key="p", Body=b"x" * 300_000), seconds, 0.2)
        s3.delete_object(Bucket=name, Key="p")
        s3.delete_bucket(Bucket=name)

    def check_logs(self):
        """No program of ours may panic, whatever a test did to it."""
        for process in self.processes:
            for line in process.output().splitlines():
                assert "panicked" not in line, f"{process.name} panicked: {line}\n{process.log}"

    def tails(self) -> str:
        return "\n".join(f"--- {p.name} ({p.log})\n{p.tail(15)}" for p in self.processes)

    def kill_all(self):
        for process in self.processes:
            process.kill()


class Cluster(Server):
    """A gateway, nodes and a rebalancer, each a process, over a database of their own."""

    def __init__(self, directory: Path, nodes: int = 6, gateway_env: dict[str, str] | None = None,
                 rebalancer_env: dict[str, str] | None = None, node_env: dict[str, str] | None = None):
        self.node_env = node_env or {}
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.credentials = Credentials()
        self.jwt_secret = secrets.token_hex(32)
        self.http_port, self.grpc_port, self.metrics_port, rebalancer_port, *node_ports = free_ports(4 + 3 * nodes)
        self.database = f"cyx_{uuid.uuid4().hex[:16]}"
        psql(database_url(), f"CREATE DATABASE {self.database}")
        self.database_url = urlsplit(database_url())._replace(path="/" + self.database).geturl()
        self.redis_url = free_redis_database()
        master_key = secrets.token_hex(32)
        self.gateway = self._process("gateway", self.gateway_args(), {
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "JWT_SECRET": self.jwt_secret,
            "CYXCLOUD_MASTER_KEY": master_key,
            "CYXCLOUD_ROOT_ACCESS_KEY": self.credentials.access_key,
            "CYXCLOUD_ROOT_SECRET_KEY": self.credentials.secret_key,
            # A heartbeat a second; ten missed ones on a busy machine are not yet an absence.
            "NODE_HEARTBEAT_INTERVAL_SECS": "1",
            "NODE_OFFLINE_THRESHOLD_SECS": "10",
            "NODE_RECOVERY_QUARANTINE_SECS": "1",
        } | (gateway_env or {}))
        self.node_ports = [node_ports[3 * i:3 * i + 3] for i in range(nodes)]
        self.nodes = [self._node(i) for i in range(nodes)]
        self.rebalancer_port = rebalancer_port
        self.rebalancer = self._process("rebalancer", [binary("cyxcloud-rebalancer")], {
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "JWT_SECRET": self.jwt_secret,
            "CYXCLOUD_MASTER_KEY": master_key,
            "HTTP_ADDR": f"127.0.0.1:{rebalancer_port}",
            "NODE_NETWORKS": "127.0.0.0/8",
        } | (rebalancer_env or {}))
        self.processes = [self.gateway, *self.nodes, self.rebalancer]

    def gateway_args(self) -> list[str]:
        return [
            binary("cyxcloud-gateway"),
            "--http-addr", f"127.0.0.1:{self.http_port}",
            "--grpc-addr", f"127.0.0.1:{self.grpc_port}",
            "--metrics-addr", f"127.0.0.1:{self.metrics_port}",
            "--node-networks", "127.0.0.0/8",
        ]

    def _process(self, name: str, args: list[str], env: dict[str, str]) -> Process:
        return Process(name, args, env, self.directory / f"{name}.log")

    def _node(self, index: int) -> Process:
        grpc, metrics, libp2p = self.node_ports[index]
        name = f"node-{index + 1}"
        return self._process(name, [binary("cyxcloud-node")], {
            "NODE_ID": name,
            "NODE_NAME": name,
            "GRPC_HOST": "127.0.0.1",
            "GRPC_PORT": str(grpc),
            "METRICS_HOST": "127.0.0.1",
            "METRICS_PORT": str(metrics),
            "LIBP2P_PORT": str(libp2p),
            "STORAGE_PATH": str(self.directory / name),
            "STORAGE_CAPACITY_GB": "20",
            "STORAGE_RESERVED_BYTES": "0",
            "CENTRAL_SERVER_ADDR": f"http://127.0.0.1:{self.grpc_port}",
            "ADVERTISE_ADDR": "127.0.0.1",
            "HEARTBEAT_INTERVAL_SECS": "1",
        } | self.node_env)

    def start(self) -> "Cluster":
        self.gateway.start()
        self.gateway.wait_for("/health answers", lambda: requests.get(self.url + "/health", timeout=5).ok)
        for node in self.nodes:
            node.start()
        self.rebalancer.start()
        self.wait_online(len(self.nodes))
        self.wait_ready(self.gateway)
        self.wait_writable()
        return self

    def online(self) -> int:
        return int(psql(self.database_url, "SELECT count(*) FROM nodes WHERE status = 'online'"))

    def wait_online(self, count: int, seconds: float = 60.0):
        def check():
            for process in (self.gateway, *(node for node in self.nodes if node.child)):
                if process.child.poll() not in (None, -9):
                    process.expect_running()
            return self.online() == count

        wait_until(f"{count} nodes are online\n{self.tails()}", check, seconds, 0.2)

    def restart_node(self, index: int):
        """Starts a node that was killed and waits until it serves and the gateway has heard of it."""
        self.nodes[index].start()
        self.restart_wait(index)

    def restart_wait(self, index: int):
        """Waits until a node that was just started serves and the gateway has heard of it."""
        before = psql(self.database_url, "SELECT now()")
        node = self.nodes[index]
        metrics_port = self.node_ports[index][1]
        node.wait_for("/health answers", lambda: requests.get(f"http://127.0.0.1:{metrics_port}/health", timeout=5).ok)
        # Its row may say online all the while: a short absence is none yet.
        heard = f"SELECT count(*) FROM nodes WHERE label = '{node.name}' AND status = 'online' AND last_heartbeat > '{before}'"
        node.wait_for("a heartbeat is heard", lambda: psql(self.database_url, heard) == "1")

    def add_node(self):
        """Starts one more."""
        self.node_ports.append(free_ports(3))
        self.nodes.append(self._node(len(self.nodes)).start())
        self.processes.append(self.nodes[-1])

    def stop(self):
        self.kill_all()
        psql(database_url(), f"DROP DATABASE IF EXISTS {self.database} WITH (FORCE)")


class Standalone(Server):
    """All of CyxCloud in one process, with its data in one directory."""

    def __init__(self, directory: Path, nodes: int | None = None, args: tuple[str, ...] = (), env: dict[str, str] | None = None):
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.credentials = Credentials()
        (self.http_port,) = free_ports(1)
        self.data_dir = directory / "data"
        command = [binary("cyxcloud-standalone"), "--data-dir", str(self.data_dir), "--http-addr", f"127.0.0.1:{self.http_port}"]
        if nodes is not None:
            command += ["--nodes", str(nodes)]
        self.process = Process("standalone", [*command, *args], {
            "CYXCLOUD_ROOT_ACCESS_KEY": self.credentials.access_key,
            "CYXCLOUD_ROOT_SECRET_KEY": self.credentials.secret_key,
        } if env is None else env, directory / "standalone.log")
        self.processes = [self.process]

    def start(self) -> "Standalone":
        self.process.start()
        self.wait_ready(self.process)
        return self

    def stop(self):
        self.kill_all()
