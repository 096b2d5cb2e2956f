"""Logging in by wallet and by password, with real servers, what is kept of it, and what a gateway of somebody else learns."""

import json
import os
import secrets
import stat
import subprocess
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from cluster import Identity, psql
from people import Wallet
from process import binary, free_ports

PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def identity(cluster, workspace):
    """The identity service, in the same database as the cluster."""
    process = Identity(cluster, workspace / "cyxwiz-api.log").start()
    yield process
    assert "panicked" not in process.output()
    assert process.stop() == 0


@pytest.fixture
def cli(cluster, identity, tmp_path):
    """Runs the command without any access key; the finished process."""
    home = tmp_path / "home"
    home.mkdir()

    def run(*args: str, env: dict[str, str] | None = None, stdin: bytes = b"", gateway: str = cluster.url):
        kept = {"PATH": os.environ["PATH"], "HOME": str(home), "CYXWIZ_API_URL": identity.url}
        command = [binary("cyxcloud-cli"), "--gateway", gateway, *args]
        return subprocess.run(command, env=kept | (env or {}), cwd=home, input=stdin, capture_output=True, timeout=120)

    run.home, run.config = home, home / ".cyxcloud/config.toml"
    return run


class Stranger(ThreadingHTTPServer):
    """A gateway of somebody else: keeps what it is sent, answers with what it has for a path, or else lets nobody in."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Ear)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.heard, self.answers = [], {}

    def paths(self) -> list[str]:
        return [path for path, _, _ in self.heard]


class Ear(BaseHTTPRequestHandler):
    def hear(self):
        sent = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
        self.server.heard.append((self.path, self.headers, sent))
        answer = self.server.answers.get(self.path)
        body = json.dumps(answer or {"title": "not let in"}).encode()
        self.send_response(200 if answer else 401)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_DELETE = do_GET = do_HEAD = do_POST = do_PUT = hear

    def log_message(self, *args):
        pass


@pytest.fixture
def stranger():
    server = Stranger()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def good(done) -> str:
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def bad(done, code: int, *words: str):
    text = done.stderr.decode()
    assert done.returncode == code, text
    assert "panicked" not in text and len(text.strip().splitlines()) == 1, text
    for word in words:
        assert word in text, text


def session(cli) -> dict:
    return tomllib.loads(cli.config.read_text())["auth"]


def session_is_kept(cli) -> bool:
    return "auth" in tomllib.loads(cli.config.read_text())


def account(identity) -> str:
    """A new account's email address."""
    return identity.account(PASSWORD)["email"]


def edit(cli, name: str, value: str):
    """Changes one entry of the session, as time or a mishap would."""
    lines = [f'{name} = "{value}"' if line.startswith(name + " ") else line for line in cli.config.read_text().splitlines()]
    cli.config.write_text("\n".join(lines) + "\n")


def log_in(cli, identity) -> str:
    email = account(identity)
    done = cli("login", "--email", email, "--password-stdin", stdin=PASSWORD.encode() + b"\n")
    good(done)
    assert email in done.stderr.decode()
    return email


def round_trip(cli):
    bucket = f"login-{secrets.token_hex(6)}"
    (cli.home / "f").write_bytes(b"mine" * 100)
    good(cli("upload", "--bucket", bucket, "--key", "f", "f"))
    assert cli("download", "--bucket", bucket, "--key", "f", "-").stdout == b"mine" * 100
    return bucket


def test_a_password_opens_the_gateway(cli, cluster, identity):
    """The first use of its token makes the user there."""
    log_in(cli, identity)
    assert stat.S_IMODE(cli.config.stat().st_mode) == 0o600
    saved = session(cli)
    assert saved["api_url"] == identity.url and saved["access_token"].count(".") == 2
    bucket = round_trip(cli)
    owner = psql(cluster.database_url, f"SELECT owner_id FROM buckets WHERE name = '{bucket}'")
    assert requests.get(identity.url + "/api/users/me", headers={"authorization": f"Bearer {saved['access_token']}"},
                        timeout=30).json()["id"] == owner
    bad(cli("login", "--email", "nobody@example.org", "--password-stdin", stdin=b"wrong password\n"), 4, "wrong")
    bad(cli("login", "--email", "nobody@example.org"), 2, "--password-stdin")
    assert session(cli) == saved
    assert "logged out" in cli("logout").stderr.decode()
    assert "auth" not in tomllib.loads(cli.config.read_text())
    bad(cli("list"), 2, "cyxcloud-cli login")
    refresh = {"authorization": f"Bearer {saved['refresh_token']}"}
    assert requests.post(identity.url + "/api/auth/refresh", headers=refresh, timeout=30).status_code == 401


def test_a_session_renews_itself(cli, identity):
    log_in(cli, identity)
    first = session(cli)
    cli.config.write_text("# my notes\n" + cli.config.read_text())
    edit(cli, "expires_at", "2020-01-01T00:00:00Z")
    good(cli("list"))
    second = session(cli)
    assert second["access_token"] != first["access_token"] and second["refresh_token"] != first["refresh_token"]
    assert cli.config.read_text().startswith("# my notes\n")
    # Refused although it should hold: renewed once.
    edit(cli, "access_token", "a.b.c")
    good(cli("list"))
    assert session(cli)["refresh_token"] != second["refresh_token"]
    edit(cli, "access_token", "a.b.c")
    edit(cli, "refresh_token", "a.b.c")
    bad(cli("list"), 4, "cyxcloud-cli login")


