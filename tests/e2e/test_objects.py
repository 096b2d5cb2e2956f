"""Ranges, conditions, metadata, copies, deletion: what S3 says of single objects."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import ClientError

from clients import new_bucket, s3_client
from data import MIB, make_bytes
from raw import Signed, code

SIZE = 9 * MIB + 17
BODY = make_bytes(SIZE, "ranges")


def failing(call, **arguments) -> tuple[str, int]:
    """Error code and status of a call that must fail."""
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    answer = caught.value.response
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]


@pytest.fixture(scope="module")
def stored(cluster):
    """A bucket with one object of three stripes, for reading only."""
    s3 = s3_client(cluster)
    bucket = new_bucket(s3, "ranges")
    s3.put_object(Bucket=bucket, Key="k", Body=BODY)
    for size in (10, 3000, 100_000):
        s3.put_object(Bucket=bucket, Key=f"small-{size}", Body=BODY[:size])
    return s3, bucket


@pytest.mark.parametrize("first,last", [
    (0, 0), (0, 1), (1, 1), (0, 65535), (65535, 65536), (65536, 131071), (4 * MIB - 1, 4 * MIB), (4 * MIB, 4 * MIB),
    (4 * MIB - 1, 8 * MIB), (1, SIZE - 2), (0, SIZE - 1), (SIZE - 1, SIZE - 1), (SIZE - 18, SIZE + 5000), (5, 10**15),
])
def test_ranges(first, last, stored):
    s3, bucket = stored
    got = s3.get_object(Bucket=bucket, Key="k", Range=f"bytes={first}-{last}")
    wanted = BODY[first:last + 1]
    assert got["Body"].read() == wanted
    assert got["ResponseMetadata"]["HTTPStatusCode"] == 206
    assert got["ContentRange"] == f"bytes {first}-{min(last, SIZE - 1)}/{SIZE}"
    assert got["ContentLength"] == len(wanted)


def test_suffix_and_open_ranges(stored):
    s3, bucket = stored
    for text, wanted in [("-1", BODY[-1:]), ("-70000", BODY[-70000:]), (f"-{10**12}", BODY), ("8388608-", BODY[8388608:])]:
        assert s3.get_object(Bucket=bucket, Key="k", Range=f"bytes={text}")["Body"].read() == wanted


@pytest.mark.parametrize("size", [10, 3000, 100_000])
def test_ranges_of_small_objects(size, stored):
    s3, bucket = stored
    got = s3.get_object(Bucket=bucket, Key=f"small-{size}", Range="bytes=3-7")
    assert got["Body"].read() == BODY[3:8] and got["ContentRange"] == f"bytes 3-7/{size}"
    assert s3.get_object(Bucket=bucket, Key=f"small-{size}", Range="bytes=-2")["Body"].read() == BODY[size - 2:size]


def test_ranges_that_cannot_be_met(stored):
    s3, bucket = stored
    for text in (f"{SIZE}-", f"{SIZE + 5}-{SIZE + 9}", "-0"):
        assert failing(s3.get_object, Bucket=bucket, Key="k", Range=f"bytes={text}") == ("InvalidRange", 416)
    # What is not a range of bytes at all is ignored, as the RFC and S3 have it.
    for text in ("bytes=9-3", "bytes=x-y", "lines=1-2"):
        assert s3.get_object(Bucket=bucket, Key="k", Range=text)["ContentLength"] == SIZE


def test_conditional_reads(s3, bucket):
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"x" * 5000)["ETag"]
    modified = s3.head_object(Bucket=bucket, Key="k")["LastModified"]
    for call in (s3.get_object, s3.head_object):
        good = dict(Bucket=bucket, Key="k")
        assert call(**good, IfMatch=etag)["ETag"] == etag
        assert call(**good, IfNoneMatch='"other"')["ETag"] == etag
        assert call(**good, IfModifiedSince=modified.replace(year=2001))["ETag"] == etag
        assert call(**good, IfUnmodifiedSince=modified)["ETag"] == etag
        assert failing(call, **good, IfMatch='"other"')[1] == 412
        assert failing(call, **good, IfNoneMatch=etag)[1] == 304
        assert failing(call, **good, IfModifiedSince=modified)[1] == 304
        assert failing(call, **good, IfUnmodifiedSince=modified.replace(year=2001))[1] == 412


def test_conditional_writes(s3, bucket):
    first = s3.put_object(Bucket=bucket, Key="k", Body=b"first", IfNoneMatch="*")["ETag"]
    assert failing(s3.put_object, Bucket=bucket, Key="k", Body=b"second", IfNoneMatch="*") == ("PreconditionFailed", 412)
    assert failing(s3.put_object, Bucket=bucket, Key="k", Body=b"z", IfMatch='"other"') == ("PreconditionFailed", 412)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"first"
    s3.put_object(Bucket=bucket, Key="k", Body=b"third", IfMatch=first)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"third"
    assert failing(s3.put_object, Bucket=bucket, Key="none", Body=b"z", IfMatch=first)[0] in ("NoSuchKey", "PreconditionFailed")
    s3.delete_object(Bucket=bucket, Key="k")
    s3.put_object(Bucket=bucket, Key="k", Body=b"again", IfNoneMatch="*")


def test_of_many_conditional_creations_one_wins(s3, bucket):
    def attempt(number):
        try:
            s3.put_object(Bucket=bucket, Key="once", Body=b"%d" % number * 3000, IfNoneMatch="*")
            return number
        except ClientError as error:
            assert error.response["Error"]["Code"] in ("PreconditionFailed", "ConditionalRequestConflict"), error
            return None

    with ThreadPoolExecutor(12) as pool:
        winners = [number for number in pool.map(attempt, range(24)) if number is not None]
    assert len(winners) == 1
    assert s3.get_object(Bucket=bucket, Key="once")["Body"].read() == b"%d" % winners[0] * 3000


def test_metadata_and_headers_come_back(s3, bucket):
    headers = dict(
        ContentType="text/plain; charset=utf-8", CacheControl="max-age=5", ContentDisposition='attachment; filename="x"',
        ContentEncoding="gzip", ContentLanguage="de", Metadata={"one": "1", "two-words": "a b  c", "empty": ""},
    )
    s3.put_object(Bucket=bucket, Key="k", Body=b"body", **headers)
    for answer in (s3.head_object(Bucket=bucket, Key="k"), s3.get_object(Bucket=bucket, Key="k")):
        for name, value in headers.items():
            if name == "Metadata":
                assert {k: v.strip() for k, v in answer[name].items()} == {k: v.strip() for k, v in value.items()}
            else:
                assert answer[name] == value
    # A new version has its own metadata, not the old one's.
    s3.put_object(Bucket=bucket, Key="k", Body=b"body")
    plain = s3.head_object(Bucket=bucket, Key="k")
    assert plain["Metadata"] == {} and "CacheControl" not in plain
    assert plain["ContentType"] in ("binary/octet-stream", "application/octet-stream")


def test_a_compressed_body_keeps_its_encoding_and_not_the_framing(cluster, bucket):
    """SDKs send `Content-Encoding: gzip,aws-chunked`; only the first is the object's."""
    put = Signed(cluster, "PUT", f"/{bucket}/k", body=b"x", headers={"content-encoding": "gzip"}).send()
    assert put.status_code == 200, put.text
    assert Signed(cluster, "HEAD", f"/{bucket}/k").send().headers["content-encoding"] == "gzip"


