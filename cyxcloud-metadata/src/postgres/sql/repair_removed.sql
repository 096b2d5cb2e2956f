-- Takes shards ($3) of stripe ($1, $2) from nodes ($4) and hands their chunks to deletion after $5 milliseconds.
WITH gone AS (
    DELETE FROM chunk_locations l USING unnest($3::smallint[], $4::uuid[]) r (shard_index, node_id)
    WHERE l.segment_id = $1 AND l.stripe_index = $2 AND l.shard_index = r.shard_index AND l.node_id = r.node_id
    RETURNING l.node_id, l.chunk_id, l.incarnation, l.generation
)
INSERT INTO chunk_deletes AS d (node_id, chunk_id, incarnation, generation, reason, not_before)
SELECT node_id, chunk_id, incarnation, max(generation), 'moved', now() + $5 * interval '1 millisecond'
FROM gone
GROUP BY node_id, chunk_id, incarnation
ORDER BY node_id, chunk_id, incarnation
