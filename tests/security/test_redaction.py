"""No secret is in any log, at any level: everything that proves who somebody is, is used once with all servers at `trace`."""

import base64
import hashlib
import json
import re
import secrets
import subprocess
from urllib.parse import parse_qs, quote, urlsplit

import pytest
import requests
from solders.keypair import Keypair

from clients import s3_client
from cluster import Cluster, Identity, Standalone
from conftest import run_server
from people import As
from process import binary, free_ports, wait_until
from raw import Signed, presign, signed_chunks
from sockets import Listener, handshake, ticket

TRACE = {"RUST_LOG": "trace"}
PASSWORD, WRONG = "correct horse battery staple", "incorrect horse battery"


class Secrets(dict):
    """What must be nowhere, by what it is."""

    def add(self, **named: str | None):
        for name, secret in named.items():
            assert secret and len(secret) >= 12, f"{name} is too short to be looked for"
            self[f"{name} {len(self)}"] = secret

    def add_token(self, name: str, token: str):
        """Whole, and its signature, which makes one of the rest."""
        self.add(**{name: token, f"{name}_signature": token.rsplit(".", 1)[1]})

    @staticmethod
    def forms(secret: str) -> set[str]:
        """As logs may have it: as it is, as a web address or a header has it, as bytes that are printed one by one."""
        raw = secret.encode()
        encoded = {base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode().rstrip("=")}
        return {secret, quote(secret, safe=""), raw.hex(), ", ".join(map(str, raw[:12])), json.dumps(secret)[1:-1]} | encoded

    def found_in(self, text: str) -> list[str]:
        return sorted(name for name, secret in self.items() if any(form in text for form in self.forms(secret)))


@pytest.fixture(scope="module")
def house(workspace):
    (port,) = free_ports(1)
    account = {"CYXWIZ_API_URL": f"http://127.0.0.1:{port}"}
    cluster = Cluster(workspace / "redaction", nodes=2, gateway_env=TRACE | account | {"CYXWIZ_CACHE_SECS": "1"},
                      rebalancer_env=TRACE, node_env=TRACE | account | {"CYXWIZ_PASSWORD": PASSWORD})
    cluster.identity = Identity(cluster, cluster.directory / "cyxwiz-api.log", port, TRACE | {"ACCESS_TOKEN_SECS": "4"})
    cluster.identity.start()
    operator = cluster.identity.account(PASSWORD)
    for node in cluster.nodes:
        node.env["CYXWIZ_EMAIL"] = operator["email"]
    cluster.processes.append(cluster.identity)
    cluster.secrets = Secrets()
    cluster.secrets.add(jwt_secret=cluster.jwt_secret, master_key=cluster.gateway.env["CYXCLOUD_MASTER_KEY"],
                        root_secret=cluster.credentials.secret_key, password=PASSWORD)
    if password := urlsplit(cluster.database_url).password:
        cluster.secrets.add(database_password=password)
    for name in ("access_token", "refresh_token"):
        cluster.secrets.add_token(f"operator_{name}", operator[name])
    yield from run_server(cluster)


def api(house, method, path, token=None, **kwargs):
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return requests.request(method, f"{house.url}/api/v1/{path}", headers=headers, timeout=30, **kwargs)


def as_root(house, found: Secrets):
    """Signatures in headers, in the query, and of chunks; right and wrong ones."""
    bucket = f"b-{secrets.token_hex(6)}"
    made = Signed(house, "PUT", f"/{bucket}")
    assert made.send().status_code == 200
    streamed = signed_chunks(house, f"/{bucket}/chunks", b"y" * 200_000)
    assert streamed.send().status_code == 200
    spoilt = signed_chunks(house, f"/{bucket}/spoilt", b"y" * 200_000, 1)
    assert spoilt.send().status_code == 403
    for method, path in (("GET", f"/{bucket}/chunks"), ("GET", f"/{bucket}/missing"), ("GET", "/s3/" + bucket)):
        url = presign(house, method, path)
        requests.request(method, url, timeout=30)
        found.add(presigned=parse_qs(urlsplit(url).query)["X-Amz-Signature"][0])
    wrong = secrets.token_hex(20)
    refused = Signed(house, "GET", f"/{bucket}/chunks", secret=wrong)
    assert refused.send().status_code == 403
    tampered = requests.get(presign(house, "GET", f"/{bucket}/chunks") + "0", timeout=30)
    assert tampered.status_code in (400, 403)
    found.add(wrong_secret=wrong, header=made.signature, seed=streamed.signature, refused=refused.signature)
    for signature in (*streamed.chunk_signatures, *spoilt.chunk_signatures):
        found.add(chunk=signature)
    form = {"policy": base64.b64encode(secrets.token_bytes(24)).decode(), "x-amz-signature": secrets.token_hex(32)}
    requests.post(f"{house.url}/{bucket}", files={"file": b"x"}, data=form, timeout=30)
    found.add(form_signature=form["x-amz-signature"])
    return bucket


