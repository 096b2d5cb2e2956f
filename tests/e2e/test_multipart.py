"""Multipart uploads: complete, out of order, copied, listed, aborted, refused."""

import base64
import hashlib

import pytest

from clients import new_bucket
from data import MIB, make_bytes
from raw import Signed, code
from test_objects import failing

PART = 5 * MIB


def create(s3, bucket, key="k", **arguments) -> str:
    return s3.create_multipart_upload(Bucket=bucket, Key=key, **arguments)["UploadId"]


def upload(s3, bucket, upload_id, number, body, key="k", **arguments) -> dict:
    answer = s3.upload_part(Bucket=bucket, Key=key, UploadId=upload_id, PartNumber=number, Body=body, **arguments)
    return {"PartNumber": number, "ETag": answer["ETag"]}


def complete(s3, bucket, upload_id, parts, key="k", **arguments):
    return s3.complete_multipart_upload(
        Bucket=bucket, Key=key, UploadId=upload_id, MultipartUpload={"Parts": parts}, **arguments
    )


def etag_of(*bodies: bytes) -> str:
    return f'"{hashlib.md5(b"".join(hashlib.md5(body).digest() for body in bodies)).hexdigest()}-{len(bodies)}"'


def test_parts_in_any_order_become_one_object(s3, bucket):
    bodies = {1: make_bytes(PART, 1), 2: make_bytes(PART + 77_777, 2), 7: make_bytes(6 * MIB, 7), 9: make_bytes(5, 9)}
    upload_id = create(s3, bucket, ContentType="text/x-m", Metadata={"a": "b"})
    parts = {number: upload(s3, bucket, upload_id, number, bodies[number]) for number in (9, 2, 7, 1)}
    assert failing(s3.get_object, Bucket=bucket, Key="k") == ("NoSuchKey", 404)
    done = complete(s3, bucket, upload_id, [parts[number] for number in sorted(parts)])
    whole = b"".join(bodies[number] for number in sorted(bodies))
    assert done["ETag"] == etag_of(*(bodies[number] for number in sorted(bodies)))
    got = s3.get_object(Bucket=bucket, Key="k")
    assert got["Body"].read() == whole
    assert got["ContentType"] == "text/x-m" and got["Metadata"] == {"a": "b"} and got["ETag"] == done["ETag"]
    # Over the border of two parts.
    assert s3.get_object(Bucket=bucket, Key="k", Range=f"bytes={PART - 9}-{PART + 9}")["Body"].read() == whole[PART - 9:PART + 10]
    # A retry of Complete gets the same answer.
    assert complete(s3, bucket, upload_id, [parts[number] for number in sorted(parts)])["ETag"] == done["ETag"]


def test_one_part_by_number(s3, bucket):
    bodies = [make_bytes(PART, n) for n in range(2)]
    upload_id = create(s3, bucket)
    complete(s3, bucket, upload_id, [upload(s3, bucket, upload_id, n + 1, body) for n, body in enumerate(bodies)])
    got = s3.get_object(Bucket=bucket, Key="k", PartNumber=2)
    assert got["Body"].read() == bodies[1] and got["PartsCount"] == 2
    assert s3.head_object(Bucket=bucket, Key="k", PartNumber=1)["ContentLength"] == PART


def test_a_part_again_replaces_it_and_unnamed_parts_are_dropped(s3, bucket):
    upload_id = create(s3, bucket)
    upload(s3, bucket, upload_id, 1, make_bytes(PART, "old"))
    first = upload(s3, bucket, upload_id, 1, make_bytes(PART, "new"))
    upload(s3, bucket, upload_id, 2, make_bytes(PART, "unnamed"))
    last = upload(s3, bucket, upload_id, 3, b"end")
    complete(s3, bucket, upload_id, [first, last])
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == make_bytes(PART, "new") + b"end"


