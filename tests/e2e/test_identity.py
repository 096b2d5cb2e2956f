"""People: log-in by wallet with keys of a library that is not ours, sessions, API keys, isolation, quotas, the log."""

import itertools
import secrets
import subprocess
from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest
import requests
from botocore.config import Config
from botocore.exceptions import ClientError
from solders.keypair import Keypair

from cluster import REGION, Cluster
from conftest import run_server

MANY = 1000
KIB = 1024
QUOTA = 4 * KIB * KIB


@pytest.fixture(scope="module")
def house(workspace):
    """Believes what we say of our addresses, so that many can log in."""
    env = {"TRUSTED_PROXIES": "127.0.0.0/8", "CYXCLOUD_USER_QUOTA": "4MiB", "CYXCLOUD_AUTH_DOMAIN": "test.example"}
    yield from run_server(Cluster(workspace / "identity", nodes=2, gateway_env=env))


addresses = (f"198.51.{number // 250 % 250}.{number % 250}" for number in itertools.count(1))


def call(house, method, path, token=None, address=None, **kwargs):
    headers = {"x-forwarded-for": address or next(addresses)} | ({"authorization": f"Bearer {token}"} if token else {})
    return requests.request(method, f"{house.url}/api/v1/{path}", headers=headers, timeout=30, **kwargs)


def signed(house, wallet):
    """What the wallet sends to log in."""
    given = call(house, "POST", "auth/challenge", json={"wallet_address": str(wallet.pubkey())})
    assert given.status_code == 200, given.text
    assert set(given.json()) == {"challenge", "nonce", "expires"}
    text = given.json()["challenge"]
    assert text.startswith(f"CyxCloud Auth\nWallet: {wallet.pubkey()}\nNonce: {given.json()['nonce']}\n") and "Domain: test.example" in text
    return {
        "wallet_address": str(wallet.pubkey()), "signature": str(wallet.sign_message(text.encode())),
        "challenge": text, "nonce": given.json()["nonce"],
    }


def log_in(house, wallet=None):
    answer = call(house, "POST", "auth/wallet", json=signed(house, wallet or Keypair()))
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"access_token", "refresh_token", "expires_in"} and answer.json()["expires_in"] == 3600
    return answer.json()


def refused(answer, status, kind):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == f"urn:cyxcloud:problem:{kind}", answer.text
    return answer


def make_key(house, token, **wanted):
    made = call(house, "POST", "auth/api-keys", token, json={"name": "test"} | wanted)
    assert made.status_code == 201, made.text
    return made.json()


def s3_of(house, key):
    return boto3.client(
        "s3", endpoint_url=house.url, region_name=REGION, aws_access_key_id=key["access_key_id"],
        aws_secret_access_key=key["secret_access_key"],
        config=Config(retries={"max_attempts": 1}, s3={"addressing_style": "path"}),
    )


def code_of(call, **kwargs):
    try:
        call(**kwargs)
    except ClientError as error:
        return error.response["Error"]["Code"]
    return "OK"


def test_a_wallet_logs_in_and_its_session_ends(house):
    wallet = Keypair()
    tokens = log_in(house, wallet)
    me = call(house, "GET", "auth/me", tokens["access_token"]).json()
    assert me["wallet_address"] == str(wallet.pubkey()) and me["role"] == "user" and me["storage_quota"] == QUOTA
    assert call(house, "GET", "auth/me", log_in(house, wallet)["access_token"]).json()["id"] == me["id"]
    assert call(house, "GET", f"auth/challenge?wallet_address={wallet.pubkey()}").status_code == 200
    refused(call(house, "GET", "auth/me", tokens["refresh_token"]), 401, "unauthenticated")
    refused(call(house, "POST", "auth/refresh", tokens["access_token"]), 401, "unauthenticated")

    exchanged = call(house, "POST", "auth/refresh", tokens["refresh_token"]).json()
    assert call(house, "POST", "auth/refresh", tokens["refresh_token"]).json() == exchanged
    latest = call(house, "POST", "auth/refresh", exchanged["refresh_token"]).json()
    assert call(house, "GET", "auth/me", latest["access_token"]).status_code == 200
    refused(call(house, "POST", "auth/refresh", tokens["refresh_token"]), 401, "login-refused")
    for token in (tokens["access_token"], latest["access_token"]):
        refused(call(house, "GET", "auth/me", token), 401, "unauthenticated")
    refused(call(house, "POST", "auth/refresh", latest["refresh_token"]), 401, "login-refused")


