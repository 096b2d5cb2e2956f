-- For each of the chunk ids $2: the first location of node $1 at or after it that is believed in, of a live segment; else the
-- first of all. The fences keep the walk on the index of the node's locations, and look its end up by whole keys.
SELECT y.* FROM unnest((SELECT $2::bytea[])) AS u (first)
CROSS JOIN LATERAL (
SELECT x.*, k.size_bytes
FROM (
    (SELECT 0 AS turn, l.chunk_id, l.segment_id, l.stripe_index, l.shard_index, l.incarnation, l.generation, l.status
     FROM chunk_locations l
     CROSS JOIN LATERAL (SELECT FROM segments WHERE id = l.segment_id AND state = 'live' OFFSET 0) s
     WHERE l.node_id = $1 AND l.chunk_id >= u.first AND l.status = 'stored'
     ORDER BY l.chunk_id, l.segment_id, l.stripe_index, l.shard_index LIMIT 1)
    UNION ALL
    (SELECT 1, l.chunk_id, l.segment_id, l.stripe_index, l.shard_index, l.incarnation, l.generation, l.status
     FROM chunk_locations l
     CROSS JOIN LATERAL (SELECT FROM segments WHERE id = l.segment_id AND state = 'live' OFFSET 0) s
     WHERE l.node_id = $1 AND l.status = 'stored'
     ORDER BY l.chunk_id, l.segment_id, l.stripe_index, l.shard_index LIMIT 1)
) x
CROSS JOIN LATERAL (
    SELECT size_bytes FROM chunks
    WHERE segment_id = x.segment_id AND stripe_index = x.stripe_index AND shard_index = x.shard_index OFFSET 0
) k
ORDER BY x.turn LIMIT 1
) y
