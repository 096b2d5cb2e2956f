"""What comes back is what was put: every client, every size around a boundary, every kind of key."""

import hashlib
import os
import uuid

import pytest
from botocore.exceptions import ClientError

from clients import CLIENTS, CommandFailed, new_bucket, s3_client
from data import GIB, KIB, MIB, SIZES, make_bytes, make_file, sha256


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """One file of every size, and their hashes by name."""
    directory = tmp_path_factory.mktemp("files")
    return directory, {f"{size}.bin": make_file(directory / f"{size}.bin", size, "tree") for size in SIZES}


@pytest.mark.parametrize("mount", ["root", "s3"])
@pytest.mark.parametrize("name", CLIENTS)
def test_every_size_comes_back_as_it_was(name, mount, cluster, files, tmp_path):
    if mount == "s3" and name == "s5cmd":
        pytest.skip("s5cmd drops the path of an endpoint URL")
    if mount == "s3" and name == "cyxcloud-cli":
        pytest.skip("cyxcloud-cli chooses the mount itself")
    directory, hashes = files
    client = CLIENTS[name](cluster, mount, tmp_path / "home")
    bucket = f"sizes-{uuid.uuid4().hex[:12]}"
    client.make_bucket(bucket)
    client.put_tree(directory, bucket, "some/where/")
    assert sorted(client.keys(bucket, "some/where/")) == sorted(f"some/where/{name}" for name in hashes)
    back = tmp_path / "back"
    back.mkdir()
    client.get_tree(bucket, "some/where/", back)
    assert {path.name: sha256(path) for path in back.rglob("*") if path.is_file()} == hashes


@pytest.mark.parametrize("size", SIZES)
def test_one_put_and_one_get_whatever_the_size(size, s3, bucket):
    body = make_bytes(size, "single")
    put = s3.put_object(Bucket=bucket, Key="k", Body=body)
    assert put["ETag"] == f'"{hashlib.md5(body).hexdigest()}"'
    got = s3.get_object(Bucket=bucket, Key="k")
    assert got["ContentLength"] == size and got["ETag"] == put["ETag"]
    assert sha256(got["Body"].read()) == sha256(body)
    assert s3.head_object(Bucket=bucket, Key="k")["ContentLength"] == size


KEYS = [
    "plain.txt",
    "with space and  two",
    "plus+sign",
    "per%cent", "per%20cent", "%41",
    "ünïcödé/日本語/emoji-😀",
    "e\u0301 decomposed and \u00e9 composed",
    "a//b", "a///b", "ends/with/",
    "quote'and\"double", "back\\slash", "semi;colon&amp=eq?quest#hash",
    "~tilde!$(paren)*,:@[bracket]",
    "dots/../and/./so",
    "tab\tand\x01control",
    "l" * 1024,
    "ü" * 512,
    "/leads", "//leads twice",
]


@pytest.mark.parametrize("key", KEYS, ids=lambda key: ascii(key)[:24])
def test_keys_with_boto3(key, s3, bucket):
    body = make_bytes(1000, key)
    s3.put_object(Bucket=bucket, Key=key, Body=body)
    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == body
    assert s3.head_object(Bucket=bucket, Key=key)["ContentLength"] == len(body)
    assert [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket).get("Contents", [])] == [key]
    s3.delete_object(Bucket=bucket, Key=key)
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)


def test_keys_that_look_alike_are_different_objects(s3, bucket):
    for key in KEYS:
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    for key in KEYS:
        assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == key.encode()
    listed = [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]]
    assert listed == sorted(KEYS, key=str.encode)


# Keys that command lines of all clients can carry; a key of one 1,024-byte component does not fit into a file name,
# but none is needed here.
SHELL_KEYS = [
    "plain.txt", "with space", "plus+sign", "per%20cent", "ünïcödé/日本語/😀", "a//b",
    "quote'and&amp=eq;x", "~tilde!$(paren),:@", "/".join(["d" * 100] * 10) + "/" + "e" * 14,
]