def test_parts_can_be_copied(s3, bucket):
    source = make_bytes(11 * MIB, "source")
    s3.put_object(Bucket=bucket, Key="source ü+", Body=source)
    upload_id = create(s3, bucket)
    where = dict(Bucket=bucket, Key="k", UploadId=upload_id, CopySource={"Bucket": bucket, "Key": "source ü+"})
    whole = s3.upload_part_copy(**where, PartNumber=1)["CopyPartResult"]["ETag"]
    assert whole == f'"{hashlib.md5(source).hexdigest()}"'
    first, last = 4 * MIB - 3, 9 * MIB + 1
    ranged = s3.upload_part_copy(**where, PartNumber=2, CopySourceRange=f"bytes={first}-{last}")["CopyPartResult"]["ETag"]
    assert ranged == f'"{hashlib.md5(source[first:last + 1]).hexdigest()}"'
    plain = upload(s3, bucket, upload_id, 3, b"tail")
    complete(s3, bucket, upload_id, [{"PartNumber": 1, "ETag": whole}, {"PartNumber": 2, "ETag": ranged}, plain])
    s3.delete_object(Bucket=bucket, Key="source ü+")
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == source + source[first:last + 1] + b"tail"


def test_what_is_under_way_can_be_listed(s3, bucket):
    uploads = {key: create(s3, bucket, key) for key in ("a", "b/1", "b/2", "ü")}
    listed = s3.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert [(entry["Key"], entry["UploadId"]) for entry in listed] == [(key, uploads[key]) for key in ("a", "b/1", "b/2", "ü")]
    folded = s3.list_multipart_uploads(Bucket=bucket, Delimiter="/")
    assert [entry["Key"] for entry in folded["Uploads"]] == ["a", "ü"]
    assert [entry["Prefix"] for entry in folded["CommonPrefixes"]] == ["b/"]
    page = s3.list_multipart_uploads(Bucket=bucket, MaxUploads=2)
    assert page["IsTruncated"] and len(page["Uploads"]) == 2
    rest = s3.list_multipart_uploads(Bucket=bucket, KeyMarker=page["NextKeyMarker"], UploadIdMarker=page["NextUploadIdMarker"])
    assert [entry["Key"] for entry in rest["Uploads"]] == ["b/2", "ü"]
    for number in (3, 1, 2):
        upload(s3, bucket, uploads["a"], number, b"x" * number, "a")
    parts = s3.list_parts(Bucket=bucket, Key="a", UploadId=uploads["a"], MaxParts=2)
    assert [(part["PartNumber"], part["Size"]) for part in parts["Parts"]] == [(1, 1), (2, 2)] and parts["IsTruncated"]
    rest = s3.list_parts(Bucket=bucket, Key="a", UploadId=uploads["a"], PartNumberMarker=parts["NextPartNumberMarker"])
    assert [part["PartNumber"] for part in rest["Parts"]] == [3] and not rest["IsTruncated"]
    for key, upload_id in uploads.items():
        s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)


def test_an_aborted_upload_leaves_nothing(s3, bucket):
    upload_id = create(s3, bucket)
    part = upload(s3, bucket, upload_id, 1, make_bytes(PART, 1))
    s3.abort_multipart_upload(Bucket=bucket, Key="k", UploadId=upload_id)
    assert failing(s3.list_parts, Bucket=bucket, Key="k", UploadId=upload_id) == ("NoSuchUpload", 404)
    assert failing(complete, s3=s3, bucket=bucket, upload_id=upload_id, parts=[part]) == ("NoSuchUpload", 404)
    assert failing(upload, s3=s3, bucket=bucket, upload_id=upload_id, number=2, body=b"x") == ("NoSuchUpload", 404)
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)


