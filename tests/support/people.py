"""People who use a gateway: owners with keys of their own, wallets, and addresses to come from."""

import itertools
import uuid

import requests
from botocore.exceptions import ClientError
from requests.adapters import HTTPAdapter
from solders.keypair import Keypair

from clients import bearer, s3_client
from cluster import Credentials, Server
from raw import Signed
from redaction import known

# All of 127.0.0.0/8 is this machine: each test can come from where nobody was counted yet.
addresses = (f"127.0.{number // 250 + 1}.{number % 250 + 1}" for number in itertools.count())


def next_address() -> str:
    return next(addresses)


def coming_from(address: str) -> requests.Session:
    """A session whose connections come from this address of the machine."""

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args, **kwargs):
            super().init_poolmanager(*args, source_address=(address, 0), **kwargs)

    session = requests.Session()
    session.trust_env = False
    session.mount("http://", Adapter())
    return session


class Owner:
    """Somebody the identity service vouches for: a token, and S3 keys made with it."""

    def __init__(self, server: Server):
        self.server, self.id = server, str(uuid.uuid4())
        self.token = bearer(server, sub=self.id)

    def api(self, method: str, path: str, *, token: str | None = None, **kwargs) -> requests.Response:
        headers = {"authorization": f"Bearer {token or self.token}"} | kwargs.pop("headers", {})
        return requests.request(method, f"{self.server.url}{path}", headers=headers, timeout=30, **kwargs)

    def key(self, **limits) -> dict:
        made = self.api("POST", "/api/v1/auth/api-keys", json={"name": "test"} | limits)
        assert made.status_code == 201, made.text
        return made.json()

    def s3(self, key: dict | None = None):
        key = key or self.key()
        return s3_client(As(self.server, key))


class As:
    """The server as somebody with this key knows it."""

    def __init__(self, server: Server, key: dict):
        self.url, self.http_port, self.ca = server.url, server.http_port, server.ca
        self.credentials = Credentials(key["access_key_id"], key["secret_access_key"])


def owner_of_root(server: Server) -> str:
    """The root user's id, as its account says it."""
    answer = Signed(server, "GET", "/api/v1/account").send()
    assert answer.status_code == 200, answer.text
    return answer.json()["owner_id"]


def code_of(call, **kwargs) -> str:
    """S3's code for what a client was refused; `OK` where it was not."""
    try:
        call(**kwargs)
    except ClientError as error:
        return error.response["Error"]["Code"]
    return "OK"


class Wallet:
    """Logs in over HTTP, from an address of its own."""

    def __init__(self, server: Server, keypair: Keypair | None = None, address: str | None = None):
        self.server, self.keypair = server, keypair or Keypair()
        known.add("a wallet's key", str(self.keypair), self.keypair.secret().hex())
        self.session = coming_from(address or next_address())

    def ask(self, method: str, path: str, **kwargs) -> requests.Response:
        return self.session.request(method, f"{self.server.url}/api/v1/{path}", timeout=30, **kwargs)

    def challenge(self, **headers) -> requests.Response:
        return self.ask("POST", "auth/challenge", json={"wallet_address": str(self.keypair.pubkey())}, headers=headers)

    def signed(self) -> dict:
        """What it would send to log in."""
        given = self.challenge()
        assert given.status_code == 200, given.text
        text = given.json()["challenge"]
        return {
            "wallet_address": str(self.keypair.pubkey()), "nonce": given.json()["nonce"],
            "signature": str(self.keypair.sign_message(text.encode())), "challenge": text,
        }

    def send(self, body: dict) -> requests.Response:
        return self.ask("POST", "auth/wallet", json=body)

    def log_in(self) -> dict:
        answer = self.send(self.signed())
        assert answer.status_code == 200, answer.text
        return answer.json()
