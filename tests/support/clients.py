"""S3 clients behind one small interface, so that a test can be run with each of them.

None of them retries: a request that fails once is a finding.
"""

import base64
import hashlib
import hmac
import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import boto3
from botocore.config import Config

from cluster import REGION, Server
from data import make_bytes
from process import binary
from redaction import known

MOUNTS = {"s3": "/s3", "root": ""}


def s3_client(server: Server, mount: str = "root", **config):
    """A boto3 client for the server, path style unless told otherwise."""
    style = config.pop("addressing_style", "path")
    return boto3.client(
        "s3",
        endpoint_url=config.pop("endpoint", server.url + MOUNTS[mount]),
        region_name=REGION,
        verify=config.pop("verify", str(server.ca) if server.ca else None),
        aws_access_key_id=server.credentials.access_key,
        aws_secret_access_key=server.credentials.secret_key,
        config=Config(
            retries={"total_max_attempts": 1}, s3={"addressing_style": style}, connect_timeout=30, read_timeout=120,
            max_pool_connections=50, **config,
        ),
    )


def new_bucket(s3, prefix: str = "b") -> str:
    name = f"{prefix}-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    return name


def put_all(s3, bucket: str, sizes: list[int], more: dict[str, bytes] | None = None) -> dict[str, bytes]:
    """Stores an object of each size, the bucket's own bytes, and `more` by their keys; what was stored."""
    bodies = {f"k-{size}": make_bytes(size, bucket) for size in sizes} | (more or {})
    for key, body in bodies.items():
        s3.put_object(Bucket=bucket, Key=key, Body=body)
    return bodies


def verify(s3, bucket: str, bodies: dict[str, bytes]):
    """All of it is read as it was stored."""
    for key, body in bodies.items():
        assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == body, key


def bearer(server, *, secret: str | None = None, algorithm: str = "HS256", kid: str | None = None, **claims) -> str:
    """A JWT made by hand; a claim given as None is left out. The key's id follows from the key."""
    now = int(time.time())
    body = {
        "sub": str(uuid.uuid4()), "typ": "access", "iss": "cyxcloud", "aud": "cyxcloud",
        "iat": now, "nbf": now, "exp": now + 3600, "jti": str(uuid.uuid4()),
    } | claims

    def part(data: bytes) -> bytes:
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    if kid is None:
        kid = hmac.new((secret or server.jwt_secret).encode(), b"cyxcloud/jwt/kid/v1", hashlib.sha256).hexdigest()[:16]
    header = part(json.dumps({"alg": algorithm, "typ": "JWT", "kid": kid}).encode())
    signed = header + b"." + part(json.dumps({k: v for k, v in body.items() if v is not None}).encode())
    if algorithm == "none":
        return (signed + b".").decode()
    mac = hmac.new((secret or server.jwt_secret).encode(), signed, hashlib.sha256)
    token = (signed + b"." + part(mac.digest())).decode()
    known.add("token", token)
    return token


