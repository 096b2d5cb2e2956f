"""What is held against the sources themselves: secrets, comparisons, versions, locks, and what is read of strangers."""

import re
import subprocess
import tomllib

import pytest
from solders.keypair import Keypair

from people import Owner, code_of, coming_from, next_address
from process import REPO
from raw import Signed

# SECURITY.md's: below these, versions have known holes that reach us.
MINIMUM = {
    "s3s": "0.14.1", "quick-xml": "0.41", "h2": "0.4.16", "tonic": "0.12.3", "jsonwebtoken": "10.3", "libp2p-gossipsub": "0.49.4",
    "bytes": "1.11.1", "sqlx": "0.8.1", "tokio-postgres": "0.7.18", "rustls": "0.23.18", "rustls-webpki": "0.103.13", "ed25519-dalek": "2",
    "aes-gcm": "0.10.3", "aws-lc-sys": "0.47.0", "tungstenite": "0.20.1",
}
NEVER = {"openssl", "openssl-sys", "native-tls", "rsa", "chrono_anchor", "polymarket-clients-sdk", "clob-sdk", "solana-sdk"}


def files(*endings: str) -> list:
    listed = subprocess.run(["git", "ls-files"], cwd=REPO, capture_output=True, text=True, check=True).stdout.splitlines()
    return [REPO / name for name in listed if name.endswith(endings) and (REPO / name).is_file()]


def without_tests(text: str) -> str:
    return re.split(r"^#\[cfg\(test\)\]\s*\nmod tests", text, flags=re.M)[0]


def sources(*crates: str) -> dict:
    """What servers are built from, without their tests."""
    wanted = [path for path in files(".rs") if "src" in path.parts and not path.name.endswith(("tests.rs", "testing.rs"))]
    wanted = [path for path in wanted if not crates or path.relative_to(REPO).parts[0] in crates]
    return {path: without_tests(path.read_text()) for path in wanted if "tests" not in path.parts and "testkit" not in path.parts}


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.split(r"[.+-]", text)[:3] if part.isdigit())


SECRET = re.compile(
    r"""-----BEGIN\ [A-Z ]*PRIVATE|AKIA[0-9A-Z]{16}|ghp_[A-Za-z0-9]{36}|xox[bp]-[0-9]|
    (?i:(?:secret|password|passwd|token|api_?key|private_?key|master_?key))\w*["']?\s*(?::\s*&?(?:'static\s+)?str\s*)?[:=]\s*b?["'][A-Za-z0-9+/_.-]{12,}["']""",
    re.X)
# The name under which a hash of the master key is kept.
FINE = re.compile(r"MASTER_KEY_CHECK")


def test_adv_01_no_secret_is_written_down():
    """In the tree there is none, outside of tests, which have to have some."""
    assert SECRET.search('const RPC_SECRET: &str = "rustfs-rpc-secret";') and SECRET.search('jwt_secret = "0123456789abcdef"')
    assert SECRET.search("-----BEGIN PRIVATE KEY-----")
    found = []
    texts = sources() | {path: path.read_text() for path in files(".toml", ".sh", ".yml", ".yaml", ".sql", ".json", ".env", "Dockerfile")}
    texts |= {path: path.read_text() for path in files("") if path.parent.name == "script"}
    assert len(texts) > 200
    # What is fed with noise has keys of its own, and serves nobody.
    texts = {path: text for path, text in texts.items() if path.relative_to(REPO).parts[0] != "fuzz"}
    for path, text in texts.items():
        found += [f"{path.relative_to(REPO)}: {match.group(0)}" for match in SECRET.finditer(text) if not FINE.search(match.group(0))]
    assert found == []
    assert not [path for path in files(".pem", ".key", ".p12", ".env", "id_rsa", "id_ed25519")]


# Names of what an attacker must not find out byte by byte.
COMPARED = re.compile(r"\b\w*(secret|signature|hmac|mac|password|passphrase|verifier|token_hash|digest_of_token|csrf|nonce)\w*(?:\(\))?\s*(?:==|!=)|"
                      r"(?:==|!=)\s*[&*]?(?:\w+\.)*\w*(secret|signature|hmac|password|passphrase|token_hash)\w*\b")
# Lengths and kinds may be compared, and names of algorithms; so may what the client and not we have kept.
HARMLESS = re.compile(r"\.len\(\)|\.is_empty|SIGNATURE_TRAILER|is_none|is_some|_MAX|_MIN|_LEN|Place::|Kind::|Scheme::")