def as_wallet(house, found: Secrets):
    wallet = Keypair()
    found.add(wallet=str(wallet), wallet_seed=bytes(wallet.secret()).hex())
    given = api(house, "POST", "auth/challenge", json={"wallet_address": str(wallet.pubkey())}).json()
    signature = str(wallet.sign_message(given["challenge"].encode()))
    answer = {"wallet_address": str(wallet.pubkey()), "signature": signature, "challenge": given["challenge"], "nonce": given["nonce"]}
    tokens = api(house, "POST", "auth/wallet", json=answer).json()
    assert api(house, "POST", "auth/wallet", json=answer).status_code == 401
    renewed = api(house, "POST", "auth/refresh", tokens["refresh_token"]).json()
    found.add(wallet_signature=signature)
    for pair in (tokens, renewed):
        found.add_token("access", pair["access_token"])
        found.add_token("refresh", pair["refresh_token"])
    token = renewed["access_token"]
    made = api(house, "POST", "auth/api-keys", token, json={"name": "test"}).json()
    found.add(key_secret=made["secret_access_key"])
    found.add_token("key_token", made["token"])
    signed = Signed(house, "GET", "/", access_key=made["access_key_id"], secret=made["secret_access_key"])
    assert signed.send().status_code == 200
    found.add(key_signature=signed.signature)
    given = ticket(house, token)
    found.add(ticket=given)
    for query in ({"ticket": given}, {"token": token, "topics": "file"}):
        with Listener(house, **query) as listener:
            s3_client(As(house, made)).create_bucket(Bucket=f"b-{secrets.token_hex(6)}")
            listener.socket.send(json.dumps({"token": token}))
            listener.all()
    assert handshake(house, ticket=given).status_code == 401
    assert requests.get(f"{house.url}/s3/", headers={"authorization": f"Bearer {made.get('token') or made['api_key']}"}, timeout=30).ok
    spoilt = token[:-8] + "AAAAAAAA"
    assert api(house, "GET", "auth/me", spoilt).status_code == 401
    found.add_token("spoilt", spoilt)
    requests.get(f"{house.url}/ws", params={"token": token}, timeout=30)
    requests.get(f"{house.url}/ws", params={"token": spoilt}, timeout=30)
    assert api(house, "POST", "auth/logout", token).status_code == 204


