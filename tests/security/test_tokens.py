"""Attacks on tokens, log-ins and the secrets behind them."""

import base64
import hashlib
import hmac
import http.client
import json
import subprocess
import time

import pytest
import requests
from solders.keypair import Keypair

from clients import bearer
from data import base58
from people import Owner, Wallet, coming_from, next_address
from process import binary

GATEWAY = {"JWT_SECRET": "0123456789abcdef" * 4, "CYXCLOUD_MASTER_KEY": "00112233445566778899aabbccddeeff" * 2}


def part(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def unpart(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def status_with(cluster, token: str, path: str = "/api/v1/account") -> int:
    return requests.get(cluster.url + path, headers={"authorization": f"Bearer {token}"}, timeout=30).status_code


@pytest.mark.parametrize("env", [
    {"JWT_SECRET": ""}, {"JWT_SECRET": "short"}, {"JWT_SECRET": "x" * 31}, {"JWT_SECRET": "secret" * 10}, {"JWT_SECRET": "your-secret-here"},
    {"JWT_SECRET": "change-me" * 4}, {"JWT_SECRET": "a" * 64}, {"CYXCLOUD_MASTER_KEY": ""},
    {"CYXCLOUD_MASTER_KEY": "00" * 32}, {"CYXCLOUD_MASTER_KEY": "ff" * 32}, {"CYXCLOUD_MASTER_KEY": "abcd"},
    {"CYXCLOUD_ROOT_ACCESS_KEY": "root"}, {"CYXCLOUD_ROOT_ACCESS_KEY": "root", "CYXCLOUD_ROOT_SECRET_KEY": ""},
    {"CYXCLOUD_ROOT_ACCESS_KEY": "minioadmin", "CYXCLOUD_ROOT_SECRET_KEY": "minioadmin"},
    {"CYXCLOUD_ROOT_ACCESS_KEY": "root", "CYXCLOUD_ROOT_SECRET_KEY": "password"},
], ids=lambda env: "-".join(f"{name[-10:]}={value[:12]}" for name, value in env.items()))
def test_adv_02_secrets_that_everybody_knows(env, tmp_path):
    """A gateway does not start on them. One with good ones does: every other test has it."""
    command = [binary("cyxcloud-gateway"), "--data-dir", str(tmp_path), "--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0"]
    done = subprocess.run(command, env={"PATH": "/usr/bin:/bin"} | GATEWAY | env, capture_output=True, text=True, timeout=60)
    text = done.stdout + done.stderr
    assert done.returncode not in (0, 101) and "panicked" not in text, text
    assert any(name in text for name in (*env, "ROOT_SECRET_KEY")), text
    assert not any(len(value) > 8 and value in text for value in env.values()), "a secret is not to be shown"


def test_adv_02_each_secret_is_for_one_thing(cluster):
    """Root's S3 secret, the master key and the tokens' secret do not open each other's doors."""
    root, sub = cluster.credentials.secret_key, Owner(cluster).id
    assert status_with(cluster, bearer(cluster, sub=sub)) == 200
    for secret in (root, cluster.credentials.access_key, cluster.gateway.env["CYXCLOUD_MASTER_KEY"], "minioadmin", "rustfsadmin", "secret"):
        assert status_with(cluster, bearer(cluster, sub=sub, secret=secret)) == 401
        kid = hmac.new(cluster.jwt_secret.encode(), b"cyxcloud/jwt/kid/v1", hashlib.sha256).hexdigest()[:16]
        assert status_with(cluster, bearer(cluster, sub=sub, secret=secret, kid=kid)) == 401


def test_adv_05_each_bit_of_a_token_counts(cluster):
    """Nothing in a token is unauthenticated: of its neighbours by one bit none is accepted."""
    token = Owner(cluster).token
    assert status_with(cluster, token) == 200
    connection = http.client.HTTPConnection("127.0.0.1", cluster.http_port, timeout=30)
    pieces, accepted, tried = [unpart(text) for text in token.split(".")], [], 0
    for index, piece in enumerate(pieces):
        for bit in range(len(piece) * 8):
            changed = bytearray(piece)
            changed[bit // 8] ^= 1 << bit % 8
            text = b".".join(part(bytes(changed) if at == index else other) for at, other in enumerate(pieces)).decode()
            connection.request("GET", "/api/v1/account", headers={"authorization": f"Bearer {text}"})
            answer = connection.getresponse()
            answer.read()
            tried += 1
            if answer.status != 401:
                accepted.append((index, bit, answer.status))
    assert accepted == [] and tried > 1000
    head, body, mac = token.split(".")
    for text in (f"{head}.{body}.", f"{head}.{body}", f"{head}..{mac}", f"{head}.{body}.{mac}A", f"{head}.{body}.{mac[:-1]}", f"{token}.{mac}",
                 f"{head}.{body}=.{mac}", f"{token}="):
        assert status_with(cluster, text) == 401, text
    assert status_with(cluster, token) == 200


def test_adv_21_algorithms_and_claims(cluster):
    sub, now = Owner(cluster).id, int(time.time())
    good = bearer(cluster, sub=sub)
    head, body, _ = good.split(".")
    kid = json.loads(unpart(head))["kid"]

    def forged(algorithm, digest=None, key=b"", **header):
        front = part(json.dumps({"alg": algorithm, "typ": "JWT", "kid": kid} | header).encode()) + b"." + body.encode()
        mac = hmac.new(key or cluster.jwt_secret.encode(), front, digest).digest() if digest else b""
        return (front + b"." + part(mac)).decode()

    assert status_with(cluster, forged("HS256", hashlib.sha256)) == 200, "the forger can do it right"
    bad = {name: forged(name) for name in ("none", "None", "NONE", "nOnE", "", "HS256")}
    bad |= {name: forged(name, hashlib.sha256) for name in ("RS256", "ES256", "EdDSA", "PS256", "hs256")}
    bad |= {"HS384": forged("HS384", hashlib.sha384), "HS512": forged("HS512", hashlib.sha512)}
    bad |= {"empty key": forged("HS256", hashlib.sha256, key=b"\0"), "jwk": forged("none", jwk={"kty": "oct", "k": "AA"})}
    bad |= {"kid": forged("HS256", hashlib.sha256, kid="other"), "kid as path": forged("HS256", hashlib.sha256, kid="../../dev/null")}
    bad |= {"no kid": forged("HS256", hashlib.sha256, kid=None), "crit": forged("HS256", hashlib.sha256, crit=["exp"], alg="none")}
    for claim, values in {
        "exp": [None, now - 120, str(now + 600), True, -1, [now + 600], {}, "9" * 400],
        "nbf": [now + 600, str(now - 60), "x", [0], {}], "aud": [None, "evil", [], 1], "iss": [None, "evil", 1, ["evil"]],
        "sub": [None, "", "root", 1, "../root"], "jti": [None, 1], "typ": [None, "refresh", "node", "ws", "machine", 1, "Access"],
        "iat": [None, "x"], "ver": [5, "0", -1],
    }.items():
        bad |= {f"{claim}={value!r:.20}": bearer(cluster, **{"sub": sub, claim: value}) for value in values}
    for what, token in bad.items():
        for path in ("/api/v1/account", "/", "/s3/"):
            assert status_with(cluster, token, path) in (401, 403), (what, path)
    assert status_with(cluster, good) == 200


def test_adv_22_what_was_revoked_stays_revoked(cluster):
    """Also where Redis forgot all it knew: the truth is in the database."""
    wallet = Wallet(cluster)
    tokens, other = wallet.log_in(), Wallet(cluster).log_in()
    owner = Owner(cluster)
    key = owner.key()
    assert {status_with(cluster, text) for text in (tokens["access_token"], other["access_token"], key["token"])} == {200}
    access = {"authorization": f"Bearer {tokens['access_token']}"}
    assert requests.post(f"{cluster.url}/api/v1/auth/logout", headers=access, timeout=30).status_code == 204
    assert owner.api("DELETE", f"/api/v1/auth/api-keys/{key['id']}").status_code == 204
    for _ in range(2):
        assert status_with(cluster, tokens["access_token"]) == 401
        assert status_with(cluster, key["token"]) == 401
        refresh = {"authorization": f"Bearer {tokens['refresh_token']}"}
        assert requests.post(f"{cluster.url}/api/v1/auth/refresh", headers=refresh, timeout=30).status_code == 401
        assert status_with(cluster, other["access_token"]) == 200
        subprocess.run(["redis-cli", "-u", cluster.redis_url, "FLUSHDB"], check=True, capture_output=True)


def test_adv_23_a_signed_challenge_lets_in_once_and_its_wallet_only(cluster):
    mine, other = Wallet(cluster), Wallet(cluster)
    used = mine.signed()
    assert mine.send(used).status_code == 200
    assert [mine.send(used).status_code for _ in range(2)] == [401, 401]
    assert mine.session.get(f"{cluster.url}/health", timeout=30).ok
    # Somebody else's nonce, text or signature; and the text of another service.
    fresh = Wallet(cluster)
    for change in (
        lambda body: body | {"wallet_address": str(other.keypair.pubkey())},
        lambda body: body | {"signature": str(other.keypair.sign_message(body["challenge"].encode()))},
        lambda body: evil(fresh, body, body["challenge"].replace("Domain: ", "Domain: evil.")),
        lambda body: evil(fresh, body, body["challenge"].replace("solana:mainnet", "solana:devnet")),
    ):
        assert fresh.send(change(fresh.signed())).status_code == 401
    raw = Wallet(cluster)
    body = raw.signed()
    assert raw.send(body | {"signature": str(raw.keypair.sign_message(body["nonce"].encode()))}).status_code == 401
    assert raw.send(body).status_code == 200, "what proves nothing uses nothing up"
    assert raw.send(body).status_code == 401
    assert raw.log_in()["access_token"]


def evil(wallet, body: dict, text: str) -> dict:
    assert text != body["challenge"]
    return body | {"challenge": text, "signature": str(wallet.keypair.sign_message(text.encode()))}


# The order of the group: added to S, the signature has a second form.
ORDER = 2**252 + 27742317777372353535851937790883648493
SMALL = ["0100000000000000000000000000000000000000000000000000000000000000", "00" * 32, "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
         "0000000000000000000000000000000000000000000000000000000000000080", "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
         "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85", "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"]


def test_adv_24_weak_keys_and_second_forms_of_signatures(cluster):
    wallet = Wallet(cluster)
    body = wallet.signed()
    signature = bytes(wallet.keypair.sign_message(body["challenge"].encode()))
    assert base58(signature) == body["signature"]
    second = signature[:32] + (int.from_bytes(signature[32:], "little") + ORDER).to_bytes(32, "little")
    for forged in (second, signature[:32] + bytes(32), bytes(64), b"\x01" + bytes(63), signature[:63], signature + b"\0"):
        again = Wallet(cluster, wallet.keypair if forged is second else Keypair())
        assert again.send(again.signed() | {"signature": base58(forged)}).status_code in (400, 401)
    session = coming_from(next_address())
    for key in SMALL:
        address = base58(bytes.fromhex(key))
        answer = session.post(f"{cluster.url}/api/v1/auth/challenge", json={"wallet_address": address}, timeout=30)
        assert answer.status_code == 400, (key, answer.text)
        # A small key "signs" every text with R = A and S = 0.
        forged = {"wallet_address": address, "signature": base58(bytes.fromhex(key) + bytes(32)), "nonce": body["nonce"]}
        assert session.post(f"{cluster.url}/api/v1/auth/wallet", json=forged, timeout=30).status_code in (400, 401)
    assert wallet.log_in()["access_token"]