def test_what_complete_refuses(s3, bucket):
    upload_id = create(s3, bucket)
    small = upload(s3, bucket, upload_id, 1, b"small")
    second = upload(s3, bucket, upload_id, 2, b"end")
    attempt = lambda parts: failing(complete, s3=s3, bucket=bucket, upload_id=upload_id, parts=parts)  # noqa: E731
    assert attempt([small, second]) == ("EntityTooSmall", 400)
    assert attempt([second, small])[0] == "InvalidPartOrder"
    assert attempt([small, small])[0] == "InvalidPartOrder"
    assert attempt([{"PartNumber": 5, "ETag": small["ETag"]}])[0] == "InvalidPart"
    assert attempt([{"PartNumber": 1, "ETag": '"00000000000000000000000000000000"'}])[0] == "InvalidPart"
    assert attempt([])[0] in ("MalformedXML", "InvalidRequest")
    assert failing(s3.get_object, Bucket=bucket, Key="k") == ("NoSuchKey", 404)
    # It is still open, and good parts still make an object.
    complete(s3, bucket, upload_id, [second])
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"end"


@pytest.mark.parametrize("number", [0, 10_001, -1])
def test_part_numbers_out_of_range(number, s3, bucket):
    upload_id = create(s3, bucket)
    assert failing(upload, s3=s3, bucket=bucket, upload_id=upload_id, number=number, body=b"x")[0] == "InvalidArgument"


def test_too_many_parts(cluster, s3, bucket):
    upload_id = create(s3, bucket)
    etag = upload(s3, bucket, upload_id, 1, b"x")["ETag"].strip('"')
    parts = "".join(f"<Part><PartNumber>{n}</PartNumber><ETag>{etag}</ETag></Part>" for n in range(1, 10_002))
    body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
    answer = Signed(cluster, "POST", f"/{bucket}/k", query={"uploadId": upload_id}, body=body).send()
    assert answer.status_code == 400 and code(answer) in ("MalformedXML", "InvalidArgument", "InvalidPart"), answer.text


def test_an_upload_belongs_to_its_key_and_bucket(s3, bucket):
    upload_id = create(s3, bucket)
    other = new_bucket(s3)
    for where in (dict(bucket=bucket, key="other"), dict(bucket=other, key="k")):
        assert failing(upload, s3=s3, upload_id=upload_id, number=1, body=b"x", **where) == ("NoSuchUpload", 404)
    for bad in ("nonsense", "00000000-0000-0000-0000-000000000000"):
        assert failing(upload, s3=s3, bucket=bucket, upload_id=bad, number=1, body=b"x") == ("NoSuchUpload", 404)


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
def test_checksums_of_multipart_objects(algorithm, s3, bucket):
    bodies = [make_bytes(PART, 1), b"last part"]
    upload_id = create(s3, bucket, ChecksumAlgorithm=algorithm)
    parts = []
    for number, body in enumerate(bodies, 1):
        answer = s3.upload_part(
            Bucket=bucket, Key="k", UploadId=upload_id, PartNumber=number, Body=body, ChecksumAlgorithm=algorithm
        )
        name = f"Checksum{algorithm}"
        parts.append({"PartNumber": number, "ETag": answer["ETag"], name: answer[name]})
    done = complete(s3, bucket, upload_id, parts)
    head = s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert head[f"Checksum{algorithm}"] == done[f"Checksum{algorithm}"]
    if algorithm.startswith("SHA"):
        digest = getattr(hashlib, algorithm.lower())
        wanted = base64.b64encode(digest(b"".join(digest(body).digest() for body in bodies)).digest()).decode() + "-2"
        assert done[f"Checksum{algorithm}"] == wanted


def test_conditional_completion(s3, bucket):
    upload_id = create(s3, bucket)
    part = upload(s3, bucket, upload_id, 1, b"multipart")
    s3.put_object(Bucket=bucket, Key="k", Body=b"there first")
    with_condition = dict(s3=s3, bucket=bucket, upload_id=upload_id, parts=[part], IfNoneMatch="*")
    assert failing(complete, **with_condition) == ("PreconditionFailed", 412)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"there first"
    s3.delete_object(Bucket=bucket, Key="k")
    complete(**with_condition)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"multipart"
