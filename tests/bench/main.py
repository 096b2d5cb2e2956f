"""Measures an S3 server and prints one table. Started by script/bench, which see."""

import argparse
import json
import os
import random
import re
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from load import GIB, KIB, MIB, Connection, Signer, Target, get_stream, put_stream, run_workers, small_objects  # noqa: E402
from measure import Usage, fsyncs_per_second, hash_rate, machine, rates, synced_write  # noqa: E402

# Objects up to this size are kept in the metadata store (the gateway's default of --inline-max).
INLINE_MAX = 4 * KIB
BUCKET = "bench"


@dataclass
class Row:
    """One line of the table. Rates are per second of wall clock, times in milliseconds."""

    what: str
    unit: str
    rate: float
    p50_ms: float | None
    p99_ms: float | None
    seconds: float
    bytes: int
    operations: int
    cpu: dict[str, float] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)
    client_cpu: float = 0.0
    errors: int = 0

    @property
    def server_cpu(self) -> float:
        return sum(self.cpu.values())

    def cost(self) -> str:
        """CPU per GiB where bytes matter, per operation where they don't."""
        if not self.cpu:
            return ""
        if self.unit == "MiB/s":
            return f"{self.server_cpu / (self.bytes / GIB):.2f} s/GiB" if self.bytes else ""
        return f"{1e3 * self.server_cpu / self.operations:.2f} ms/op" if self.operations else ""


def percentile(values: list[float], share: float) -> float | None:
    ordered = sorted(values)
    return 1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


