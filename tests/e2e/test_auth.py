"""Who may, and by what proof: signatures, presigned URLs, tokens, virtual hosts. Everything else is refused."""

import base64
import datetime
import json
import subprocess

import pytest
import requests

from clients import bearer, new_bucket, s3_client
from cluster import Credentials
from data import MIB, make_bytes
from people import owner_of_root
from raw import Signed, code, encode, presign, signed_chunks

AGES = datetime.timedelta(minutes=16)


def refused(answer: requests.Response, *codes: str, status: int = 403):
    assert (answer.status_code, code(answer)) in [(status, wanted) for wanted in codes], f"{answer.status_code}\n{answer.text}"


@pytest.fixture
def stored(cluster, s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"kept")
    yield f"/{bucket}/k"
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"kept"


@pytest.mark.parametrize("mount", ["", "/s3"])
def test_signatures_that_do_not_hold(mount, cluster, stored):
    path = mount + stored
    assert Signed(cluster, "GET", path).send().content == b"kept"
    refused(Signed(cluster, "PUT", path, body=b"bad", secret="x" * 40).send(), "SignatureDoesNotMatch")
    refused(Signed(cluster, "PUT", path, body=b"bad", access_key="NOBODY").send(), "InvalidAccessKeyId")
    now = datetime.datetime.now(datetime.UTC)
    for when in (now - AGES, now + AGES):
        refused(Signed(cluster, "PUT", path, body=b"bad", when=when).send(), "RequestTimeTooSkewed")

    moved = Signed(cluster, "GET", path)
    moved.path += "x"
    refused(moved.send(), "SignatureDoesNotMatch")
    queried = Signed(cluster, "GET", path)
    queried.query = "response-content-type=text%2Fhtml"
    refused(queried.send(), "SignatureDoesNotMatch")
    other_method = Signed(cluster, "GET", path)
    other_method.method = "DELETE"
    refused(other_method.send(), "SignatureDoesNotMatch")
    changed = Signed(cluster, "PUT", path, body=b"good")
    changed.body = b"evil"
    refused(changed.send(), "XAmzContentSHA256Mismatch", status=400)


def test_no_proof_no_entry(cluster, stored):
    for method in ("GET", "PUT", "DELETE", "HEAD", "POST"):
        answer = requests.request(method, cluster.url + stored, data=b"", timeout=30)
        assert answer.status_code == 403 and (method == "HEAD" or code(answer) == "AccessDenied"), (method, answer.text)
    assert requests.get(cluster.url + "/", timeout=30).status_code == 403
    assert requests.get(cluster.url + "/api/v1/account", timeout=30).status_code in (401, 403)
    for header in ("AWS CYX:abc", "Basic Og==", "Bearer", "Bearer x.y.z", "AWS4-HMAC-SHA256", "AWS4-HMAC-SHA256 Credential=x", "junk"):
        answer = requests.get(cluster.url + stored, headers={"authorization": header}, timeout=30)
        assert answer.status_code in (400, 401, 403), (header, answer.status_code)
    version_2 = f"?AWSAccessKeyId={cluster.credentials.access_key}&Expires=9999999999&Signature=abc"
    assert requests.get(cluster.url + stored + version_2, timeout=30).status_code in (400, 403)


def test_amz_headers_must_be_signed(cluster, stored, bucket):
    sneaked = Signed(cluster, "PUT", stored, body=b"bad")
    sneaked.headers["x-amz-meta-sneaked"] = "1"
    refused(sneaked.send(), "AccessDenied", "SignatureDoesNotMatch")
    source = Signed(cluster, "PUT", stored)
    source.headers["x-amz-copy-source"] = stored
    refused(source.send(), "AccessDenied", "SignatureDoesNotMatch")


def test_presigned_urls_with_curl(cluster, s3, bucket, tmp_path):
    body = make_bytes(5 * MIB, "presigned")
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(body)

    def curl(*args):
        done = subprocess.run(["curl", "-sS", "--fail-with-body", *args], capture_output=True, timeout=60)
        assert done.returncode == 0, (args, done.stdout, done.stderr)

    for mount, name in (("root", "a ü+&k"), ("s3", "b%20//k")):
        client = s3_client(cluster, mount, signature_version="s3v4")
        where = {"Bucket": bucket, "Key": name}
        curl("--upload-file", str(source), client.generate_presigned_url("put_object", where, 600))
        curl("-o", str(back), client.generate_presigned_url("get_object", where, 600))
        assert back.read_bytes() == body
        curl("-X", "DELETE", client.generate_presigned_url("delete_object", where, 600))
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)


