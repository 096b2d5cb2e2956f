"""What processes use, and what the machine can do at most."""

import hashlib
import os
import platform
import subprocess
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
MIB = 1 << 20


def stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on; the name, which may hold anything, is left out."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            pass
    return found


def tree(pid: int) -> list[int]:
    return [pid, *(below for child in children(pid) for below in tree(child))]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and of all it has started, ended ones included."""
    total = 0.0
    for each in tree(pid):
        try:
            fields = stat(each)
        except OSError:
            continue
        # utime, stime, cutime, cstime
        total += sum(int(ticks) for ticks in fields[11:15]) / TICKS
    return total


def reset_peak(pid: int):
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:
        pass  # another user's process: its peak since start is shown


def peak_bytes(pid: int) -> int:
    """Peak resident memory since the last reset; the largest of the tree."""
    peak = 0
    for each in tree(pid):
        try:
            for line in Path(f"/proc/{each}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    peak = max(peak, int(line.split()[1]) * 1024)
        except OSError:
            pass
    return peak


class Usage:
    """CPU and memory of named groups of processes over a stretch of time."""

    def __init__(self, groups: dict[str, list[int]]):
        self.groups = groups

    def settle(self, share: float = 0.1, seconds: float = 30):
        """Waits until the servers have ended what they do in the background: half a second at less than this share of a core."""
        give_up, before = time.monotonic() + seconds, sum(self.cpu().values())
        while self.groups and time.monotonic() < give_up:
            time.sleep(0.5)
            now = sum(self.cpu().values())
            if now - before < 0.5 * share:
                return
            before = now

    def start(self):
        for pids in self.groups.values():
            for pid in pids:
                reset_peak(pid)
        self.before = self.cpu()

    def cpu(self) -> dict[str, float]:
        return {name: sum(cpu_seconds(pid) for pid in pids) for name, pids in self.groups.items()}

    def end(self) -> tuple[dict[str, float], dict[str, int]]:
        after = self.cpu()
        used = {name: after[name] - self.before[name] for name in self.groups}
        return used, {name: max((peak_bytes(pid) for pid in pids), default=0) for name, pids in self.groups.items()}


def synced_write(directory: Path, count: int) -> float:
    """Bytes per second of one sequential write of `count` bytes, on the disk when it ends."""
    piece = os.urandom(8 * MIB)
    path = directory / "synced-write"
    started = time.monotonic()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        left = count
        while left > 0:
            left -= os.write(descriptor, piece[:left] if left < len(piece) else piece)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
    rate = count / (time.monotonic() - started)
    path.unlink()
    return rate


def fsyncs_per_second(directory: Path) -> float:
    """4 KiB appended and synced, one after the other: what a store without group commit can acknowledge."""
    path = directory / "synced-appends"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        piece, count, started = os.urandom(4096), 0, time.monotonic()
        while time.monotonic() - started < 1:
            os.write(descriptor, piece)
            os.fdatasync(descriptor)
            count += 1
        return count / (time.monotonic() - started)
    finally:
        os.close(descriptor)
        path.unlink()


def hash_rate(algorithm: str) -> float:
    data, count, started = os.urandom(4 * MIB), 0, time.process_time()
    while time.process_time() - started < 0.7:
        hashlib.new(algorithm, data, usedforsecurity=False).digest()
        count += len(data)
    return count / (time.process_time() - started)


def rates(program: str) -> dict[str, float]:
    """Single-core rates that `cyxcloud-core/examples/rates.rs` measures, in bytes per second."""
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    return {name: float(rate) for name, rate in (line.split() for line in said.splitlines())}


def machine() -> dict[str, object]:
    cpu = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.machine())
    memory = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    return {
        "cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(memory / (1 << 30), 1), "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", ""),
    }