def as_account(house, found: Secrets, home):
    """By the command, which logs as well."""
    account = house.identity.account(PASSWORD)
    env = {"PATH": house.gateway.env["PATH"], "HOME": str(home), "CYXWIZ_API_URL": house.identity.url, "CYXCLOUD_PASSWORD": PASSWORD}

    def cli(*args, **more):
        done = subprocess.run([binary("cyxcloud-cli"), "--verbose", "--gateway", house.url, *args], env=env | more, cwd=home,
                              capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    outputs = [cli("login", "--email", account["email"])]
    config = home / ".cyxcloud/config.toml"
    found.add_token("cli_access", re.search('access_token = "(.*)"', config.read_text()).group(1))
    found.add_token("cli_refresh", re.search('refresh_token = "(.*)"', config.read_text()).group(1))
    outputs += [cli("whoami"), cli("list"), cli("login", "--email", account["email"], CYXCLOUD_PASSWORD=WRONG)]
    assert [code for code, _ in outputs] == [0, 0, 0, 4], outputs
    # A password for who has none, fields that nobody knows, and words where tokens should be.
    stray = secrets.token_hex(16)
    for body in ({"email": account["email"], "password": stray, "pin": stray}, {"email": stray, "password": [stray]}):
        assert requests.post(house.identity.url + "/api/auth/login", json=body, timeout=30).status_code >= 400
    requests.get(house.identity.url + "/api/users/me", headers={"authorization": f"Bearer {stray}"}, timeout=30)
    found.add(wrong_password=WRONG, stray=stray)
    outputs.append(cli("logout"))
    return "".join(text for _, text in outputs)


def of_nodes(house, found: Secrets):
    """Their keys, and the tokens that they keep and renew."""
    for node in house.nodes:
        directory = house.directory / node.name
        found.add(node_key=(directory / "identity.key").read_text().strip())

        def kept():
            return json.loads((directory / "cyxwiz-session.json").read_text())

        first = kept()
        wait_until("another token is kept", lambda: kept()["access_token"] != first["access_token"], 120)
        for session in (first, kept()):
            found.add_token("node_access", session["access_token"])
            found.add_token("node_refresh", session["refresh_token"])


def test_adv_13_logs_tell_no_secret(house, tmp_path):
    found = house.secrets
    as_root(house, found)
    as_wallet(house, found)
    said = as_account(house, found, tmp_path)
    of_nodes(house, found)
    # A node that is started with a wrong password, and a gateway with wrong secrets.
    node, gateway = house.nodes[1], house.gateway
    assert node.stop() == 0
    (house.directory / node.name / "cyxwiz-session.json").unlink()
    node.env["CYXWIZ_PASSWORD"] = WRONG
    node.start()
    node.wait_for("it is refused", lambda: "refuses the log-in" in node.output())
    weak = "your-secret-here" * 3
    for env in ({"JWT_SECRET": weak}, {"CYXCLOUD_MASTER_KEY": "no hexadecimal digits"},
                {"REDIS_URL": "redis://:sesame-open-wide@127.0.0.1:1/0"}, {"DATABASE_URL": "postgres://u:sesame-open-wide@127.0.0.1:1/d"}):
        done = subprocess.run(house.gateway_args()[:1] + ["--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0"],
                              env=gateway.env | env, capture_output=True, text=True, timeout=60)
        assert done.returncode != 0
        said += done.stdout + done.stderr
    found.add(weak=weak, not_hex="no hexadecimal digits", url_password="sesame-open-wide")

    logs = {process.name: process.output() for process in house.processes} | {"commands": said}
    # Of the others nothing that talks at these levels may.
    assert re.search(r"^\S+ (TRACE|DEBUG) ", logs["node-1"], re.M), "it did not log all that it can"
    hits = {name: found.found_in(text) for name, text in logs.items()}
    assert not any(hits.values()), {name: hit for name, hit in hits.items() if hit}
    for name, text in logs.items():
        # Tokens that no client sees, such as those for heartbeats and quotas, begin like all others; signatures are named.
        for pattern in (r"eyJ[A-Za-z0-9_-]{10,}\.", r"[Ss]ignature=[0-9a-f]{16}", r"[Bb]earer [A-Za-z0-9_-]{16}"):
            leak = re.search(f".*{pattern}.*", text)
            assert not leak, f"{name}: {leak.group(0)[:300]}"


def test_a_standalone_server_s_log_tells_no_secret(workspace):
    server = Standalone(workspace / "redaction-standalone", nodes=2)
    server.process.env |= TRACE
    found = Secrets()
    for server in run_server(server):
        bucket = as_root(server, found)
        assert bucket
        as_wallet(server, found)
        for line in (server.data_dir / "secrets.toml").read_text().splitlines():
            if match := re.fullmatch('(master_key|jwt_secret|root_secret_key) = "(.*)"', line):
                found.add(**{match[1]: match[2]})
        found.add(root_secret=server.credentials.secret_key)
        text = server.process.output()
        assert re.search(r"^\S+ (TRACE|DEBUG) ", text, re.M)
        assert not found.found_in(text)


def test_secrets_would_be_found():
    """What this file looks for would be seen in any form that it knows."""
    found = Secrets()
    found.add(one="a/secret+with=signs")
    digest = hashlib.sha256(b"other").hexdigest()
    assert not found.found_in(f"nothing here {digest}")
    for form in Secrets.forms("a/secret+with=signs"):
        assert found.found_in(f"before {form} after") == ["one 0"], form
