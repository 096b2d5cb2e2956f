"""What proves who somebody is, and whether a log tells of it.

`known` learns what tests make, send and are given, wherever it passes by, once `watching` was entered; `known.search` looks for all of
it in what programs wrote, and for whatever looks like a secret without being known, such as tokens that only servers exchange.
"""

import base64
import contextlib
import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from unittest.mock import patch
from urllib.parse import parse_qsl, quote, urlsplit

import requests
from botocore.httpsession import URLLib3Session
from botocore.signers import RequestSigner

from data import base58
from process import logs

PROGRAMS = ("cyxcloud-gateway", "cyxcloud-node", "cyxcloud-rebalancer", "cyxcloud-standalone", "cyxwiz-api", "cyxcloud-cli")

# By what a secret looks like. Extended regular expressions, of grep and of Python alike.
PATTERNS = {
    # Tokens that no client sees, such as those for heartbeats and quotas, begin like all others.
    "a token": r"eyJ[A-Za-z0-9_-]{10,}\.",
    "a token in hexadecimal or base64": r"65794a306558|65794a686247|ZXlKMGVY|ZXlKaGJH",
    "a signature": r"[Ss]ignature(=|%3D)[0-9a-f]{16}",
    "a bearer": r"[Bb]earer( |%20)[A-Za-z0-9_-]{16}",
    "a token in an address": r"[?&](token|ticket)=[A-Za-z0-9._-]{16}",
    "a password in an address": r'(postgres(ql)?|rediss?|https?)://[^/@ :]*:[^/@ *",]+@',
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    # Tokens for nodes are bytes, 171 at least; keys are 32 or 64.
    "bytes one by one": r"([0-9]{1,3}, ){24}",
    "bytes of a token for nodes": r"[0-9A-Fa-f]{300}",
}

# Where programs keep secrets for later.
FILES = ("identity.key", "cyxwiz-session.json", "secrets.toml", "config.toml", "id.json")
# In JSON and TOML. Not `root_secret_key`: one that a standalone server made itself is printed by it, once, for people to copy.
FIELD = re.compile(
    r'"?\b(access_token|refresh_token|token|ticket|secret_access_key|password|signature|master_key|jwt_secret)"?\s*[:=]\s*"([^"\\]+)"')
FORM_FIELD = re.compile(r'name="(x-amz-signature)"\r\n\r\n([0-9a-f]+)', re.I)
VARIABLE = re.compile("(SECRET|SECRET_KEY|SECRET_ACCESS_KEY|MASTER_KEY|PASSWORD|REGISTRATION_TOKEN)$")
TOKEN = re.compile(r"eyJ[\w-]+\.[\w-]*\.([\w-]*)")

# What is shorter, or has fewer different characters, is part of texts that tell nothing.
SHORTEST, DIFFERENT = 11, 6
# Lines of one log that are told of: one that leaks always does so on every line.
TOLD = 20


def forms(secret: str) -> set[str]:
    """As logs may have it: as it is, as a web address or JSON has it, as bytes in several notations (of the longest, the beginning)."""
    out = {secret, quote(secret, safe=""), json.dumps(secret)[1:-1]}
    raw = [secret.encode()]
    if re.fullmatch("(?:[0-9a-fA-F]{2}){16,}", secret):
        raw.append(bytes.fromhex(secret))
    for data in raw:
        out |= {data.hex(), data.hex().upper(), base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode().rstrip("=")}
        out.add(", ".join(map(str, data[:12])))
    return out


