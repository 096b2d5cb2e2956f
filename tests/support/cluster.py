"""Real servers for tests: a gateway, nodes and a rebalancer over PostgreSQL and Redis, or all in one process."""

import os
import secrets
import subprocess
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import requests

from process import PATIENCE, Process, binary, free_ports, wait_until

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


# Numbers of Redis's databases that nobody has.
redis_databases = list(range(16))


def free_redis_database() -> str:
    """Clusters on one Redis must not meet: each has a numbered database to itself, and finds it empty. To be given back."""
    url = f"{os.environ['CYXCLOUD_TEST_REDIS']}/{redis_databases.pop(0)}"
    subprocess.run(["redis-cli", "-u", url, "FLUSHDB"], check=True, capture_output=True, timeout=60)
    return url


def give_redis_database_back(url: str):
    redis_databases.append(int(url.rsplit("/", 1)[1]))


class Server:
    """What clients need to know: where, and as whom."""

    credentials: Credentials
    http_port: int
    processes: list[Process]
    # Who has signed its certificate; None: it speaks plain text.
    ca: Path | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self.ca else 'http'}://127.0.0.1:{self.http_port}"

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, timeout=30, verify=str(self.ca) if self.ca else True)

    def ready(self) -> bool:
        return self.get("/ready").status_code == 200

    def wait_ready(self, process: Process, seconds: float = PATIENCE):
        process.wait_for("/ready answers 200", self.ready, seconds)

    def wait_writable(self, seconds: float = PATIENCE):
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


def gateway_args(http_port: int, grpc_port: int, metrics_port: int) -> list[str]:
    return [
        binary("cyxcloud-gateway"),
        "--http-addr", f"127.0.0.1:{http_port}",
        "--grpc-addr", f"127.0.0.1:{grpc_port}",
        "--metrics-addr", f"127.0.0.1:{metrics_port}",
        "--node-networks", "127.0.0.0/8",
    ]


# How long nodes have to be silent, by the defaults of a gateway and a cluster's own: until their absence is one, their data is made
# elsewhere, they are forgotten. In seconds; see `Cluster.wait_silent`.
ABSENT, GIVEN_UP, FORGOTTEN = 3_600, 5 * 3_600, 8 * 86_400


