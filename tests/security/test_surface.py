"""What strangers see: pages nobody has to log in for, addresses they claim, and what browsers do with answers."""

import re

import pytest
import requests
from solders.keypair import Keypair

import rpc
from cluster import Credentials
from people import Owner, coming_from, next_address
from process import Process, binary, free_ports
from raw import Signed, presign

SECRETS = {"JWT_SECRET": "0123456789abcdef" * 4, "CYXCLOUD_MASTER_KEY": "00112233445566778899aabbccddeeff" * 2}


def secrets_of(cluster) -> list[str]:
    dsn = cluster.database_url
    password = re.search(r":([^:@/]+)@", dsn)
    return [cluster.credentials.secret_key, cluster.jwt_secret, cluster.gateway.env["CYXCLOUD_MASTER_KEY"], dsn,
            *([password.group(1)] if password else [])]


def test_adv_14_what_strangers_are_told(cluster, stored):
    """Whether we are well, and no more; no reflection, no dumps, no listings."""
    session = requests.Session()
    session.trust_env = False
    guesses = [
        "/metrics", "/debug", "/debug/pprof", "/debug/vars", "/env", "/actuator", "/actuator/env", "/config", "/status", "/admin", "/info", "/ws",
        "/console", "/console/", "/minio/health/live", "/minio/bootstrap/v1/verify", "/minio/admin/v3/info", "/rustfs/console/", "/.env",
        "/.git/config", "/server-status", "/api", "/api/", "/api/v1", "/api/v1/", "/api/v1/admin/status", "/api/v1/admin/nodes", "/api/v2/x",
        "/swagger", "/favicon.ico", "/robots.txt", "/health/../api/v1/account", "//api/v1/account", "/ready/x", "/health/deep", "/s3", "/",
    ]
    for path in guesses:
        for method in ("GET", "POST"):
            request = requests.Request(method, cluster.url).prepare()
            request.url = cluster.url + path
            answer = session.send(request, timeout=30, allow_redirects=False)
            assert answer.status_code in (400, 401, 403, 404, 405), (method, path, answer.status_code, answer.text)
            assert not re.search(r"postgres|redis://|127\.0\.0\.1:|/root/|/tmp/|src/|\.rs\b", answer.text), (path, answer.text)
    health = session.get(cluster.url + "/health", timeout=30)
    assert (health.status_code, health.text) == (200, "OK")
    ready = session.get(cluster.url + "/ready", timeout=30)
    assert ready.status_code == 200 and set(ready.json()) == {"ready", "reason", "metadata", "ephemeral", "nodes_online"}
    assert not re.search(r"127\.0\.0\.1|postgres://|redis://|cyx_", ready.text), ready.text
    for header in ("server", "x-powered-by", "via"):
        assert header not in health.headers
    # Monitoring has ports of its own; what it says holds no secret.
    pages = [f"http://127.0.0.1:{port}/{page}" for port in
             (cluster.metrics_port, cluster.rebalancer_port, *(ports[1] for ports in cluster.node_ports)) for page in ("metrics", "health", "")]
    for url in pages:
        text = session.get(url, timeout=30).text
        assert not [secret for secret in secrets_of(cluster) if secret in text], url
    for port in (cluster.grpc_port, cluster.node_ports[0][0]):
        for version in ("v1", "v1alpha"):
            method = f"grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
            assert rpc.call(port, method, rpc.message(_7=""))[0] == rpc.UNIMPLEMENTED
        assert rpc.call(port, "grpc.health.v1.Health/Check")[0] == rpc.OK
        assert rpc.call(port, "grpc.channelz.v1.Channelz/GetServers")[0] == rpc.UNIMPLEMENTED


def test_adv_14_errors_say_nothing_of_the_inside(cluster, stored):
    for method, path in [("GET", "/" + "x" * 3000), ("PUT", "/UPPER"), ("GET", f"{stored}?versionId=none"), ("GET", f"{stored}?partNumber=0")]:
        answer = Signed(cluster, method, path.split("?")[0], query=dict([path.split("?")[1].split("=")]) if "?" in path else None).send()
        assert 400 <= answer.status_code < 500 and not re.search(r"sqlx|postgres|panicked|\.rs:|RUST", answer.text), answer.text
    for body in (b"{", b"[]", b'{"wallet_address": 1}', b"\xff", b'{"a":' * 5000):
        answer = coming_from(next_address()).post(f"{cluster.url}/api/v1/auth/challenge", data=body, timeout=30)
        assert answer.status_code == 400 and not re.search(r"\.rs\b|cyxcloud_gateway::", answer.text), answer.text


