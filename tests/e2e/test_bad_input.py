"""Bad input is answered with S3's own code, and leaves nothing visible."""

import http.client
import socket

import pytest

from clients import new_bucket
from data import MIB, make_bytes
from process import PATIENCE
from raw import Signed, code, head, send_bytes
from test_objects import failing


@pytest.fixture
def empty_bucket(s3):
    """A bucket that must still be empty afterwards."""
    bucket = new_bucket(s3)
    yield bucket
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)


def test_keys_that_are_too_long(cluster, s3, empty_bucket):
    for key in ("x" * 1025, "ü" * 512 + "x"):
        answer = Signed(cluster, "PUT", f"/{empty_bucket}/{key}", body=b"x").send()
        assert (answer.status_code, code(answer)) == (400, "KeyTooLongError"), answer.text


def test_bodies_of_another_length(cluster, s3, empty_bucket):
    for size in (10, 5000, 300_000):
        body = make_bytes(size, "length")
        signed = Signed(cluster, "PUT", f"/{empty_bucket}/k", body=body, payload="UNSIGNED-PAYLOAD")
        # Shorter than declared: the connection ends, or an answer says so.
        answer = send_bytes(cluster, head(signed, content_length=str(size + 10)) + body, half_close=True)
        assert answer == b"" or b" 400 " in answer.split(b"\r\n")[0], answer[:300]
    # Longer than declared: HTTP takes what was declared, and the hash of the body tells.
    signed = Signed(cluster, "PUT", f"/{empty_bucket}/k", body=b"0123456789")
    answer = send_bytes(cluster, head(signed, content_length="5") + b"0123456789")
    assert b"XAmzContentSHA256Mismatch" in answer, answer[:500]


def test_no_length_at_all(cluster, empty_bucket):
    signed = Signed(cluster, "PUT", f"/{empty_bucket}/k", body=b"x")
    answer = send_bytes(cluster, head(signed), half_close=True)
    # An empty body by HTTP's rules, and not the one that was signed; a server may also leave who has stopped sending.
    assert answer == b"" or b" 4" in answer.split(b"\r\n")[0], answer[:300]


@pytest.mark.parametrize("method,query,body", [
    ("POST", {"delete": ""}, b"<Delete><Object><Key>k</Key></Objec"),
    ("POST", {"delete": ""}, b""),
    ("POST", {"delete": ""}, b"<Other/>"),
    ("POST", {"delete": ""}, b"\xff\xfe\x00"),
    ("PUT", None, b"<CreateBucketConfiguration><Loc"),
])
def test_malformed_xml(method, query, body, cluster, empty_bucket):
    import base64
    import hashlib

    md5 = base64.b64encode(hashlib.md5(body).digest()).decode()
    path = f"/{empty_bucket}" if query else f"/{empty_bucket}-2"
    answer = Signed(cluster, method, path, query=query, body=body, headers={"content-md5": md5}).send()
    assert answer.status_code == 400 and code(answer) in ("MalformedXML", "MissingRequestBodyError"), answer.text


def test_xml_that_attacks(cluster, empty_bucket):
    import base64
    import hashlib

    bombs = [
        b'<?xml version="1.0"?><!DOCTYPE d [<!ENTITY a "aaaa">]><Delete><Object><Key>&a;</Key></Object></Delete>',
        b"<Delete>" + b"<x>" * 20_000 + b"</Delete>",
        b"<Delete " + b" ".join(b'a%d="1"' % n for n in range(20_000)) + b"/>",
        b"<Delete><Object><Key>" + b"k" * (3 * MIB) + b"</Key></Object></Delete>",
    ]
    for body in bombs:
        md5 = base64.b64encode(hashlib.md5(body).digest()).decode()
        answer = Signed(
            cluster, "POST", f"/{empty_bucket}", query={"delete": ""}, body=body, headers={"content-md5": md5}
        ).send()
        if answer.status_code == 200:
            assert "<Error>" in answer.text or "aaaa" not in answer.text
        else:
            assert 400 <= answer.status_code < 500, answer.text


