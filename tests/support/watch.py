"""What must hold while a server is attacked: a good client is served, and memory is kept."""

import threading

import requests

from data import MIB
from people import coming_from, next_address
from process import PATIENCE
from raw import Signed

# Far less than what the floods send; far more than what a server takes for its own.
GROWTH_MAX = 96 * MIB


def memory(process) -> int:
    """What a process holds of memory now, in bytes."""
    with open(f"/proc/{process.pid}/statm") as statm:
        return int(statm.read().split()[1]) * 4096


class Watch:
    """A good client, asking all the while, and a look at the server's memory."""

    def __init__(self, cluster, path: str):
        self.cluster, self.path = cluster, path
        self.before = self.most = memory(cluster.gateway)
        self.answers, self.stop = [], threading.Event()
        self.session = coming_from(next_address())

    def ask(self):
        signed = Signed(self.cluster, "GET", self.path)
        answer = self.session.get(signed.url, headers=signed.headers, timeout=PATIENCE)
        return answer.status_code == 200 and answer.content == b"kept"

    def run(self):
        while not self.stop.is_set():
            try:
                self.answers.append(self.ask())
            except requests.RequestException as error:
                self.answers.append(error)
            self.most = max(self.most, memory(self.cluster.gateway))
            self.stop.wait(0.1)

    def __enter__(self):
        assert self.ask()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        return self

    def __exit__(self, kind, *_):
        self.stop.set()
        self.thread.join()
        if kind:
            return
        assert self.answers and all(answer is True for answer in self.answers), [a for a in self.answers if a is not True][:3]
        assert self.ask()
        grown = max(self.most, memory(self.cluster.gateway)) - self.before
        assert grown < GROWTH_MAX, f"the gateway grew by {grown // MIB} MiB"
        self.cluster.gateway.expect_running()