def test_refusals_say_the_same_whatever_was_wrong(house):
    wallet, other = Keypair(), Keypair()
    good = signed(house, wallet)
    wrong = [
        signed(house, wallet) | {"signature": str(other.sign_message(good["challenge"].encode()))},
        signed(house, wallet) | {"signature": "junk"},
        good | {"nonce": "0" * 32},
        signed(house, wallet) | {"challenge": "another text"},
    ]
    bodies = {refused(call(house, "POST", "auth/wallet", json=body), 401, "login-refused").text for body in wrong}
    assert len(bodies) == 1, bodies
    for body in ({}, {"wallet_address": "x", "signature": "y"}, {"wallet_address": str(wallet.pubkey())}, []):
        refused(call(house, "POST", "auth/wallet", json=body), 400, "invalid-request")


def test_tries_are_counted(house):
    wallet = Keypair()
    body = {"wallet_address": str(wallet.pubkey()), "signature": "junk", "nonce": "none"}

    def junk(address):
        return call(house, "POST", "auth/wallet", address=address, json=body)

    for _ in range(5):
        refused(junk("203.0.113.7"), 401, "login-refused")
    assert 1 <= int(refused(junk("203.0.113.7"), 429, "too-many-requests").headers["retry-after"]) <= 60
    refused(junk("192.0.2.77, 203.0.113.7"), 429, "too-many-requests")
    refused(junk("203.0.113.8"), 401, "login-refused")
    log_in(house, wallet)
    ask = {"wallet_address": str(wallet.pubkey())}
    for _ in range(10):
        assert call(house, "POST", "auth/challenge", address="203.0.113.9", json=ask).status_code == 200
    refused(call(house, "POST", "auth/challenge", address="203.0.113.9", json=ask), 429, "too-many-requests")
    # What a client adds in front is not believed: only what the proxy saw.
    refused(call(house, "POST", "auth/challenge", address="192.0.2.77, 203.0.113.9", json=ask), 429, "too-many-requests")


def test_a_lost_redis_lets_nobody_in_and_logs_nobody_out(house):
    wallets = [Keypair() for _ in range(MANY)]
    with ThreadPoolExecutor(8) as pool:
        used = list(pool.map(lambda wallet: signed(house, wallet), wallets))
        first = list(pool.map(lambda body: call(house, "POST", "auth/wallet", json=body), used))
        assert {answer.status_code for answer in first} == {200}
        tokens = [answer.json()["access_token"] for answer in first]
        ended = list(pool.map(lambda token: call(house, "POST", "auth/logout", token).status_code, tokens[1:]))
        assert set(ended) == {204}
        # Issued and not used: forgotten with the rest.
        pending = signed(house, wallets[0])
        subprocess.run(["redis-cli", "-u", house.redis_url, "FLUSHDB"], check=True, capture_output=True)
        replays = list(pool.map(lambda body: call(house, "POST", "auth/wallet", json=body).status_code, used))
        revoked = list(pool.map(lambda token: call(house, "GET", "auth/me", token).status_code, tokens[1:]))
    assert replays.count(200) == 0 and set(replays) == {401}, replays
    assert revoked.count(200) == 0 and set(revoked) == {401}, revoked
    assert call(house, "POST", "auth/wallet", json=pending).status_code == 401
    assert call(house, "GET", "auth/me", tokens[0]).status_code == 200
    # Also for a gateway that has never heard of them.
    house.gateway.kill()
    house.gateway.start()
    house.wait_ready(house.gateway)
    assert {call(house, "GET", "auth/me", token).status_code for token in tokens[1:50]} == {401}
    assert call(house, "GET", "auth/me", tokens[0]).status_code == 200