def test_adv_12_no_secret_is_compared_byte_by_byte():
    assert COMPARED.search("if given_secret == self.secret {") and COMPARED.search("right != signature") and COMPARED.search("a == claim.signature")
    texts = sources("cyxcloud-gateway", "cyxcloud-core", "cyxcloud-node", "cyxwiz-api", "cyxcloud-rebalancer", "cyxcloud-standalone")
    found = []
    for path, text in texts.items():
        for number, line in enumerate(text.splitlines(), 1):
            plain = line.split("//")[0]
            if COMPARED.search(plain) and not HARMLESS.search(plain):
                found.append(f"{path.relative_to(REPO)}:{number}: {line.strip()}")
    assert found == []
    # Where they are compared, it takes the same time whatever they are.
    signatures = (REPO / "cyxcloud-core/src/sigv4.rs").read_text()
    assert re.search(r"fn signatures_match.*?ct_eq", signatures, re.S)


# Statements put together of constants, ids in hexadecimal and nothing else; each was read.
COMPOSED = {"transact.rs", "upkeep.rs"}


def test_adv_36_no_value_becomes_sql():
    """Statements are constants; what varies is bound. And over the wire: names are names, whatever is in them."""
    found, statements = [], 0
    for path, text in sources("cyxcloud-metadata", "cyxwiz-api", "cyxcloud-gateway", "cyxcloud-rebalancer").items():
        for call in re.finditer(r"\b(?:sqlx::query\w*(?:::<[^>]*>)?|raw_sql|\.execute|\.query\w*|prepare\w*)\(\s*(&?format!|\w+\s*\+|&\(?\w+\s*\+)", text):
            found.append(f"{path.relative_to(REPO)}: {text[call.start():call.start() + 90]!r}")
        statements += len(re.findall(r"sqlx::query|\.prepare", text))
        found += [f"{path.relative_to(REPO)}: AssertSqlSafe"] * len(re.findall(r"AssertSqlSafe\(", text)) if path.name not in COMPOSED else []
    assert found == [] and statements > 20


