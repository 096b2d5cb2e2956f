"""The audit log tells who did what to buckets and objects, from where and how it went, on both engines."""

import uuid

import pytest
import requests

from clients import s3_client
from people import Owner, code_of
from process import wait_until
from raw import Signed


def lines(server, path: str = "/api/v1/audit-log", **credentials) -> list[dict]:
    """The whole log, oldest first."""
    found, after = [], {}
    while True:
        answer = Signed(server, "GET", path, query={"limit": "1000"} | after, **credentials).send()
        assert answer.status_code == 200, answer.text
        found += answer.json()["entries"]
        if not answer.json()["next"]:
            return found[::-1]
        after = {"after": answer.json()["next"]}


def told(server, bucket: str, count: int, **credentials) -> list[tuple[str, str, str]]:
    """Action, rest of the target and outcome of each line about a bucket, once there are so many."""

    def about():
        all_of = [line for line in lines(server, **credentials) if line["target"].split("/")[0] == bucket]
        return all_of if len(all_of) >= count else None

    found = wait_until(f"{count} lines are about {bucket}", about, interval=0.2)
    assert {line["address"] for line in found} == {"127.0.0.1"}
    return [(line["action"], line["target"].removeprefix(bucket), line["outcome"]) for line in found]


def everything(s3, bucket: str) -> list[tuple[str, str, str]]:
    """Does what can be done, and what cannot; what the log should say of it."""
    s3.create_bucket(Bucket=bucket)
    s3.put_object(Bucket=bucket, Key="a b/ü", Body=b"x")
    s3.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "a b/ü"})
    s3.get_object(Bucket=bucket, Key="copy")
    s3.list_objects_v2(Bucket=bucket)
    for key in ("done", "left"):
        upload = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        etag = s3.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"part")["ETag"]
        if key == "done":
            parts = {"Parts": [{"PartNumber": 1, "ETag": etag}]}
            s3.complete_multipart_upload(Bucket=bucket, Key=key, UploadId=upload, MultipartUpload=parts)
        else:
            s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
    assert code_of(s3.put_bucket_policy, Bucket=bucket, Policy="{}") != "OK"
    assert code_of(s3.delete_bucket, Bucket=bucket) == "BucketNotEmpty"
    s3.delete_object(Bucket=bucket, Key="copy")
    keys = [{"Key": "a b/ü"}, {"Key": "done"}, {"Key": "x" * 1025}]
    assert len(s3.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})["Errors"]) == 1
    s3.delete_bucket(Bucket=bucket)
    return [
        ("bucket.create", "", "ok"), ("object.put", "/a b/ü", "ok"), ("object.copy", f"/copy from {bucket}/a b/ü", "ok"),
        ("upload.complete", "/done", "ok"), ("upload.abort", "/left", "ok"), ("bucket.config", "", "NotImplemented"),
        ("bucket.delete", "", "BucketNotEmpty"), ("object.delete", "/copy", "ok"), ("object.delete", "/a b/ü", "ok"),
        ("object.delete", "/done", "ok"), ("object.delete", "/" + "x" * 1025, "KeyTooLongError"), ("bucket.delete", "", "ok"),
    ]


@pytest.mark.parametrize("engine", ["cluster", "standalone"])
def test_what_is_done_is_told_in_order(engine, request):
    server = request.getfixturevalue(engine)
    bucket = f"told-{uuid.uuid4().hex[:12]}"
    wanted = everything(s3_client(server), bucket)
    found = told(server, bucket, len(wanted))
    # Keys of one request may come in any order.
    assert sorted(found) == sorted(wanted) and found[:8] == wanted[:8] and found[-1] == wanted[-1]


def test_what_was_denied_is_told(cluster):
    mine, other = Owner(cluster), Owner(cluster)
    bucket = f"denied-{uuid.uuid4().hex[:12]}"
    mine.s3().create_bucket(Bucket=bucket)
    mine.s3().put_object(Bucket=bucket, Key="k", Body=b"secret")
    key = other.key()
    theirs = other.s3(key)
    for act in (theirs.get_object, theirs.head_object, theirs.put_object, theirs.delete_object, theirs.create_multipart_upload):
        assert code_of(act, Bucket=bucket, Key="k") in ("AccessDenied", "403")
    assert code_of(theirs.get_object, Bucket=bucket, Key="none") == "AccessDenied"
    signed = {"access_key": key["access_key_id"], "secret": key["secret_access_key"]}
    assert told(cluster, bucket, 6, **signed) == [
        ("object.read", "/k", "AccessDenied"), ("object.read", "/k", "403"), ("object.put", "/k", "AccessDenied"),
        ("object.delete", "/k", "AccessDenied"), ("upload.begin", "/k", "AccessDenied"), ("object.read", "/none", "AccessDenied"),
    ]
    actors = {line["actor"] for line in lines(cluster, **signed) if line["target"].startswith(bucket)}
    assert actors == {f"{other.id} by key {key['access_key_id']}"}
    # An administrator sees all of it; its owner sees what is his, and nobody what is another's.
    everybody = [line for line in lines(cluster, "/api/v1/admin/audit-log") if line["target"].startswith(bucket)]
    assert {line["owner"] for line in everybody} == {mine.id, other.id}
    own = mine.api("GET", "/api/v1/audit-log").json()["entries"]
    assert own and {line["owner"] for line in own} == {mine.id}
    # Strangers without credentials fill no log.
    before = len(lines(cluster, "/api/v1/admin/audit-log"))
    for _ in range(20):
        assert requests.put(f"{cluster.url}/{bucket}/k", data=b"x", timeout=30).status_code == 403
    assert len(lines(cluster, "/api/v1/admin/audit-log")) - before < 20


def test_who_is_new_or_refused_is_told(cluster):
    who = Owner(cluster)
    narrow = who.key(read_only=True)
    assert who.api("GET", "/api/v1/auth/api-keys", token=narrow["token"]).status_code == 403
    assert who.api("GET", "/api/v1/admin/users").status_code == 403
    assert who.api("PATCH", f"/api/v1/admin/users/{who.id}", json={"role": "admin"}).status_code == 403
    own = [(line["actor"], line["action"], line["outcome"]) for line in who.api("GET", "/api/v1/audit-log").json()["entries"]]
    assert own == [
        (f"{who.id} by key {narrow['access_key_id']}", "GET /api/v1/auth/api-keys", "403"), (who.id, "api-key.create", "ok"),
        (who.id, "signup", "ok"),
    ]
    refused = [(line["action"], line["target"], line["outcome"]) for line in lines(cluster, "/api/v1/admin/audit-log")
               if line["actor"] == who.id and line["owner"] is None]
    assert refused == [
        ("GET /api/v1/admin/users", "/api/v1/admin/users", "403"),
        ("PATCH /api/v1/admin/users/{id}", f"/api/v1/admin/users/{who.id}", "403"),
    ]


def test_the_last_lines_are_written_before_the_end(standalone):
    s3, bucket = s3_client(standalone), f"last-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=bucket)
    for number in range(30):
        s3.put_object(Bucket=bucket, Key=f"k{number}", Body=b"x")
    assert standalone.process.stop() == 0
    standalone.start()
    puts = [target for action, target, _ in told(standalone, bucket, 31) if action == "object.put"]
    assert puts == [f"/k{number}" for number in range(30)]
