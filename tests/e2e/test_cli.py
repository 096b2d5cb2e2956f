"""cyxcloud-cli as the specification prints it, and what it leaves behind when things go wrong."""

import os
import re
import signal
import subprocess
import uuid

import pytest

from clients import CLIENTS, s3_client
from data import KIB, MIB, make_bytes, make_file, sha256
from process import binary, free_ports, wait_until


@pytest.fixture
def cli(cluster, tmp_path):
    """Runs the command; the finished process, whatever its exit code."""
    client = CLIENTS["cyxcloud-cli"](cluster, "root", tmp_path / "home")

    def run(*args: str, stdin: bytes | None = None, env: dict[str, str] | None = None, gateway: str | None = cluster.url):
        command = ["cyxcloud-cli", *(["--gateway", gateway] if gateway else []), *args]
        return subprocess.run(command, env=client.env() | (env or {}), cwd=client.home, input=stdin, capture_output=True, timeout=120)

    run.client = client
    return run


def fresh() -> str:
    return f"cli-{uuid.uuid4().hex[:12]}"


def good(done) -> str:
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def bad(done, *words: str):
    """Failed, said so in one line on standard error, and printed no result."""
    text = done.stderr.decode()
    assert done.returncode not in (0, 101), text
    assert "panicked" not in text and "RUST_BACKTRACE" not in text
    assert len(text.strip().splitlines()) == 1, text
    for word in words:
        assert word.lower() in text.lower(), text


def test_the_commands_of_the_appendix(cli, tmp_path):
    """As printed: a bucket that is missing is made, and that is said."""
    body = make_bytes(300 * KIB, "cli")
    (cli.client.home / "localfile.txt").write_bytes(body)
    bucket = fresh()
    done = cli("upload", "--bucket", bucket, "--key", "myfile.txt", "./localfile.txt")
    good(done)
    said = (done.stdout + done.stderr).decode()
    assert bucket in said and "created" in said.lower(), said
    again = cli("upload", "--bucket", bucket, "--key", "myfile.txt", "./localfile.txt")
    assert "created" not in (good(again) + again.stderr.decode()).lower()
    good(cli("download", "--bucket", bucket, "--key", "myfile.txt", "./output.txt"))
    assert (cli.client.home / "output.txt").read_bytes() == body
    assert "myfile.txt" in good(cli("list", "--bucket", bucket))
    good(cli("delete", "--bucket", bucket, "--key", "myfile.txt"))
    assert "myfile.txt" not in good(cli("list", "--bucket", bucket))


def test_quiet_when_piped(cli, tmp_path):
    (cli.client.home / "f").write_bytes(make_bytes(9 * MIB, "quiet"))
    bucket = fresh()
    good(cli("upload", "--bucket", bucket, "--key", "f", "f"))
    done = cli("upload", "--bucket", bucket, "--key", "f", "f")
    assert b"\r" not in done.stdout + done.stderr and b"\x1b" not in done.stdout + done.stderr


def test_standard_input_and_output(cli):
    bucket, body = fresh(), make_bytes(9 * MIB + 1, "stdin")
    good(cli("upload", "--bucket", bucket, "--key", "piped", "-", stdin=body))
    done = cli("download", "--bucket", bucket, "--key", "piped", "-")
    assert done.returncode == 0 and done.stdout == body
    good(cli("upload", "--bucket", bucket, "--key", "nothing", "-", stdin=b""))
    assert cli("download", "--bucket", bucket, "--key", "nothing", "-").stdout == b""


def test_directories(cli, cluster, tmp_path):
    tree = tmp_path / "tree"
    wanted = {}
    for number, name in enumerate(["one.txt", "sub/two ü.bin", "sub/deeper/three+%.bin", "empty"]):
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        wanted[name] = make_file(path, number * 100_000 if name != "empty" else 0, name)
    bucket = fresh()
    good(cli("upload", "--recursive", "--bucket", bucket, "--key", "pre/", str(tree)))
    keys = [entry["Key"] for entry in s3_client(cluster).list_objects_v2(Bucket=bucket)["Contents"]]
    assert sorted(keys) == sorted("pre/" + name for name in wanted)
    back = tmp_path / "back"
    good(cli("download", "--recursive", "--bucket", bucket, "--key", "pre/", str(back)))
    assert {str(p.relative_to(back)): sha256(p) for p in back.rglob("*") if p.is_file()} == wanted


