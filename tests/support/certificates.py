"""Authorities and certificates for tests, made by openssl."""

import subprocess
from dataclasses import dataclass
from pathlib import Path


def openssl(*args: str):
    done = subprocess.run(["openssl", *args], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"openssl {args}\n{done.stderr}"


@dataclass
class Pair:
    """A certificate and its key, as servers are told of them."""

    cert: Path
    key: Path

    def args(self) -> tuple[str, ...]:
        return "--tls-cert", str(self.cert), "--tls-key", str(self.key)

    def replace_by(self, other: "Pair"):
        """Puts another pair in place of this one, one file after the other as an operator would."""
        for old, new in ((self.cert, other.cert), (self.key, other.key)):
            fresh = old.with_suffix(".fresh")
            fresh.write_bytes(new.read_bytes())
            fresh.chmod(0o600)
            fresh.rename(old)


class Authority:
    """A private authority."""

    def __init__(self, directory: Path, name: str = "authority"):
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.name = directory, name
        self.cert, self.key = directory / f"{name}.pem", directory / f"{name}.key"
        openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "30",
            "-subj", f"/CN=CyxCloud test {name}", "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-keyout", str(self.key), "-out", str(self.cert),
        )

    def issue(self, name: str, days: int = 20, names: str = "IP:127.0.0.1,DNS:localhost") -> Pair:
        """A certificate for servers on this machine."""
        pair = Pair(self.directory / f"{name}.pem", self.directory / f"{name}.key")
        openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", str(days),
            "-subj", f"/CN={name}", "-addext", f"subjectAltName={names}", "-addext", "basicConstraints=CA:FALSE",
            "-CA", str(self.cert), "-CAkey", str(self.key), "-keyout", str(pair.key), "-out", str(pair.cert),
        )
        pair.key.chmod(0o600)
        return pair