def test_programs_that_renew_together_agree(cli, cluster, identity):
    log_in(cli, identity)
    edit(cli, "expires_at", "2020-01-01T00:00:00Z")
    env = {"PATH": os.environ["PATH"], "HOME": str(cli.home)}
    command = [binary("cyxcloud-cli"), "--gateway", cluster.url, "list"]
    running = [subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(6)]
    for program in running:
        _, said = program.communicate(timeout=120)
        assert program.returncode == 0, said
    good(cli("list"))


def test_access_keys_come_first(cli, cluster, identity):
    log_in(cli, identity)
    keys = {"CYXCLOUD_ACCESS_KEY": cluster.credentials.access_key, "CYXCLOUD_SECRET_KEY": cluster.credentials.secret_key}
    assert "root" in good(cli("info", env=keys))
    assert "root" not in good(cli("info"))


def test_what_cannot_be_used_is_said(cli, identity):
    (port,) = free_ports(1)
    nowhere = f"http://127.0.0.1:{port}"
    wallet = cli.home / "id.json"
    made = cli("login", "--new-wallet", str(wallet), gateway=nowhere)
    assert made.returncode == 5 and "--gateway" in made.stderr.decode()
    numbers = json.loads(wallet.read_text())
    assert len(numbers) == 64 and stat.S_IMODE(wallet.stat().st_mode) == 0o600
    bad(cli("login", "--keypair", str(wallet), gateway=nowhere), 5, "--gateway")
    bad(cli("login", "--new-wallet", str(wallet), gateway=nowhere), 2, "does not exist")
    wrong = cli.home / "wrong.json"
    wrong.write_text(json.dumps(numbers[:63]))
    wrong.chmod(0o600)
    bad(cli("login", "--keypair", str(wrong)), 2, "64 numbers")
    bad(cli("login", "--keypair", str(cli.home / "none.json")), 2, "none.json")
    bad(cli("login", "--email", "a@b.c", "--password-stdin", "--api-url", nowhere, stdin=b"x\n"), 5, "--api-url")
    bad(cli("whoami"), 2, "cyxcloud-cli login")
    assert not cli.config.exists()
    assert "nobody is logged in" in cli("logout").stderr.decode()


def test_a_wallet_opens_the_gateway_and_makes_keys(cli, cluster):
    """A keypair made by a library that is not ours, and a key for a program that can do less than its maker."""
    from solders.keypair import Keypair

    pair = Keypair()
    wallet = cli.home / "id.json"
    wallet.write_text(json.dumps(list(bytes(pair))))
    wallet.chmod(0o600)
    good(cli("login", "--keypair", str(wallet)))
    assert session(cli)["wallet_address"] == str(pair.pubkey())
    assert json.loads(good(cli("whoami", "--json")))["wallet_address"] == str(pair.pubkey())
    bucket = round_trip(cli)
    made = json.loads(good(cli("keys", "create", "reader", "--bucket", bucket, "--read-only", "--json")))
    keys = {"CYXCLOUD_ACCESS_KEY": made["access_key_id"], "CYXCLOUD_SECRET_KEY": made["secret_access_key"]}
    assert cli("download", "--bucket", bucket, "--key", "f", "-", env=keys).stdout == b"mine" * 100
    refused = cli("upload", "--bucket", bucket, "--key", "g", "f", env=keys)
    assert refused.returncode != 0 and "AccessDenied" in refused.stderr.decode(), refused.stderr
    listed = good(cli("keys", "list"))
    assert "reader" in listed and made["id"] in listed and made["secret_access_key"] not in listed
    good(cli("keys", "revoke", made["id"]))
    assert cli("download", "--bucket", bucket, "--key", "f", "-", env=keys).returncode != 0
    good(cli("logout"))
    bad(cli("whoami"), 2, "cyxcloud-cli login")


def without_gateway(cli) -> str:
    """The config file as older versions wrote it."""
    return "".join(line for line in cli.config.read_text().splitlines(True) if not line.startswith("gateway "))


