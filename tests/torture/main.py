"""Tries to make a cluster break its promises: seeded scenarios with faults, and what must hold at their end.

    script/torture [--scenario NAME] [--seed S] [--minutes M] [--results FILE]

Every acknowledged write is noted in a file outside the cluster before anything is concluded from it. A request that failed
or timed out may have taken effect: its key then may hold either value. One seed chooses all that is random here; what
processes and the scheduler do with it differs from run to run.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

from botocore.exceptions import BotoCoreError, ClientError  # noqa: E402

from clients import new_bucket, s3_client  # noqa: E402
from cluster import Cluster, psql  # noqa: E402
from process import wait_until  # noqa: E402

KIB, MIB = 1 << 10, 1 << 20
REFUSED = (ClientError, BotoCoreError)
TIMERS = {
    "NODE_OFFLINE_THRESHOLD_SECS": "3",
    "NODE_RECOVERY_QUARANTINE_SECS": "1",
    "NODE_DRAIN_THRESHOLD_SECS": "10",
    "NODE_REMOVE_THRESHOLD_SECS": "3600",
}
UPKEEP = {
    "SCAN_INTERVAL_SECS": "1",
    "REPAIR_DELAY_SECS": "1",
    "REPAIR_LEASE_SECS": "1",
    "REPAIR_BYTES_PER_SEC": "0",
    "GC_GRACE_SECS": "2",
    "RECONCILE_INTERVAL_SECS": "5",
    "AUDIT_INTERVAL_SECS": "5",
    "AUDIT_TIMEOUT_SECS": "2",
}
NODE = {"NODE_TRASH_SECS": "0"}

SHORT = """SELECT count(*) FROM stripes st JOIN segments s ON s.id = st.segment_id AND s.state = 'live'
    CROSS JOIN LATERAL (
        SELECT count(DISTINCT l.shard_index) AS shards, count(*) AS places FROM chunk_locations l
        JOIN nodes n ON n.id = l.node_id AND n.status = 'online'
        WHERE l.segment_id = st.segment_id AND l.stripe_index = st.stripe_index AND l.status = 'stored') h
    WHERE h.shards < s.data_shards + s.parity_shards OR h.places < s.copies"""
# What must be zero whenever it is looked at.
ALWAYS = {
    "objects refer to live segments only": """SELECT count(*) FROM file_segments f JOIN segments s ON s.id = f.segment_id
        WHERE s.state <> 'live'""",
    "locations name the chunk of their row": """SELECT count(*) FROM chunk_locations l
        JOIN chunks c USING (segment_id, stripe_index, shard_index) WHERE c.chunk_id <> l.chunk_id""",
    "locations belong to nodes that are known": """SELECT count(*) FROM chunk_locations l
        LEFT JOIN nodes n ON n.id = l.node_id WHERE n.id IS NULL""",
}
# What must become zero when nothing happens any more.
IN_THE_END = {
    "every stripe is whole": SHORT,
    "no location is doubtful": "SELECT count(*) FROM chunk_locations WHERE status <> 'stored'",
    "no repair waits": "SELECT count(*) FROM repair_jobs WHERE status IN ('pending', 'in_progress')",
    "no upload is under way": "SELECT count(*) FROM upload_intents",
    "no segment is unreferenced": """SELECT count(*) FROM segments s
        WHERE NOT EXISTS (SELECT 1 FROM file_segments f WHERE f.segment_id = s.id)
          AND NOT EXISTS (SELECT 1 FROM part_segments p WHERE p.segment_id = s.id)""",
    "no chunk waits to be deleted": "SELECT (SELECT count(*) FROM chunk_deletes) + (SELECT count(*) FROM orphans)",
    "disks hold what locations name": """SELECT abs(coalesce((SELECT sum(storage_used) FROM nodes), 0) - coalesce((
        SELECT sum(size) FROM (SELECT DISTINCT l.node_id, l.chunk_id, c.size_bytes AS size FROM chunk_locations l
        JOIN chunks c USING (segment_id, stripe_index, shard_index)) d), 0))""",
}


def body_of(seed: int, name: str, size: int) -> bytes:
    """Unlike any other; a few bytes of it are enough to tell whose they are."""
    block = hashlib.sha512(f"{seed}/{name}".encode()).digest()
    return (block * (size // len(block) + 1))[:size]


class Broken(Exception):
    """A promise was not kept."""


class Run:
    """One scenario with one seed."""

    def __init__(self, directory: Path, seed: int, seconds: float):
        self.directory, self.seed, self.seconds = directory, seed, seconds
        self.random = random.Random(seed)
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.broken: list[str] = []
        self.counts: dict[str, int] = {}
        # What a key may hold: its name and size, or None. More than one where an answer did not come.
        self.may: dict[str, set] = {}
        self.history = (directory / "history.jsonl").open("w")

    def cluster(self, nodes: int, **upkeep: str) -> Cluster:
        return Cluster(self.directory / "cluster", nodes=nodes, gateway_env=TIMERS, rebalancer_env=UPKEEP | upkeep, node_env=NODE)

    def count(self, what: str, n: int = 1):
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + n

    def note(self, **entry):
        with self.lock:
            self.history.write(json.dumps(entry | {"at": time.time()}) + "\n")
            self.history.flush()
            os.fsync(self.history.fileno())

    def fail(self, what: str):
        with self.lock:
            self.broken.append(what)
        self.over.set()

    # A worker owns its keys, so that what they may hold is known.

    def put(self, s3, bucket: str, key: str, value: tuple[str, int], **options) -> bool:
        body = body_of(self.seed, *value)
        self.may.setdefault(key, {None}).add(value)
        try:
            s3.put_object(Bucket=bucket, Key=key, Body=body, **options)
        except REFUSED as error:
            self.count("PUT refused")
            self.note(op="put", key=key, value=value, error=str(error)[:200])
            return False
        self.note(op="put", key=key, value=value, ok=True)
        self.may[key] = {value}
        self.count("PUT")
        return True

    def delete(self, s3, bucket: str, key: str) -> bool:
        self.may.setdefault(key, {None}).add(None)
        try:
            s3.delete_object(Bucket=bucket, Key=key)
        except REFUSED as error:
            self.count("DELETE refused")
            self.note(op="delete", key=key, error=str(error)[:200])
            return False
        self.note(op="delete", key=key, ok=True)
        self.may[key] = {None}
        self.count("DELETE")
        return True

    def check(self, s3, bucket: str, key: str, must_answer: bool = True):
        """What a key holds is one of what it may hold, every byte of it."""
        may = set(self.may.get(key, {None}))
        try:
            got = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        except ClientError as error:
            if error.response["Error"]["Code"] == "NoSuchKey":
                if None not in may:
                    self.fail(f"{key} is gone; it may hold {may}")
            elif must_answer:
                self.fail(f"GET {key}: {error}")
            else:
                self.count("GET refused")
            return
        except BotoCoreError as error:
            if must_answer:
                self.fail(f"GET {key}: {error!r}")
            else:
                self.count("GET refused")
            return
        self.count("GET")
        for value in may - {None}:
            if got == body_of(self.seed, *value):
                self.may[key] = {value} if len(may) == 1 else may
                return
        self.fail(f"{key} holds {len(got)} bytes that were never put there; it may hold {may}")

    def workers(self, works: list) -> list[threading.Thread]:
        def guarded(work, number):
            try:
                work(number)
            except Exception as error:  # noqa: BLE001 - a bug in the harness must not look like success
                self.fail(f"worker {number}: {error!r}")

        threads = [threading.Thread(target=guarded, args=(work, number), daemon=True) for number, work in enumerate(works)]
        for thread in threads:
            thread.start()
        return threads

    def always(self, cluster: Cluster):
        for what, sql in ALWAYS.items():
            if (found := psql(cluster.database_url, sql)) != "0":
                self.fail(f"not {what}: {found}")

    def settle(self, cluster: Cluster, seconds: float = 180):
        """Nothing happens any more: all that is owed must be paid within this time."""
        began = time.monotonic()
        for what, sql in IN_THE_END.items():
            left = max(1.0, seconds - (time.monotonic() - began))
            try:
                wait_until(what, lambda: psql(cluster.database_url, sql) == "0", left, 0.5)
            except TimeoutError:
                self.fail(f"after {seconds:g} s not {what}: {psql(cluster.database_url, sql)}")
                return
        self.counts["settled after s"] = round(time.monotonic() - began)

    def read_all(self, s3, bucket: str):
        for key in sorted(self.may):
            if self.broken:
                return
            self.check(s3, bucket, key)

    def one_at_a_time(self, cluster: Cluster, s3, bucket: str):
        """What is whole can be read without any one of its nodes."""
        for index, node in enumerate(cluster.nodes):
            node.kill()
            self.read_all(s3, bucket)
            cluster.restart_node(index)
            if self.broken:
                return


def mixed_load(run: Run, server, bucket: str, must_answer: bool):
    """Puts, overwrites, deletes and reads of keys of its own."""

    def work(number: int):
        chance = random.Random(run.seed * 1000 + number)
        s3 = s3_client(server)
        version = 0
        while not run.over.is_set():
            key = f"w{number}-{chance.randrange(12)}"
            dice = chance.random()
            if dice < 0.5:
                version += 1
                size = chance.choice([100, 5_000, 70_000, 300_000, 5 * MIB + 1])
                run.put(s3, bucket, key, (f"{key}#{version}", size))
            elif dice < 0.6:
                run.delete(s3, bucket, key)
            else:
                run.check(s3, bucket, key, must_answer)

    return work


def thrash(run: Run):
    """Nodes are killed and started again, one at a time, under load; then all that is owed is paid."""
    cluster = run.cluster(7)
    try:
        cluster.start()
        s3 = s3_client(cluster)
        bucket = new_bucket(s3, "thrash")
        threads = run.workers([mixed_load(run, cluster, bucket, must_answer=True)] * 4)
        end = time.monotonic() + run.seconds
        while time.monotonic() < end and not run.over.is_set():
            index = run.random.randrange(len(cluster.nodes))
            cluster.nodes[index].kill()
            run.count("kill")
            run.over.wait(run.random.uniform(0.5, 3))
            cluster.nodes[index].start()
            # The next one only when this one serves again: more than one loss is more than was promised with so few nodes.
            cluster.restart_wait(index)
            run.always(cluster)
        run.over.set()
        for thread in threads:
            thread.join(120)
        if not run.broken:
            run.settle(cluster)
            run.always(cluster)
            run.read_all(s3, bucket)
            run.one_at_a_time(cluster, s3, bucket)
        cluster.check_logs()
    finally:
        cluster.stop()


def gc_race(run: Run):
    """Many put and delete the same bytes while they are collected: what was acknowledged must be there."""
    cluster = run.cluster(6)
    value = ("the same for all", 4 * MIB)
    try:
        cluster.start()
        bucket = new_bucket(s3_client(cluster), "race")

        def work(number: int):
            chance = random.Random(run.seed * 1000 + number)
            s3 = s3_client(cluster)
            key = f"k{number}"
            while not run.over.is_set():
                if run.put(s3, bucket, key, value):
                    run.check(s3, bucket, key)
                    run.over.wait(chance.choice([0, 0, 0.5, 2, 4]))
                    run.check(s3, bucket, key)
                run.delete(s3, bucket, key)
                run.over.wait(chance.choice([0, 0, 0.5, 3]))
                run.count("cycle")

        threads = run.workers([work] * 8)
        end = time.monotonic() + run.seconds
        while time.monotonic() < end and not run.over.is_set():
            run.over.wait(2)
            run.always(cluster)
        run.over.set()
        for thread in threads:
            thread.join(120)
        s3 = s3_client(cluster)
        for number in range(0, 8, 2):
            run.put(s3, bucket, f"k{number}", value)
        if not run.broken:
            run.settle(cluster)
            run.read_all(s3, bucket)
            run.one_at_a_time(cluster, s3, bucket)
        cluster.check_logs()
    finally:
        cluster.stop()


def rebalancers(run: Run):
    """Three rebalancers, one of which sleeps past its lease again and again: none records what it no longer may."""
    cluster = run.cluster(8)
    others = []
    try:
        cluster.start()
        from process import free_ports

        for number in (2, 3):
            env = dict(cluster.rebalancer.env) | {"HTTP_ADDR": f"127.0.0.1:{free_ports(1)[0]}"}
            others.append(cluster._process(f"rebalancer-{number}", cluster.rebalancer.args, env).start())
        cluster.processes += others
        s3 = s3_client(cluster)
        bucket = new_bucket(s3, "fenced")
        for number in range(30):
            run.put(s3, bucket, f"k{number}", (f"k{number}", run.random.choice([70_000, 300_000, 5 * MIB])))
        threads = run.workers([mixed_load(run, cluster, bucket, must_answer=True)] * 2)
        end = time.monotonic() + run.seconds
        everyone = [cluster.rebalancer, *others]
        while time.monotonic() < end and not run.over.is_set():
            index = run.random.randrange(len(cluster.nodes))
            # Long enough to count as lost, so that there is work.
            cluster.nodes[index].kill()
            for _ in range(6):
                sleeper = run.random.choice(everyone)
                os.kill(sleeper.pid, signal.SIGSTOP)
                run.over.wait(run.random.uniform(1.5, 3))
                os.kill(sleeper.pid, signal.SIGCONT)
                run.count("slept past the lease")
            cluster.nodes[index].start()
            cluster.restart_wait(index)
            run.always(cluster)
        run.over.set()
        for thread in threads:
            thread.join(120)
        if not run.broken:
            run.settle(cluster)
            run.always(cluster)
            run.read_all(s3, bucket)
            run.counts["jobs done"] = int(psql(cluster.database_url, "SELECT count(*) FROM repair_jobs WHERE status = 'completed'"))
        cluster.check_logs()
    finally:
        for process in others:
            process.kill()
        cluster.stop()


def beyond(run: Run):
    """As many nodes as the tolerance says may go, and nothing is refused; more, and what cannot be read is refused, not made up."""
    cluster = run.cluster(7, SWEEP_STRIPES_PER_SEC="1000")
    try:
        cluster.start()
        s3 = s3_client(cluster)
        bucket = new_bucket(s3, "beyond")
        for number in range(20):
            run.put(s3, bucket, f"k{number}", (f"k{number}", 300_000 + number))
        run.settle(cluster)
        rounds = max(1, int(run.seconds // 60))
        for _ in range(rounds):
            if run.broken:
                break
            down = run.random.sample(range(7), 3)
            # Two shards of fourteen on each of seven nodes: two may go.
            for index in down[:2]:
                cluster.nodes[index].kill()
            for key in sorted(run.may):
                run.check(s3, bucket, key)
            cluster.nodes[down[2]].kill()
            refused = run.counts.get("GET refused", 0)
            for key in sorted(run.may):
                run.check(s3, bucket, key, must_answer=False)
            if run.counts.get("GET refused", 0) - refused != len(run.may):
                run.fail("with three of seven nodes away something could be read: the test proves nothing")
            for index in down:
                cluster.nodes[index].start()
            for index in down:
                cluster.restart_wait(index)
            for key in sorted(run.may):
                run.check(s3, bucket, key)
            run.settle(cluster)
        cluster.check_logs()
    finally:
        cluster.stop()


# Numbers are those of the catalogue of scenarios in docs/reliability.md.
SCENARIOS = {"2-thrash": thrash, "3-beyond": beyond, "20-gc-race": gc_race, "28-rebalancers": rebalancers}


def main() -> int:
    parser = argparse.ArgumentParser(prog="script/torture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", choices=[*SCENARIOS, *(name.split("-")[0] for name in SCENARIOS)], action="append",
                        help="by name or number; all unless told")
    parser.add_argument("--seed", type=int, action="append", help="any number of times; one by chance unless told")
    parser.add_argument("--minutes", type=float, default=1.0, help="of faults per scenario and seed (default: 1)")
    parser.add_argument("--results", metavar="FILE", help="one line of JSON per run; what stands there with 'held' is not run again")
    options = parser.parse_args()
    names = [name for name in SCENARIOS
             if not options.scenario or name in options.scenario or name.split("-")[0] in options.scenario]
    seeds = options.seed or [random.SystemRandom().randrange(1 << 31)]
    results = Path(options.results) if options.results else None
    done = set()
    if results and results.exists():
        for line in results.read_text().splitlines():
            entry = json.loads(line)
            if entry["held"] and entry["minutes"] >= options.minutes:
                done.add((entry["scenario"], entry["seed"]))
    failed = 0
    for seed in seeds:
        for name in names:
            if (name, seed) in done:
                print(f"{name} seed {seed}: held before", flush=True)
                continue
            directory = Path(tempfile.mkdtemp(prefix=f"torture-{name}-"))
            run = Run(directory, seed, options.minutes * 60)
            began = time.monotonic()
            try:
                SCENARIOS[name](run)
            except Exception as error:  # noqa: BLE001 - whatever stopped it, it did not hold
                run.broken.append(f"stopped: {error!r}")
            held = not run.broken
            seconds = round(time.monotonic() - began)
            counts = ", ".join(f"{what} {n}" for what, n in sorted(run.counts.items()))
            print(f"{name} seed {seed}: {'held' if held else 'BROKEN'} in {seconds} s: {counts}", flush=True)
            if results:
                entry = {"scenario": name, "seed": seed, "minutes": options.minutes, "held": held, "seconds": seconds,
                         "counts": run.counts, "broken": run.broken[:5]}
                with results.open("a") as file:
                    file.write(json.dumps(entry) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
            if held:
                import shutil

                shutil.rmtree(directory, ignore_errors=True)
                continue
            failed += 1
            for what in run.broken[:5]:
                print(f"  {what}", flush=True)
            print(f"  logs and history: {directory}", flush=True)
            print(f"  again: script/torture --scenario {name} --seed {seed} --minutes {options.minutes:g}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