def test_response_headers_can_be_overridden(s3, bucket):
    s3.put_object(Bucket=bucket, Key="k", Body=b"body", ContentType="text/plain")
    got = s3.get_object(
        Bucket=bucket, Key="k", ResponseContentType="application/json", ResponseContentDisposition="inline",
        ResponseCacheControl="no-store",
    )
    assert (got["ContentType"], got["ContentDisposition"], got["CacheControl"]) == ("application/json", "inline", "no-store")


def test_copies(s3, bucket):
    body = make_bytes(5 * MIB, "copy")
    etag = s3.put_object(Bucket=bucket, Key="a b+ü", Body=body, ContentType="text/x-a", Metadata={"k": "v"})["ETag"]
    other = new_bucket(s3)
    source = {"Bucket": bucket, "Key": "a b+ü"}
    assert s3.copy_object(Bucket=other, Key="copied", CopySource=source)["CopyObjectResult"]["ETag"] == etag
    got = s3.get_object(Bucket=other, Key="copied")
    assert got["Body"].read() == body and got["ContentType"] == "text/x-a" and got["Metadata"] == {"k": "v"}
    s3.copy_object(
        Bucket=other, Key="replaced", CopySource=source, MetadataDirective="REPLACE", ContentType="text/x-b", Metadata={"n": "1"}
    )
    got = s3.head_object(Bucket=other, Key="replaced")
    assert got["ContentType"] == "text/x-b" and got["Metadata"] == {"n": "1"} and got["ETag"] == etag
    # The copy stands on its own.
    s3.delete_object(Bucket=bucket, Key="a b+ü")
    assert s3.get_object(Bucket=other, Key="copied")["Body"].read() == body
    assert failing(s3.copy_object, Bucket=other, Key="x", CopySource=source) == ("NoSuchKey", 404)
    assert failing(s3.copy_object, Bucket=other, Key="copied", CopySource={"Bucket": other, "Key": "copied"})[0] == "InvalidRequest"
    assert failing(
        s3.copy_object, Bucket=other, Key="x", CopySource={"Bucket": other, "Key": "copied"}, CopySourceIfMatch='"other"'
    ) == ("PreconditionFailed", 412)