def test_ranges_of_a_copied_part(cluster, s3, bucket):
    s3.put_object(Bucket=bucket, Key="source", Body=b"x" * 1000)
    upload_id = s3.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]
    where = dict(Bucket=bucket, Key="k", UploadId=upload_id, PartNumber=1, CopySource={"Bucket": bucket, "Key": "source"})
    for text in ("bytes=5-1000", "bytes=2000-3000", "bytes=9-1", "5-6", "bytes=5-"):
        assert failing(s3.upload_part_copy, **where, CopySourceRange=text)[0] in ("InvalidArgument", "InvalidRange", "InvalidRequest")


def test_what_is_not_there(cluster, bucket):
    for method, path, query, wanted in [
        ("GET", f"/{bucket}/none", None, (404, "NoSuchKey")),
        ("GET", "/no-such-bucket-here/none", None, (404, "NoSuchBucket")),
        ("PUT", "/no-such-bucket-here/none", None, (404, "NoSuchBucket")),
        ("GET", "/no-such-bucket-here", None, (404, "NoSuchBucket")),
        ("POST", "/no-such-bucket-here/k", {"uploads": ""}, (404, "NoSuchBucket")),
        ("DELETE", f"/{bucket}/none", {"uploadId": "none"}, (404, "NoSuchUpload")),
    ]:
        answer = Signed(cluster, method, path, query=query).send()
        assert (answer.status_code, code(answer)) == wanted, (method, path, answer.text)


@pytest.mark.parametrize("query", ["acl", "policy", "tagging", "versioning", "lifecycle", "website", "object-lock", "torrent"])
def test_what_is_not_offered_is_said_and_not_ignored(query, cluster, s3, bucket):
    """A PUT of a sub-resource must never be taken for a PUT of the object or bucket itself."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"kept")
    answer = Signed(cluster, "PUT", f"/{bucket}/k", query={query: ""}, body=b"<Evil/>").send()
    assert answer.status_code >= 400 and code(answer), (answer.status_code, answer.text)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"kept"


def test_heads_that_are_no_requests(cluster):
    for data in (b"\x00\x01\x02\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
                 b"GET / HTTP/1.1\r\nhost: a\r\n" + b"x: y\r\n" * 5000 + b"\r\n"):
        answer = send_bytes(cluster, data, half_close=True)
        assert answer == b"" or b" 4" in answer.split(b"\r\n")[0] or b" 505 " in answer, answer[:200]
    assert cluster.ready()


@pytest.mark.parametrize("expects", [True, False])
def test_who_expects_to_be_told_to_continue_and_is_not_is_told_that_it_was_the_last(expects, cluster, bucket):
    """With an empty body there is nothing to continue with. Clients that are answered at once are not all in order for what comes next."""
    empty = Signed(cluster, "PUT", f"/{bucket}/empty", payload="UNSIGNED-PAYLOAD")
    with socket.create_connection(("127.0.0.1", cluster.http_port), timeout=PATIENCE) as sock:
        sock.sendall(head(empty, content_length="0", **({"expect": "100-continue"} if expects else {})))
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        assert (answer.status, answer.getheader("connection")) == (200, "close" if expects else None), answer.headers


@pytest.mark.parametrize("size", [1, 5000, 300_000])
@pytest.mark.parametrize("body_follows", [False, True])
def test_an_answer_before_the_body_leaves_the_connection_in_order(size, body_follows, cluster, s3, bucket):
    """A client that says `Expect: 100-continue` and is refused need not send its body: what comes next on the connection is
    another request, unless the answer said that there is no next. Never may one be taken for the other."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"kept")
    refused = Signed(cluster, "PUT", f"/{bucket}/k", body=b"x" * size, headers={"if-none-match": "*"}, payload="UNSIGNED-PAYLOAD")
    after = Signed(cluster, "GET", f"/{bucket}/k")
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", cluster.http_port), timeout=PATIENCE) as sock:
            expect = {} if body_follows else {"expect": "100-continue"}
            sock.sendall(head(refused, content_length=str(size), **expect) + (refused.body if body_follows else b""))
            first = http.client.HTTPResponse(sock)
            first.begin()
            text = first.read().decode()
            assert first.status == 412 and "PreconditionFailed" in text, text
            try:
                sock.sendall(head(after))
                second = http.client.HTTPResponse(sock)
                second.begin()
                got = second.read()
            except (ConnectionError, http.client.RemoteDisconnected):
                assert first.getheader("connection", "").lower() == "close", "it closed and had not said so"
            else:
                assert (second.status, got) == (200, b"kept"), got