class Bench:
    """The measurements, one method each, on one server."""

    def __init__(self, target: Target, groups: dict[str, list[int]], options: argparse.Namespace, directory: Path):
        self.target, self.groups, self.options, self.directory = target, groups, options, directory
        self.inlines = options.endpoint is None
        self.rows: list[Row] = []
        self.scale = 8 if options.quick else 1
        self.source = directory / "source"

    def make_source(self):
        """Random bytes for bodies. Objects take them from odd offsets, so that no two stripes are alike."""
        with self.source.open("wb") as file:
            for _ in range((GIB + 64 * MIB) // self.scale // (8 * MIB) + 2):
                file.write(os.urandom(8 * MIB))
        os.sync()  # so that writing it back is not measured

    def measure(self, what: str, unit: str, jobs: list[tuple]) -> Row:
        usage = Usage(self.groups)
        usage.settle()  # so that nothing is charged with what went before it
        results = run_workers(jobs, usage.start)
        cpu, peak = usage.end()
        seconds = max(r.ended for r in results) - min(r.started for r in results)
        latencies = [latency for r in results for latency in r.latencies]
        count = sum(r.bytes for r in results)
        errors = [error for r in results for error in r.errors]
        rate = {"MiB/s": count / MIB, "ops/s": len(latencies)}.get(unit, 0) / seconds
        row = Row(what, unit, rate, percentile(latencies, 0.5), percentile(latencies, 0.99), seconds, count, len(latencies), cpu,
                  peak, sum(r.cpu for r in results), len(errors))
        self.add(row)
        for error in errors[:3]:
            print(f"  error: {error}", file=sys.stderr)
        return row

    def add(self, row: Row):
        self.rows.append(row)
        print(f"  {row.what}: {row.rate:.1f} {row.unit}  {row.cost()}", file=sys.stderr)

    def streams(self, label: str, prefix: str, count: int, size: int):
        """PUT and GET of `count` objects of `size` bytes at once; then GET once more, when the system has them in memory."""
        offsets = [4099 * (n + 1) for n in range(count)]
        keys = [f"{prefix}-{n}" for n in range(count)]
        if size + max(offsets) > self.source.stat().st_size:
            raise ValueError("the source is too short")
        self.measure(f"PUT {label}", "MiB/s", [
            put_stream(self.target, BUCKET, key, str(self.source), offset, size) for key, offset in zip(keys, offsets)])
        self.measure(f"GET {label}", "MiB/s", [get_stream(self.target, BUCKET, key, size) for key in keys])
        self.measure(f"GET {label}, again", "MiB/s", [get_stream(self.target, BUCKET, key, size) for key in keys])

    def large(self):
        size = GIB // self.scale
        self.streams(f"{size // MIB} MiB, one stream", "one", 1, size)
        first = []
        for _ in range(5 if self.options.quick else 15):
            job = get_stream(self.target, BUCKET, "one-0", size, first_byte_only=True)
            first += run_workers([job], lambda: None)[0].latencies
        self.add(Row(f"first byte of a GET of {size // MIB} MiB", "ms (median)", 1e3 * statistics.median(first),
                     percentile(first, 0.5), percentile(first, 0.99), sum(first), 0, len(first)))
        self.streams(f"{64 // self.scale} MiB, 8 streams", "eight", 8, 64 * MIB // self.scale)

    def small(self):
        seconds = 2 if self.options.quick else 8
        for size in (4 * KIB, 5 * KIB, 16 * KIB, 64 * KIB):
            for connections in (1, 32):
                mark = " (inlined)" if self.inlines and size <= INLINE_MAX else ""
                label = f"{size // KIB} KiB{mark}, concurrency {connections}"
                limit = int(seconds * (600 if connections == 1 else 3000))
                keys = [f"s{size}-{connections}/{number:06}" for number in range(limit)]
                put = small_objects(self.target, BUCKET, "PUT", keys, size, connections, seconds)
                written = self.measure(f"PUT {label}", "ops/s", [put]).operations
                there = keys[:written]
                random.Random(1).shuffle(there)
                limit = int(seconds * (2000 if connections == 1 else 8000))
                asked = (there * (limit // max(1, len(there)) + 1))[:limit]
                get = small_objects(self.target, BUCKET, "GET", asked, size, connections, seconds)
                self.measure(f"GET {label}", "ops/s", [get])

    def listing(self):
        """Tiny objects in 100 folders; all of them listed, and the folders alone."""
        bucket, count = BUCKET + "-list", self.options.keys or (10_000 if self.options.quick else 100_000)
        make_bucket(self.target, bucket)
        left = [f"folder-{number % 100:02}/{number:08}" for number in range(count)]
        while left:
            # In batches: a signature is good for 15 minutes.
            batch, left = left[:20_000], left[20_000:]
            job = small_objects(self.target, bucket, "PUT", batch, 16, 32, 600)
            result = run_workers([job], lambda: None)[0]
            if result.errors or len(result.latencies) != len(batch):
                raise RuntimeError(f"keys could not be made: {result.errors[:3]}")
        self.listed(f"LIST {count:,} keys, pages of 1,000", bucket, {}, count)
        self.listed("LIST its 100 folders (delimiter)", bucket, {"delimiter": "/"}, 100)

    def listed(self, what: str, bucket: str, query: dict[str, str], wanted: int):
        usage = Usage(self.groups)
        connection, seen, latencies, token = Connection(self.target), 0, [], None
        usage.start()
        client, started = time.process_time(), time.monotonic()
        while True:
            head = Signer(self.target).head("GET", f"/{bucket}", None, query | {"list-type": "2"} | (
                {"continuation-token": token} if token else {}))
            began = time.monotonic()
            status, text = connection.text(head)
            latencies.append(time.monotonic() - began)
            if status != 200:
                raise RuntimeError(f"LIST: {status} {text[:300]}")
            seen += text.count("<Contents>") + text.count("<CommonPrefixes>")
            found = re.search("<NextContinuationToken>([^<]+)<", text)
            if not found:
                break
            token = found[1]
        seconds, client = time.monotonic() - started, time.process_time() - client
        cpu, peak = usage.end()
        self.add(Row(what, "keys/s", seen / seconds, percentile(latencies, 0.5), percentile(latencies, 0.99), seconds, 0, seen, cpu,
                     peak, client, int(seen != wanted)))

    def memory(self):
        """The gateway's peak while eight objects of 1 GiB stream at once, each way."""
        self.streams(f"{1024 // self.scale} MiB, 8 streams", "memory", 8, GIB // self.scale)


def make_bucket(target: Target, bucket: str):
    status, _ = Connection(target).text(Signer(target).head("PUT", f"/{bucket}", 0))
    if status not in (200, 409):
        raise RuntimeError(f"bucket {bucket} could not be made: {status}")


def limits(directory: Path, rates_program: str | None, size: int) -> dict[str, float]:
    """What the machine can do at most, in bytes per second but where the name says otherwise."""
    found = {"synced_write": synced_write(directory, int(1.4 * size)), "synced_4k_appends_per_second": fsyncs_per_second(directory)}
    if rates_program:
        found |= rates(rates_program)
    return found | {"md5": hash_rate("md5"), "sha256": hash_rate("sha256")}


def table(rows: list[Row], groups: list[str]) -> str:
    """The rows as a Markdown table with columns that line up."""
    memory = [group for group in groups if group != "database"]
    head = ["measured", "result", "p50 ms", "p99 ms", *(f"{group} CPU-s" for group in groups), "CPU in all",
            *(f"{group} peak MiB" for group in memory), "client CPU-s", "errors"]
    lines = [head]
    for row in rows:
        number = lambda value: "" if value is None else f"{value:.1f}"  # noqa: E731
        lines.append([
            row.what, f"{row.rate:,.1f} {row.unit}", number(row.p50_ms), number(row.p99_ms),
            *(f"{row.cpu[group]:.2f}" if group in row.cpu else "" for group in groups), row.cost(),
            *(f"{row.peak[group] / MIB:.0f}" if row.peak.get(group) else "" for group in memory),
            f"{row.client_cpu:.2f}" if row.client_cpu else "", str(row.errors) if row.errors else "",
        ])
    return markdown(lines)


def markdown(lines: list[list[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    align = [str.ljust, *[str.rjust] * (len(widths) - 1)]
    text = ["| " + " | ".join(fit(cell, width) for fit, cell, width in zip(align, line, widths)) + " |" for line in lines]
    rule = "|" + "|".join("-" * (width + 1) + ("-" if n == 0 else ":") for n, width in enumerate(widths)) + "|"
    return "\n".join([text[0], rule, *text[1:]])


def limits_table(found: dict[str, float]) -> str:
    shown = [["the machine at most", "rate"]]
    for name, rate in found.items():
        per_second = name.endswith("per_second")
        what = name.removesuffix("_per_second").replace("_", " ")
        shown.append([what, f"{rate:,.0f} /s" if per_second else f"{rate / MIB:,.0f} MiB/s"])
    return markdown(shown)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="script/bench", description="Starts a fresh cluster of release binaries (a gateway, "
                                     "six nodes and a rebalancer over PostgreSQL and Redis), drives it and prints one table.")
    parser.add_argument("--standalone", action="store_true", help="measure cyxcloud-standalone instead")
    parser.add_argument("--endpoint", metavar="URL", help="measure another S3 server, which runs already")
    parser.add_argument("--access-key", help="for --endpoint")
    parser.add_argument("--secret-key", help="for --endpoint")
    parser.add_argument("--pid", type=int, action="append", default=[], help="for --endpoint: a process to count, with all it "
                        "started; may be repeated")
    parser.add_argument("--nodes", type=int, default=6, metavar="N", help="nodes of the cluster (default: 6)")
    parser.add_argument("--only", default="large,small,list", metavar="LIST", help="of large, small, list, memory")
    parser.add_argument("--memory", action="store_true", help="also: peak memory during 8 streams of 1 GiB (11 GiB of disk)")
    parser.add_argument("--keys", type=int, metavar="N", help="keys to list (default: 100,000)")
    parser.add_argument("--quick", action="store_true", help="an eighth of the bytes, a quarter of the time")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    parser.add_argument("--dir", metavar="DIR", help="where servers keep their data; on the disk to be measured")
    options = parser.parse_args(arguments)
    if options.endpoint and not (options.access_key and options.secret_key):
        parser.error("--endpoint needs --access-key and --secret-key")
    if options.endpoint and options.standalone:
        parser.error("--endpoint and --standalone contradict each other")
    options.parts = options.only.split(",") + (["memory"] if options.memory else [])
    if unknown := set(options.parts) - {"large", "small", "list", "memory"}:
        parser.error(f"--only knows large, small, list and memory, not {', '.join(sorted(unknown))}")
    return options


def start(options: argparse.Namespace, directory: Path):
    """The server to be measured: target, groups of process ids, and what stops it."""
    if options.endpoint:
        target = Target(options.endpoint.rstrip("/"), options.access_key, options.secret_key)
        return target, {"server": options.pid} if options.pid else {}, lambda: None
    from cluster import Cluster, Standalone

    server = Standalone(directory / "server", nodes=options.nodes) if options.standalone else Cluster(
        directory / "server", nodes=options.nodes)
    try:
        server.start()
    except BaseException:
        print(server.tails(), file=sys.stderr)
        server.stop()
        raise
    if options.standalone:
        groups = {"standalone": [server.process.pid]}
    else:
        database = [int(pid) for pid in os.environ["CYXCLOUD_TEST_DATABASE_PIDS"].split(",")]
        groups = {"gateway": [server.gateway.pid], "nodes": [node.pid for node in server.nodes], "database": database}
    return Target(server.url, server.credentials.access_key, server.credentials.secret_key), groups, server.stop


def main() -> int:
    options = parse(sys.argv[1:])
    directory = Path(tempfile.mkdtemp(prefix="cyxcloud-bench-", dir=options.dir))
    stop = lambda: None  # noqa: E731
    try:
        size = GIB // (8 if options.quick else 1)
        found = limits(directory, os.environ.get("CYXCLOUD_BENCH_RATES"), size)
        target, groups, stop = start(options, directory)
        bench = Bench(target, groups, options, directory)
        make_bucket(target, BUCKET)
        bench.make_source()
        for part in options.parts:
            {"large": bench.large, "small": bench.small, "list": bench.listing, "memory": bench.memory}[part]()
    finally:
        stop()
        shutil.rmtree(directory, ignore_errors=True)
    about = machine()
    what = options.endpoint or ("cyxcloud-standalone" if options.standalone else f"gateway and {options.nodes} nodes, PostgreSQL")
    print(f"{what}; {about['cores']} cores of {about['cpu']}, {about['memory_gib']} GiB, {about['system']}, Linux {about['kernel']}; "
          f"{time.strftime('%Y-%m-%d')}\n")
    print(table(bench.rows, list(groups)))
    print()
    print(limits_table(found))
    if options.json:
        rows = [vars(row) | {"server_cpu": row.server_cpu} for row in bench.rows]
        Path(options.json).write_text(json.dumps({"server": what, "machine": about, "limits": found, "rows": rows}, indent=1) + "\n")
    return 1 if any(row.errors for row in bench.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
