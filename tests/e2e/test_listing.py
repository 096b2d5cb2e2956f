"""Listings: pages, prefixes, delimiters, encodings, both versions, in byte order."""

import re
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote_plus

import pytest

from clients import new_bucket, s3_client
from raw import Signed
from test_objects import failing

KEYS = sorted(
    [f"a/{n:03}" for n in range(30)] + [f"b/{n}/x" for n in range(25)] + ["a", "a!", "a0", "b", "c/", "c//", "c//d", "z" * 900]
    + ["ü/ä", "ü/ö", "日本/語", "space here/x y", "plus+/+", "per%2F/cent", "tab\there", "~end", "\U0010ffff"],
    key=str.encode,
)


@pytest.fixture(scope="module")
def listed(cluster):
    s3 = s3_client(cluster)
    bucket = new_bucket(s3, "list")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: s3.put_object(Bucket=bucket, Key=key, Body=key.encode()), KEYS))
    return s3, bucket


def fold(prefix: str, delimiter: str) -> tuple[list[str], list[str]]:
    """What a listing must answer, by definition."""
    keys, prefixes = [], []
    for key in KEYS:
        if key.startswith(prefix):
            at = key.find(delimiter, len(prefix)) if delimiter else -1
            if at < 0:
                keys.append(key)
            elif (common := key[:at + len(delimiter)]) not in prefixes:
                prefixes.append(common)
    return keys, prefixes


def pages(call, **arguments):
    """All pages of a listing of either version: keys, common prefixes, in the order answered."""
    keys, prefixes, count = [], [], 0
    while True:
        page = call(**arguments)
        keys += [entry["Key"] for entry in page.get("Contents", [])]
        prefixes += [entry["Prefix"] for entry in page.get("CommonPrefixes", [])]
        count += 1
        assert count < 500
        if not page["IsTruncated"]:
            return keys, prefixes
        if "NextContinuationToken" in page:
            arguments["ContinuationToken"] = page["NextContinuationToken"]
        else:
            arguments["Marker"] = page.get("NextMarker") or page["Contents"][-1]["Key"]


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("prefix,delimiter", [
    ("", ""), ("", "/"), ("a/", "/"), ("a", "/"), ("b/", "/"), ("c/", "/"), ("c", "//"), ("ü/", ""), ("ü", "/"), ("nothing", "/"),
    ("a/0", "0"), ("", "ä"),
])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_listing(version, prefix, delimiter, size, listed):
    s3, bucket = listed
    call = s3.list_objects if version == "v1" else s3.list_objects_v2
    arguments = dict(Bucket=bucket, Prefix=prefix, MaxKeys=size)
    if delimiter:
        arguments["Delimiter"] = delimiter
    assert pages(call, **arguments) == fold(prefix, delimiter)


def test_what_a_listing_says_of_an_object(listed):
    s3, bucket = listed
    head = s3.head_object(Bucket=bucket, Key="a/001")
    entry = s3.list_objects_v2(Bucket=bucket, Prefix="a/001")["Contents"][0]
    assert entry["ETag"] == head["ETag"] and entry["Size"] == head["ContentLength"] == 5
    assert abs((entry["LastModified"] - head["LastModified"]).total_seconds()) < 1
    assert s3.list_objects(Bucket=bucket, Prefix="a/001")["Contents"][0]["Owner"]["ID"]


def test_start_after_and_markers(listed):
    s3, bucket = listed
    after = lambda key: [k for k in KEYS if k.encode() > key.encode()]  # noqa: E731
    for key in ("a/010", "a/010x", "ü/ä", "", "zz"):
        assert pages(s3.list_objects_v2, Bucket=bucket, StartAfter=key, MaxKeys=11)[0] == after(key)
        assert pages(s3.list_objects, Bucket=bucket, Marker=key, MaxKeys=11)[0] == after(key)


def test_url_encoding_of_keys(cluster, listed):
    """As clients ask for that cannot read control characters in XML."""
    _, bucket = listed
    query = {"list-type": "2", "encoding-type": "url", "delimiter": "/"}
    answer = Signed(cluster, "GET", f"/{bucket}", query=query).send()
    assert answer.status_code == 200 and "<EncodingType>url</EncodingType>" in answer.text
    keys = [unquote_plus(key) for key in re.findall(r"<Contents>.*?<Key>(.*?)</Key>", answer.text, re.S)]
    assert keys == fold("", "/")[0]
    assert "%C3%BC" in answer.text


def test_limits_of_max_keys(listed):
    s3, bucket = listed
    none = s3.list_objects_v2(Bucket=bucket, MaxKeys=0)
    assert none["KeyCount"] == 0 and not none["IsTruncated"]
    assert s3.list_objects_v2(Bucket=bucket, MaxKeys=100_000)["MaxKeys"] == 1000
    assert failing(s3.list_objects_v2, Bucket=bucket, ContinuationToken="no token")[0] == "InvalidArgument"


def test_a_page_has_at_most_a_thousand(cluster):
    s3 = s3_client(cluster)
    bucket = new_bucket(s3, "many")
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: s3.put_object(Bucket=bucket, Key=f"{n:05}", Body=b""), range(1100)))
    page = s3.list_objects_v2(Bucket=bucket)
    assert page["KeyCount"] == 1000 and page["IsTruncated"]
    rest = s3.list_objects_v2(Bucket=bucket, ContinuationToken=page["NextContinuationToken"])
    assert rest["KeyCount"] == 100 and not rest["IsTruncated"]