class Cluster(Server):
    """A gateway, nodes and a rebalancer, each a process, over a database of their own."""

    def __init__(self, directory: Path, nodes: int = 6, gateway_env: dict[str, str] | None = None,
                 rebalancer_env: dict[str, str] | None = None, node_env: dict[str, str] | None = None,
                 ca: Path | None = None):
        self.node_env, self.ca = node_env or {}, ca
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
            # All tests' wallets come from this machine.
            "CYXCLOUD_SIGNUPS_PER_HOUR": "100000",
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
            "NODE_OFFLINE_THRESHOLD_SECS": "10",
        } | (rebalancer_env or {}))
        self.processes = [self.gateway, *self.nodes, self.rebalancer]

    def gateway_args(self) -> list[str]:
        return gateway_args(self.http_port, self.grpc_port, self.metrics_port)

    def another_gateway(self, env: dict[str, str] | None = None) -> "Beside":
        """Starts one more, of the same database and Redis."""
        beside = Beside(self, f"gateway-{1 + sum(p.name.startswith('gateway') for p in self.processes)}", env or {})
        self.processes.append(beside.process)
        return beside.start()

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
            "CENTRAL_SERVER_ADDR": f"{'https' if self.ca else 'http'}://127.0.0.1:{self.grpc_port}",
            "ADVERTISE_ADDR": "127.0.0.1",
            "NODE_NETWORKS": "127.0.0.0/8",
            "NODE_LOOPBACK": "true",
            "HEARTBEAT_INTERVAL_SECS": "1",
        } | self.node_env)

    def start(self) -> "Cluster":
        self.gateway.start()
        self.gateway.wait_for("/health answers", lambda: self.get("/health").ok)
        for node in self.nodes:
            node.start()
        self.rebalancer.start()
        self.wait_online(len(self.nodes))
        self.wait_ready(self.gateway)
        self.wait_writable()
        return self

    def online(self) -> int:
        return int(psql(self.database_url, "SELECT count(*) FROM nodes WHERE status = 'online'"))

    def wait_online(self, count: int, seconds: float = PATIENCE):
        def check():
            for process in (self.gateway, *(node for node in self.nodes if node.child)):
                if process.child.poll() not in (None, -9):
                    process.expect_running()
            return self.online() == count

        wait_until(f"{count} nodes are online\n{self.tails()}", check, seconds, 0.2)

    def status(self, index: int) -> str:
        """What is believed of a node; nothing where it is forgotten."""
        return psql(self.database_url, f"SELECT status FROM nodes WHERE label = '{self.nodes[index].name}'")

    def silence(self, index: int, seconds: int):
        """Makes a node that was killed silent for so long at once, by what is recorded of it: nobody waits for it, and no other node is
        taken for absent because the machine is slow."""
        label = self.nodes[index].name
        # What follows from silence follows no sooner after the step before than it would have.
        psql(self.database_url, f"""UPDATE nodes SET last_heartbeat = now() - interval '{seconds} s',
            status_changed_at = least(status_changed_at, now() - interval '{seconds} s') WHERE label = '{label}'""")

    def wait_silent(self, index: int, seconds: int, status: str, patience: float = PATIENCE):
        """Until a node that was killed has this status, having been silent for so long."""

        def followed():
            # Each time: a heartbeat of before may be recorded only now.
            self.silence(index, seconds)
            return self.status(index) == status

        what = f"{self.nodes[index].name} is {status or 'forgotten'}"
        self.gateway.wait_for(what, followed, patience)

    def restart_node(self, index: int):
        """Starts a node that was killed and waits until it serves and the gateway has heard of it."""
        self.nodes[index].start()
        self.restart_wait(index)

    def restart_wait(self, index: int):
        """Waits until a node that was just started serves and the gateway has heard of it."""
        before = psql(self.database_url, "SELECT now()")
        node = self.nodes[index]
        metrics_port = self.node_ports[index][1]
        node.wait_for("/health answers", lambda: requests.get(f"http://127.0.0.1:{metrics_port}/health", timeout=30).ok)
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
        give_redis_database_back(self.redis_url)
        psql(database_url(), f"DROP DATABASE IF EXISTS {self.database} WITH (FORCE)")


class Beside(Server):
    """Another gateway of a cluster."""

    def __init__(self, cluster: Cluster, name: str, env: dict[str, str]):
        self.credentials, self.jwt_secret, self.ca = cluster.credentials, cluster.jwt_secret, cluster.ca
        self.http_port, grpc_port, self.metrics_port = free_ports(3)
        self.process = cluster._process(name, gateway_args(self.http_port, grpc_port, self.metrics_port), cluster.gateway.env | env)
        self.processes = [self.process]

    def start(self) -> "Beside":
        self.process.start()
        self.wait_ready(self.process)
        return self


class Identity(Process):
    """The CyxWiz API, in the database of a cluster and with its secret."""

    PASSWORD = "correct horse battery"

    def __init__(self, cluster: Cluster, log: Path, port: int | None = None, env: dict[str, str] | None = None):
        port = port or free_ports(1)[0]
        self.url = f"http://127.0.0.1:{port}"
        super().__init__("cyxwiz-api", [binary("cyxwiz-api")], {
            "DATABASE_URL": cluster.database_url, "JWT_SECRET": cluster.jwt_secret, "HTTP_ADDR": f"127.0.0.1:{port}",
            "REGISTRATIONS_PER_HOUR": "100",
        } | (env or {}), log)

    def start(self) -> "Identity":
        super().start()
        self.wait_for("/ready answers 200", lambda: requests.get(self.url + "/ready", timeout=30).ok)
        return self

    def account(self, password: str = PASSWORD) -> dict:
        """A new account: its email address, tokens, and `user`."""
        email = f"{secrets.token_hex(6)}@example.org"
        answer = requests.post(self.url + "/api/auth/register", json={"email": email, "password": password}, timeout=30)
        assert answer.status_code == 201, answer.text
        return answer.json() | {"email": email}


class Standalone(Server):
    """All of CyxCloud in one process, with its data in one directory."""

    def __init__(self, directory: Path, nodes: int | None = None, args: tuple[str, ...] = (), env: dict[str, str] | None = None,
                 ca: Path | None = None):
        self.ca = ca
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
