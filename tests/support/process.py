"""Programs as child processes: started with a log, awaited by condition, ended by process id."""

import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


def target_dir() -> Path:
    return Path(os.environ.get("CARGO_TARGET_DIR", Path.home() / ".cache/cyxcloud/target"))


def binary(name: str) -> str:
    """The program `name` of the build under test: development unless CYXCLOUD_E2E_PROFILE says release."""
    path = target_dir() / os.environ.get("CYXCLOUD_E2E_PROFILE", "debug") / name
    if not path.exists():
        raise FileNotFoundError(f"{path}: build it first (script/test does)")
    return str(path)


def ports_for_servers() -> list[int]:
    """Those that the system gives to nobody who connects: while a server is down, a client could take its port."""
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = [*range(10_000, low), *range(high + 1, 1 << 16)] or [*range(10_000, 1 << 16)]
    random.shuffle(ports)
    return ports


unused_ports = ports_for_servers()


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on; no port is given out twice."""
    ports = []
    while len(ports) < count:
        port = unused_ports.pop()
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
    return ports


# How long is waited for what should come at once: as long as a machine may take that is slow or busy with something else. Whoever
# waits goes on as soon as it is there, so it costs nothing to be generous.
PATIENCE = 60.0


def wait_until(what: str, condition, seconds: float = PATIENCE, interval: float = 0.05):
    """Polls until `condition()` is true; what it answered. An exception counts as not yet."""
    deadline = time.monotonic() + seconds
    last = None
    while True:
        try:
            if answer := condition():
                return answer
            last = None
        except Exception as error:  # noqa: BLE001 - whatever it is, it may pass
            last = error
        if time.monotonic() >= deadline:
            raise TimeoutError(f"after {seconds:g} s still not: {what}" + (f" ({last!r})" if last else ""))
        time.sleep(interval)


# All that was written by any.
logs: set[Path] = set()


class Process:
    """A program that runs until it is stopped. Its output is in `log`, appended over restarts."""

    def __init__(self, name: str, args: list[str], env: dict[str, str], log: Path):
        self.name, self.args, self.log = name, args, log
        # Nothing of the caller's configuration reaches a server, except what programs need to run at all.
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "TMPDIR") if key in os.environ}
        self.env = kept | {"NO_COLOR": "1", "RUST_BACKTRACE": "1", "RUST_LOG": os.environ.get("CYXCLOUD_E2E_LOG", "info")} | env
        self.child: subprocess.Popen | None = None

    def start(self) -> "Process":
        assert self.child is None or self.child.poll() is not None, f"{self.name} runs already"
        logs.add(self.log)
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                self.args, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        return self

    @property
    def pid(self) -> int:
        assert self.child is not None
        return self.child.pid

    def running(self) -> bool:
        return self.child is not None and self.child.poll() is None

    def expect_running(self):
        if not self.running():
            code = self.child.returncode if self.child else None
            raise AssertionError(f"{self.name} ended with {code}:\n{self.tail()}")

    def wait_for(self, what: str, condition, seconds: float = PATIENCE):
        """As `wait_until`, but gives up at once when the program has ended."""

        def check():
            if not self.running():
                return "ended"
            return condition()

        answer = wait_until(f"{self.name}: {what}\n{self.log}", check, seconds)
        self.expect_running()
        return answer

    def kill(self):
        """Without goodbye."""
        self._end(signal.SIGKILL)

    def stop(self, seconds: float = PATIENCE) -> int:
        """Asks it to end (SIGTERM); its exit code."""
        return self._end(signal.SIGTERM, seconds)

    def _end(self, how: signal.Signals, seconds: float = PATIENCE) -> int:
        if self.child is None:
            return 0
        if self.child.poll() is None:
            self.child.send_signal(how)
            try:
                self.child.wait(seconds)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
                raise AssertionError(f"{self.name} did not end within {seconds:g} s of {how.name}:\n{self.tail()}")
        return self.child.returncode

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.output().splitlines()[-lines:])
