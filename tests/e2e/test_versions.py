"""Programs of two versions side by side, across one change of the format of nodes' data: 1, and 2, which remembers when a
chunk was stored. A build with the feature `faults` is the older program where CYXCLOUD_FAULT_FORMAT_VERSION says 1: it reads and
writes that format only, and refuses the other."""

import subprocess

import requests

from clients import new_bucket, put_all, s3_client
from cluster import Cluster, psql
from conftest import run_server
from data import MIB
from process import wait_until

OLD = {"CYXCLOUD_FAULT_FORMAT_VERSION": "1"}
SIZES = [70_000, 300_000, 5 * MIB + 3]


def formats(cluster: Cluster) -> list[int]:
    """What the nodes say that their data is in."""

    def one(index: int) -> int:
        text = requests.get(f"http://127.0.0.1:{cluster.node_ports[index][1]}/metrics", timeout=30).text
        return int(next(line.split()[1] for line in text.splitlines() if line.startswith("cyxcloud_node_format ")))

    return [one(index) for index in range(len(cluster.nodes))]


def restart_gateway(cluster: Cluster, **env: str):
    cluster.gateway.stop()
    cluster.gateway.env = {key: value for key, value in cluster.gateway.env.items() if key not in OLD} | env
    cluster.gateway.start()
    cluster.wait_ready(cluster.gateway)


def test_old_and_new_programs_work_together_and_nobody_goes_over_alone(workspace):
    server = Cluster(workspace / "versions", nodes=3, gateway_env=OLD)
    server.nodes[2].env |= OLD
    for cluster in run_server(server):
        s3 = s3_client(cluster)
        stored: dict[str, dict[str, bytes]] = {}

        def works(name: str):
            """Writes, reads all there ever was, and again with each node away."""
            bucket = new_bucket(s3, name)
            stored[bucket] = put_all(s3, bucket, SIZES)
            for bucket, bodies in stored.items():
                for key, body in bodies.items():
                    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == body, (name, bucket, key)

        # New nodes under an old gateway, beside an old one: they keep to what it knows.
        works("old-gateway")
        assert formats(cluster) == [1, 1, 1]

        # The gateway becomes new: new nodes go over by themselves, the old one works on as it is.
        restart_gateway(cluster)
        wait_until("new nodes went over", lambda: formats(cluster) == [2, 2, 1])
        works("new-gateway")
        for node in range(3):
            cluster.nodes[node].kill()
            for bucket, bodies in stored.items():
                for key, body in bodies.items():
                    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == body, (node, bucket, key)
            cluster.restart_node(node)
        assert formats(cluster) == [2, 2, 1]

        # An old program does not touch what a new one wrote, and says what to do.
        cluster.nodes[0].kill()
        refused = subprocess.run(cluster.nodes[0].args, env=cluster.nodes[0].env | OLD, capture_output=True, text=True, timeout=60)
        text = refused.stdout + refused.stderr
        assert refused.returncode != 0 and "has format 2 and this build reads formats 1 to 1" in text and "panicked" not in text, text
        cluster.restart_node(0)

        # The gateway goes back: nodes that it knows serve on, but it takes none of a format that it does not know.
        restart_gateway(cluster, **OLD)
        works("gateway-back")
        cluster.nodes[1].kill()
        cluster.nodes[1].start()
        said = "keeps chunks in format 2 and this gateway knows formats 1 to 1; update the older one"
        cluster.nodes[1].wait_for("it is refused", lambda: said in cluster.nodes[1].output())

        # All new in the end; held back by the operator until all gateways are.
        restart_gateway(cluster, NODE_FORMAT="1")
        wait_until("it is registered", lambda: "registered with the gateway" in cluster.nodes[1].output().rsplit(said, 1)[1], 120)
        cluster.nodes[2].stop()
        cluster.nodes[2].env = {key: value for key, value in cluster.nodes[2].env.items() if key not in OLD}
        cluster.restart_node(2)
        works("held-back")
        assert formats(cluster) == [2, 2, 1]
        restart_gateway(cluster, NODE_FORMAT="2")
        wait_until("the last one went over", lambda: formats(cluster) == [2, 2, 2])
        works("all-new")
        assert psql(cluster.database_url, "SELECT count(*) FROM nodes") == "3"
