"""Whoever reaches the gRPC ports and has no token: he learns nothing and changes nothing."""

import pytest

import rpc
from clients import bearer, new_bucket, s3_client
from cluster import Cluster, psql
from data import MIB, make_bytes
from people import owner_of_root

# Under which number each call's message carries its token.
CHUNK_TOKENS = {"StoreChunk": 4, "GetChunk": 3, "DeleteChunk": 3, "RestoreChunk": 3, "HasChunk": 2, "ListChunks": 4}
DATA_TOKENS = {"ReplicateChunk": 4, "VerifyChunk": 2}


@pytest.mark.parametrize("token", [b"", b"rustfs rpc", b"x" * 100])
def test_a_node_does_nothing_without_a_token(cluster: Cluster, token):
    s3 = s3_client(cluster)
    bucket = new_bucket(s3)
    body = make_bytes(MIB, bucket)
    s3.put_object(Bucket=bucket, Key="k", Body=body)
    row = psql(cluster.database_url, """SELECT encode(l.chunk_id, 'hex'), n.label FROM chunk_locations l
        JOIN nodes n ON n.id = l.node_id LIMIT 1""")
    chunk, label = row.split("|")
    port = cluster.node_ports[int(label.removeprefix("node-")) - 1][0]
    for service, tokens in (rpc.CHUNKS, CHUNK_TOKENS), (rpc.CHUNK_DATA, DATA_TOKENS):
        for name, number in tokens.items():
            message = rpc.message(_1=bytes.fromhex(chunk), **{f"_{number}": token})
            assert rpc.call(port, f"{service}/{name}", message)[0] == rpc.UNAUTHENTICATED, name
    # The health service is anybody's, and the object is as it was.
    assert rpc.call(port, "grpc.health.v1.Health/Check")[0] == rpc.OK
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == body


def test_nobody_speaks_for_a_node_or_asks_for_all(cluster: Cluster):
    port = cluster.grpc_port
    node = bytes.fromhex(psql(cluster.database_url, "SELECT replace(id::text, '-', '') FROM nodes LIMIT 1"))
    used = "SELECT sum(storage_used) FROM nodes WHERE storage_used = 7"
    for token in (b"", b"nobody's"):
        # storage_used = 7, with what would be the node's token.
        beat = rpc.message(_1=node, _2=7, _11=token)
        assert rpc.call(port, f"{rpc.NODE}/Heartbeat", beat)[0] == rpc.UNAUTHENTICATED
    assert psql(cluster.database_url, used) == ""
    for name, message in {"ListNodes": b"", "GetNodeInfo": rpc.message(_1=node)}.items():
        for headers, status in [
            ((), rpc.UNAUTHENTICATED),
            (("authorization: Bearer x.y.z",), rpc.UNAUTHENTICATED),
            # Where nodes are is told to those who run this.
            ((f"authorization: Bearer {bearer(cluster)}",), rpc.PERMISSION_DENIED),
            ((f"authorization: Bearer {bearer(cluster, sub=owner_of_root(cluster))}",), rpc.OK),
        ]:
            assert rpc.call(port, f"{rpc.NODE}/{name}", message, headers=headers)[0] == status, name
    # Its own token is good for its own heartbeats: a node that is heard stays online.
    cluster.wait_online(len(cluster.nodes))
