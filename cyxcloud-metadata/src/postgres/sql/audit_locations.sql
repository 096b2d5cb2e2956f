-- Marks the locations ($2 chunks, $3 segments, $4 stripes, $5 shards on $1 nodes) by how their audits ended ($6); of
-- several of one location the last counts. Answers with those that are lost now, and holds the others too.
WITH said AS (
    SELECT DISTINCT ON (segment_id, stripe_index, shard_index, node_id) *
    FROM unnest($1::uuid[], $2::bytea[], $3::uuid[], $4::bigint[], $5::smallint[], $6::text[]) WITH ORDINALITY
        a (node_id, chunk_id, segment_id, stripe_index, shard_index, outcome, n)
    ORDER BY segment_id, stripe_index, shard_index, node_id, n DESC
), held AS MATERIALIZED (
    SELECT l.segment_id, l.stripe_index, l.shard_index, l.node_id, a.outcome
    FROM chunk_locations l
    JOIN said a ON l.segment_id = a.segment_id AND l.stripe_index = a.stripe_index
        AND l.shard_index = a.shard_index AND l.node_id = a.node_id AND l.chunk_id = a.chunk_id
    ORDER BY l.segment_id, l.stripe_index, l.shard_index, l.node_id
    FOR NO KEY UPDATE OF l
)
UPDATE chunk_locations l SET
    status = CASE h.outcome WHEN 'lost' THEN 'missing' WHEN 'wrong' THEN 'corrupt' ELSE l.status END,
    last_verified = CASE WHEN h.outcome = 'proven' THEN now() ELSE l.last_verified END,
    verification_failures = l.verification_failures + CASE WHEN h.outcome = 'proven' THEN 0 ELSE 1 END
FROM held h
WHERE l.segment_id = h.segment_id AND l.stripe_index = h.stripe_index AND l.shard_index = h.shard_index
    AND l.node_id = h.node_id
    AND (h.outcome = 'proven' AND l.status = 'stored'
         OR h.outcome IN ('lost', 'wrong') AND l.status IN ('stored', 'leaving'))
RETURNING l.segment_id, l.stripe_index, h.outcome <> 'proven' AS lost
