"""TLS as clients and operators meet it: who is trusted, certificates that change while the server runs, and wrong ones."""

import re
import select
import shutil
import signal
import socket
import ssl
import subprocess

import pytest
import requests
from botocore.exceptions import SSLError

from certificates import Authority, Pair, openssl
from clients import CLIENTS, CommandFailed, new_bucket, s3_client
from cluster import Cluster, Standalone, psql
from conftest import run_server
from data import MIB, make_bytes
from process import PATIENCE, Process, binary, free_ports, wait_until


@pytest.fixture(scope="module")
def authority(workspace):
    return Authority(workspace / "authority")


@pytest.fixture(scope="module")
def secure(workspace, authority):
    """A standalone server with a certificate of its own, which tests may replace."""
    issued = authority.issue("first")
    pair = Pair(workspace / "served.pem", workspace / "served.key")
    shutil.copy(issued.cert, pair.cert)
    shutil.copy(issued.key, pair.key)
    (metrics_port,) = free_ports(1)
    server = Standalone(
        workspace / "standalone-tls", args=(*pair.args(), "--metrics-addr", f"127.0.0.1:{metrics_port}"), ca=authority.cert
    )
    server.pair, server.metrics_port = pair, metrics_port
    yield from run_server(server)


def metric(server, line: str) -> float:
    """The value of one line of the metrics."""
    return value_of(requests.get(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=30).text, line)


def value_of(text: str, line: str) -> float:
    """0 where it is not there yet."""
    found = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def serial(server) -> int:
    """Of the certificate that a new connection is shown."""
    context = ssl.create_default_context(cafile=str(server.ca))
    with socket.create_connection(("127.0.0.1", server.http_port), PATIENCE) as plain:
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as sock:
            return int(sock.getpeercert()["serialNumber"], 16)


def curl(server, *args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["curl", "-sS", "--max-time", "60", *args, server.url + "/health"], capture_output=True, text=True, timeout=90
    )


@pytest.mark.parametrize("version", [("--http2", "2"), ("--http1.1", "1.1")])
def test_curl_trusts_the_authority_and_speaks_both_versions(secure, version):
    flag, spoken = version
    done = curl(secure, "--cacert", str(secure.ca), flag, "-w", " %{http_version}")
    assert done.stdout == f"OK {spoken}", done


def test_browsers_are_told_to_come_by_tls_only(secure):
    for path in ("/health", "/api/v1/account", "/nothing-here/", "/a-bucket/a-key"):
        answer = requests.get(secure.url + path, verify=str(secure.ca), timeout=PATIENCE)
        assert answer.headers["strict-transport-security"] == "max-age=31536000", (path, answer.headers)


@pytest.mark.parametrize("flags", [("--tlsv1.2", "--tls-max", "1.2"), ("--tlsv1.3",)])
def test_clients_may_speak_tls_1_2_and_1_3(secure, flags):
    assert curl(secure, "--cacert", str(secure.ca), *flags).stdout == "OK"


def test_s3_works_over_tls(secure):
    s3 = s3_client(secure)
    bucket = new_bucket(s3)
    for size in (0, 1000, 300_000, 9 * MIB + 1):
        body = make_bytes(size, "tls")
        s3.put_object(Bucket=bucket, Key=f"k-{size}", Body=body)
        assert s3.get_object(Bucket=bucket, Key=f"k-{size}")["Body"].read() == body


def test_who_trusts_another_authority_refuses(secure, workspace):
    other = Authority(workspace / "other", "other")
    with pytest.raises(SSLError):
        s3_client(secure, verify=str(other.cert)).list_buckets()
    assert curl(secure, "--cacert", str(other.cert)).returncode == 60
    # Nobody vouches for a private authority unasked.
    assert curl(secure).returncode == 60


