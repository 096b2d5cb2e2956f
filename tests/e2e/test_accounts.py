"""Nodes whose operators have accounts at the CyxWiz API, and quotas that it says, with real servers."""

import json
import secrets
import stat
import subprocess
import time
import uuid

import pytest
import requests

from clients import bearer, new_bucket, s3_client
from cluster import Cluster, Identity, psql
from conftest import run_server
from data import make_bytes
from people import Wallet
from process import binary, free_ports, wait_until
from raw import Signed

TOKEN_SECS = 6
MIB = 1 << 20
LOGGED_IN = "logged in at the CyxWiz API"
RENEWED = "renewed the log-in at the CyxWiz API"
SESSION = "cyxwiz-session.json"


@pytest.fixture(scope="module")
def house(workspace):
    """A cluster that takes only nodes of people who have an account, and the service that has the accounts."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    password = workspace / "node-password"
    password.write_text(Identity.PASSWORD + "\n")
    cluster = Cluster(
        workspace / "accounts", nodes=3,
        gateway_env={"CYXWIZ_API_URL": url, "CYXWIZ_CACHE_SECS": "1", "CYXCLOUD_USER_QUOTA": "5MiB"},
        node_env={"CYXWIZ_API_URL": url, "CYXWIZ_PASSWORD_FILE": str(password)},
        rebalancer_env={"SCAN_INTERVAL_SECS": "1", "REPAIR_DELAY_SECS": "1", "REPAIR_LEASE_SECS": "2"},
    )
    identity = Identity(cluster, cluster.directory / "cyxwiz-api.log", port, {"ACCESS_TOKEN_SECS": str(TOKEN_SECS)})
    identity.start()
    cluster.operator = identity.account()
    for node in cluster.nodes:
        node.env["CYXWIZ_EMAIL"] = cluster.operator["email"]
    cluster.identity = identity
    cluster.processes.append(identity)
    yield from run_server(cluster)


def kept(house, node) -> dict:
    return json.loads((house.directory / node.name / SESSION).read_text())


def said(node, words: str) -> int:
    return node.output().count(words)


@pytest.fixture
def stranger(house):
    """One more node, which is not started; gone after the test."""
    house.node_ports.append(free_ports(3))
    node = house._node(len(house.node_ports) - 1)
    house.processes.append(node)
    yield node
    node.kill()


def plant(house, node, token: str):
    """Has the node start with this token, as if it had been given to it."""
    directory = house.directory / node.name
    directory.mkdir(mode=0o700, exist_ok=True)
    later = (int(time.time()) + 3600) * 1000
    (directory / SESSION).write_text(json.dumps({
        "api_url": house.identity.url, "email": node.env.get("CYXWIZ_EMAIL", "a@b.c"), "access_token": token, "refresh_token": "x",
        "renew_at_ms": later, "expires_at_ms": later,
    }))


def known(house, node) -> bool:
    return psql(house.database_url, f"SELECT count(*) FROM nodes WHERE label = '{node.name}'") == "1"


def test_nodes_log_in_and_are_their_operator_s(house):
    operators = psql(house.database_url, "SELECT DISTINCT operator FROM nodes")
    assert operators == house.operator["user"]["id"]
    for node in house.nodes:
        assert said(node, LOGGED_IN) == 1, node.tail()
        path = house.directory / node.name / SESSION
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert Identity.PASSWORD not in path.read_text()

    # Once: log-ins are limited, and a poll makes many. It is good for a minute longer than it says.
    token = requests.post(house.identity.url + "/api/auth/login", timeout=30,
                          json={"email": house.operator["email"], "password": Identity.PASSWORD}).json()["access_token"]

    def listed():
        answer = requests.get(house.identity.url + "/api/machines", headers={"authorization": f"Bearer {token}"}, timeout=30)
        return {machine["peer_id"] for machine in answer.json()["machines"]}

    peers = set(psql(house.database_url, "SELECT peer_id FROM nodes").splitlines())
    wait_until("the machines are listed", lambda: listed() == peers)


def test_tokens_are_renewed_before_they_end(house):
    node = house.nodes[0]
    first, renewed = kept(house, node), said(node, RENEWED)
    wait_until("two renewals", lambda: said(node, RENEWED) >= renewed + 2)
    second = kept(house, node)
    assert second["access_token"] != first["access_token"] and second["refresh_token"] != first["refresh_token"]
    assert said(node, LOGGED_IN) == 1
    house.wait_online(3)


def test_a_log_in_outlives_its_process(house):
    node = house.nodes[1]
    node.kill()
    house.restart_node(1)
    # The gateway knows it a moment before it knows so itself.
    node.wait_for("it is registered again", lambda: said(node, "registered with the gateway") >= 2)
    assert said(node, LOGGED_IN) == 1, node.tail()


def test_a_wrong_password_is_said(house, stranger):
    stranger.env["CYXWIZ_EMAIL"] = house.identity.account()["email"]
    del stranger.env["CYXWIZ_PASSWORD_FILE"]
    stranger.env["CYXWIZ_PASSWORD"] = "wrong horse battery"
    stranger.start()
    stranger.wait_for("it says what to do", lambda: said(stranger, "correct CYXWIZ_EMAIL and CYXWIZ_PASSWORD"))
    stranger.wait_for("the gateway says why", lambda: said(stranger, "only nodes whose operator has logged in"))
    assert not known(house, stranger) and "wrong horse" not in stranger.output()
    metrics_port = house.node_ports[-1][1]
    assert requests.get(f"http://127.0.0.1:{metrics_port}/health", timeout=30).ok, "it serves what it holds"


def test_a_node_without_an_account_is_refused(house, stranger):
    for name in ("CYXWIZ_API_URL", "CYXWIZ_PASSWORD_FILE"):
        del stranger.env[name]
    stranger.start()
    stranger.wait_for("the gateway says why", lambda: said(stranger, "set CYXWIZ_API_URL, CYXWIZ_EMAIL and CYXWIZ_PASSWORD"))
    assert not known(house, stranger)


@pytest.mark.parametrize("how", [
    {"secret": "f" * 64}, {"algorithm": "none"}, {"exp": int(time.time()) - 3600, "iat": int(time.time()) - 7200}, {"typ": "refresh"},
    {"typ": "node"}, {"typ": "service", "aud": "cyxwiz-api"}, {"aud": "cyxwiz-api"}, {"iss": "somebody"},
], ids=["secret", "algorithm", "expired", "refresh", "node", "service", "audience", "issuer"])
def test_forged_tokens_are_refused(house, stranger, how):
    plant(house, stranger, bearer(house, **({"sub": house.operator["user"]["id"], "nbf": None} | how)))
    stranger.start()
    stranger.wait_for("the gateway refuses it", lambda: said(stranger, "the gateway refuses this node"))
    assert "code=Unauthenticated" in stranger.output(), stranger.tail()
    assert not known(house, stranger)


def test_who_has_no_account_operates_no_node(house, stranger):
    """Anybody may log a wallet in at a gateway; that is no account of the CyxWiz API, and neither is what nobody made there."""
    wallet = Wallet(house)
    plant(house, stranger, wallet.send(wallet.signed()).json()["access_token"])
    stranger.start()
    stranger.wait_for("the gateway says why", lambda: said(stranger, "a log-in at a gateway, which anybody may have"))
    stranger.kill()
    plant(house, stranger, bearer(house, sub=str(uuid.uuid4()), nbf=None))
    stranger.start()
    stranger.wait_for("the gateway says why", lambda: said(stranger, "knows no such account"))
    assert not known(house, stranger)


def test_a_suspended_operator_s_nodes_are_refused(house, stranger):
    account = house.identity.account()
    psql(house.database_url, f"UPDATE cyxwiz.users SET status = 'suspended' WHERE email = '{account['email']}'")
    plant(house, stranger, account["access_token"])
    stranger.start()
    stranger.wait_for("the gateway says why", lambda: said(stranger, "the operator's account is suspended"))
    assert not known(house, stranger)


def by_the_service(house, account, status: str):
    psql(house.database_url, f"UPDATE cyxwiz.users SET status = '{status}' WHERE email = '{account['email']}'")


def by_an_administrator(house, account, status: str):
    answer = Signed(house, "PATCH", f"/api/v1/admin/users/{account['user']['id']}", body=json.dumps({"status": status}).encode()).send()
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("suspend", [by_the_service, by_an_administrator])
def test_a_suspended_operator_s_nodes_are_emptied_while_they_run(house, stranger, suspend):
    account = house.identity.account()
    stranger.env["CYXWIZ_EMAIL"] = account["email"]
    stranger.start()
    state = f"SELECT status FROM nodes WHERE label = '{stranger.name}'"
    held = f"SELECT count(*) FROM chunk_locations l JOIN nodes n ON n.id = l.node_id WHERE n.label = '{stranger.name}'"
    stranger.wait_for("it is online", lambda: psql(house.database_url, state) == "online")
    s3 = s3_client(house)
    bucket = new_bucket(s3, "suspended")
    bodies = {}

    def put():
        key = f"k-{len(bodies)}"
        bodies[key] = make_bytes(300_000, f"{bucket}-{key}")
        s3.put_object(Bucket=bucket, Key=key, Body=bodies[key])
        return int(psql(house.database_url, held)) > 5

    stranger.wait_for("it holds something", put)
    suspend(house, account, "suspended")
    stranger.wait_for("it drains", lambda: psql(house.database_url, state) == "draining")
    # It goes on being heard and read from, and nothing comes back to it.
    heard = psql(house.database_url, f"SELECT last_heartbeat FROM nodes WHERE label = '{stranger.name}'")
    for key, body in bodies.items():
        assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == body
    wait_until("it is empty", lambda: int(psql(house.database_url, held)) == 0, 120)
    put()
    assert psql(house.database_url, held) == "0"
    stranger.wait_for("it was heard", lambda: psql(house.database_url, f"{state} AND last_heartbeat > '{heard}'") == "draining")
    others = psql(house.database_url, f"SELECT DISTINCT status FROM nodes WHERE label <> '{stranger.name}' AND operator = "
                                      f"'{house.operator['user']['id']}'")
    assert others == "online"
    # And back, without anybody at the node.
    suspend(house, account, "active")
    stranger.wait_for("it is online again", lambda: psql(house.database_url, state) == "online")
    stranger.wait_for("it holds something again", put)


def test_a_suspended_operator_s_node_goes_to_no_other_account(house, stranger):
    """Who is suspended has other accounts, or makes one: the node is not theirs before that is lifted."""
    suspended, other = house.identity.account(), house.identity.account()
    state = f"SELECT status || ' ' || operator FROM nodes WHERE label = '{stranger.name}'"

    def start_for(account):
        stranger.env["CYXWIZ_EMAIL"] = account["email"]
        (house.directory / stranger.name / SESSION).unlink(missing_ok=True)
        stranger.start()

    def is_(*states: str):
        return lambda: psql(house.database_url, state) in states

    start_for(suspended)
    stranger.wait_for("it is online", is_(f"online {suspended['user']['id']}"))
    by_an_administrator(house, suspended, "suspended")
    stranger.wait_for("it drains", is_(f"draining {suspended['user']['id']}"))
    stranger.kill()
    start_for(other)
    stranger.wait_for("the gateway says why", lambda: said(stranger, "until that is over"))
    assert is_(f"draining {suspended['user']['id']}")()
    stranger.kill()
    by_an_administrator(house, suspended, "active")
    wait_until("it drains no more", lambda: not psql(house.database_url, state).startswith("draining"))
    start_for(other)
    stranger.wait_for("it is the other's", is_(*(f"{status} {other['user']['id']}" for status in ("recovering", "online"))))


def logged_in(house, account) -> dict:
    """What the next log-in at the service gives."""
    answer = requests.post(house.identity.url + "/api/auth/login", timeout=30,
                           json={"email": account["email"], "password": Identity.PASSWORD})
    assert answer.status_code == 200, answer.text
    return {"authorization": f"Bearer {answer.json()['access_token']}"}


def role(house, headers: dict) -> str | int:
    answer = requests.get(house.url + "/api/v1/auth/me", headers=headers, timeout=30)
    return answer.json()["role"] if answer.ok else answer.status_code


def test_who_was_suspended_or_promoted_here_logs_in_at_the_service_again(house, stranger):
    account = house.identity.account()
    stranger.env["CYXWIZ_EMAIL"] = account["email"]
    assert role(house, logged_in(house, account)) == "user"
    by_an_administrator(house, account, "suspended")
    assert role(house, logged_in(house, account)) == 401
    by_an_administrator(house, account, "active")
    assert role(house, logged_in(house, account)) == "user"
    stranger.start()
    stranger.wait_for("it registers", lambda: said(stranger, "registered with the gateway"))
    for wanted in ("admin", "user"):
        change = json.dumps({"role": wanted}).encode()
        answer = Signed(house, "PATCH", f"/api/v1/admin/users/{account['user']['id']}", body=change).send()
        assert answer.status_code == 200, answer.text
        assert role(house, logged_in(house, account)) == wanted
    registered = said(stranger, "registered with the gateway")
    stranger.kill()
    stranger.start()
    stranger.wait_for("it registers again", lambda: said(stranger, "registered with the gateway") > registered)


def test_whom_the_service_suspends_may_do_nothing_here(house):
    account = house.identity.account()
    made = requests.post(house.url + "/api/v1/auth/api-keys", json={"name": "x"}, headers=token(house, account), timeout=30)
    assert made.status_code == 201, made.text
    key = {"authorization": f"Bearer {made.json()['token']}"}
    assert role(house, key) == "user"

    def does_not_begin() -> bool:
        unseen = house.identity.account()
        by_the_service(house, unseen, "suspended")
        refused = role(house, token(house, unseen)) == 401
        return refused and psql(house.database_url, f"SELECT count(*) FROM users WHERE id = '{unseen['user']['id']}'") == "0"

    # Asked again where the service was not heard in time, as in `newcomer`.
    wait_until("who was never here does not begin now", does_not_begin, interval=5)
    by_the_service(house, account, "suspended")
    wait_until("the key opens nothing", lambda: role(house, key) == 401, 150)
    # What is remembered of a token's user is as old.
    wait_until("neither does a token", lambda: role(house, token(house, account)) == 401, 150)
    by_the_service(house, account, "active")
    wait_until("the key opens again", lambda: role(house, key) == "user", 150)


def test_a_new_password_ends_the_tokens_of_before(house):
    """At the service at once, at the gateway once it has asked again; those that are issued next open it."""
    account = house.identity.account()
    # By hand, so that they hold for an hour if nobody ends them.
    before = token(house, account)
    wait_until("the gateway takes it", lambda: role(house, before) == "user")
    new, at_the_service = "another good password", {"authorization": f"Bearer {account['access_token']}"}
    answer = requests.put(house.identity.url + "/api/users/me", json={"password": new, "current_password": Identity.PASSWORD},
                          headers=at_the_service, timeout=30)
    assert answer.status_code == 200, answer.text
    for headers in (at_the_service, before):
        assert requests.get(house.identity.url + "/api/users/me", headers=headers, timeout=30).status_code == 401
    wait_until("it opens nothing", lambda: role(house, before) == 401, 150)
    # Of the next second at the latest.
    wait_until("what is issued now opens it", lambda: role(house, token(house, account)) == "user")


def told(house, action: str, target: str) -> list[str]:
    """Who did this to that, as the log has it."""
    found = psql(house.database_url, f"SELECT actor FROM audit_log WHERE action = '{action}' AND target = '{target}'")
    return found.splitlines()


def test_the_log_tells_of_nodes(house, stranger):
    account = house.identity.account()
    stranger.env["CYXWIZ_EMAIL"] = account["email"]
    number = f"SELECT id FROM nodes WHERE label = '{stranger.name}'"
    stranger.start()
    stranger.wait_for("it registers", lambda: said(stranger, "registered with the gateway"))
    node = psql(house.database_url, number)
    stranger.kill()
    stranger.start()
    stranger.wait_for("it registers again", lambda: said(stranger, "registered with the gateway") > 1)
    assert told(house, "node.register", node) == [account["user"]["id"]], "once, though it came twice"
    by_an_administrator(house, account, "suspended")
    wait_until("its drain is told", lambda: told(house, "node.suspend", node) == ["gateway"], 60)
    by_an_administrator(house, account, "active")
    wait_until("and its end", lambda: told(house, "node.recover", node) == ["gateway"], 60)


def test_logging_out_forgets(house):
    node = house.nodes[2]
    assert node.stop() == 0
    session = kept(house, node)
    env = {"PATH": node.env["PATH"], "STORAGE_PATH": node.env["STORAGE_PATH"]}
    done = subprocess.run([binary("cyxcloud-node"), "--logout"], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"forgot the log-in of {house.operator['email']} at {house.identity.url}" in done.stdout and len(done.stdout.splitlines()) == 1
    assert not (house.directory / node.name / SESSION).exists()
    refresh = {"authorization": f"Bearer {session['refresh_token']}"}
    assert requests.post(house.identity.url + "/api/auth/refresh", headers=refresh, timeout=30).status_code == 401
    again = subprocess.run([binary("cyxcloud-node"), "--logout"], env=env, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0 and "nobody is logged in" in again.stdout
    before = said(node, LOGGED_IN)
    house.restart_node(2)
    assert said(node, LOGGED_IN) == before + 1


def test_a_service_that_is_away_is_waited_for(house):
    node = house.nodes[0]
    house.identity.kill()
    node.kill()
    wait_until("its token has ended", lambda: kept(house, node)["expires_at_ms"] < time.time() * 1000)
    registered, logged_in = said(node, "registered with the gateway"), said(node, LOGGED_IN)
    node.start()
    node.wait_for("it says so", lambda: said(node, "no log-in at the CyxWiz API for now"))
    # Others, which have registered, go on meanwhile.
    since = psql(house.database_url, "SELECT now()")
    heard = f"SELECT count(*) FROM nodes WHERE last_heartbeat > '{since}'"
    wait_until("the others are heard", lambda: int(psql(house.database_url, heard)) >= 2)
    house.identity.start()
    node.wait_for("it registers", lambda: said(node, "registered with the gateway") > registered)
    assert said(node, LOGGED_IN) == logged_in, "its refresh token was good for that"
    house.wait_online(3)


# --- quotas


def quota(house, account, quota: str):
    psql(house.database_url, f"UPDATE cyxwiz.users SET storage_quota = {quota} WHERE email = '{account['email']}'")


def token(house, account) -> dict:
    """A token made by hand: those of the service last a few seconds here."""
    return {"authorization": f"Bearer {bearer(house, sub=account['user']['id'])}"}


def me(house, account):
    answer = requests.get(house.url + "/api/v1/auth/me", headers=token(house, account), timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()["storage_quota"]


def put(house, account, bucket: str, key: str, size: int) -> int:
    return requests.put(f"{house.url}/s3/{bucket}/{key}", data=b"x" * size, headers=token(house, account), timeout=60).status_code


def newcomer(house, size: int) -> dict:
    """An account with this quota, which was asked for before the account's first use. The gateway waits for the
    service for some seconds only, which may be over where the machine stands still: then the default holds for this one."""

    def asked():
        account = house.identity.account()
        quota(house, account, str(size))
        return account if me(house, account) == size else None

    return wait_until("a quota is asked for before the first use", asked, interval=5)


def test_quotas_are_those_of_the_account(house):
    account, bucket = newcomer(house, MIB), f"quota-{secrets.token_hex(6)}"
    assert requests.put(f"{house.url}/s3/{bucket}", headers=token(house, account), timeout=30).ok
    assert put(house, account, bucket, "a", 2 * MIB) == 403
    assert put(house, account, bucket, "a", MIB // 2) == 200
    quota(house, account, str(3 * MIB))
    wait_until("the new quota holds", lambda: me(house, account) == 3 * MIB, 150)
    assert put(house, account, bucket, "b", 2 * MIB) == 200
    quota(house, account, "NULL")
    wait_until("there is no limit", lambda: me(house, account) is None, 150)
    log = requests.get(house.url + "/api/v1/audit-log", headers=token(house, account), timeout=30).json()["entries"]
    changes = [line["target"] for line in log if (line["action"], line["actor"]) == ("quota", "CyxWiz API")]
    assert changes[0] == "unlimited" and f"{3 * MIB} bytes" in changes, changes


def test_quotas_while_the_service_is_away(house):
    """What it said last, and the configured default for who is new."""
    account, other = newcomer(house, 2 * MIB), house.identity.account()
    quota(house, other, str(7 * MIB))
    house.identity.kill()
    assert me(house, account) == 2 * MIB
    assert me(house, other) == 5 * MIB
    house.identity.start()
    wait_until("the account's own holds", lambda: me(house, other) == 7 * MIB, 150)
    assert me(house, account) == 2 * MIB