def test_presigned_urls_that_do_not_hold(cluster, stored):
    get = lambda url, **kwargs: requests.get(url, timeout=30, **kwargs)  # noqa: E731
    now = datetime.datetime.now(datetime.UTC)
    assert get(presign(cluster, "GET", stored)).content == b"kept"
    refused(get(presign(cluster, "GET", stored, 60, when=now - datetime.timedelta(seconds=61))), "AccessDenied")
    refused(get(presign(cluster, "GET", stored).replace("/k?", "/kk?")), "SignatureDoesNotMatch")
    refused(requests.put(presign(cluster, "GET", stored), data=b"bad", timeout=30), "SignatureDoesNotMatch")
    refused(get(presign(cluster, "GET", stored) + "&response-content-type=text%2Fhtml"), "SignatureDoesNotMatch")
    for expires in (0, -1, 604_801):
        answer = get(presign(cluster, "GET", stored, expires))
        assert answer.status_code in (400, 403) and code(answer) in (
            "AuthorizationQueryParametersError", "AccessDenied"), answer.text
    both = get(presign(cluster, "GET", stored), headers={"authorization": Signed(cluster, "GET", stored).headers["authorization"]})
    assert both.status_code in (400, 403)
    unsigned = requests.put(
        presign(cluster, "PUT", stored), data=b"bad", headers={"x-amz-meta-a": "1"}, timeout=30)
    refused(unsigned, "AccessDenied", "SignatureDoesNotMatch")


def test_signed_chunks(cluster, s3, bucket):
    """`STREAMING-AWS4-HMAC-SHA256-PAYLOAD`: every chunk has a signature that covers the one before."""
    body = make_bytes(200_000, "chunks")

    def put(key, spoil=None):
        return signed_chunks(cluster, f"/{bucket}/{key}", body, spoil).send()

    good = put("k")
    assert good.status_code == 200, good.text
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == body
    for spoil in (0, 2, "last"):
        refused(put("bad", spoil), "SignatureDoesNotMatch")
    assert [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["k"]


def key_id(token: str) -> str:
    head = token.split(".")[0]
    return json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))["kid"]


@pytest.mark.parametrize("mount", ["", "/s3"])
def test_bearer_tokens(mount, cluster, stored):
    root = owner_of_root(cluster)
    get = lambda token: requests.get(cluster.url + mount + stored, headers={"authorization": f"Bearer {token}"}, timeout=30)  # noqa: E731
    good_token = bearer(cluster, sub=root)
    good = get(good_token)
    assert good.status_code == 200 and good.content == b"kept", good.text
    now = int(datetime.datetime.now().timestamp())
    bad = {
        "another secret": bearer(cluster, sub=root, secret="y" * 64),
        "another key's id": bearer(cluster, sub=root, kid="0123456789abcdef"),
        "another secret under our key's id": bearer(cluster, sub=root, secret="y" * 64, kid=key_id(good_token)),
        "no algorithm": bearer(cluster, sub=root, algorithm="none"),
        "expired": bearer(cluster, sub=root, exp=now - 120),
        "not yet": bearer(cluster, sub=root, nbf=now + 600),
        "no expiry": bearer(cluster, sub=root, exp=None),
        "expiry as text": bearer(cluster, sub=root, exp=str(now + 600)),
        "another issuer": bearer(cluster, sub=root, iss="evil"),
        "another audience": bearer(cluster, sub=root, aud="evil"),
        "a refresh token": bearer(cluster, sub=root, typ="refresh"),
        "a node's token": bearer(cluster, sub=root, typ="node"),
        "no subject": bearer(cluster, sub=None),
        "subject not an id": bearer(cluster, sub="root"),
    }
    for what, token in bad.items():
        answer = get(token)
        assert answer.status_code in (401, 403), (what, answer.status_code, answer.text)
        assert b"kept" not in answer.content


def test_a_token_writes_and_reads_with_curl(cluster, s3, bucket):
    token = bearer(cluster, sub=owner_of_root(cluster))
    url = f"{cluster.url}/s3/{bucket}/dir/by%20token"
    headers = {"authorization": f"Bearer {token}"}
    body = make_bytes(300_000, "token")
    assert requests.put(url, data=body, headers=headers, timeout=30).status_code == 200
    assert requests.get(url, headers=headers, timeout=30).content == body
    assert s3.get_object(Bucket=bucket, Key="dir/by token")["Body"].read() == body


def test_a_body_of_unknown_length(cluster, bucket):
    """`Transfer-Encoding: chunked`: S3 refuses it where the request is signed; a token may stream whatever comes."""
    token = {"authorization": f"Bearer {bearer(cluster, sub=owner_of_root(cluster))}"}
    for size in (0, 10, 5000, 200_000, 9 * MIB + 1):
        body = make_bytes(size, "chunked")
        pieces = lambda: (body[at:at + 100_000] for at in range(0, size, 100_000))  # noqa: E731
        url = f"{cluster.url}/s3/{bucket}/chunked-{size}"
        signed = Signed(cluster, "PUT", f"/{bucket}/signed", payload="UNSIGNED-PAYLOAD")
        refused(requests.put(signed.url, data=pieces(), headers=signed.headers, timeout=60), "MissingContentLength", status=411)
        assert requests.put(url, data=pieces(), headers=token, timeout=60).status_code == 200
        assert requests.get(url, headers=token, timeout=60).content == body