def test_an_api_key_is_token_and_s3_key_within_its_limits(house):
    token = log_in(house)["access_token"]
    full = make_key(house, token, name="full")
    s3 = s3_of(house, full)
    name = f"keys-{full['id'].lower()}"
    for bucket in (name, name + "-2"):
        s3.create_bucket(Bucket=bucket)
        for key in ("in/a", "out/b"):
            s3.put_object(Bucket=bucket, Key=key, Body=b"kept")
    assert call(house, "GET", "auth/me", full["token"]).json()["access_key_id"] == full["id"]
    listed = call(house, "GET", "auth/api-keys", token).json()["api_keys"]
    assert [key["id"] for key in listed] == [full["id"]] and "secret_access_key" not in listed[0] and "token" not in listed[0]

    narrow = make_key(house, token, name="narrow", buckets=[name], prefixes=["in/"], expires_in_days=1)
    mine = s3_of(house, narrow)
    assert mine.get_object(Bucket=name, Key="in/a")["Body"].read() == b"kept"
    assert [o["Key"] for o in mine.list_objects_v2(Bucket=name, Prefix="in/")["Contents"]] == ["in/a"]
    assert [b["Name"] for b in mine.list_buckets()["Buckets"]] == [name]
    mine.put_object(Bucket=name, Key="in/c", Body=b"x")
    mine.copy_object(Bucket=name, Key="in/d", CopySource=f"{name}/in/a")
    opened = s3.create_multipart_upload(Bucket=name, Key="out/m")["UploadId"]
    denied = {
        "read": lambda: mine.get_object(Bucket=name, Key="out/b"),
        "head": lambda: mine.head_object(Bucket=name, Key="out/b"),
        "write": lambda: mine.put_object(Bucket=name, Key="out/x", Body=b"x"),
        "delete": lambda: mine.delete_object(Bucket=name, Key="out/b"),
        "delete many": lambda: mine.delete_objects(Bucket=name, Delete={"Objects": [{"Key": "in/a"}, {"Key": "out/b"}]}),
        "list all": lambda: mine.list_objects_v2(Bucket=name),
        "list a shorter prefix": lambda: mine.list_objects_v2(Bucket=name, Prefix="in"),
        "list uploads": lambda: mine.list_multipart_uploads(Bucket=name),
        "copy from": lambda: mine.copy_object(Bucket=name, Key="in/e", CopySource=f"{name}/out/b"),
        "copy to": lambda: mine.copy_object(Bucket=name, Key="out/e", CopySource=f"{name}/in/a"),
        "copy from elsewhere": lambda: mine.copy_object(Bucket=name, Key="in/e", CopySource=f"{name}-2/in/a"),
        "copy a part from": lambda: mine.upload_part_copy(
            Bucket=name, Key="in/p", UploadId=mine.create_multipart_upload(Bucket=name, Key="in/p")["UploadId"], PartNumber=1,
            CopySource=f"{name}/out/b"),
        "begin an upload": lambda: mine.create_multipart_upload(Bucket=name, Key="out/m"),
        "a part": lambda: mine.upload_part(Bucket=name, Key="out/m", UploadId=opened, PartNumber=1, Body=b"x"),
        "list parts": lambda: mine.list_parts(Bucket=name, Key="out/m", UploadId=opened),
        "complete": lambda: mine.complete_multipart_upload(
            Bucket=name, Key="out/m", UploadId=opened, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": "x"}]}),
        "abort": lambda: mine.abort_multipart_upload(Bucket=name, Key="out/m", UploadId=opened),
        "another bucket": lambda: mine.get_object(Bucket=name + "-2", Key="in/a"),
        "look at another bucket": lambda: mine.head_bucket(Bucket=name + "-2"),
        "make a bucket": lambda: mine.create_bucket(Bucket=name + "-3"),
        "delete a bucket": lambda: mine.delete_bucket(Bucket=name),
    }
    for what, act in denied.items():
        assert code_of(act) in ("AccessDenied", "403"), what
    assert s3.get_object(Bucket=name, Key="in/a")["Body"].read() == b"kept"
    refused(call(house, "GET", f"buckets/{name}/objects/out/b", narrow["token"]), 403, "access-denied")
    assert call(house, "GET", f"buckets/{name}/objects/in/a", narrow["token"]).status_code == 200
    assert [b["name"] for b in call(house, "GET", "account", narrow["token"]).json()["buckets"]] == [name]

    reader = s3_of(house, make_key(house, token, name="reader", read_only=True))
    assert reader.get_object(Bucket=name, Key="out/b")["Body"].read() == b"kept"
    for act in (
        lambda: reader.put_object(Bucket=name, Key="in/x", Body=b"x"), lambda: reader.delete_object(Bucket=name, Key="in/a"),
        lambda: reader.create_bucket(Bucket=name + "-3"), lambda: reader.create_multipart_upload(Bucket=name, Key="m"),
        lambda: reader.copy_object(Bucket=name, Key="in/z", CopySource=f"{name}/in/a"),
    ):
        assert code_of(act) == "AccessDenied"

    refused(call(house, "POST", "auth/api-keys", narrow["token"], json={"name": "x", "buckets": [name + "-2"]}), 403, "exceeds-key")
    refused(call(house, "GET", "auth/api-keys", narrow["token"]), 403, "limited-key")
    assert call(house, "DELETE", f"auth/api-keys/{narrow['id']}", token).status_code == 204
    assert code_of(lambda: mine.get_object(Bucket=name, Key="in/a")) == "InvalidAccessKeyId"
    refused(call(house, "GET", "auth/me", narrow["token"]), 401, "unauthenticated")
    refused(call(house, "DELETE", f"auth/api-keys/{narrow['id']}", log_in(house)["access_token"]), 404, "no-such-key")


def test_nobody_sees_what_is_anothers(house):
    one, two = log_in(house)["access_token"], log_in(house)["access_token"]
    mine, theirs = s3_of(house, make_key(house, one)), s3_of(house, make_key(house, two))
    name, none = f"mine-{Keypair().pubkey()}".lower()[:40], f"none-{Keypair().pubkey()}".lower()[:40]
    mine.create_bucket(Bucket=name)
    mine.put_object(Bucket=name, Key="k", Body=b"secret")
    theirs.create_bucket(Bucket=none + "-2")
    upload = mine.create_multipart_upload(Bucket=name, Key="m")["UploadId"]
    on_object = {
        "get_object": {}, "head_object": {}, "put_object": {"Body": b"x"}, "delete_object": {}, "get_object_attributes": {"ObjectAttributes": ["ETag"]},
        "create_multipart_upload": {}, "copy_object": {"CopySource": f"{none}-2/k"},
        "upload_part": {"UploadId": upload, "PartNumber": 1, "Body": b"x"}, "list_parts": {"UploadId": upload},
        "abort_multipart_upload": {"UploadId": upload},
        "complete_multipart_upload": {"UploadId": upload, "MultipartUpload": {"Parts": [{"PartNumber": 1, "ETag": "x"}]}},
        "upload_part_copy": {"UploadId": upload, "PartNumber": 1, "CopySource": f"{none}-2/k"},
    }
    for operation, more in on_object.items():
        # The same for what is there and what is not.
        codes = {code_of(getattr(theirs, operation), Bucket=name, Key=key, **more) for key in ("k", "not-there")}
        assert codes in ({"AccessDenied"}, {"403"}), (operation, codes)
    for operation, more in {
        "list_objects": {}, "list_objects_v2": {}, "list_multipart_uploads": {}, "get_bucket_location": {}, "head_bucket": {},
        "delete_bucket": {}, "get_bucket_versioning": {}, "get_bucket_acl": {}, "get_bucket_policy": {},
        "delete_objects": {"Delete": {"Objects": [{"Key": "k"}]}},
    }.items():
        assert code_of(getattr(theirs, operation), Bucket=name, **more) in ("AccessDenied", "403"), operation
    assert code_of(theirs.create_bucket, Bucket=name) == "BucketAlreadyExists"
    # By way of a bucket of one's own.
    assert code_of(theirs.copy_object, Bucket=none + "-2", Key="k", CopySource=f"{name}/k") == "AccessDenied"
    assert code_of(theirs.list_parts, Bucket=none + "-2", Key="m", UploadId=upload) == "NoSuchUpload"
    assert code_of(theirs.abort_multipart_upload, Bucket=none + "-2", Key="m", UploadId=upload) == "NoSuchUpload"
    assert name not in [b["Name"] for b in theirs.list_buckets()["Buckets"]]
    for path in (f"buckets/{name}", f"buckets/{name}/objects/k", f"buckets/{name}/objects/not-there"):
        refused(call(house, "GET", path, two), 403, "access-denied")
    assert call(house, "GET", "account", two).json()["object_count"] == 0
    assert mine.get_object(Bucket=name, Key="k")["Body"].read() == b"secret"
    log = call(house, "GET", "audit-log", two).json()["entries"]
    assert log and {line["owner"] for line in log} == {call(house, "GET", "auth/me", two).json()["id"]}


def test_a_quota_is_kept_before_bytes_are_taken_and_given_back(house):
    s3 = s3_of(house, make_key(house, log_in(house)["access_token"]))
    name = f"quota-{Keypair().pubkey()}".lower()[:40]
    s3.create_bucket(Bucket=name)
    upload = s3.create_multipart_upload(Bucket=name, Key="m")["UploadId"]
    s3.upload_part(Bucket=name, Key="m", UploadId=upload, PartNumber=1, Body=b"x" * (3 * KIB * KIB))
    # Parts of an open upload count.
    for act in (
        lambda: s3.put_object(Bucket=name, Key="k", Body=b"x" * (2 * KIB * KIB)),
        lambda: s3.upload_part(Bucket=name, Key="m", UploadId=upload, PartNumber=2, Body=b"x" * (2 * KIB * KIB)),
    ):
        assert code_of(act) == "QuotaExceeded"
    s3.abort_multipart_upload(Bucket=name, Key="m", UploadId=upload)
    s3.put_object(Bucket=name, Key="k", Body=b"x" * (3 * KIB * KIB))
    s3.put_object(Bucket=name, Key="k", Body=b"y" * (3 * KIB * KIB))
    assert code_of(lambda: s3.put_object(Bucket=name, Key="l", Body=b"x" * (2 * KIB * KIB))) == "QuotaExceeded"
    s3.delete_object(Bucket=name, Key="k")
    s3.put_object(Bucket=name, Key="l", Body=b"x" * (2 * KIB * KIB))


def test_administrators_manage_users_and_the_log_says_so(house):
    root = {"access_key_id": house.credentials.access_key, "secret_access_key": house.credentials.secret_key}
    wallet = Keypair()
    tokens = log_in(house, wallet)
    key = make_key(house, tokens["access_token"])
    me = call(house, "GET", "auth/me", tokens["access_token"]).json()["id"]
    refused(call(house, "GET", "admin/users", tokens["access_token"]), 403, "not-admin")

    from raw import Signed  # signs any request

    def as_root(method, path, body=b""):
        return Signed(house, method, f"/api/v1/{path}", body=body, access_key=root["access_key_id"], secret=root["secret_access_key"]).send()

    changed = as_root("PATCH", f"admin/users/{me}", b'{"storage_quota": 1000}')
    assert changed.status_code == 200 and changed.json()["storage_quota"] == 1000, changed.text
    assert as_root("PATCH", f"admin/users/{me}", b'{"role": "king"}').status_code == 400
    s3 = s3_of(house, key)
    s3.list_buckets()
    assert as_root("PATCH", f"admin/users/{me}", b'{"status": "suspended"}').json()["status"] == "suspended"
    # Every credential is refused at once.
    assert code_of(s3.list_buckets) == "InvalidAccessKeyId"
    for token in (tokens["access_token"], key["token"]):
        refused(call(house, "GET", "auth/me", token), 401, "unauthenticated")
    refused(call(house, "POST", "auth/refresh", tokens["refresh_token"]), 401, "unauthenticated")
    refused(call(house, "POST", "auth/wallet", json=signed(house, wallet)), 403, "suspended")
    assert as_root("PATCH", f"admin/users/{me}", b'{"status": "active", "storage_quota": null}').json()["storage_quota"] is None
    s3.list_buckets()
    # A token of before stays ended; a new log-in is let in.
    refused(call(house, "GET", "auth/me", tokens["access_token"]), 401, "unauthenticated")
    token = log_in(house, wallet)["access_token"]
    log, after = [], ""
    while after is not None:
        page = call(house, "GET", f"audit-log?limit=3{after}", token).json()
        log += page["entries"]
        after = page["next"] and f"&after={page['next']}"
    actions = [line["action"] for line in log]
    assert actions[-1] == "signup" and {"login", "api-key.create", "user.change"} <= set(actions), actions
    assert any(line["outcome"] == "suspended" for line in log)
    assert len({(line["at"], line["action"], line["target"]) for line in log}) == len(log)
    assert log == sorted(log, key=lambda line: line["at"], reverse=True)
    everybody = as_root("GET", "admin/audit-log").json()["entries"]
    assert any(line["action"].startswith("admin PATCH") for line in everybody)


def test_the_description_and_the_headers_are_there(house):
    answer = requests.get(f"{house.url}/api/v1/openapi.json", timeout=30)
    paths = answer.json()["paths"]
    assert {"/api/v1/auth/wallet", "/api/v1/admin/users/{id}"} <= set(paths)
    for other in (answer, requests.get(f"{house.url}/api/v1/auth/me", timeout=30), requests.get(f"{house.url}/health", timeout=30)):
        assert other.headers["x-content-type-options"] == "nosniff" and other.headers["x-request-id"]


def test_the_secret_of_tokens_is_changed_and_nobody_logs_in_anew(workspace):
    for house in run_server(Cluster(workspace / "secrets", nodes=2, gateway_env={"TRUSTED_PROXIES": "127.0.0.0/8", "CYXCLOUD_AUTH_DOMAIN": "test.example"})):
        old, new = house.jwt_secret, secrets.token_hex(32)

        def with_secrets(**them):
            house.gateway.stop()
            house.gateway.env.pop("JWT_SECRET_PREVIOUS", None)
            house.gateway.env |= them
            house.gateway.start()
            house.wait_ready(house.gateway)

        def holds(tokens):
            return call(house, "GET", "auth/me", tokens["access_token"]).status_code

        before = log_in(house)
        with_secrets(JWT_SECRET=old, JWT_SECRET_PREVIOUS=new)
        with_secrets(JWT_SECRET=new, JWT_SECRET_PREVIOUS=old)
        after = log_in(house)
        assert (holds(before), holds(after)) == (200, 200)
        renewed = call(house, "POST", "auth/refresh", before["refresh_token"])
        assert renewed.status_code == 200, renewed.text
        with_secrets(JWT_SECRET=new)
        assert (holds(before), holds(renewed.json()), holds(after)) == (401, 200, 200)
