"""Attacks by people who are who they say and ask for what is not theirs."""

import base64
import hashlib
import uuid
from concurrent.futures import ThreadPoolExecutor

import requests

from cluster import psql
from people import Owner, Wallet, code_of, coming_from, next_address
from process import wait_until
from raw import Signed, code, head, send_bytes


def fresh(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def test_adv_15_what_is_anothers_is_as_if_it_were_not(cluster, owners):
    """Every operation on every kind of id, and the same answer for what is there and for what is not."""
    one, two = owners
    mine, theirs = one.s3(), two.s3()
    name, their_own = fresh("mine"), fresh("own")
    mine.create_bucket(Bucket=name)
    mine.put_object(Bucket=name, Key="k", Body=b"secret")
    theirs.create_bucket(Bucket=their_own)
    theirs.put_object(Bucket=their_own, Key="k", Body=b"own")
    upload = mine.create_multipart_upload(Bucket=name, Key="m")["UploadId"]
    mine.upload_part(Bucket=name, Key="m", UploadId=upload, PartNumber=1, Body=b"part")
    key = one.key()
    # Over S3, signed and by token.
    strangers_key = two.key()
    signed_as = {"access_key": strangers_key["access_key_id"], "secret": strangers_key["secret_access_key"]}
    document = b"<Delete><Object><Key>k</Key></Object></Delete>"
    parts = b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>x</ETag></Part></CompleteMultipartUpload>"
    on_objects = [
        ("GET", {}, b""), ("HEAD", {}, b""), ("PUT", {}, b"evil"), ("DELETE", {}, b""), ("POST", {"uploads": ""}, b""),
        ("GET", {"attributes": ""}, b""), ("GET", {"acl": ""}, b""), ("GET", {"tagging": ""}, b""), ("GET", {"versionId": "null"}, b""),
        ("DELETE", {"versionId": "null"}, b""), ("GET", {"uploadId": upload}, b""), ("DELETE", {"uploadId": upload}, b""),
        ("PUT", {"uploadId": upload, "partNumber": "1"}, b"evil"), ("POST", {"uploadId": upload}, parts),
    ]
    for method, query, body in on_objects:
        said = set()
        for path in (f"/{name}/k", f"/{name}/m", f"/{name}/none"):
            headers = {"x-amz-object-attributes": "ETag"} if "attributes" in query else {}
            answer = Signed(cluster, method, path, query=query, body=body, headers=headers, **signed_as).send()
            assert answer.status_code == 403 and b"secret" not in answer.content, (method, path, query, answer.text)
            said.add(code(answer))
            by_token = two.api(method, f"{path}?{'&'.join(f'{k}={v}' for k, v in query.items())}", data=body, headers=headers)
            assert by_token.status_code == 403, (method, path, query, by_token.text)
        assert len(said) == 1, (method, query, said)
    for method, query, body in [
        ("GET", {}, b""), ("HEAD", {}, b""), ("DELETE", {}, b""), ("GET", {"uploads": ""}, b""), ("GET", {"location": ""}, b""),
        ("GET", {"list-type": "2"}, b""), ("GET", {"versioning": ""}, b""), ("GET", {"acl": ""}, b""), ("GET", {"policy": ""}, b""),
        ("GET", {"cors": ""}, b""), ("GET", {"lifecycle": ""}, b""), ("GET", {"versions": ""}, b""), ("POST", {"delete": ""}, document),
        ("PUT", {"policy": ""}, b"{}"), ("PUT", {"cors": ""}, b"<a/>"),
    ]:
        headers = {"content-md5": base64.b64encode(hashlib.md5(body).digest()).decode()} if body else {}
        answer = Signed(cluster, method, f"/{name}", query=query, body=body, headers=headers, **signed_as).send()
        # What is no document at all is refused as that.
        assert answer.status_code in (400, 403, 501) and b"<Key>" not in answer.content, (method, query, answer.text)
    # An upload's id opens nothing through a bucket of one's own.
    for method, query, body in [("GET", {}, b""), ("DELETE", {}, b""), ("PUT", {"partNumber": "1"}, b"x"), ("POST", {}, parts)]:
        answer = Signed(cluster, method, f"/{their_own}/m", query={"uploadId": upload} | query, body=body, **signed_as).send()
        assert (answer.status_code, code(answer)) == (404, "NoSuchUpload"), (method, answer.text)
    # Over REST: buckets, objects, keys, users, nodes.
    node = psql(cluster.database_url, "SELECT id FROM nodes LIMIT 1")
    for method, there, none in [
        ("GET", f"/api/v1/buckets/{name}", None), ("GET", f"/api/v1/buckets/{name}/objects/k", f"/api/v1/buckets/{name}/objects/none"),
        ("DELETE", f"/api/v1/auth/api-keys/{key['id']}", "/api/v1/auth/api-keys/CYXNONE"),
        ("PATCH", f"/api/v1/admin/users/{one.id}", f"/api/v1/admin/users/{uuid.uuid4()}"),
        ("POST", f"/api/v1/admin/nodes/{node}/drain", f"/api/v1/admin/nodes/{uuid.uuid4()}/drain"),
        ("POST", f"/api/v1/admin/nodes/{node}/reconcile", None), ("POST", f"/api/v1/admin/nodes/{node}/resume", None),
        ("POST", f"/api/v1/admin/nodes/{node}/scrub", None), ("GET", "/api/v1/admin/users", None), ("GET", "/api/v1/admin/audit-log", None),
        ("POST", "/api/v1/admin/gc/freeze", None), ("GET", "/api/v1/admin/nodes", None),
    ]:
        answers = [two.api(method, path, json={} if method != "GET" else None) for path in (there, none) if path]
        assert {answer.status_code for answer in answers} <= {403, 404}, (method, there, answers[0].text)
        assert len({(answer.status_code, answer.text) for answer in answers}) == 1, [answer.text for answer in answers]
    assert name not in str(theirs.list_buckets()) and one.id not in two.api("GET", "/api/v1/audit-log").text
    assert two.api("GET", "/api/v1/account").json()["object_count"] == 1
    # All of it is as it was.
    assert mine.get_object(Bucket=name, Key="k")["Body"].read() == b"secret"
    assert [part["Size"] for part in mine.list_parts(Bucket=name, Key="m", UploadId=upload)["Parts"]] == [4]
    assert one.api("GET", "/api/v1/account", token=key["token"]).status_code == 200


def test_adv_16_a_key_makes_no_key_beyond_itself(cluster, owners):
    one, two = owners
    name = fresh("minted")
    one.s3().create_bucket(Bucket=name)
    narrow = one.key(buckets=[name], prefixes=["in/"], read_only=True, expires_in_days=2)

    def ask(**wanted):
        return one.api("POST", "/api/v1/auth/api-keys", token=narrow["token"], json={"name": "child"} | wanted)

    for beyond in ({"buckets": [name, name + "-2"]}, {"buckets": [name + "-2"]}, {"prefixes": ["in"]}, {"prefixes": ["out/"]},
                   {"read_only": False}, {"expires_in_days": 3}, {"expires_in_days": 365}):
        assert ask(**beyond).status_code == 403, beyond
    for nonsense in ({"owner": two.id}, {"owner_id": two.id}, {"admin": True}, {"role": "admin"}, {"buckets": []}, {"prefixes": [""]},
                     {"buckets": ["*"]}, {"expires_in_days": 0}, {"expires_in_days": -1}, {"expires_in_days": 366}, {"access_key_id": "CYXMINE"}):
        assert ask(**nonsense).status_code == 400, nonsense
    child = ask()
    assert child.status_code == 201, child.text
    s3 = one.s3(child.json())
    assert code_of(s3.put_object, Bucket=name, Key="in/a", Body=b"x") == "AccessDenied"
    assert code_of(s3.list_objects_v2, Bucket=name) == "AccessDenied"
    assert code_of(s3.list_objects_v2, Bucket=name, Prefix="in/") == "OK"
    # Nor does it see or end those that it is less than.
    assert one.api("GET", "/api/v1/auth/api-keys", token=narrow["token"]).status_code == 403
    assert one.api("DELETE", f"/api/v1/auth/api-keys/{narrow['id']}", token=child.json()["token"]).status_code == 403
    grandchild = one.api("POST", "/api/v1/auth/api-keys", token=child.json()["token"], json={"name": "grandchild"})
    assert grandchild.status_code == 201, grandchild.text
    # Nor does it fill the owner's account with keys: a few come of it, whoever of them makes the rest.
    assert [ask().status_code for _ in range(9)] == [201] * 8 + [409]
    more = one.api("POST", "/api/v1/auth/api-keys", token=grandchild.json()["token"], json={"name": "more"})
    assert (more.status_code, more.json()["type"]) == (409, "urn:cyxcloud:problem:too-many-keys"), more.text
    assert one.key()["id"]
    # With a key ends whatever it made, and what that made.
    assert one.api("DELETE", f"/api/v1/auth/api-keys/{narrow['id']}").ok
    for ended in (narrow, child.json(), grandchild.json()):
        assert one.api("GET", "/api/v1/auth/me", token=ended["token"]).status_code == 401
        assert code_of(one.s3(ended).list_objects_v2, Bucket=name, Prefix="in/") == "InvalidAccessKeyId"
    # Nobody makes himself an administrator.
    assert two.api("PATCH", f"/api/v1/admin/users/{two.id}", json={"role": "admin"}).status_code == 403
    assert two.api("GET", "/api/v1/auth/me").json()["role"] == "user"


def test_adv_17_a_copy_needs_both_ends(cluster, owners):
    one, two = owners
    mine, theirs = one.s3(), two.s3()
    name, own = fresh("source"), fresh("target")
    mine.create_bucket(Bucket=name)
    theirs.create_bucket(Bucket=own)
    for key in ("in/a", "out/b"):
        mine.put_object(Bucket=name, Key=key, Body=b"secret")
    theirs.put_object(Bucket=own, Key="k", Body=b"own")
    upload = theirs.create_multipart_upload(Bucket=own, Key="m")["UploadId"]
    part = dict(Bucket=own, Key="m", UploadId=upload, PartNumber=1)
    # Another's as source, in every spelling, and as target.
    for source in (f"{name}/in/a", f"/{name}/in/a", f"{name}/in%2Fa", f"{name}%2Fin%2Fa", f"{own}/../{name}/in/a", f"{name}/in/a?versionId=null"):
        for act, more in ((theirs.copy_object, dict(Bucket=own, Key="c")), (theirs.upload_part_copy, part)):
            assert code_of(act, CopySource=source, **more) in ("AccessDenied", "NoSuchKey", "InvalidArgument", "InvalidRequest"), source
    assert code_of(theirs.copy_object, Bucket=name, Key="in/a", CopySource=f"{own}/k") == "AccessDenied"
    assert "Parts" not in theirs.list_parts(Bucket=own, Key="m", UploadId=upload)
    assert [entry["Key"] for entry in theirs.list_objects_v2(Bucket=own)["Contents"]] == ["k"]
    # Within one owner, by a key that may read one end only, or write nothing.
    narrow, reader = one.s3(one.key(buckets=[name], prefixes=["in/"])), one.s3(one.key(buckets=[name], read_only=True))
    assert code_of(narrow.copy_object, Bucket=name, Key="in/c", CopySource=f"{name}/out/b") == "AccessDenied"
    assert code_of(narrow.copy_object, Bucket=name, Key="out/c", CopySource=f"{name}/in/a") == "AccessDenied"
    assert code_of(reader.copy_object, Bucket=name, Key="in/c", CopySource=f"{name}/in/a") == "AccessDenied"
    assert code_of(narrow.copy_object, Bucket=name, Key="in/c", CopySource=f"{name}/in/a") == "OK"
    assert code_of(theirs.upload_part_copy, CopySource=f"{own}/k", **part) == "OK"


def test_adv_38_retention_that_is_not_kept_is_not_promised(cluster, s3, bucket):
    """There is no object lock: whoever asks for one is refused, rather than given an object that can be deleted."""
    until = {"x-amz-object-lock-retain-until-date": "2040-01-01T00:00:00Z"}
    for headers in ({"x-amz-object-lock-mode": "COMPLIANCE"} | until, {"x-amz-object-lock-mode": "GOVERNANCE"} | until, until,
                    {"x-amz-object-lock-legal-hold": "ON"}):
        refused = Signed(cluster, "PUT", f"/{bucket}/k", body=b"x", headers=headers).send()
        assert (refused.status_code, code(refused)) == (501, "NotImplemented"), refused.text
        assert Signed(cluster, "POST", f"/{bucket}/k", query={"uploads": ""}, headers=headers).send().status_code == 501
    name = fresh("locked")
    locked = Signed(cluster, "PUT", f"/{name}", headers={"x-amz-bucket-object-lock-enabled": "true"}).send()
    assert locked.status_code == 501 and Signed(cluster, "HEAD", f"/{name}").send().status_code == 404
    s3.put_object(Bucket=bucket, Key="k", Body=b"kept")
    for path, query, body in [
        (f"/{bucket}/k", "retention", b"<Retention><Mode>COMPLIANCE</Mode></Retention>"),
        (f"/{bucket}/k", "legal-hold", b"<LegalHold><Status>ON</Status></LegalHold>"),
        (f"/{bucket}", "object-lock", b"<ObjectLockConfiguration/>"), (f"/{bucket}", "policy", b"{}"),
        (f"/{bucket}", "lifecycle", b"<LifecycleConfiguration/>"), (f"/{bucket}", "versioning", b"<VersioningConfiguration/>"),
    ]:
        answer = Signed(cluster, "PUT", path, query={query: ""}, body=body).send()
        assert 400 <= answer.status_code <= 501 and answer.status_code != 500, (query, answer.text)
        # What cannot be set is not said to be set.
        assert Signed(cluster, "GET", path, query={query: ""}).send().status_code in (200, 404, 501), query
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"kept"


def test_adv_42_rates_and_quotas(cluster):
    """Counts are of addresses, wallets and owners; a quota is there before bytes are taken, and given back."""
    address = next_address()
    asked = [Wallet(cluster, address=address).challenge().status_code for _ in range(12)]
    assert asked == [200] * 10 + [429] * 2
    assert Wallet(cluster).challenge().status_code == 200, "another address has its own count"
    # Whoever tries to log another's wallet in is stopped, and stops nobody: not with junk, not with challenges in its name.
    owner = Wallet(cluster)
    ready = owner.signed()
    stranger = Wallet(cluster, owner.keypair)
    junk = {"wallet_address": str(owner.keypair.pubkey()), "signature": "junk"}
    assert stranger.challenge().status_code == 200
    tries = [stranger.send(junk | nonce) for nonce in ({}, {"nonce": "none"}, {"nonce": ready["nonce"]}) * 2]
    assert [answer.status_code for answer in tries] == [401] * 5 + [429]
    assert 1 <= int(tries[-1].headers["retry-after"]) <= 60
    for _ in range(6):
        assert Wallet(cluster, owner.keypair).send(junk).status_code == 401, "each address has its own count"
        assert owner.send(junk).status_code in (401, 429)
    alone = {name: ready[name] for name in ("wallet_address", "signature")}
    assert owner.send(alone).status_code == 200, "a proof is a proof, whatever else was tried from its address"
    assert owner.send(ready).status_code in (401, 429), "which is good once"
    logged_in = [Wallet(cluster, owner.keypair).send(Wallet(cluster, owner.keypair).signed()).status_code for _ in range(5)]
    assert logged_in == [200] * 4 + [429], "and a wallet has a count of its own"
    # One address that tries many wallets.
    address = next_address()
    many = [Wallet(cluster, address=address) for _ in range(32)]
    tried = [one.send(junk | {"nonce": "none", "wallet_address": str(one.keypair.pubkey())}).status_code for one in many]
    assert tried == [401] * 30 + [429] * 2
    assert coming_from(address).get(f"{cluster.url}/health", timeout=30).ok
    Wallet(cluster).log_in()

    owner = Owner(cluster)
    s3, name = owner.s3(), fresh("quota")
    s3.create_bucket(Bucket=name)
    quota = Signed(cluster, "PATCH", f"/api/v1/admin/users/{owner.id}", body=b'{"storage_quota": 1000000}').send()
    assert quota.status_code == 200, quota.text
    # Declared and not sent: refused on the word.
    key = owner.key()
    put = Signed(cluster, "PUT", f"/{name}/k", payload="UNSIGNED-PAYLOAD", access_key=key["access_key_id"], secret=key["secret_access_key"])
    answer = send_bytes(cluster, head(put, content_length="2000000", expect="100-continue"))
    assert b"QuotaExceeded" in answer, answer
    upload = s3.create_multipart_upload(Bucket=name, Key="m")["UploadId"]
    part = dict(Bucket=name, Key="m", UploadId=upload)
    assert code_of(s3.upload_part, PartNumber=1, Body=b"x" * 900_000, **part) == "OK"
    assert code_of(s3.put_object, Bucket=name, Key="k", Body=b"x" * 200_000) == "QuotaExceeded"
    s3.abort_multipart_upload(**part)
    assert code_of(s3.put_object, Bucket=name, Key="k", Body=b"x" * 900_000) == "OK"
    assert requests.get(f"{cluster.url}/health", timeout=30).ok


def test_adv_42_who_does_not_say_how_much_has_no_more_room(cluster):
    """A token lets bodies of any length in: they end where the room does, alone or many at once, as objects and as parts."""
    owner = Owner(cluster)
    s3, name = owner.s3(), fresh("unsaid")
    s3.create_bucket(Bucket=name)
    quota = Signed(cluster, "PATCH", f"/api/v1/admin/users/{owner.id}", body=b'{"storage_quota": 1000000}').send()
    assert quota.status_code == 200, quota.text
    upload = s3.create_multipart_upload(Bucket=name, Key="m")["UploadId"]
    part = dict(Bucket=name, Key="m", UploadId=upload)
    assert code_of(s3.upload_part, PartNumber=1, Body=b"x" * 900_000, **part) == "OK"

    def begin(path: str, body: bytes, **more: str) -> bytes:
        """The answer to a body that does not end, or does not begin."""
        headers = {"authorization": f"Bearer {owner.token}", "host": f"127.0.0.1:{cluster.http_port}", "transfer-encoding": "chunked"} | more
        lines = [f"PUT {path} HTTP/1.1", *(f"{key}: {value}" for key, value in headers.items())]
        framed = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (body[:60_000], body[60_000:]) if piece)
        return send_bytes(cluster, ("\r\n".join(lines) + "\r\n\r\n").encode() + framed)

    def given_back():
        """Until nothing is reserved: an upload that failed ends a moment after its answer."""
        reserved = f"SELECT coalesce(sum(reserved), 0) FROM upload_intents WHERE owner_id = '{owner.id}'"
        wait_until("all room is given back", lambda: psql(cluster.database_url, reserved) == "0")

    places = [f"/{name}/k", *(f"/{name}/m?partNumber={number}&uploadId={upload}" for number in (2, 3))]
    for path in places:
        assert b"QuotaExceeded" in begin(path, b"x" * 500_000), path
        given_back()

    def send(number: int) -> int:
        pieces = iter([b"x" * 30_000] * 2)
        try:
            return owner.api("PUT", f"/{name}/m?partNumber={number}&uploadId={upload}", data=pieces).status_code
        except requests.RequestException:  # refused before it had sent all
            return 403

    # There is room for one of them.
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(2, 10)))
    assert sorted(answers) == [200] + [403] * 7
    assert sum(kept["Size"] for kept in s3.list_parts(**part)["Parts"]) == 960_000
    given_back()
    assert code_of(s3.upload_part, PartNumber=20, Body=b"x" * 40_000, **part) == "OK"
    # No byte more: refused before any is sent.
    for path in places:
        assert b"QuotaExceeded" in begin(path, b"", expect="100-continue"), path
    s3.abort_multipart_upload(**part)
    assert owner.api("PUT", f"/{name}/k", data=iter([b"x" * 500_000] * 2)).status_code == 200
    assert s3.head_object(Bucket=name, Key="k")["ContentLength"] == 1_000_000