def test_owners_do_not_see_each_other(cluster, stored, bucket):
    """A token of somebody else, valid as it is, opens nothing of root's and tells nothing."""
    stranger = {"authorization": f"Bearer {bearer(cluster)}"}
    for method, path in [
        ("GET", stored), ("HEAD", stored), ("PUT", stored), ("DELETE", stored), ("GET", f"/{bucket}"), ("DELETE", f"/{bucket}"),
        ("GET", f"/{bucket}?uploads"), ("POST", f"{stored}?uploads"), ("HEAD", f"/{bucket}"), ("GET", f"/api/v1/buckets/{bucket}"),
    ]:
        answer = requests.request(method, cluster.url + path, headers=stranger, data=b"", timeout=30)
        assert answer.status_code in (401, 403, 404), (method, path, answer.status_code, answer.text)
    listed = requests.get(cluster.url + "/", headers=stranger, timeout=30)
    assert bucket not in listed.text


def test_virtual_hosts(cluster, s3, bucket):
    """bucket.s3.localhost, which resolves to this machine, or is made to by a Host header."""
    body = make_bytes(300_000, "virtual")

    def send(method, key, data=b"", query=""):
        host = f"{bucket}.s3.localhost:{cluster.http_port}"
        signed = Signed(cluster, method, f"/{key}", body=data)
        signed.headers["host"] = host
        return signed.sign().send()

    put = send("PUT", "dir/a b+ü", body)
    assert put.status_code == 200, put.text
    assert s3.get_object(Bucket=bucket, Key="dir/a b+ü")["Body"].read() == body
    assert send("GET", "dir/a b+ü").content == body
    # The gateway's own names are keys here.
    for key in ("health", "api/v1/account", "s3/x", "ready"):
        assert send("PUT", key, key.encode()).status_code == 200
        assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == key.encode()
    assert "<Key>health</Key>" in send("GET", "").text


def test_virtual_hosts_with_boto3(cluster, bucket):
    """With a name under .localhost there is no table of hosts to edit: botocore is told where to connect instead."""
    client = s3_client(cluster, addressing_style="virtual", endpoint=f"http://s3.localhost:{cluster.http_port}")
    sent = []
    client.meta.events.register("before-send.s3", lambda request, **_: sent.append(request.url))
    try:
        client.put_object(Bucket=bucket, Key="v", Body=b"virtual")
    except Exception as error:
        if "resolve" in str(error) or "Could not connect" in str(error):
            pytest.skip("names under .localhost do not resolve here")
        raise
    assert sent[0].startswith(f"http://{bucket}.s3.localhost:")
    assert client.get_object(Bucket=bucket, Key="v")["Body"].read() == b"virtual"


def test_cross_checks_of_our_own_signer():
    """The hand-made signature against AWS's published example (GET of test.txt with a range)."""
    class Example:
        url, http_port = "", 0
        credentials = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")

    signed = Signed(Example, "GET", "/test.txt", headers={"range": "bytes=0-9"},
                    when=datetime.datetime(2013, 5, 24, tzinfo=datetime.UTC))
    signed.headers["host"] = "examplebucket.s3.amazonaws.com"
    assert signed.sign().signature == "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    assert encode("a b+ü/~") == "a%20b%2B%C3%BC/~"


def test_secrets_are_in_no_log(cluster, s3, bucket):
    signed = Signed(cluster, "GET", f"/{bucket}")
    signed.send()
    token = bearer(cluster)
    requests.get(f"{cluster.url}/{bucket}", headers={"authorization": f"Bearer {token}"}, timeout=30)
    for process in cluster.processes:
        text = process.output()
        for secret in (cluster.credentials.secret_key, cluster.jwt_secret, signed.signature, token.rsplit(".", 1)[1]):
            assert secret not in text, process.log


def test_other_buckets_names(cluster, s3):
    """`new_bucket` twice is two buckets, and a name in another style is refused by S3's code."""
    for name in ("ab", "UPPER", "a_b", "a..b", "192.168.1.1", "x" * 64, "-lead"):
        answer = Signed(cluster, "PUT", f"/{name}").send()
        assert (answer.status_code, code(answer)) == (400, "InvalidBucketName"), (name, answer.text)
    assert new_bucket(s3) != new_bucket(s3)