def test_deletion(s3, bucket):
    for number in range(5):
        s3.put_object(Bucket=bucket, Key=f"k{number}", Body=b"x")
    assert s3.delete_object(Bucket=bucket, Key="k0")["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert s3.delete_object(Bucket=bucket, Key="k0")["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert failing(s3.get_object, Bucket=bucket, Key="k0") == ("NoSuchKey", 404)
    assert failing(s3.head_object, Bucket=bucket, Key="k0")[1] == 404
    assert failing(s3.delete_bucket, Bucket=bucket) == ("BucketNotEmpty", 409)
    keys = [{"Key": key} for key in ("k1", "k2", "absent", "a<&>\"'ü")]
    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": keys})
    assert sorted(entry["Key"] for entry in answer["Deleted"]) == sorted(key["Key"] for key in keys)
    quiet = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "k3"}, {"Key": "k4"}], "Quiet": True})
    assert "Deleted" not in quiet and "Errors" not in quiet
    s3.delete_bucket(Bucket=bucket)
    assert failing(s3.list_objects_v2, Bucket=bucket) == ("NoSuchBucket", 404)
    assert failing(s3.put_object, Bucket=bucket, Key="k", Body=b"") == ("NoSuchBucket", 404)


def test_a_thousand_deletions_at_once_and_no_more(s3, bucket):
    keys = [{"Key": f"k{number:04}"} for number in range(1000)]
    s3.put_object(Bucket=bucket, Key="k0500", Body=b"x")
    assert len(s3.delete_objects(Bucket=bucket, Delete={"Objects": keys})["Deleted"]) == 1000
    assert failing(s3.delete_objects, Bucket=bucket, Delete={"Objects": [*keys, {"Key": "one more"}]})[0] == "MalformedXML"


def test_buckets(cluster, s3):
    name = new_bucket(s3)
    assert s3.head_bucket(Bucket=name)["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert s3.get_bucket_location(Bucket=name)["LocationConstraint"] in (None, "", "us-east-1")
    assert name in [entry["Name"] for entry in s3.list_buckets()["Buckets"]]
    # us-east-1 answers 200 to the owner's second creation; other regions say BucketAlreadyOwnedByYou.
    try:
        s3.create_bucket(Bucket=name)
    except ClientError as error:
        assert error.response["Error"]["Code"] == "BucketAlreadyOwnedByYou"
    s3.delete_bucket(Bucket=name)
    assert failing(s3.head_bucket, Bucket=name)[1] == 404
    assert failing(s3.delete_bucket, Bucket=name) == ("NoSuchBucket", 404)


@pytest.mark.parametrize("name", ["api", "console", "health", "ready", "version", "metrics"])
def test_reserved_names_are_no_buckets(name, cluster):
    for prefix in ("", "/s3"):
        answer = Signed(cluster, "PUT", f"{prefix}/{name}").send()
        assert answer.status_code in (400, 403, 404, 405), (answer.status_code, answer.text)


def test_every_answer_carries_a_request_id(cluster, bucket):
    good = Signed(cluster, "GET", f"/{bucket}").send()
    bad = Signed(cluster, "GET", f"/{bucket}/none").send()
    assert good.headers["x-amz-request-id"] != bad.headers["x-amz-request-id"]
    assert bad.headers["x-amz-request-id"] in bad.text and code(bad) == "NoSuchKey"


def test_an_overwrite_replaces_and_the_etag_follows(s3, bucket):
    for number, size in enumerate((10, 300_000, 5000, 4 * MIB + 1, 0)):
        body = make_bytes(size, number)
        s3.put_object(Bucket=bucket, Key="k", Body=body)
        got = s3.get_object(Bucket=bucket, Key="k")
        assert got["Body"].read() == body and got["ETag"] == f'"{hashlib.md5(body).hexdigest()}"'
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 1