def test_a_session_is_shown_to_its_gateway_only(cli, cluster, stranger):
    """Whoever is named as the gateway learns no token that another one gave, be it for use or for renewal."""
    good(cli("login", "--new-wallet", str(cli.home / "id.json")))
    saved = session(cli)
    assert saved["gateway"] == cluster.url
    (cli.home / "f").write_bytes(b"mine")
    for expires in (saved["expires_at"], "2020-01-01T00:00:00Z"):
        edit(cli, "expires_at", expires)
        kept = cli.config.read_bytes()
        for args in (["list"], ["whoami"], ["info"], ["keys", "list"], ["upload", "--bucket", "bbb", "--key", "k", "f"]):
            bad(cli(*args, gateway=stranger.url), 2, stranger.url, f"for {cluster.url}", f"--gateway {stranger.url} login")
        # Nobody is logged in there, so nobody is logged out.
        done = cli("logout", gateway=stranger.url)
        good(done)
        assert f"for {cluster.url}" in done.stderr.decode()
        assert cli.config.read_bytes() == kept
    assert stranger.heard == []
    bad(cli("login", "--keypair", str(cli.home / "id.json"), gateway=stranger.url), 4, "not let in")
    assert stranger.paths() == ["/api/v1/auth/challenge"]
    for _, headers, body in stranger.heard:
        assert "authorization" not in headers
        for text in [body, *headers.values()]:
            assert saved["access_token"] not in text and saved["refresh_token"] not in text
    # Where it is for, it is as good as before.
    good(cli("list"))
    assert session(cli)["gateway"] == cluster.url
    good(cli("logout"))
    assert not session_is_kept(cli)


def test_a_password_s_session_is_shown_to_its_gateway_only(cli, cluster, identity, stranger):
    log_in(cli, identity)
    assert session(cli)["gateway"] == cluster.url and session(cli)["api_url"] == identity.url
    bad(cli("list", gateway=stranger.url), 2, f"for {cluster.url}")
    good(cli("logout", gateway=stranger.url))
    assert stranger.heard == [] and session_is_kept(cli)
    good(cli("list"))


def test_a_session_that_does_not_say_for_whom_it_is(cli, cluster, stranger):
    """Older versions did not keep that: it is for the gateway that their file names, if it names one."""
    good(cli("login", "--new-wallet", str(cli.home / "id.json")))
    before = without_gateway(cli)
    cli.config.write_text(before)
    for url in (cluster.url, stranger.url):
        bad(cli("list", gateway=url), 2, "which gateway", "cyxcloud-cli login")
    cli.config.write_text(f'{before}\n[gateway]\nurl = "{stranger.url}"\n')
    bad(cli("list"), 2, f"for {stranger.url}")
    cli.config.write_text(f'{before}\n[gateway]\nurl = "{cluster.url}/"\n')
    bad(cli("list", gateway=stranger.url), 2, f"for {cluster.url}")
    good(cli("list"))
    # From its first renewal on, it says so.
    edit(cli, "expires_at", "2020-01-01T00:00:00Z")
    good(cli("list"))
    assert session(cli)["gateway"] == cluster.url
    cli.config.write_text(without_gateway(cli).replace(cluster.url, ""))
    done = cli("logout", gateway=stranger.url)
    good(done)
    assert "none was told" in done.stderr.decode() and not session_is_kept(cli)
    assert stranger.heard == []


def test_a_log_in_elsewhere_is_not_signed(cli, cluster, stranger):
    """A gateway hands on what another one asks a wallet to sign. With the signature it would be let in there as the wallet."""
    wallet = Wallet(cluster)
    keypair = cli.home / "id.json"
    keypair.write_text(json.dumps(list(bytes(wallet.keypair))))
    keypair.chmod(0o600)
    given = wallet.challenge().json()
    assert "\nDomain: localhost\n" in given["challenge"]

    def log_in_with(text: str, *args: str, **env: str):
        """What a log-in came to that is asked to sign this, and what the gateway heard."""
        stranger.heard.clear()
        stranger.answers["/api/v1/auth/challenge"] = given | {"challenge": text}
        done = cli("login", "--keypair", str(keypair), *args, gateway=stranger.url, env=env)
        return done, stranger.paths()

    asked, signed = ["/api/v1/auth/challenge"], ["/api/v1/auth/challenge", "/api/v1/auth/wallet"]
    foreign = given["challenge"].replace("Domain: localhost", "Domain: files.example")
    for args, env in (([], {}), (["--auth-domain", "other.example"], {}), ([], {"CYXCLOUD_AUTH_DOMAIN": "other.example"})):
        done, heard = log_in_with(foreign, *args, **env)
        bad(done, 2, "files.example", "solana:mainnet", "nothing was signed", "--auth-domain")
        assert heard == asked and all("signature" not in body for _, _, body in stranger.heard)
    for text in (given["challenge"] + "\nAmount: 1", given["challenge"].replace("Nonce: ", "Nonce: 0"), "pay everything"):
        done, heard = log_in_with(text, "--auth-domain", "localhost")
        bad(done, 2, "something other than a log-in", "nothing was signed")
        assert heard == asked
    assert not cli.config.exists()
    # What is the gateway's own name is signed: what this machine calls itself, or what the user says.
    for text, args, env, domain in (
        (given["challenge"], [], {}, "localhost"), (foreign, ["--auth-domain", "Files.example"], {}, "files.example"),
        (foreign, [], {"CYXCLOUD_AUTH_DOMAIN": "files.example"}, "files.example"),
    ):
        done, heard = log_in_with(text, *args, **env)
        assert done.returncode == 4 and f"log-in to {domain} (solana:mainnet)" in done.stderr.decode(), done.stderr
        assert heard == signed and json.loads(stranger.heard[1][2])["signature"]
