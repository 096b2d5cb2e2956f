"""Checksums: every algorithm, as header, as trailer, asked for and wrong."""

import base64
import binascii
import hashlib

import pytest

from data import MIB, make_bytes
from raw import Signed, code, head, send_bytes
from test_objects import failing

ALGORITHMS = ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"]


def crc(data: bytes, polynomial: int, bits: int) -> bytes:
    """A reflected CRC with all ones before and after, bit by bit: slow, and not the code under test."""
    mask = (1 << bits) - 1
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ polynomial if byte & 1 else byte >> 1
        table.append(byte)
    value = mask
    for byte in data:
        value = table[(value ^ byte) & 255] ^ value >> 8
    return (value ^ mask).to_bytes(bits // 8, "big")


DIGESTS = {
    "CRC32": lambda data: binascii.crc32(data).to_bytes(4, "big"),
    "CRC32C": lambda data: crc(data, 0x82F63B78, 32),
    "CRC64NVME": lambda data: crc(data, 0x9A6C9329AC4BC9B5, 64),
    "SHA1": lambda data: hashlib.sha1(data).digest(),
    "SHA256": lambda data: hashlib.sha256(data).digest(),
}


def digest(algorithm: str, data: bytes) -> str:
    return base64.b64encode(DIGESTS[algorithm](data)).decode()


@pytest.mark.parametrize("size", [0, 1, 5000, 300_000])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_checksum_is_kept_and_given_back(algorithm, size, s3, bucket):
    """As SDKs do by default: the algorithm is named and the value follows the body."""
    body, name = make_bytes(size, algorithm), f"Checksum{algorithm}"
    wanted = digest(algorithm, body)
    assert s3.put_object(Bucket=bucket, Key="k", Body=body, ChecksumAlgorithm=algorithm)[name] == wanted
    assert s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")[name] == wanted
    got = s3.get_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert got[name] == wanted and got["Body"].read() == body
    assert name not in s3.head_object(Bucket=bucket, Key="k")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_checksum_in_a_header(algorithm, s3, bucket):
    body, name = make_bytes(3000, algorithm), f"Checksum{algorithm}"
    assert s3.put_object(Bucket=bucket, Key="k", Body=body, **{name: digest(algorithm, body)})[name] == digest(algorithm, body)
    answer = failing(s3.put_object, Bucket=bucket, Key="bad", Body=body, **{name: digest(algorithm, body + b"!")})
    assert answer == ("BadDigest", 400)
    assert failing(s3.head_object, Bucket=bucket, Key="bad")[1] == 404


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_upload_that_names_no_checksum_has_one_where_it_was_asked_for(algorithm, s3, bucket):
    """Copies keep the source's checksum; a range has none of the whole."""
    body, name = make_bytes(200_000, algorithm), f"Checksum{algorithm}"
    s3.put_object(Bucket=bucket, Key="k", Body=body, ChecksumAlgorithm=algorithm)
    s3.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "k"})
    assert s3.head_object(Bucket=bucket, Key="copy", ChecksumMode="ENABLED")[name] == digest(algorithm, body)


def trailer_body(body: bytes, trailer: str, value: str) -> bytes:
    pieces = [body[at:at + 65536] for at in range(0, len(body), 65536)]
    framed = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return framed + b"0\r\n" + f"{trailer}:{value}\r\n\r\n".encode()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", [0, 100, 5 * MIB])
def test_a_checksum_in_an_unsigned_trailer(size, algorithm, cluster, s3, bucket):
    if size > MIB and algorithm in ("CRC32C", "CRC64NVME"):
        size = 200_000  # bit by bit in Python
    body, name = make_bytes(size, algorithm), f"x-amz-checksum-{algorithm.lower()}"

    def put(key, value):
        framed = trailer_body(body, name, value)
        return Signed(cluster, "PUT", f"/{bucket}/{key}", body=framed, payload="STREAMING-UNSIGNED-PAYLOAD-TRAILER", headers={
            "content-encoding": "aws-chunked", "x-amz-decoded-content-length": str(size), "x-amz-trailer": name,
        }).send()

    good = put("k", digest(algorithm, body))
    assert good.status_code == 200, good.text
    got = s3.get_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert got["Body"].read() == body and got[f"Checksum{algorithm}"] == digest(algorithm, body)
    assert "aws-chunked" not in got.get("ContentEncoding", "")
    bad = put("bad", digest(algorithm, body + b"!"))
    assert (bad.status_code, code(bad)) == (400, "BadDigest"), bad.text
    assert failing(s3.head_object, Bucket=bucket, Key="bad")[1] == 404


def test_content_md5(cluster, s3, bucket):
    body = make_bytes(3000, "md5")
    md5 = lambda data: base64.b64encode(hashlib.md5(data).digest()).decode()  # noqa: E731
    put = lambda key, value: Signed(cluster, "PUT", f"/{bucket}/{key}", body=body, headers={"content-md5": value}).send()  # noqa: E731
    assert put("k", md5(body)).status_code == 200
    wrong, malformed = put("bad", md5(b"other")), put("bad", "not base64!")
    assert (wrong.status_code, code(wrong)) == (400, "BadDigest")
    assert (malformed.status_code, code(malformed)) == (400, "InvalidDigest")
    assert [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["k"]


def test_a_trailer_that_was_announced_must_come(cluster, s3, bucket):
    body = b"5\r\nhello\r\n0\r\n\r\n"
    signed = Signed(cluster, "PUT", f"/{bucket}/k", body=body, payload="STREAMING-UNSIGNED-PAYLOAD-TRAILER", headers={
        "content-encoding": "aws-chunked", "x-amz-decoded-content-length": "5", "x-amz-trailer": "x-amz-checksum-crc32",
    })
    answer = signed.send()
    assert answer.status_code == 400, answer.text
    assert failing(s3.head_object, Bucket=bucket, Key="k")[1] == 404


@pytest.mark.parametrize("framed,declared", [
    (b"5\r\nhello\r\n0\r\n\r\n", 4), (b"5\r\nhello\r\n0\r\n\r\n", 6), (b"x\r\nhello\r\n0\r\n\r\n", 5),
    (b"ffffffffffffffff\r\nhello\r\n0\r\n\r\n", 5), (b"5\r\nhelloXX0\r\n\r\n", 5), (b"5\r\nhello\r\n", 5),
])
def test_broken_framing_leaves_nothing(framed, declared, cluster, s3, bucket):
    signed = Signed(cluster, "PUT", f"/{bucket}/k", body=framed, payload="STREAMING-UNSIGNED-PAYLOAD-TRAILER", headers={
        "content-encoding": "aws-chunked", "x-amz-decoded-content-length": str(declared),
    })
    answer = signed.send()
    assert 400 <= answer.status_code < 500, answer.text
    assert failing(s3.head_object, Bucket=bucket, Key="k")[1] == 404


def test_a_body_that_ends_early_leaves_nothing(cluster, s3, bucket):
    for size in (100, 5000, 500_000, 6 * MIB):
        body = make_bytes(size, "early")
        signed = Signed(cluster, "PUT", f"/{bucket}/early", body=body)
        send_bytes(cluster, head(signed, content_length=str(size)) + body[: size // 2], half_close=True)
        assert failing(s3.head_object, Bucket=bucket, Key="early")[1] == 404