def test_the_command_line_trusts_who_it_is_told_to(secure, tmp_path, workspace):
    client = CLIENTS["cyxcloud-cli"](secure, "root", tmp_path / "home")
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(make_bytes(5 * MIB + 7, "cli"))
    client.cli("--tls-ca", str(secure.ca), "upload", "--bucket", "cli-tls", "--key", "k", str(source))
    client.cli("--ca", str(secure.ca), "download", "--bucket", "cli-tls", "--key", "k", str(back))
    assert back.read_bytes() == source.read_bytes()
    other = Authority(workspace / "cli-other", "other")
    with pytest.raises(CommandFailed) as failed:
        client.cli("--tls-ca", str(other.cert), "list", "--bucket", "cli-tls")
    assert failed.value.done.returncode == 5 and "certificate" in failed.value.done.stderr
    with pytest.raises(CommandFailed) as failed:
        client.cli("--tls-ca", str(tmp_path / "absent.pem"), "list", "--bucket", "cli-tls")
    assert "absent.pem" in failed.value.done.stderr


def test_plain_text_at_the_port_is_cut_and_counted(secure):
    counted = 'cyxcloud_tls_handshake_failures_total{port="http",reason="not_tls"}'
    before = metric(secure, counted)
    with socket.create_connection(("127.0.0.1", secure.http_port), PATIENCE) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        try:
            while piece := sock.recv(1000):
                answer += piece
        except ConnectionResetError:
            pass
    assert b"OK" not in answer and b"HTTP" not in answer, answer
    wait_until("it is counted", lambda: metric(secure, counted) == before + 1)


def test_silent_clients_hold_up_nobody_and_are_cut(secure):
    counted = 'cyxcloud_tls_handshake_failures_total{port="http",reason="timeout"}'
    before, silent = metric(secure, counted), []

    def served_beside_them() -> bool:
        silent.extend(socket.create_connection(("127.0.0.1", secure.http_port), PATIENCE) for _ in range(100))
        assert curl(secure, "--cacert", str(secure.ca)).stdout == "OK"
        # Nobody had to wait until they were cut, which is after ten seconds; unless all took longer on this machine.
        return not select.select([silent[-1]], [], [], 0)[0]

    wait_until("somebody is served while they are silent", served_beside_them)
    for sock in silent:
        assert sock.recv(1) == b"", "cut by the server"
        sock.close()
    wait_until("all are counted", lambda: metric(secure, counted) == before + len(silent))


def test_a_new_certificate_is_taken_up_while_a_download_runs(secure, authority):
    s3 = s3_client(secure)
    bucket, body = new_bucket(s3), make_bytes(24 * MIB, "download")
    s3.put_object(Bucket=bucket, Key="k", Body=body)
    stream = s3.get_object(Bucket=bucket, Key="k")["Body"]
    begun = stream.read(MIB)
    before, expiry = serial(secure), "cyxcloud_tls_certificate_expiry_timestamp_seconds"
    ends = metric(secure, expiry)
    assert ends > 0
    secure.pair.replace_by(authority.issue("second", days=25))
    wait_until("new connections are shown the new one", lambda: serial(secure) != before)
    assert metric(secure, expiry) > ends
    assert metric(secure, 'cyxcloud_tls_reloads_total{result="ok"}') >= 1
    assert begun + stream.read() == body
    assert s3_client(secure).get_object(Bucket=bucket, Key="k")["Body"].read() == body


