-- What the comparison of node $1 found about its locations: each a chunk ($2) in a place ($3, $4, $5) with a verdict
-- ($6) and the generation that is held ($7, $8). A row that has a newer generation by now was stored since.
WITH compared AS (
    SELECT DISTINCT ON (segment_id, stripe_index, shard_index) *
    FROM unnest($2::bytea[], $3::uuid[], $4::bigint[], $5::smallint[], $6::text[], $7::uuid[], $8::bigint[])
        c (chunk_id, segment_id, stripe_index, shard_index, verdict, incarnation, generation)
), held AS MATERIALIZED (
    SELECT l.segment_id, l.stripe_index, l.shard_index, c.verdict, c.incarnation, c.generation
    FROM chunk_locations l
    JOIN compared c ON l.segment_id = c.segment_id AND l.stripe_index = c.stripe_index
        AND l.shard_index = c.shard_index AND l.chunk_id = c.chunk_id
    WHERE l.node_id = $1
        AND CASE WHEN c.verdict = 'missing' THEN l.status IN ('stored', 'leaving')
                 ELSE l.incarnation <> c.incarnation OR l.generation <= c.generation END
    ORDER BY l.segment_id, l.stripe_index, l.shard_index
    FOR NO KEY UPDATE OF l
)
UPDATE chunk_locations l SET
    status = CASE h.verdict WHEN 'missing' THEN 'missing' WHEN 'found' THEN 'stored' ELSE l.status END,
    incarnation = coalesce(h.incarnation, l.incarnation), generation = coalesce(h.generation, l.generation)
FROM held h
WHERE l.segment_id = h.segment_id AND l.stripe_index = h.stripe_index AND l.shard_index = h.shard_index
    AND l.node_id = $1
RETURNING l.segment_id, l.stripe_index, h.verdict = 'missing' AS missing
