"""The OpenAPI description, held against the rules for such documents and against what is answered."""

import copy
import json
import uuid

import pytest
import requests
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from people import Owner, Wallet
from raw import Signed


@pytest.fixture(scope="module")
def document(cluster) -> dict:
    answer = requests.get(f"{cluster.url}/api/v1/openapi.json", timeout=30)
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def references(value, under: str):
    """What is referred to in this value by something directly under this name."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == under:
                yield from (entry["$ref"] for entry in inner if "$ref" in entry)
            yield from references(inner, under)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner, under)


@pytest.fixture(scope="module")
def closed(document) -> dict:
    """Its schemas, with nothing in an object that they do not name."""
    components = copy.deepcopy(document["components"])
    parts = set(references(components, "allOf"))
    for name, schema in components["schemas"].items():
        if "properties" in schema and f"#/components/schemas/{name}" not in parts:
            schema.setdefault("additionalProperties", False)
    return components


def check(document: dict, closed: dict, method: str, route: str, answer: requests.Response) -> None:
    """Holds an answer against what the description says that this route answers."""
    responses = document["paths"][route][method.lower()]["responses"]
    said = responses.get(str(answer.status_code))
    assert said, f"{method} {route}: {answer.status_code} is not described: {answer.text}"
    if "content" not in said:
        assert answer.content == b"" and "content-type" not in answer.headers, (method, route, answer.text)
        return
    ((kind, content),) = said["content"].items()
    assert answer.headers["content-type"].split(";")[0] == kind, (method, route)
    schema = content["schema"] | {"components": closed}
    body = answer.json() if kind.endswith("json") else answer.text
    errors = [error.message for error in Draft202012Validator(schema).iter_errors(body)]
    assert errors == [], f"{method} {route}: {json.dumps(body)[:2000]}"


def test_the_document_is_one(document):
    OpenAPIV31SpecValidator(document).validate()
    assert {"bearer", "refresh", "sigv4"} == set(document["components"]["securitySchemes"])
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            for schema in (entry["schema"] for entry in operation["parameters"]):
                assert schema.get("type"), (path, method)
            for status, answer in operation["responses"].items():
                assert status in ("204", "default") or answer["content"], (path, method, status)
    for name, schema in document["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        # What is made of a type, not of a guess.
        assert any(schema.get(made) for made in ("properties", "allOf", "oneOf", "enum")) or name in ("Description", "Exposition"), name


def test_a_wrong_answer_would_be_seen(document, closed):
    """The checks below are good for something."""

    class Answer:
        status_code, headers = 200, {"content-type": "application/json"}
        text = content = "x"

        def __init__(self, body):
            self.body = body

        def json(self):
            return self.body

    good = {"ticket": "x", "expires_in": 30}
    check(document, closed, "POST", "/api/v1/ws-ticket", Answer(good))
    for wrong in ({"ticket": "x"}, good | {"expires_in": "30"}, good | {"more": 1}, []):
        with pytest.raises(AssertionError):
            check(document, closed, "POST", "/api/v1/ws-ticket", Answer(wrong))


def test_what_is_answered_is_what_is_described(cluster, s3, bucket, document, closed):
    s3.put_object(Bucket=bucket, Key="a/k", Body=b"x" * 200_000)
    asked = set()

    def ask(method: str, route: str, *, expect: int, headers=None, **kwargs) -> requests.Response:
        """As root, unless there are other credentials."""
        path = route.replace("{bucket}", kwargs.pop("name", bucket)).replace("{key}", "a/k").replace("{id}", kwargs.pop("id", ""))
        query = kwargs.pop("query", None)
        body = json.dumps(kwargs.pop("json")).encode() if "json" in kwargs else b""
        if headers is None:
            answer = Signed(cluster, method, path, query=query, body=body).send()
        else:
            answer = requests.request(method, cluster.url + path, headers=headers, params=query, data=body, timeout=30)
        assert answer.status_code == expect, (method, path, answer.text)
        check(document, closed, method, route, answer)
        asked.add((method, route))
        return answer

    # People.
    wallet = Wallet(cluster)
    login = wallet.send(wallet.signed())
    check(document, closed, "POST", "/api/v1/auth/challenge", wallet.challenge())
    check(document, closed, "POST", "/api/v1/auth/wallet", login)
    check(document, closed, "POST", "/api/v1/auth/wallet", wallet.send({"wallet_address": "x"}))
    check(document, closed, "POST", "/api/v1/auth/wallet", wallet.send(wallet.signed() | {"signature": "junk"}))
    ask("GET", "/api/v1/auth/challenge", expect=200, headers={}, query={"wallet_address": str(wallet.keypair.pubkey())})
    refreshed = ask("POST", "/api/v1/auth/refresh", expect=200, headers={"authorization": f"Bearer {login.json()['refresh_token']}"})
    ask("POST", "/api/v1/auth/refresh", expect=401, headers={})
    mine = {"authorization": f"Bearer {refreshed.json()['access_token']}"}
    for headers in (mine, None):
        ask("GET", "/api/v1/auth/me", expect=200, headers=headers)
    key = ask("POST", "/api/v1/auth/api-keys", expect=201, headers=mine, json={"name": "k", "buckets": [bucket], "read_only": True}).json()
    ask("POST", "/api/v1/auth/api-keys", expect=400, headers=mine, json={"name": ""})
    limited = {"authorization": f"Bearer {key['token']}"}
    ask("POST", "/api/v1/auth/api-keys", expect=403, headers=limited, json={"name": "k", "read_only": False})
    ask("GET", "/api/v1/auth/api-keys", expect=200, headers=mine)
    ask("GET", "/api/v1/auth/api-keys", expect=403, headers=limited)
    ask("DELETE", "/api/v1/auth/api-keys/{id}", expect=404, headers=mine, id="CYXNONE")
    ask("DELETE", "/api/v1/auth/api-keys/{id}", expect=400, headers=mine, id="a%2Fb")
    ask("DELETE", "/api/v1/auth/api-keys/{id}", expect=204, headers=mine, id=key["id"])
    ask("POST", "/api/v1/ws-ticket", expect=200, headers=mine)
    ask("GET", "/api/v1/audit-log", expect=200, headers=mine, query={"limit": "1"})
    ask("GET", "/api/v1/audit-log", expect=400, headers=mine, query={"limit": "many"})
    ask("GET", "/api/v1/account", expect=200, headers=mine)
    # What is kept.
    ask("GET", "/api/v1/account", expect=200)
    ask("GET", "/api/v1/buckets/{bucket}", expect=200)
    ask("GET", "/api/v1/buckets/{bucket}", expect=404, name=f"none-{uuid.uuid4().hex[:8]}")
    ask("GET", "/api/v1/buckets/{bucket}", expect=403, headers=mine)
    ask("GET", "/api/v1/buckets/{bucket}/objects/{key}", expect=200)
    ask("GET", "/api/v1/buckets/{bucket}/objects/{key}", expect=404, name=f"none-{uuid.uuid4().hex[:8]}")
    # A socket is opened in other words than these.
    ask("GET", "/ws", expect=426)
    ask("GET", "/ws", expect=400, query={"topics": "nonsense"})
    ask("GET", "/ws", expect=401, headers={})
    # Administrators.
    for route in ("users", "audit-log", "status", "nodes", "repairs", "audits", "gc", "token-keys"):
        ask("GET", f"/api/v1/admin/{route}", expect=200)
        ask("GET", f"/api/v1/admin/{route}", expect=403, headers=mine)
        ask("GET", f"/api/v1/admin/{route}", expect=401, headers={})
    ask("GET", "/api/v1/admin/audits", expect=400, query={"node": "none"})
    owner = Owner(cluster)
    ask("GET", "/api/v1/account", expect=200, headers={"authorization": f"Bearer {owner.token}"})
    ask("PATCH", "/api/v1/admin/users/{id}", expect=200, id=owner.id, json={"storage_quota": 5_000_000})
    ask("PATCH", "/api/v1/admin/users/{id}", expect=404, id=str(uuid.uuid4()), json={})
    ask("PATCH", "/api/v1/admin/users/{id}", expect=400, id=owner.id, json={"quota": 1})
    ask("PATCH", "/api/v1/admin/users/{id}", expect=413, id=owner.id, json={"x": "x" * 70_000})
    node = ask("GET", "/api/v1/admin/nodes", expect=200).json()["nodes"][0]["id"]
    ask("POST", "/api/v1/admin/nodes/{id}/reconcile", expect=202, id=node)
    ask("POST", "/api/v1/admin/nodes/{id}/scrub", expect=202, id=node)
    ask("POST", "/api/v1/admin/nodes/{id}/resume", expect=409, id=node)
    for command in ("drain", "reconcile", "resume", "scrub"):
        for unknown in (str(uuid.uuid4()), "none"):
            ask("POST", f"/api/v1/admin/nodes/{{id}}/{command}", expect=404, id=unknown)
    ask("POST", "/api/v1/admin/gc/freeze", expect=400, json={"reason": 1})
    ask("POST", "/api/v1/admin/gc/freeze", expect=200, json={"reason": "a test"})
    ask("POST", "/api/v1/admin/gc/thaw", expect=200)
    ask("GET", "/metrics", expect=200)
    ask("GET", "/metrics", expect=401, headers={})
    ask("POST", "/api/v1/admin/token-keys/rotate", expect=400, json={"overlap_secs": "soon"})
    ask("POST", "/api/v1/admin/token-keys/rotate", expect=202)
    ask("POST", "/api/v1/admin/token-keys/rotate", expect=409)
    ask("POST", "/api/v1/auth/logout", expect=204, headers=mine)
    ask("GET", "/api/v1/openapi.json", expect=200, headers={})
    asked |= {("POST", "/api/v1/auth/challenge"), ("POST", "/api/v1/auth/wallet")}
    every = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert asked == every, "a new route is to be asked here"