@pytest.mark.parametrize("name", ["'; DROP TABLE objects; --", "' OR '1'='1", "\\'; --", "$1", "%", "_", "%_%", "a\\", "{}", "\ufffd", "\U0001f4a3", "NULL"])
def test_adv_36_names_that_look_like_sql(name, cluster, s3, bucket):
    s3.put_object(Bucket=bucket, Key="other", Body=b"other")
    s3.put_object(Bucket=bucket, Key=name, Body=name.encode(), Metadata={"a": "'; --"})
    assert s3.get_object(Bucket=bucket, Key=name)["Body"].read() == name.encode()
    for more in ({"Prefix": name}, {"Prefix": name[0], "Delimiter": name}):
        listed = s3.list_objects_v2(Bucket=bucket, **more)
        found = {entry["Key"] for entry in listed.get("Contents", [])} | {entry["Prefix"] for entry in listed.get("CommonPrefixes", [])}
        assert found == {name}, more
    assert "other" not in [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket, Prefix=name)["Contents"]]
    s3.delete_object(Bucket=bucket, Key=name)
    assert [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["other"]


def test_adv_36_fields_have_an_end(cluster, s3, bucket):
    assert code_of(s3.put_object, Bucket=bucket, Key="k" * 1025, Body=b"x") == "KeyTooLongError"
    assert code_of(s3.put_object, Bucket=bucket, Key="k", Body=b"x", Metadata={"a": "x" * 2049}) == "MetadataTooLarge"
    assert code_of(s3.list_objects_v2, Bucket=bucket, Prefix="x" * 2000) in ("OK", "InvalidArgument", "KeyTooLongError")
    owner = Owner(cluster)
    for body in ({"name": "x" * 65}, {"name": "x\0y"}, {"name": "k", "prefixes": ["x" * 1025]}, {"name": "k", "buckets": ["bucket"] * 101}):
        assert owner.api("POST", "/api/v1/auth/api-keys", json=body).status_code == 400, body
    nul = Signed(cluster, "PUT", f"/{bucket}/a\0b", body=b"x").send()
    assert nul.status_code in (200, 400), nul.text
    assert code_of(s3.put_object, Bucket=bucket, Key="k" * 1024, Body=b"x", Metadata={"a": "x" * 2000}) == "OK"


# What is read that is not a stranger's: our own words back from the database and from Redis, other servers' answers to the CLI, and tokens,
# whose signature is checked first and which others may add claims to.
OURS = {
    "Pending", "Issued", "StoredChecksum", "Completed", "Claims", "TokenKind", "NodeStatus", "Given", "Token", "Passed", "Received",
}
STRANGERS = ("cyxcloud-gateway", "cyxwiz-api", "cyxcloud-node", "cyxcloud-rebalancer", "cyxcloud-standalone")


def test_adv_37_what_is_read_of_strangers_is_what_is_known(cluster):
    found, strict = [], 0
    for path, text in sources(*STRANGERS).items():
        for match in re.finditer(r"#\[derive\([^)]*\bDeserialize\b[^)]*\)\]((?:\s*#\[[^\]]*\]|\s*///[^\n]*)*)\s*(?:pub(?:\([^)]*\))?\s+)?(struct|enum)\s+(\w+)", text):
            if match.group(3) in OURS or match.group(2) == "enum":
                continue
            if "deny_unknown_fields" in match.group(1):
                strict += 1
            else:
                found.append(f"{path.relative_to(REPO)}: {match.group(3)}")
    assert found == [] and strict >= 8
    owner, session = Owner(cluster), coming_from(next_address())
    wallet = str(Keypair().pubkey())
    assert session.post(f"{cluster.url}/api/v1/auth/challenge", json={"wallet_address": wallet}, timeout=30).status_code == 200
    for body in ({"wallet_address": wallet, "admin": True}, {"wallet_address": wallet, "walletAddress": wallet}, {"wallet_address": [wallet]}):
        assert session.post(f"{cluster.url}/api/v1/auth/challenge", json=body, timeout=30).status_code == 400, body
    twice = b'{"wallet_address": "x", "wallet_address": "%b"}' % wallet.encode()
    assert session.post(f"{cluster.url}/api/v1/auth/challenge", data=twice, timeout=30).status_code == 400
    assert owner.api("POST", "/api/v1/auth/api-keys", json={"name": "a", "read_only": "false"}).status_code == 400
    assert owner.api("POST", "/api/v1/auth/api-keys", json={"name": "a", "expires_in_days": 2**32 + 1}).status_code == 400
    user = Signed(cluster, "PATCH", f"/api/v1/admin/users/{owner.id}", body=b'{"storage_quota": 5, "password": "x"}').send()
    assert user.status_code == 400, user.text
    assert owner.api("POST", "/api/v1/auth/api-keys", json={"name": "a", "read_only": False}).status_code == 201


def locked() -> dict[str, list[str]]:
    versions: dict[str, list[str]] = {}
    for package in tomllib.loads((REPO / "Cargo.lock").read_text())["package"]:
        versions.setdefault(package["name"], []).append(package["version"])
    return versions


def test_adv_39_versions_that_are_new_enough():
    """Of what is built in, and of what deny.toml lets in."""
    denied = {}
    for entry in tomllib.loads((REPO / "deny.toml").read_text())["bans"]["deny"]:
        name, _, bound = entry["crate"].partition(":<")
        denied[name] = bound
    found = locked()
    assert {"h2", "s3s", "rustls", "quick-xml"} <= set(found)
    for name, least in MINIMUM.items():
        for have in found.get(name, []):
            assert version(have) >= version(least), f"{name} {have}"
        assert name in denied and version(denied[name]) >= version(least), f"deny.toml lets {name} below {least} in"
    # One TLS stack, and its parts.
    assert not NEVER & set(found)


def test_adv_40_what_is_built_is_what_is_locked():
    lock = tomllib.loads((REPO / "Cargo.lock").read_text())["package"]
    registry = "registry+https://github.com/rust-lang/crates.io-index"
    assert {package["source"] for package in lock if "source" in package} == {registry}
    assert all(len(package.get("checksum", "")) == 64 for package in lock if "source" in package)
    policy = tomllib.loads((REPO / "deny.toml").read_text())
    assert policy["sources"]["unknown-registry"] == policy["sources"]["unknown-git"] == "deny" and not policy["sources"]["allow-git"]
    assert "cargo deny --locked" in (REPO / "script/test").read_text()
    loose = []
    for path in files(""):
        if path.parent.name != "script" and path.suffix not in (".yml", ".yaml", ".sh"):
            continue
        for line in path.read_text(errors="replace").splitlines():
            if re.search(r"^\s*(?:\w+=\S+ |run |nice |exec )*\"?cargo\"? (build|test|run|clippy|install|nextest|deny)\b", line) and "--locked" not in line:
                loose.append(f"{path.relative_to(REPO)}: {line.strip()}")
    assert loose == []
    # Python's are pinned too.
    lines = [line for line in (REPO / "tests/requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert lines and all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), lines
