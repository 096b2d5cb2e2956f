"""No secret is in any log, at any level: everything that proves who somebody is, is used once with all servers at `trace`.

Every session of pytest searches its logs, see `no_secret_is_in_any_log`. Here is what that search must know and find.
"""

import base64
import json
import os
import re
import secrets
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from solders.keypair import Keypair

from clients import s3_client
from cluster import Cluster, Identity, Standalone
from conftest import run_server
from people import As
from process import REPO, binary, free_ports, wait_until
from raw import Signed, presign, signed_chunks
from redaction import PATTERNS, Secrets, forms, known
from sockets import Listener, handshake, ticket

TRACE = {"RUST_LOG": "trace"}
PASSWORD, WRONG = "correct horse battery staple", "incorrect horse battery"


class Used(Secrets):
    """What a scenario used, each with a name."""

    def note(self, **named: str | None):
        for name, secret in named.items():
            one = Secrets()
            one.add(name, secret or "")
            assert one, f"{name} is too plain to be looked for"
            self.update(one)

    def unknown(self) -> set[str]:
        """Names of what the search at the end of the session would not look for."""
        return {name for secret, name in self.items() if secret not in known}


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
    cluster.used = Used()
    cluster.used.note(jwt_secret=cluster.jwt_secret, master_key=cluster.gateway.env["CYXCLOUD_MASTER_KEY"],
                        root_secret=cluster.credentials.secret_key, password=PASSWORD)
    if password := urlsplit(cluster.database_url).password:
        cluster.used.note(database_password=password)
    for name in ("access_token", "refresh_token"):
        cluster.used.note(**{f"operator_{name}": operator[name]})
    yield from run_server(cluster)


def api(house, method, path, token=None, **kwargs):
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return requests.request(method, f"{house.url}/api/v1/{path}", headers=headers, timeout=30, **kwargs)


def as_root(house, used: Used):
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
        used.note(presigned=parse_qs(urlsplit(url).query)["X-Amz-Signature"][0])
    sent, s3 = [], s3_client(house, signature_version="s3v4")
    s3.meta.events.register("before-send.s3", lambda request, **_: sent.append(request.headers["authorization"]))
    s3.head_bucket(Bucket=bucket)
    url = s3.generate_presigned_url("get_object", {"Bucket": bucket, "Key": "chunks"}, 600)
    assert requests.get(url, timeout=30).ok
    used.note(boto3=re.search("Signature=([0-9a-f]{64})", str(sent[0]))[1])
    used.note(presigned_by_boto3=parse_qs(urlsplit(url).query)["X-Amz-Signature"][0])
    wrong = secrets.token_hex(20)
    refused = Signed(house, "GET", f"/{bucket}/chunks", secret=wrong)
    assert refused.send().status_code == 403
    tampered = requests.get(presign(house, "GET", f"/{bucket}/chunks") + "0", timeout=30)
    assert tampered.status_code in (400, 403)
    used.note(wrong_secret=wrong, header=made.signature, seed=streamed.signature, refused=refused.signature)
    for signature in (*streamed.chunk_signatures, *spoilt.chunk_signatures):
        used.note(chunk=signature)
    form = {"policy": base64.b64encode(secrets.token_bytes(24)).decode(), "x-amz-signature": secrets.token_hex(32)}
    requests.post(f"{house.url}/{bucket}", files={"file": b"x"}, data=form, timeout=30)
    used.note(form_signature=form["x-amz-signature"])
    return bucket


def as_wallet(house, used: Used):
    wallet = Keypair()
    used.note(wallet=str(wallet), wallet_seed=bytes(wallet.secret()).hex())
    given = api(house, "POST", "auth/challenge", json={"wallet_address": str(wallet.pubkey())}).json()
    signature = str(wallet.sign_message(given["challenge"].encode()))
    answer = {"wallet_address": str(wallet.pubkey()), "signature": signature, "challenge": given["challenge"], "nonce": given["nonce"]}
    tokens = api(house, "POST", "auth/wallet", json=answer).json()
    assert api(house, "POST", "auth/wallet", json=answer).status_code == 401
    renewed = api(house, "POST", "auth/refresh", tokens["refresh_token"]).json()
    used.note(wallet_signature=signature)
    for pair in (tokens, renewed):
        used.note(access=pair["access_token"])
        used.note(refresh=pair["refresh_token"])
    token = renewed["access_token"]
    made = api(house, "POST", "auth/api-keys", token, json={"name": "test"}).json()
    used.note(key_secret=made["secret_access_key"])
    used.note(key_token=made["token"])
    signed = Signed(house, "GET", "/", access_key=made["access_key_id"], secret=made["secret_access_key"])
    assert signed.send().status_code == 200
    used.note(key_signature=signed.signature)
    given = ticket(house, token)
    used.note(ticket=given)
    for query in ({"ticket": given}, {"token": token, "topics": "file"}):
        with Listener(house, **query) as listener:
            s3_client(As(house, made)).create_bucket(Bucket=f"b-{secrets.token_hex(6)}")
            listener.socket.send(json.dumps({"token": token}))
            listener.all()
    assert handshake(house, ticket=given).status_code == 401
    assert requests.get(f"{house.url}/s3/", headers={"authorization": f"Bearer {made.get('token') or made['api_key']}"}, timeout=30).ok
    spoilt = token[:-8] + "AAAAAAAA"
    assert api(house, "GET", "auth/me", spoilt).status_code == 401
    used.note(spoilt=spoilt)
    requests.get(f"{house.url}/ws", params={"token": token}, timeout=30)
    requests.get(f"{house.url}/ws", params={"token": spoilt}, timeout=30)
    assert api(house, "POST", "auth/logout", token).status_code == 204