class CommandFailed(AssertionError):
    def __init__(self, done: subprocess.CompletedProcess):
        super().__init__(f"{done.args} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        self.done = done


class Client:
    """Puts and gets files and trees of files."""

    name = ""

    def __init__(self, server: Server, mount: str, home: Path):
        self.server, self.mount, self.home = server, mount, home
        home.mkdir(parents=True, exist_ok=True)
        self.endpoint = server.url + MOUNTS[mount]

    def env(self) -> dict[str, str]:
        return {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "AWS_ACCESS_KEY_ID": self.server.credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": self.server.credentials.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_PAGER": "",
        }

    def run(self, *args: str, timeout: float = 240) -> str:
        # From an empty directory of its own: nothing may land elsewhere unseen.
        done = subprocess.run(
            args, env=self.env(), cwd=self.home, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
        )
        if done.returncode != 0:
            raise CommandFailed(done)
        return done.stdout

    def make_bucket(self, bucket: str):
        raise NotImplementedError

    def put(self, path: Path, bucket: str, key: str):
        raise NotImplementedError

    def get(self, bucket: str, key: str, path: Path):
        raise NotImplementedError

    def put_tree(self, directory: Path, bucket: str, prefix: str):
        raise NotImplementedError

    def get_tree(self, bucket: str, prefix: str, directory: Path):
        raise NotImplementedError

    def delete(self, bucket: str, key: str):
        raise NotImplementedError

    def keys(self, bucket: str, prefix: str) -> list[str]:
        """All keys under a prefix that ends in a slash."""
        raise NotImplementedError

    def can_name(self, key: str) -> bool:
        """Whether the client can express this key at all."""
        return True


class Boto3(Client):
    name = "boto3"

    def __init__(self, *args):
        super().__init__(*args)
        self.s3 = s3_client(self.server, self.mount)

    def make_bucket(self, bucket):
        self.s3.create_bucket(Bucket=bucket)

    def put(self, path, bucket, key):
        self.s3.upload_file(str(path), bucket, key)

    def get(self, bucket, key, path):
        self.s3.download_file(bucket, key, str(path))

    def put_tree(self, directory, bucket, prefix):
        for path in sorted(directory.iterdir()):
            self.put(path, bucket, prefix + path.name)

    def get_tree(self, bucket, prefix, directory):
        for key in self.keys(bucket, prefix):
            self.get(bucket, key, directory / key.removeprefix(prefix))

    def delete(self, bucket, key):
        self.s3.delete_object(Bucket=bucket, Key=key)

    def keys(self, bucket, prefix):
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


class AwsCli(Client):
    name = "aws"

    def aws(self, *args):
        return self.run("aws", "--endpoint-url", self.endpoint, *args)

    def make_bucket(self, bucket):
        self.aws("s3api", "create-bucket", "--bucket", bucket)

    def put(self, path, bucket, key):
        self.aws("s3", "cp", "--only-show-errors", str(path), f"s3://{bucket}/{key}")

    def get(self, bucket, key, path):
        self.aws("s3", "cp", "--only-show-errors", f"s3://{bucket}/{key}", str(path))

    def put_tree(self, directory, bucket, prefix):
        self.aws("s3", "cp", "--recursive", "--only-show-errors", str(directory), f"s3://{bucket}/{prefix}")

    def get_tree(self, bucket, prefix, directory):
        self.aws("s3", "cp", "--recursive", "--only-show-errors", f"s3://{bucket}/{prefix}", str(directory))

    def delete(self, bucket, key):
        self.aws("s3", "rm", "--only-show-errors", f"s3://{bucket}/{key}")

    def keys(self, bucket, prefix):
        listed = self.aws("s3api", "list-objects-v2", "--bucket", bucket, "--prefix", prefix, "--output", "json")
        return [entry["Key"] for entry in json.loads(listed or "{}").get("Contents") or []]

    def can_name(self, key):
        return not key.endswith("/")  # means "keep the file's name" to `aws s3 cp`


class Rclone(Client):
    name = "rclone"

    def env(self):
        options = {
            "TYPE": "s3", "PROVIDER": "Other", "ENDPOINT": self.endpoint, "REGION": REGION,
            "ACCESS_KEY_ID": self.server.credentials.access_key,
            "SECRET_ACCESS_KEY": self.server.credentials.secret_key,
            "FORCE_PATH_STYLE": "true",
        }
        return super().env() | {f"RCLONE_CONFIG_CYX_{k}": v for k, v in options.items()} | {
            "RCLONE_CONFIG": str(self.home / "rclone.conf"), "RCLONE_RETRIES": "1", "RCLONE_LOW_LEVEL_RETRIES": "1",
        }

    def make_bucket(self, bucket):
        self.run("rclone", "mkdir", f"cyx:{bucket}")

    def put(self, path, bucket, key):
        self.run("rclone", "copyto", str(path), f"cyx:{bucket}/{key}")

    def get(self, bucket, key, path):
        self.run("rclone", "copyto", f"cyx:{bucket}/{key}", str(path))

    def put_tree(self, directory, bucket, prefix):
        self.run("rclone", "copy", str(directory), f"cyx:{bucket}/{prefix}")

    def get_tree(self, bucket, prefix, directory):
        self.run("rclone", "copy", f"cyx:{bucket}/{prefix}", str(directory))

    def delete(self, bucket, key):
        self.run("rclone", "deletefile", f"cyx:{bucket}/{key}")

    def keys(self, bucket, prefix):
        listed = self.run("rclone", "lsf", "--recursive", "--files-only", f"cyx:{bucket}/{prefix}")
        return [prefix + line for line in listed.splitlines()]

    def can_name(self, key):
        # A tree of directories: no empty components, and names of at most 255 bytes on the way back.
        return "//" not in key and not key.startswith("/") and not key.endswith("/") and ".." not in key.split("/")


class S5cmd(Client):
    name = "s5cmd"

    def s5(self, *args):
        return self.run("s5cmd", "--endpoint-url", self.endpoint, "--retry-count", "0", *args)

    def make_bucket(self, bucket):
        self.s5("mb", f"s3://{bucket}")

    def put(self, path, bucket, key):
        self.s5("cp", str(path), f"s3://{bucket}/{key}")

    def get(self, bucket, key, path):
        self.s5("cp", f"s3://{bucket}/{key}", str(path))

    def put_tree(self, directory, bucket, prefix):
        self.s5("cp", f"{directory}/", f"s3://{bucket}/{prefix}")

    def get_tree(self, bucket, prefix, directory):
        self.s5("cp", f"s3://{bucket}/{prefix}*", f"{directory}/")

    def delete(self, bucket, key):
        self.s5("rm", f"s3://{bucket}/{key}")

    def keys(self, bucket, prefix):
        listed = self.s5("--json", "ls", f"s3://{bucket}/{prefix}*")
        return [json.loads(line)["key"].split("/", 3)[3] for line in listed.splitlines()]

    def can_name(self, key):
        return not set("*?[]") & set(key) and not key.endswith("/") and not key.startswith("/")


class CyxCli(Client):
    name = "cyxcloud-cli"

    def env(self):
        env = super().env()
        return env | {
            "PATH": f"{Path(binary('cyxcloud-cli')).parent}:{env['PATH']}",
            "CYXCLOUD_ACCESS_KEY": self.server.credentials.access_key,
            "CYXCLOUD_SECRET_KEY": self.server.credentials.secret_key,
        }

    def cli(self, *args, **kwargs):
        return self.run("cyxcloud-cli", "--gateway", self.server.url, *args, **kwargs)

    def make_bucket(self, bucket):
        pass  # upload does, and says so

    def put(self, path, bucket, key):
        self.cli("upload", "--bucket", bucket, "--key", key, str(path))

    def get(self, bucket, key, path):
        self.cli("download", "--bucket", bucket, "--key", key, str(path))

    def put_tree(self, directory, bucket, prefix):
        self.cli("upload", "--recursive", "--bucket", bucket, "--key", prefix, str(directory))

    def get_tree(self, bucket, prefix, directory):
        self.cli("download", "--recursive", "--bucket", bucket, "--key", prefix, str(directory))

    def delete(self, bucket, key):
        self.cli("delete", "--bucket", bucket, "--key", key)

    def keys(self, bucket, prefix):
        # Only what the specification promises is relied upon: every key stands at the end of a line.
        listed = self.cli("list", "--bucket", bucket, prefix)
        return [line[line.index(prefix):] for line in listed.splitlines() if prefix in line]


CLIENTS = {client.name: client for client in (Boto3, AwsCli, Rclone, S5cmd, CyxCli)}

__all__ = ["CLIENTS", "CommandFailed", "MOUNTS", "bearer", "new_bucket", "s3_client"]