def test_a_directory_needs_the_flag(cli, tmp_path):
    bad(cli("upload", "--bucket", fresh(), "--key", "k", str(tmp_path)), "--recursive")


def test_keys_that_would_leave_the_directory(cli, cluster, tmp_path):
    """A key is a stranger's text: a download stays where it was told to write."""
    bucket = fresh()
    s3 = s3_client(cluster)
    s3.create_bucket(Bucket=bucket)
    for key in ("p/../../evil", "p//etc/evil", "p/good", "p/..", "p/a\\..\\b"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    cli("download", "--recursive", "--bucket", bucket, "--key", "p/", str(inside))
    outside = [p for p in tmp_path.rglob("*") if p.is_file() and "evil" in p.name and inside not in p.parents]
    assert outside == []
    assert (inside / "good").read_bytes() == b"x"


def test_info(cli, cluster):
    bucket = fresh()
    for name, size in (("inline", 100), ("copies", 20_000), ("stripes", 9 * MIB)):
        (cli.client.home / name).write_bytes(make_bytes(size, name))
        good(cli("upload", "--bucket", bucket, "--key", name, name))
    account = good(cli("info"))
    assert bucket in account
    assert bucket in good(cli("info", "--bucket", bucket))
    whole = good(cli("info", "--bucket", bucket, "--key", "stripes"))
    assert "10+4" in whole and ("9437184" in whole.replace(",", "") or "9.0 MiB" in whole), whole
    assert re.search("toler|surviv", whole, re.I) and re.search("hash|blake3", whole, re.I), whole
    assert "3 copies" in good(cli("info", "--bucket", bucket, "--key", "copies"))


def test_the_configuration_file(cli, cluster, tmp_path):
    """Section 5.4's file, with keys of the store beside it; flags win over it."""
    config = tmp_path / "config.toml"
    bucket = fresh()
    config.write_text(f"""
[gateway]
url = "{cluster.url}"

[auth]
access_key = "{cluster.credentials.access_key}"
secret_key = "{cluster.credentials.secret_key}"

[defaults]
bucket = "{bucket}"
""")
    config.chmod(0o600)
    (cli.client.home / "f").write_bytes(b"configured")
    no_keys = {"CYXCLOUD_ACCESS_KEY": "", "CYXCLOUD_SECRET_KEY": ""}
    good(cli("--config", str(config), "upload", "--key", "f", "f", gateway=None, env=no_keys))
    assert s3_client(cluster).get_object(Bucket=bucket, Key="f")["Body"].read() == b"configured"
    (port,) = free_ports(1)
    bad(cli("--config", str(config), "list", gateway=f"http://127.0.0.1:{port}", env=no_keys))
    config.write_text("this is = not [toml")
    bad(cli("--config", str(config), "list", gateway=None), str(config))
    bad(cli("--config", str(tmp_path / "absent.toml"), "list", gateway=None), "absent.toml")


def test_credentials_that_are_missing_or_wrong(cli):
    none = {"CYXCLOUD_ACCESS_KEY": "", "CYXCLOUD_SECRET_KEY": "", "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    bad(cli("list", "--bucket", "some-bucket", env=none))
    bad(cli("list", "--bucket", "some-bucket", env={"CYXCLOUD_SECRET_KEY": "wrong" * 8}), "SignatureDoesNotMatch")


def test_a_gateway_that_is_not_there(cli):
    (port,) = free_ports(1)
    (cli.client.home / "f").write_bytes(b"x")
    for args in (["list", "--bucket", "bbb"], ["upload", "--bucket", "bbb", "--key", "k", "f"], ["info"],
                 ["download", "--bucket", "bbb", "--key", "k", "out"], ["delete", "--bucket", "bbb", "--key", "k"]):
        bad(cli(*args, gateway=f"http://127.0.0.1:{port}"), str(port))
    assert not (cli.client.home / "out").exists()


def test_what_is_not_there(cli):
    bucket = fresh()
    (cli.client.home / "f").write_bytes(b"x")
    good(cli("upload", "--bucket", bucket, "--key", "k", "f"))
    bad(cli("download", "--bucket", bucket, "--key", "none", "out"), "none")
    bad(cli("download", "--bucket", fresh(), "--key", "k", "out"))
    bad(cli("upload", "--bucket", bucket, "--key", "k", "no-such-file"), "no-such-file")
    bad(cli("upload", "--bucket", "Bad_Name", "--key", "k", "f"))
    bad(cli("info", "--bucket", bucket, "--key", "none"))
    assert list(cli.client.home.glob("out*")) == []


def test_an_existing_file_survives_a_failed_download(cli):
    (cli.client.home / "out").write_bytes(b"precious")
    bad(cli("download", "--bucket", fresh(), "--key", "k", "out"))
    assert (cli.client.home / "out").read_bytes() == b"precious"


def test_ctrl_c_leaves_no_half_written_file(cli, cluster, tmp_path):
    bucket, source, target = fresh(), tmp_path / "source", tmp_path / "target"
    digest = make_file(source, 96 * MIB, "interrupt")
    with source.open("rb") as file:
        s3 = s3_client(cluster)
        s3.create_bucket(Bucket=bucket)
        s3.put_object(Bucket=bucket, Key="big", Body=file)
    command = [binary("cyxcloud-cli"), "--gateway", cluster.url, "download", "--bucket", bucket, "--key", "big", str(target)]
    with subprocess.Popen(command, env=cli.client.env(), stderr=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        wait_until("bytes arrive", lambda: sum(p.stat().st_size for p in tmp_path.glob("*target*")) > 0, interval=0.002)
        child.send_signal(signal.SIGINT)
        code = child.wait(60)
    if target.exists():
        assert sha256(target) == digest, "the signal came too late, but then the file is whole"
    else:
        assert code != 0
    assert [p.name for p in tmp_path.iterdir() if "target" in p.name and p != target] == []


def parts_of_uploads(s3, bucket: str) -> list:
    uploads = s3.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    return [part for upload in uploads
            for part in s3.list_parts(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]).get("Parts", [])]


def test_ctrl_c_during_an_upload_leaves_nothing_visible(cli, cluster, tmp_path):
    source = tmp_path / "source"
    make_file(source, 96 * MIB, "interrupt-up")
    s3 = s3_client(cluster)

    def interrupted() -> tuple[str, int]:
        bucket = fresh()
        s3.create_bucket(Bucket=bucket)
        command = [binary("cyxcloud-cli"), "--gateway", cluster.url, "upload", "--bucket", bucket, "--key", "big", str(source)]
        with subprocess.Popen(command, env=cli.client.env(), stderr=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            # It can abort only what it knows of: once a part of the upload is there it does, and others are still to come.
            wait_until("a part is there", lambda: child.poll() is not None or parts_of_uploads(s3, bucket), interval=0.01)
            assert child.poll() in (None, 0), child.stderr.read()
            child.send_signal(signal.SIGINT)
            return bucket, child.wait(60)

    for _ in range(5):
        bucket, code = interrupted()
        if code != 0:
            break
        # The signal came when all was done.
        assert s3.head_object(Bucket=bucket, Key="big")["ContentLength"] == 96 * MIB
    assert code != 0
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket), "an interrupted upload is aborted"


def test_a_progress_bar_on_a_terminal(cli, cluster, tmp_path):
    """With a terminal there is a bar with rate and time left."""
    import pty

    source = tmp_path / "source"
    make_file(source, 32 * MIB, "bar")
    parent, child_side = pty.openpty()
    command = [binary("cyxcloud-cli"), "--gateway", cluster.url, "upload", "--bucket", fresh(), "--key", "bar", str(source)]
    env = cli.client.env() | {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, env=env, stdin=child_side, stdout=child_side, stderr=child_side) as child:
        os.close(child_side)
        seen = b""
        try:
            while piece := os.read(parent, 4096):
                seen += piece
        except OSError:
            pass
        assert child.wait(60) == 0
    os.close(parent)
    assert b"MiB" in seen and b"/s" in seen, seen[-500:]


def test_large_files_go_in_parallel_parts(cli, cluster, tmp_path):
    source, back = tmp_path / "source", tmp_path / "back"
    digest = make_file(source, 70 * MIB + 1, "parts")
    bucket = fresh()
    good(cli("upload", "--bucket", bucket, "--key", "big", str(source)))
    assert "-" in s3_client(cluster).head_object(Bucket=bucket, Key="big")["ETag"], "an ETag of several parts"
    good(cli("download", "--bucket", bucket, "--key", "big", str(back)))
    assert sha256(back) == digest