def as_account(house, used: Used, home):
    """By the command, which logs as well."""
    account = house.identity.account(PASSWORD)
    env = {"PATH": house.gateway.env["PATH"], "HOME": str(home), "CYXWIZ_API_URL": house.identity.url, "CYXCLOUD_PASSWORD": PASSWORD}

    def cli(*args, **more):
        done = subprocess.run([binary("cyxcloud-cli"), "--verbose", "--gateway", house.url, *args], env=env | more, cwd=home,
                              capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    outputs = [cli("login", "--email", account["email"])]
    config = home / ".cyxcloud/config.toml"
    used.note(cli_access=re.search('access_token = "(.*)"', config.read_text()).group(1))
    used.note(cli_refresh=re.search('refresh_token = "(.*)"', config.read_text()).group(1))
    outputs += [cli("whoami"), cli("list"), cli("login", "--email", account["email"], CYXCLOUD_PASSWORD=WRONG)]
    assert [code for code, _ in outputs] == [0, 0, 0, 4], outputs
    # A password for who has none, fields that nobody knows, and words where tokens should be.
    stray = secrets.token_hex(16)
    for body in ({"email": account["email"], "password": stray, "pin": stray}, {"email": stray, "password": [stray]}):
        assert requests.post(house.identity.url + "/api/auth/login", json=body, timeout=30).status_code >= 400
    requests.get(house.identity.url + "/api/users/me", headers={"authorization": f"Bearer {stray}"}, timeout=30)
    used.note(wrong_password=WRONG, stray=stray)
    outputs.append(cli("logout"))
    return "".join(text for _, text in outputs)


def of_nodes(house, used: Used):
    """Their keys, and the tokens that they keep and renew."""
    for node in house.nodes:
        directory = house.directory / node.name
        used.note(node_key=(directory / "identity.key").read_text().strip())

        def kept():
            return json.loads((directory / "cyxwiz-session.json").read_text())

        first = kept()
        wait_until("another token is kept", lambda: kept()["access_token"] != first["access_token"], 120)
        for session in (first, kept()):
            used.note(node_access=session["access_token"])
            used.note(node_refresh=session["refresh_token"])


def talks(log: Path) -> bool:
    return bool(re.search(r"^\S+ +(TRACE|DEBUG) ", log.read_text(errors="replace"), re.M))


def test_adv_13_logs_tell_no_secret(house, tmp_path):
    used = house.used
    as_root(house, used)
    as_wallet(house, used)
    said = as_account(house, used, tmp_path)
    of_nodes(house, used)
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
    used.note(weak=weak, not_hex="no hexadecimal digits", url_password="sesame-open-wide")

    commands = tmp_path / "commands.log"
    commands.write_text(said)
    # Of the others nothing that talks at these levels may.
    assert talks(house.nodes[0].log), "it did not log all that it can"
    assert used.search([commands, *(process.log for process in house.processes)]) == []
    # Every session's search would have looked for them too, except for what no test has: this wallet, and tokens of programs, which
    # it knows by their looks.
    known.learn_files(house.directory)
    alone = {"wallet", "wallet_seed", "cli_access", "cli_refresh", "node_access", "node_refresh"}
    assert used.unknown() <= alone


def test_a_standalone_server_s_log_tells_no_secret(workspace):
    server = Standalone(workspace / "redaction-standalone", nodes=2)
    server.process.env |= TRACE
    used = Used()
    for server in run_server(server):
        bucket = as_root(server, used)
        assert bucket
        as_wallet(server, used)
        for line in (server.data_dir / "secrets.toml").read_text().splitlines():
            if match := re.fullmatch('(master_key|jwt_secret|root_secret_key) = "(.*)"', line):
                used.note(**{match[1]: match[2]})
        used.note(root_secret=server.credentials.secret_key)
        assert talks(server.process.log)
        assert used.search([server.process.log]) == []
    assert used.unknown() <= {"wallet", "wallet_seed", "root_secret_key"}


def test_secrets_would_be_found(tmp_path):
    """In any form, with the place, and without being told once more."""
    secret, digest = "a/secret+with=signs", secrets.token_hex(32)
    used, log, quiet = Used(), tmp_path / "log", tmp_path / "quiet"
    used.note(one=secret, two=digest)
    quiet.write_text(f"nothing here {secrets.token_hex(32)}\n{digest[:-1]} \u2713 {secret[:-1]}\n")
    assert used.search([log.with_name("quiet")]) == []
    for name, value in (("one", secret), ("two", digest)):
        for form in forms(value):
            log.write_bytes(b"first\n\xff before " + form.encode() + b" after\n")
            (told,) = used.search([quiet, log])
            assert told.startswith(f"{log}:2: {name}, ") and form not in told, form
    log.unlink()
    with pytest.raises(AssertionError):
        used.search([log])


@pytest.mark.parametrize("kind,text", [
    ("a token", "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"),
    ("a token in hexadecimal or base64", b"eyJ0eXAiOiJKV1Qi".hex()),
    ("a token in hexadecimal or base64", base64.b64encode(b"eyJhbGciOiJIUzI1NiJ9").decode()),
    ("a signature", "Credential=A/b/c, SignedHeaders=host, Signature=0123456789abcdef0123"),
    ("a signature", "chunk-signature=0123456789abcdef0123"), ("a signature", "X-Amz-Signature%3D0123456789abcdef0123"),
    ("a bearer", '"authorization": "Bearer AAAAAAAAAAAAAAAAAAAA"'), ("a token in an address", "/ws?topics=a&ticket=AAAAAAAAAAAAAAAAAAAA"),
    ("a password in an address", "postgres://cyx:open-sesame@127.0.0.1/x"), ("a password in an address", "redis://:open@127.0.0.1"),
    ("a private key", "-----BEGIN EC PRIVATE KEY-----"), ("bytes one by one", str([7, 200, 31] * 11)),
    ("bytes of a token for nodes", "0f" * 171),
])
def test_what_looks_like_a_secret_would_be_found(kind, text, tmp_path):
    log = tmp_path / "log"
    log.write_text(f"first\n{text}\n")
    told = Secrets().search([log])
    assert told and all(line.startswith(f"{log}:2: {kind}, ") and text not in line for line in told)
    assert kind in PATTERNS


def test_what_only_looks_similar_is_none(tmp_path):
    log = tmp_path / "log"
    log.write_text(
        "Signature=abc, Bearer x.y.z, eyJ.eyJ., [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14], http://127.0.0.1:80/a, ?token=, "
        f"postgres://127.0.0.1:5432/x, postgres://u:***@127.0.0.1/x, /ws?ticket=x&topics=file, {secrets.token_hex(32)}\n")
    assert Secrets().search([log]) == []


@pytest.mark.parametrize("word", ["hush", "talk"])
def test_a_session_whose_logs_tell_a_secret_fails(word, tmp_path):
    """The search is in force: one test that passes, of a program that logs what it was given, or does not."""
    (tmp_path / "test_it.py").write_text(f"""
from process import Process

def test_it(tmp_path):
    secret = {secrets.token_hex(32)!r}
    program = ["sh", "-c", 'case $1 in talk) echo "I was given $JWT_SECRET";; esac', "sh", {word!r}]
    process = Process("program", program, {{"JWT_SECRET": secret}}, tmp_path / "log").start()
    assert process.child.wait() == 0
""")
    command = [sys.executable, "-m", "pytest", "-c", str(REPO / "tests/pytest.ini"), "-p", "conftest", "--basetemp", str(tmp_path / "base"),
               str(tmp_path / "test_it.py")]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(REPO / "tests")}, cwd=tmp_path, capture_output=True, text=True,
                          timeout=120)
    assert "1 passed" in done.stdout, done.stdout
    if word == "hush":
        assert done.returncode == 0, done.stdout
        assert re.search("1 logs .* for 1 secrets .*: none found", done.stdout), done.stdout
    else:
        assert done.returncode == 1 and re.search(r"log:1: JWT_SECRET, .{5}\.\.\. of 64 characters", done.stdout), done.stdout