def test_adv_19_an_address_that_a_client_claims(cluster):
    """No proxy is configured, so what a header says of where a request comes from is not believed."""
    session = coming_from(next_address())
    wallet = {"wallet_address": str(Keypair().pubkey())}
    said = []
    for number in range(12):
        claimed = {"x-forwarded-for": f"198.51.100.{number}", "x-real-ip": f"198.51.100.{number}", "forwarded": f"for=198.51.100.{number}",
                   "true-client-ip": f"198.51.100.{number}", "cf-connecting-ip": f"198.51.100.{number}", "x-client-ip": "127.0.0.1"}
        said.append(session.post(f"{cluster.url}/api/v1/auth/challenge", json=wallet, headers=claimed, timeout=30).status_code)
    assert said == [200] * 10 + [429] * 2, said
    # The log says where it really came from.
    owner = Owner(cluster)
    made = session.post(f"{cluster.url}/api/v1/auth/api-keys", json={"name": "x"}, timeout=30, headers={
        "authorization": f"Bearer {owner.token}", "x-forwarded-for": "198.51.100.77"})
    assert made.status_code == 201
    entries = owner.api("GET", "/api/v1/audit-log").json()["entries"]
    assert entries and all("198.51.100" not in entry["address"] for entry in entries), entries


EVIL = b"<html><script>document.title = 'evil'</script></html>"


def test_adv_34_what_browsers_make_of_objects(cluster, s3, bucket):
    """A stored page is shown, if at all, as of no origin and without scripts; no other site's page may read with credentials."""
    s3.put_object(Bucket=bucket, Key="page.html", Body=EVIL, ContentType="text/html")
    path = f"/{bucket}/page.html"
    url = presign(cluster, "GET", path)
    origin = {"origin": "https://evil.example"}
    answers = [requests.get(url, timeout=30), requests.get(url, timeout=30, headers=origin), Signed(cluster, "GET", f"/s3{path}").send(),
               Signed(cluster, "GET", path, query={"response-content-type": "image/svg+xml"}).send()]
    for answer in answers:
        assert answer.status_code == 200 and answer.content == EVIL
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = answer.headers["content-security-policy"]
        assert "sandbox" in policy and "allow-scripts" not in policy and "allow-same-origin" not in policy
        assert not [name for name in answer.headers if name.lower().startswith("access-control-")], answer.headers
    asked = origin | {"access-control-request-method": "PUT", "access-control-request-headers": "authorization"}
    for at in (path, f"/s3{path}", "/api/v1/account", "/health"):
        preflight = requests.options(cluster.url + at, headers=asked, timeout=30)
        assert preflight.status_code in (401, 403, 405) and "access-control-allow-origin" not in preflight.headers, (at, preflight.headers)
    for at in ("/api/v1/openapi.json", "/health", "/nothing-here"):
        headers = requests.get(cluster.url + at, headers=origin, timeout=30).headers
        assert headers["x-content-type-options"] == "nosniff" and "access-control-allow-origin" not in headers, at
    # What is told to somebody is kept nowhere; objects are kept as long as who stored them says. Plain HTTP cannot say for how long TLS is.
    for at in ("/api/v1/openapi.json", "/api/v1/account", "/health", "/ready", "/version", "/metrics", "/console"):
        headers = requests.get(cluster.url + at, timeout=30).headers
        assert headers["cache-control"] == "no-store" and "strict-transport-security" not in headers, at
    assert all("cache-control" not in answer.headers for answer in answers)
    error = requests.get(f"{cluster.url}/{bucket}/%3Cscript%3E", timeout=30)
    assert error.headers["content-type"] == "application/xml" and "<script>" not in error.text


@pytest.fixture(scope="module")
def permissive(workspace):
    """A gateway by itself that an operator started with CORS for everybody."""
    (port,) = free_ports(1)
    credentials = Credentials()
    env = SECRETS | {"CYXCLOUD_ROOT_ACCESS_KEY": credentials.access_key, "CYXCLOUD_ROOT_SECRET_KEY": credentials.secret_key}
    args = [binary("cyxcloud-gateway"), "--memory-only", "--cors-permissive", "--http-addr", f"127.0.0.1:{port}", "--grpc-addr", "127.0.0.1:0"]
    process = Process("permissive", args, env, workspace / "permissive.log").start()
    process.url, process.http_port, process.credentials, process.jwt_secret = f"http://127.0.0.1:{port}", port, credentials, SECRETS["JWT_SECRET"]
    process.wait_for("/health answers", lambda: requests.get(process.url + "/health", timeout=30).ok)
    yield process
    process.stop()


def test_adv_34_cors_for_everybody_is_without_credentials(permissive):
    origin = {"origin": "https://evil.example"}
    preflight = requests.options(permissive.url + "/bucket/k", timeout=30, headers=origin | {"access-control-request-method": "PUT"})
    answers = [preflight, Signed(permissive, "GET", "/", headers=origin).send(), requests.get(permissive.url + "/bucket/k", headers=origin, timeout=30)]
    assert [answer.status_code for answer in answers] == [200, 200, 403]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == "*" and "access-control-allow-credentials" not in answer.headers
    assert "access-control-allow-origin" not in requests.get(permissive.url + "/api/v1/openapi.json", headers=origin, timeout=30).headers
