"""Attacks on the one door: signatures, presigned URLs, forms, streams, and everything that only looks like credentials."""

import datetime
import hashlib
import hmac
import json
import subprocess
import uuid
import zlib
from base64 import b64encode

import pytest
import requests

from clients import bearer
from cluster import REGION
from people import code_of
from process import binary
from raw import Signed, code, encode, presign, send_bytes, signing_key

TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"


def send(method: str, url: str, **kwargs) -> requests.Response:
    return requests.request(method, url, timeout=30, **kwargs)


def with_query(url: str, query: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{query}"


@pytest.mark.parametrize("name", [
    "x-amz-copy-source", "x-amz-acl", "x-amz-meta-owner", "x-amz-tagging", "x-amz-storage-class", "x-amz-server-side-encryption",
    "x-amz-website-redirect-location", "x-amz-checksum-crc32", "x-amz-grant-read",
])
def test_adv_06_unsigned_amz_headers(name, cluster, stored):
    value = {"x-amz-copy-source": stored, "x-amz-acl": "public-read"}.get(name, "x")
    refused = send("PUT", presign(cluster, "PUT", stored), data=b"evil", headers={name: value})
    assert (refused.status_code, code(refused)) == (403, "AccessDenied"), refused.text
    sneaked = Signed(cluster, "PUT", stored, body=b"evil")
    sneaked.headers[name] = value
    assert sneaked.send().status_code == 403
    # The same without it, and signed with it where it means something.
    assert send("PUT", presign(cluster, "PUT", stored), data=b"kept").status_code == 200
    if name == "x-amz-meta-owner":
        url = presign(cluster, "PUT", stored, headers={name: value})
        assert send("PUT", url, data=b"kept", headers={name: value}).status_code == 200


def test_adv_07_unsigned_trailers_with_a_forged_signature(cluster, s3, bucket, empty):
    body = b"4\r\nevil\r\n0\r\nx-amz-checksum-crc32:%b\r\n\r\n" % crc32(b"evil")
    upload = s3.create_multipart_upload(Bucket=bucket, Key="m")["UploadId"]

    def streamed(method, path, query=None, *, secret=None, framed=body):
        return Signed(cluster, method, path, query=query, body=framed, payload=TRAILER, secret=secret, headers={
            "content-encoding": "aws-chunked", "x-amz-decoded-content-length": "4", "x-amz-trailer": "x-amz-checksum-crc32"})

    targets = [
        ("PUT", f"/{empty}/k", None), ("PUT", f"/{bucket}/m", {"partNumber": "1", "uploadId": upload}),
        ("POST", f"/{empty}/k", {"uploads": ""}), ("POST", f"/{empty}", {"delete": ""}), ("PUT", f"/s3/{empty}/k", None),
    ]
    for method, path, query in targets:
        forged = streamed(method, path, query, secret="x" * 40)
        answer = forged.send()
        assert (answer.status_code, code(answer)) == (403, "SignatureDoesNotMatch"), (method, path, answer.text)
        in_query = streamed(method, path, query)
        del in_query.headers["authorization"], in_query.headers["x-amz-date"]
        url = presign(cluster, method, path, query=query)
        _, in_query.query = url.rsplit("?", 1)
        in_query.query = in_query.query[:-64] + "0" * 64
        assert in_query.send().status_code == 403, (method, path)
        nobody = streamed(method, path, query)
        del nobody.headers["authorization"]
        assert nobody.send().status_code == 403, (method, path)
    assert "Parts" not in s3.list_parts(Bucket=bucket, Key="m", UploadId=upload)
    good = streamed("PUT", f"/{bucket}/good", framed=b"4\r\nkept\r\n0\r\nx-amz-checksum-crc32:%b\r\n\r\n" % crc32(b"kept"))
    assert good.send().status_code == 200
    assert s3.get_object(Bucket=bucket, Key="good")["Body"].read() == b"kept"


def crc32(data: bytes) -> bytes:
    return b64encode(zlib.crc32(data).to_bytes(4, "big"))


def test_adv_08_every_route_with_every_scheme(cluster, stored, bucket):
    """Default deny: whatever is none of the schemes has no credentials, whichever route it asks for."""
    key, far = cluster.credentials.access_key, "9999999999"
    authorizations = {
        "v2": f"AWS {key}:c2lnbmF0dXJl", "basic": "Basic cm9vdDpyb290", "junk": "junk", "empty bearer": "Bearer", "dots": "Bearer ..",
        "v4a": f"AWS4-ECDSA-P256-SHA256 Credential={key}", "v4 alone": "AWS4-HMAC-SHA256", "negotiate": "Negotiate AAAA",
        "another's": Signed(cluster, "GET", stored, secret="y" * 40).headers["authorization"],
    }
    queries = {"v2 query": f"AWSAccessKeyId={key}&Expires={far}&Signature=abc", "sts": "Action=AssumeRole&Version=2011-06-15",
               "v4 query": f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature={'0' * 64}", "token": f"access_token={bearer(cluster)}x"}
    types = {"form": "multipart/form-data; boundary=x", "urlencoded": "application/x-www-form-urlencoded"}
    cases = [({"authorization": value}, "") for value in authorizations.values()]
    cases += [({}, query) for query in queries.values()]
    cases += [({"content-type": kind}, "") for kind in types.values()]
    cases += [({}, ""), ({"x-amz-content-sha256": TRAILER}, ""), ({"x-amz-security-token": "x"}, ""), ({"cookie": "token=x"}, "")]
    paths = requests.get(f"{cluster.url}/api/v1/openapi.json", timeout=30).json()["paths"]
    public = {"/api/v1/openapi.json", "/api/v1/auth/challenge", "/api/v1/auth/wallet", "/api/v1/auth/refresh"}
    routes = [(method.upper(), path.replace("{bucket}", bucket).replace("{key}", "k").replace("{id}", str(uuid.UUID(int=1))))
              for path, methods in paths.items() if path not in public for method in methods]
    assert len(routes) > 15
    routes += [(method, mount + path) for mount in ("", "/s3") for method, path in [
        ("GET", "/"), ("HEAD", f"/{bucket}"), ("GET", f"/{bucket}"), ("PUT", f"/{bucket}-2"), ("DELETE", f"/{bucket}"), ("GET", stored),
        ("HEAD", stored), ("PUT", stored), ("POST", stored), ("DELETE", stored), ("POST", f"/{bucket}?delete"), ("POST", f"{stored}?uploads"),
        ("PUT", f"{stored}?partNumber=1&uploadId=x"), ("GET", f"/{bucket}?uploads"), ("POST", f"/{bucket}"), ("PATCH", stored),
        ("TRACE", stored), ("FROB", stored),
    ]]
    session = requests.Session()
    session.trust_env = False
    for method, path in routes:
        for headers, query in cases:
            answer = session.request(method, with_query(cluster.url + path, query) if query else cluster.url + path,
                                     headers=headers, data=b"", timeout=30, allow_redirects=False)
            assert answer.status_code in (400, 401, 403, 405, 501), (method, path, headers, query, answer.status_code, answer.text)
            assert b"kept" not in answer.content
    assert Signed(cluster, "GET", stored).send().content == b"kept"
    assert Signed(cluster, "GET", "/api/v1/account").send().status_code == 200


def form(cluster, bucket: str, conditions: list, fields: dict[str, str], *, secret: str | None = None) -> tuple[bytes, str]:
    """A browser's upload form, as S3 has it."""
    now = datetime.datetime.now(datetime.UTC)
    scope = f"{now:%Y%m%d}/{REGION}/s3/aws4_request"
    expires = (now + datetime.timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    policy = b64encode(json.dumps({"expiration": expires, "conditions": conditions}).encode())
    key = signing_key(secret or cluster.credentials.secret_key, f"{now:%Y%m%d}")
    fields = fields | {
        "policy": policy.decode(), "x-amz-algorithm": "AWS4-HMAC-SHA256", "x-amz-date": f"{now:%Y%m%dT%H%M%SZ}",
        "x-amz-credential": f"{cluster.credentials.access_key}/{scope}",
        "x-amz-signature": hmac.new(key, policy, hashlib.sha256).hexdigest(),
    }
    parts = [f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()]
    file = '--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nevil\r\n--b--\r\n'
    return ("".join(parts) + file).encode(), "multipart/form-data; boundary=b"


def test_adv_09_upload_forms(cluster, s3, empty, bucket):
    """Forms are not offered, so no policy can fail to be enforced: right or wrong, nothing is stored."""
    right = [{"bucket": empty}, ["starts-with", "$key", "in/"], ["content-length-range", 0, 10]]
    for conditions, fields in [
        (right, {"key": "in/k"}), (right, {"key": "out/k"}), (right, {"key": "in/k", "acl": "public-read"}),
        ([{"bucket": empty}, ["content-length-range", 0, 1]], {"key": "k"}), ([{"bucket": bucket}], {"key": "k"}),
        ([{"bucket": empty}, ["frob", "$key", ""]], {"key": "k"}), ([], {"key": "../k"}),
    ]:
        for secret in (None, "x" * 40):
            body, kind = form(cluster, empty, conditions, fields, secret=secret)
            for path in (f"/{empty}", f"/s3/{empty}", f"/{empty}/", f"/{empty}/in/k"):
                for content_type in (kind, kind.upper().replace("=B", "=b"), " " + kind):
                    headers = {"content-type": content_type.strip()}
                    answer = send("POST", cluster.url + path, data=body, headers=headers)
                    assert answer.status_code in (400, 403, 405, 501), (path, answer.status_code, answer.text)
    signed = Signed(cluster, "POST", f"/{empty}", body=body, headers={"content-type": kind}).send()
    assert signed.status_code in (400, 501), signed.text
    # What is offered instead.
    assert send("PUT", presign(cluster, "PUT", f"/{bucket}/in/k"), data=b"good").status_code == 200


def test_adv_10_the_life_of_presigned_urls(cluster, stored):
    now = datetime.datetime.now(datetime.UTC)
    assert send("GET", presign(cluster, "GET", stored, 604_800)).content == b"kept"
    for expires in (604_801, 10**12, 0, -1, -604_800):
        answer = send("GET", presign(cluster, "GET", stored, expires))
        assert (answer.status_code, code(answer)) == (400, "AuthorizationQueryParametersError"), (expires, answer.text)
    for text in ("", "1e3", "0x10", "60.0", " 60", "60, 604800", "٣٠٠", "9" * 40):
        url = presign(cluster, "GET", stored, 300)
        answer = send("GET", url.replace("X-Amz-Expires=300", f"X-Amz-Expires={encode(text, False)}"))
        assert answer.status_code in (400, 403), (text, answer.text)
    for ago, expires in ((61, 60), (604_801, 604_800), (-1000, 60)):
        answer = send("GET", presign(cluster, "GET", stored, expires, when=now - datetime.timedelta(seconds=ago)))
        assert answer.status_code == 403 and b"kept" not in answer.content, (ago, answer.text)
    longer = presign(cluster, "GET", stored, 300).replace("X-Amz-Expires=300", "X-Amz-Expires=3000")
    assert code(send("GET", longer)) == "SignatureDoesNotMatch"
    twice = presign(cluster, "GET", stored, 300) + "&X-Amz-Expires=604800"
    assert send("GET", twice).status_code in (400, 403)


def signature_2(cluster, method: str, path: str, when: str) -> str:
    """Right by the rules of version 2."""
    text = f"{method}\n\n\n{when}\n{path}"
    mac = hmac.new(cluster.credentials.secret_key.encode(), text.encode(), hashlib.sha1).digest()
    return b64encode(mac).decode()


def test_adv_11_signature_version_2(cluster, stored):
    key = cluster.credentials.access_key
    date = datetime.datetime.now(datetime.UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    for method in ("GET", "HEAD", "PUT", "DELETE", "POST"):
        in_header = {"date": date, "authorization": f"AWS {key}:{signature_2(cluster, method, stored, date)}"}
        far = "9999999999"
        in_query = f"AWSAccessKeyId={key}&Expires={far}&Signature={encode(signature_2(cluster, method, stored, far), False)}"
        for headers, url in [(in_header, cluster.url + stored), ({}, f"{cluster.url}{stored}?{in_query}"),
                             ({}, f"{cluster.url}/s3{stored}?{in_query}"), ({}, f"{cluster.url}{stored}?{in_query.lower()}")]:
            answer = send(method, url, headers=headers, data=b"")
            assert answer.status_code == 403 and b"kept" not in answer.content, (method, url, answer.text)
        both = Signed(cluster, method, stored)
        both.query = in_query
        assert both.send().status_code in (400, 403)
    fields = {"AWSAccessKeyId": key, "policy": "e30=", "signature": "abc", "key": "k"}
    assert send("POST", f"{cluster.url}{stored}", files=fields).status_code in (400, 403, 501)
    assert Signed(cluster, "GET", stored).send().content == b"kept"


def test_adv_18_headers_between_servers(cluster, s3, bucket):
    """What servers of other systems tell each other by headers is nothing that a client can say."""
    internal = {
        "x-cyx-internal-owner": str(uuid.uuid4()), "x-cyx-internal-admin": "true", "x-minio-source-mtime": "2001-01-01T00:00:00Z",
        "x-minio-replication-server-side-encryption-sealed-key": "x", "x-minio-internal-actual-size": "1", "x-forwarded-user": "root",
    }
    signed = Signed(cluster, "PUT", f"/{bucket}/k", body=b"x" * 9, headers=internal | {"x-amz-meta-mine": "1"}).send()
    assert signed.status_code == 200, signed.text
    got = s3.get_object(Bucket=bucket, Key="k")
    assert got["Metadata"] == {"mine": "1"} and got["ContentLength"] == 9
    assert got["LastModified"].year > 2001
    head = Signed(cluster, "GET", f"/{bucket}/k", headers={"x-cyx-internal-owner": "x"}).send()
    assert not [name for name in head.headers if "internal" in name.lower() or "minio" in name.lower()], head.headers
    for headers in ({"x-cyx-internal-admin": "true"}, {"x-forwarded-user": "root"}, {"x-cyx-internal-owner": str(uuid.UUID(int=0))}):
        assert send("GET", f"{cluster.url}/{bucket}/k", headers=headers).status_code == 403


TRAVERSALS = [
    "../../../etc/passwd", "..", "../other/k", "a/../b", "./a", "a/./b", "..\\..\\evil", "a//b", "/a", "a/", "%2e%2e/x", "a%2fb", "..;/x",
    "\x01\x7f", "\u202ek", "nul\x00byte", "x" * 1024, "....//", "~root", "C:\\evil", "a\nb", "*", "?", "#", "a b+c", "é", "e\u0301",
]


def test_adv_20_keys_are_names_and_never_paths(cluster, s3, bucket, owners):
    """What was signed is what is stored: each key is itself, however it looks, and no two are taken for one."""
    kept = set()
    for key in TRAVERSALS:
        body = hashlib.sha256(key.encode()).digest()
        put = Signed(cluster, "PUT", f"/{bucket}/{key}", body=body).send()
        assert put.status_code == 200 or 400 <= put.status_code < 500, (key, put.text)
        if put.status_code == 200:
            kept.add(key)
    for key in kept:
        got = Signed(cluster, "GET", f"/{bucket}/{key}").send()
        assert got.content == hashlib.sha256(key.encode()).digest(), key
    listed = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    assert {entry["Key"] for page in listed for entry in page.get("Contents", [])} == kept
    assert {"../other/k", "a/../b", "a//b", "..", "%2e%2e/x", "é", "e\u0301"} <= kept
    for raw in ("%c0%ae%c0%ae/x", "%ed%a0%80", "%", "%2", "%zz", "%f0%9f", "k%"):
        bad = Signed(cluster, "PUT", f"/{bucket}/k", body=b"x")
        bad.path = f"/{bucket}/{raw}"
        assert bad.sign().send().status_code in (400, 403), raw
    # A key limited to a prefix does not leave it by another spelling.
    owner, _ = owners
    mine, name = owner.s3(), f"prefix-{uuid.uuid4().hex[:12]}"
    mine.create_bucket(Bucket=name)
    mine.put_object(Bucket=name, Key="out/b", Body=b"not-yours")
    mine.put_object(Bucket=name, Key="in/a", Body=b"open")
    narrow = owner.key(buckets=[name], prefixes=["in/"])
    access = {"access_key": narrow["access_key_id"], "secret": narrow["secret_access_key"]}
    assert Signed(cluster, "GET", f"/{name}/in/a", **access).send().content == b"open"
    for path in ("in/../out/b", "in/%2e%2e/out/b", "in//../out/b", "../" + name + "/out/b", "/out/b", "in\\..\\out/b", "IN/a"):
        for raw in (encode(f"/{name}/{path}"), f"/{name}/{path}".replace("/..", "/%2E%2e").replace("\\", "%5C"), f"/{name}%2F{path}"):
            asked = Signed(cluster, "GET", "/", **access)
            asked.path = raw
            answer = asked.sign().send()
            assert answer.status_code in (400, 403, 404) and b"not-yours" not in answer.content, (raw, answer.text)


def unfit(answer: requests.Response) -> bool:
    kind = answer.headers.get("content-type") == "application/problem+json" and answer.json()["type"]
    return (answer.status_code, kind) == (400, "urn:cyxcloud:problem:invalid-path")


def test_adv_20_rest_paths_are_read_once(cluster, bucket, owners):
    """The door and the router see one path: a key is the same in all its spellings, and elsewhere nothing is guessed at."""
    token = {"authorization": f"Bearer {bearer(cluster)}"}
    session = requests.Session()
    session.trust_env = False

    def ask(path: str, headers: dict | None = None, method: str = "GET") -> requests.Response:
        request = requests.Request(method, cluster.url).prepare()
        request.url = cluster.url + path
        request.headers.update(headers or {})
        return session.send(request, timeout=30, allow_redirects=False)

    for key in TRAVERSALS:
        if Signed(cluster, "PUT", f"/{bucket}/{key}", body=key.encode()).send().status_code != 200:
            continue
        everything = "".join(f"%{byte:02X}" for byte in key.encode())
        for spelled in {encode(key), encode(key, False), everything}:
            asked = Signed(cluster, "GET", "/")
            asked.path = f"/api/v1/buckets/{bucket}/objects/{spelled}"
            answer = asked.sign().send()
            assert answer.status_code == 200 and answer.json()["key"] == key, (key, spelled, answer.text)
            twice = ask(asked.path.replace("%", "%25"), asked.headers)
            assert twice.status_code == 401 or "%" not in spelled, "signed for one key, sent for another"
    one, _ = owners
    key = one.key()
    admin = "/api/v1/admin/nodes/00000000-0000-4000-8000-000000000000"
    for path in (f"{admin}%2Fdrain", "/api/v1/admin%2fstatus", "/api%2Fv1%2Faccount", "/api/v1/auth/api-keys/..%2Fme", "/api/v1/./account",
                 "/api/v1/auth/../account", "/api/v1/auth/%2e%2e/account", "/api/v1//account", "//api/v1/account", "/api/v1/%2Faccount",
                 f"/api/v1/auth/api-keys/{key['id']}%2f", f"/api/v1/auth/api-keys/{key['id']}%00", "/api/v1/auth/api-keys/a%5Cb",
                 "/api/v1/auth/api-keys/%c0%ae%c0%ae", "/api/v1/account%0d%0ax-evil:%201", f"/api/v1/buckets/{bucket}%2Fobjects/k",
                 f"/api/v1/buckets/x%2f..%2f{bucket}", "/health/../ready", "/health/%2e%2e/ready", "/health%2Fx", "/ready%2f..", "/ws/%00"):
        for headers in ({}, token):
            for method in ("GET", "POST", "DELETE"):
                assert unfit(ask(path, headers, method)), (method, path, ask(path, headers, method).text)
    # Another spelling of the same names is the same route, behind the same door.
    assert ask("/api/v1/%61ccount").status_code == 401 and ask("/api/v1/%61ccount", token).json() == ask("/api/v1/account", token).json()
    assert ask("/%61pi/v1/%61dmin/status", {"authorization": f"Bearer {one.token}"}).json()["type"].endswith(":not-admin")
    assert ask("/%68ealth").text == "OK"
    for path in (f"/%73%33/{bucket}", f"/s3%2F{bucket}", "/%61pi%2fv1/buckets"):
        assert ask(path).status_code in (400, 403), path
    assert key["id"] in one.api("GET", "/api/v1/auth/api-keys").text


def test_adv_20_a_download_stays_where_it_was_told_to_write(cluster, s3, bucket, tmp_path):
    for key in ("p/../../evil", "p//tmp/evil", "p/good", "p/..", "p/a/../../../evil", "p/~/evil"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path / "home"), "CYXCLOUD_ACCESS_KEY": cluster.credentials.access_key,
           "CYXCLOUD_SECRET_KEY": cluster.credentials.secret_key}
    command = [binary("cyxcloud-cli"), "--gateway", cluster.url, "download", "--recursive", "--bucket", bucket, "--key", "p/", str(inside)]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, timeout=120)
    assert (inside / "good").read_bytes() == b"x", done.stderr
    assert [path for path in tmp_path.rglob("*evil*") if inside not in path.parents] == []


def test_adv_35_lines_ends_in_what_becomes_a_header(cluster, s3, bucket):
    """No text of a client's becomes a header of its own, neither in a request nor in an answer."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"kept", Metadata={"good": "1"})
    evil = "text/plain\r\nx-evil: 1\r\n\r\n<b>"
    parameters = ["content-type", "content-disposition", "cache-control", "content-encoding", "content-language", "expires"]
    for name in parameters:
        for value in (evil, "a\nx-evil: 1", "a\rx-evil: 1", "a\0b"):
            for answer in (Signed(cluster, "GET", f"/{bucket}/k", query={f"response-{name}": value}).send(),
                           send("GET", presign(cluster, "GET", f"/{bucket}/k", query={f"response-{name}": value}))):
                assert "x-evil" not in answer.headers and answer.status_code in (200, 400), (name, value, answer.status_code)
    good = Signed(cluster, "GET", f"/{bucket}/k", query={"response-content-type": "text/x-good"}).send()
    assert (good.headers["content-type"], good.content) == ("text/x-good", b"kept")
    for query in ({"x-amz-meta-a": "b\r\nx-evil: 1"}, {"x-amz-meta-a\r\nx-evil": "1"}, {"x-amz-meta-a": "\0"}):
        answer = send("PUT", presign(cluster, "PUT", f"/{bucket}/k2", query=query), data=b"x")
        assert answer.status_code in (400, 403), (query, answer.text)
    for line in (b"x-amz-meta-a: b\rx-evil: 1", b"x-amz-meta-a : b", b"x-amz-meta-a: \0", b" x-amz-meta-a: b", b"x-amz-\xffmeta: b"):
        host = f"127.0.0.1:{cluster.http_port}".encode()
        answer = send_bytes(cluster, b"GET /health HTTP/1.1\r\nhost: %b\r\n%b\r\n\r\n" % (host, line), half_close=True)
        assert answer == b"" or answer.split(b"\r\n")[0].split()[1] in (b"400", b"431", b"200"), answer
        assert b"x-evil" not in answer
    key = "a\r\nx-evil: 1"
    if code_of(s3.put_object, Bucket=bucket, Key=key, Body=b"x") == "OK":
        for answer in (Signed(cluster, "GET", f"/{bucket}/{key}").send(), Signed(cluster, "GET", f"/{bucket}").send()):
            assert answer.status_code == 200 and "x-evil" not in answer.headers