def test_a_broken_certificate_leaves_the_old_one_in_use(secure, authority):
    before, failed = serial(secure), 'cyxcloud_tls_reloads_total{result="failed"}'
    count = metric(secure, failed)
    kept = secure.pair.cert.read_bytes()
    secure.pair.cert.write_bytes(kept[: len(kept) // 2])
    secure.process.child.send_signal(signal.SIGHUP)
    wait_until("it was tried", lambda: metric(secure, failed) > count)
    assert serial(secure) == before
    # A pair that is none: the certificate of one and the key of another.
    shutil.copy(authority.issue("third").cert, secure.pair.cert)
    count = metric(secure, failed)
    secure.process.child.send_signal(signal.SIGHUP)
    wait_until("it was tried", lambda: metric(secure, failed) > count)
    assert serial(secure) == before
    assert "the one before stays in use" in secure.process.output()
    secure.pair.replace_by(authority.issue("fourth"))
    wait_until("a good one is taken up", lambda: serial(secure) != before)


def refusal(tmp_path, *args: str) -> str:
    """What a gateway says that does not start."""
    http, grpc = free_ports(2)
    process = Process(
        "gateway",
        [binary("cyxcloud-gateway"), "--memory-only", "--http-addr", f"127.0.0.1:{http}", "--grpc-addr", f"127.0.0.1:{grpc}", *args],
        {"JWT_SECRET": "0123456789abcdef" * 4}, tmp_path / "gateway.log",
    )
    process.start()
    assert process.child.wait(PATIENCE) == 1, process.output()
    return process.output()


def test_a_server_refuses_to_start_with_what_it_cannot_show(authority, tmp_path):
    good, other = authority.issue("good"), authority.issue("other")
    said = refusal(tmp_path, "--tls-cert", str(good.cert))
    assert "TLS_CERT is set and TLS_KEY is not" in said
    said = refusal(tmp_path, "--tls-cert", str(good.cert), "--tls-key", str(other.key))
    assert "does not belong to the first certificate" in said
    said = refusal(tmp_path, "--tls-cert", str(tmp_path / "absent.pem"), "--tls-key", str(good.key))
    assert "could not read" in said and "absent.pem" in said and "TLS_CERT" in said
    said = refusal(tmp_path, "--tls-cert", str(good.key), "--tls-key", str(good.key))
    assert "holds no certificate" in said
    sealed = tmp_path / "sealed.key"
    openssl("pkey", "-in", str(good.key), "-out", str(sealed), "-aes256", "-passout", "pass:secret")
    said = refusal(tmp_path, "--tls-cert", str(good.cert), "--tls-key", str(sealed))
    assert "encrypted" in said and "openssl pkey" in said


def test_a_key_that_everybody_can_read_is_warned_about(authority, tmp_path):
    pair = authority.issue("open")
    pair.key.chmod(0o644)
    (http, grpc) = free_ports(2)
    process = Process(
        "gateway",
        [binary("cyxcloud-gateway"), "--memory-only", "--http-addr", f"127.0.0.1:{http}", "--grpc-addr", f"127.0.0.1:{grpc}",
         *pair.args()],
        {"JWT_SECRET": "0123456789abcdef" * 4}, tmp_path / "gateway.log",
    )
    process.start()
    try:
        process.wait_for("it warns", lambda: "every user of this machine can read the TLS key" in process.output())
    finally:
        process.stop()


@pytest.fixture(scope="module")
def all_hops(workspace, authority):
    """Three nodes, and TLS wherever two programs of ours meet."""
    pair = authority.issue("gateway")
    yield from run_server(Cluster(
        workspace / "all-hops", nodes=3, ca=authority.cert,
        # Nobody is away in these tests, whatever answers at its address.
        gateway_env={"TLS_CERT": str(pair.cert), "TLS_KEY": str(pair.key), "NODE_OFFLINE_THRESHOLD_SECS": "600"},
        node_env={"NODE_TLS": "true", "TLS_CA": str(authority.cert)},
        rebalancer_env={"AUDIT_INTERVAL_SECS": "3", "AUDIT_TIMEOUT_SECS": "2", "SCAN_INTERVAL_SECS": "1", "SERVER_KEY": "0123456789abcdef" * 4},
    ))


def node_metric(cluster, node: int, line: str) -> float:
    return value_of(requests.get(f"http://127.0.0.1:{cluster.node_ports[node][1]}/metrics", timeout=30).text, line)


def test_objects_go_and_come_over_tls_on_all_hops(all_hops):
    addresses = psql(all_hops.database_url, "SELECT count(*) FROM nodes WHERE grpc_address LIKE 'https://%'")
    assert addresses == "3"
    s3 = s3_client(all_hops)
    bucket = new_bucket(s3)
    for size in (100_000, 13 * MIB + 5):
        body = make_bytes(size, "hops")
        s3.put_object(Bucket=bucket, Key=f"k-{size}", Body=body)
        assert s3.get_object(Bucket=bucket, Key=f"k-{size}")["Body"].read() == body
        ranged = s3.get_object(Bucket=bucket, Key=f"k-{size}", Range="bytes=70000-79999")["Body"].read()
        assert ranged == body[70_000:80_000]
    # The rebalancer dials them too.
    passed = "SELECT count(*) FROM nodes WHERE audits_proven > 0"
    wait_until("all nodes passed an audit", lambda: psql(all_hops.database_url, passed) == "3", 150)


def test_plain_text_at_a_node_is_cut_and_counted(all_hops):
    counted = 'cyxcloud_tls_handshake_failures_total{port="node",reason="not_tls"}'
    before = node_metric(all_hops, 0, counted)
    with socket.create_connection(("127.0.0.1", all_hops.node_ports[0][0]), PATIENCE) as sock:
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 9)
        try:
            while sock.recv(1000):
                pass
        except ConnectionResetError:
            pass
    wait_until("it is counted", lambda: node_metric(all_hops, 0, counted) == before + 1)


def test_a_node_that_trusts_another_authority_does_not_register(all_hops, workspace, tmp_path):
    other = Authority(workspace / "node-other", "other")
    grpc, metrics = free_ports(2)
    node = all_hops.nodes[0]
    stranger = Process("stranger", node.args, node.env | {
        "GRPC_PORT": str(grpc), "METRICS_PORT": str(metrics), "STORAGE_PATH": str(tmp_path / "data"), "TLS_CA": str(other.cert),
    }, tmp_path / "stranger.log").start()
    try:
        stranger.wait_for("it says why", lambda: "could not register" in stranger.output() and "certificate" in stranger.output())
        assert psql(all_hops.database_url, "SELECT count(*) FROM nodes") == "3"
    finally:
        stranger.kill()


def test_adv_26_a_node_cannot_register_another_node_s_address(all_hops, tmp_path):
    line = "cyxcloud_gateway_node_identity_mismatches_total"
    before = metric(all_hops, line)
    grpc, metrics = free_ports(2)
    node = all_hops.nodes[0]
    liar = Process("liar", node.args, node.env | {
        "GRPC_PORT": str(grpc), "METRICS_PORT": str(metrics), "STORAGE_PATH": str(tmp_path / "data"),
        "ADVERTISE_ADDR": f"127.0.0.1:{all_hops.node_ports[1][0]}",
    }, tmp_path / "liar.log").start()
    try:
        liar.wait_for("it is told why", lambda: "does not prove the key of this node" in liar.output())
        assert metric(all_hops, line) > before
        assert psql(all_hops.database_url, "SELECT count(*) FROM nodes") == "3"
    finally:
        liar.kill()


def test_adv_26_who_answers_at_a_node_s_address_with_another_key_gets_and_gives_nothing(all_hops, tmp_path):
    s3 = s3_client(all_hops)
    bucket, body = new_bucket(s3), make_bytes(9 * MIB, "swapped")
    s3.put_object(Bucket=bucket, Key="before", Body=body)
    line = "cyxcloud_dataplane_identity_mismatches_total"
    before = metric(all_hops, line)
    node = all_hops.nodes[2]
    node.kill()
    # Another disk, so another key, at the same address. It registers nowhere: the gateway goes on taking it for the old one.
    impostor = Process("impostor", node.args, node.env | {
        "STORAGE_PATH": str(tmp_path / "data"), "CENTRAL_SERVER_ADDR": "http://127.0.0.1:9",
    }, tmp_path / "impostor.log").start()
    try:
        impostor.wait_for("it serves", lambda: "node serves chunks" in impostor.output())
        assert s3.get_object(Bucket=bucket, Key="before")["Body"].read() == body
        s3.put_object(Bucket=bucket, Key="after", Body=body)
        assert s3.get_object(Bucket=bucket, Key="after")["Body"].read() == body
        # An answer does not wait for the last of the nodes.
        said = "somebody else answers at the address of a node"
        wait_until("it is noticed", lambda: metric(all_hops, line) > before and said in all_hops.gateway.output())
        assert node_metric(all_hops, 2, "cyxcloud_node_chunks") == 0
        assert node_metric(all_hops, 2, "cyxcloud_node_received_bytes_total") == 0
    finally:
        impostor.kill()
    # The node itself is welcome again.
    all_hops.restart_node(2)
    held = node_metric(all_hops, 2, "cyxcloud_node_chunks")
    assert held > 0

    def stored() -> bool:
        s3.put_object(Bucket=bucket, Key="again", Body=make_bytes(5 * MIB, str(held)))
        return node_metric(all_hops, 2, "cyxcloud_node_chunks") > held

    wait_until("it is given chunks", stored, interval=1)
