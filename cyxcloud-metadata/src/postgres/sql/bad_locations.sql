-- Marks locations ($1 segments, $2 stripes, $3 shards, $4 nodes) bad as $5 says; answers with the stripes of those
-- that were not bad before.
WITH bad AS (
    SELECT DISTINCT ON (segment_id, stripe_index, shard_index, node_id) *
    FROM unnest($1::uuid[], $2::bigint[], $3::smallint[], $4::uuid[], $5::text[])
        b (segment_id, stripe_index, shard_index, node_id, fault)
), held AS MATERIALIZED (
    SELECT l.segment_id, l.stripe_index, l.shard_index, l.node_id, b.fault
    FROM chunk_locations l
    JOIN bad b ON l.segment_id = b.segment_id AND l.stripe_index = b.stripe_index
        AND l.shard_index = b.shard_index AND l.node_id = b.node_id
    WHERE l.status IN ('stored', 'leaving')
    ORDER BY l.segment_id, l.stripe_index, l.shard_index, l.node_id
    FOR UPDATE OF l
)
UPDATE chunk_locations l SET
    status = h.fault,
    verification_failures = l.verification_failures + 1
FROM held h
WHERE l.segment_id = h.segment_id AND l.stripe_index = h.stripe_index AND l.shard_index = h.shard_index
    AND l.node_id = h.node_id
RETURNING l.segment_id, l.stripe_index