@pytest.mark.parametrize("key", SHELL_KEYS, ids=lambda key: ascii(key)[:24])
def test_keys_with_each_client(key, client, s3, bucket, tmp_path):
    if not client.can_name(key):
        pytest.skip(f"{client.name} cannot name it")
    source, back = tmp_path / "source", tmp_path / "back"
    digest = make_file(source, 70_000, key)
    client.put(source, bucket, key)
    assert [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]] == [key]
    client.get(bucket, key, back)
    assert sha256(back) == digest
    client.delete(bucket, key)
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)


def test_a_missing_object_is_an_error_with_each_client(client, bucket, tmp_path):
    target = tmp_path / "target"
    if client.name == "rclone":
        # What is no object may be a folder to it; an empty one copies well.
        client.get(bucket, "nothing/here", target)
    else:
        with pytest.raises((CommandFailed, ClientError)):
            client.get(bucket, "nothing/here", target)
    assert not target.exists()


@pytest.mark.timeout(900)
def test_a_gibibyte_in_one_stream(cluster, s3, bucket, tmp_path):
    """Streamed by one request each way, odd length, and read back also from the middle."""
    source = tmp_path / "big"
    size = GIB + 4 * MIB - 1
    digest = make_file(source, size, "big")
    with source.open("rb") as file:
        s3.put_object(Bucket=bucket, Key="big", Body=file)
    got, seen = hashlib.sha256(), 0
    for piece in s3.get_object(Bucket=bucket, Key="big")["Body"].iter_chunks(MIB):
        got.update(piece)
        seen += len(piece)
    assert (seen, got.hexdigest()) == (size, digest)
    start = 777 * MIB + 3
    part = s3.get_object(Bucket=bucket, Key="big", Range=f"bytes={start}-{start + 9 * MIB}")["Body"].read()
    with source.open("rb") as file:
        file.seek(start)
        assert part == file.read(9 * MIB + 1)
    s3.delete_object(Bucket=bucket, Key="big")
    os.unlink(source)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["aws", "rclone", "s5cmd", "cyxcloud-cli"])
def test_a_gibibyte_with(name, cluster, tmp_path):
    """In parts and in parallel, as the client likes it; an odd length."""
    client = CLIENTS[name](cluster, "root", tmp_path / "home")
    source, back = tmp_path / "big", tmp_path / "back"
    digest = make_file(source, GIB + 12_345, name)
    bucket = f"gibibyte-{uuid.uuid4().hex[:12]}"
    client.make_bucket(bucket)
    client.put(source, bucket, "big")
    os.unlink(source)
    client.get(bucket, "big", back)
    assert sha256(back) == digest
    os.unlink(back)
    client.delete(bucket, "big")


def test_disks_hold_no_readable_body(cluster, s3, bucket):
    """What nodes hold is sealed: a marker in the object is in none of their files."""
    marker = b"this text must not reach a disk " * 8192
    s3.put_object(Bucket=bucket, Key="secret", Body=marker)
    s3.put_object(Bucket=bucket, Key="secret-small", Body=marker[: 20 * KIB])
    for node in cluster.directory.glob("node-*"):
        for path in node.rglob("*"):
            if path.is_file():
                assert b"this text must not reach a disk" not in path.read_bytes(), path


def test_the_same_object_by_both_mounts(cluster, s3, bucket):
    prefixed = s3_client(cluster, "s3")
    prefixed.put_object(Bucket=bucket, Key="k k", Body=b"one")
    assert s3.get_object(Bucket=bucket, Key="k k")["Body"].read() == b"one"
    s3.put_object(Bucket=bucket, Key="k k", Body=b"two")
    assert prefixed.get_object(Bucket=bucket, Key="k k")["Body"].read() == b"two"
    other = new_bucket(prefixed)
    assert other in [entry["Name"] for entry in s3.list_buckets()["Buckets"]]