class Secrets(dict[str, str]):
    """What must be nowhere, and what it is."""

    def add(self, kind: str, *secrets: str):
        for secret in secrets:
            # Of a token, what makes one of the rest: the rest is the same in many.
            if token := TOKEN.fullmatch(secret):
                secret = token[1]
            if len(secret) >= SHORTEST and len(set(secret)) >= DIFFERENT:
                self.setdefault(secret, kind)

    def learn_text(self, text: str):
        """An answer or a file, in which fields have names."""
        for pattern in (FIELD, FORM_FIELD):
            for name, value in pattern.findall(text):
                self.add(name, value)

    def learn_header(self, value: str | bytes | None):
        """What an `Authorization` says."""
        text = value.decode(errors="replace") if isinstance(value, bytes) else value or ""
        self.add("signature", *re.findall("Signature=([0-9a-f]+)", text))
        if text.lower().startswith(("bearer ", "basic ")):
            self.add("bearer", text.split(" ", 1)[1].strip())

    def learn_url(self, url: str):
        with contextlib.suppress(ValueError):
            parts = urlsplit(url)
            self.add("password of an address", parts.password or "")
            for name, value in parse_qsl(parts.query):
                if name.lower() in ("x-amz-signature", "signature", "token", "ticket"):
                    self.add(name, value)

    def learn_environment(self, env: Mapping[str, str]):
        for name, value in env.items():
            if name.endswith("_FILE") and (file := Path(value)).is_file():
                name, value = name.removesuffix("_FILE"), file.read_text(errors="replace").strip()
            if "://" in value:
                self.learn_url(value)
            elif VARIABLE.search(name):
                self.add(name, value)

    def learn_files(self, directory: Path):
        """What programs kept below a directory."""
        for parent, _, names in os.walk(directory):
            for name in set(FILES).intersection(names):
                text = Path(parent, name).read_text(errors="replace").strip()
                self.learn_text(text)
                if name == "identity.key":
                    self.add(name, text)
                elif name == "id.json" and re.fullmatch(r"\[(\d+(, ?)?){64}\]", text):
                    wallet = bytes(json.loads(text))
                    self.add("a wallet's key", base58(wallet), wallet[:32].hex())

    def learn_request(self, request: requests.PreparedRequest):
        self.learn_url(request.url or "")
        self.learn_header(request.headers.get("authorization"))
        # What is sent as a stream is an object.
        if isinstance(request.body, (str, bytes)):
            start = request.body[:65_536]
            self.learn_text(start if isinstance(start, str) else start.decode(errors="replace"))

    def search(self, files: Iterable[Path]) -> list[str]:
        """Where there is any of them, or what looks like one: file, line, and what it is."""
        paths = sorted(map(str, files))
        kinds = {form: kind for secret, kind in self.items() for form in forms(secret)}
        found = [(place, kinds[match], match) for place, match in grep(paths, "F", kinds)]
        for place, match in grep(paths, "E", PATTERNS.values()):
            kind = next(kind for kind, pattern in PATTERNS.items() if re.fullmatch(pattern, match))
            found.append((place, kind, match))
        return [f"{place}: {kind}, {match[:5]}... of {len(match)} characters" for place, kind, match in sorted(found)]


def grep(paths: list[str], how: str, patterns: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Matches, each with its file and line. By grep, which looks for a hundred thousand strings at once."""
    wanted = "\n".join(patterns)
    if not paths or not wanted:
        return
    done = subprocess.run(["grep", f"-{how}aonHZ", f"-m{TOLD}", "-f", "-", "--", *paths], input=wanted.encode(), capture_output=True,
                          env=os.environ | {"LC_ALL": "C"})
    # One that is gone or cannot be read was not searched.
    assert done.returncode in (0, 1) and not done.stderr, done.stderr.decode()
    for line in done.stdout.decode(errors="replace").splitlines():
        path, _, rest = line.partition("\0")
        number, _, match = rest.partition(":")
        yield f"{path}:{number}", match


known = Secrets()


@contextlib.contextmanager
def watching(directory: Path):
    """Has `known` learn from requests, answers, and environments of programs. What programs of ours say to whoever runs them without
    keeping a log is kept in `directory`, and they log as much as servers with a log do."""

    class Popen(subprocess.Popen):
        def __init__(self, args, *more, env=None, **named):
            first = args if isinstance(args, (str, os.PathLike)) else args[0]
            self._program = Path(first).name if Path(first).name in PROGRAMS else None
            if env is not None:
                known.learn_environment(env)
                if self._program:
                    env = {"RUST_LOG": os.environ["CYXCLOUD_E2E_LOG"]} | dict(env)
            super().__init__(args, *more, env=env, **named)

        def communicate(self, *args, **named):
            try:
                output, errors = super().communicate(*args, **named)
            except subprocess.TimeoutExpired as late:
                self.keep(late.output, late.stderr)
                raise
            self.keep(output, errors)
            return output, errors

        def keep(self, output: str | bytes | None, errors: str | bytes | None):
            texts = [text.decode(errors="replace") if isinstance(text, bytes) else text or "" for text in (output, errors)]
            if self._program == "cyxcloud-cli":
                # Its output is what somebody wanted to have: perhaps a key that was just made.
                known.learn_text(texts.pop(0))
            if self._program and any(texts):
                log = directory / f"{self._program}.log"
                logs.add(log)
                with log.open("a") as file:
                    file.write("".join(texts) + "\n")

    send, send_by_boto, presign = requests.Session.send, URLLib3Session.send, RequestSigner.generate_presigned_url

    def sent(session, request, **named):
        known.learn_request(request)
        answer = send(session, request, **named)
        if "json" in answer.headers.get("content-type", "") and not named.get("stream"):
            known.learn_text(answer.text)
        return answer

    def sent_by_boto(session, request):
        known.learn_url(request.url)
        known.learn_header(request.headers.get("authorization"))
        return send_by_boto(session, request)

    def presigned(*args, **named):
        url = presign(*args, **named)
        known.learn_url(url)
        return url

    with (patch.object(subprocess, "Popen", Popen), patch.object(requests.Session, "send", sent),
          patch.object(URLLib3Session, "send", sent_by_boto), patch.object(RequestSigner, "generate_presigned_url", presigned)):
        yield
