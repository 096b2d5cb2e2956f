-- Contains the audits ($1 ..) that were late until $10 milliseconds are over, and ends those that an answer to a
-- contained one settles; of several of one location the last counts. The slice that is owed stays the same, and so do its
-- time and its count where something else of the same chunk was late: a node that holds little would never have to answer.
WITH said AS MATERIALIZED (
    SELECT DISTINCT ON (segment_id, stripe_index, shard_index, node_id) *
    FROM unnest($1::uuid[], $2::bytea[], $3::uuid[], $4::bigint[], $5::smallint[], $6::text[], $7::boolean[],
                $8::bigint[], $9::bigint[]) WITH ORDINALITY
        a (node_id, chunk_id, segment_id, stripe_index, shard_index, outcome, again, slice_start, slice_end, n)
    ORDER BY segment_id, stripe_index, shard_index, node_id, n DESC
), ended AS (
    DELETE FROM contained_audits c USING said a
    WHERE c.node_id = a.node_id AND c.segment_id = a.segment_id AND c.stripe_index = a.stripe_index
        AND c.shard_index = a.shard_index AND a.again AND a.outcome <> 'late'
)
INSERT INTO contained_audits AS c (node_id, segment_id, stripe_index, shard_index, chunk_id, size_bytes, slice_start,
                                   slice_end, not_before)
SELECT l.node_id, l.segment_id, l.stripe_index, l.shard_index, l.chunk_id, k.size_bytes, a.slice_start, a.slice_end,
       now() + $10 * interval '1 millisecond'
FROM said a
JOIN chunk_locations l ON l.segment_id = a.segment_id AND l.stripe_index = a.stripe_index
    AND l.shard_index = a.shard_index AND l.node_id = a.node_id AND l.chunk_id = a.chunk_id
-- Fenced, so that each chunk is looked up by its whole key.
CROSS JOIN LATERAL (
    SELECT size_bytes FROM chunks
    WHERE segment_id = l.segment_id AND stripe_index = l.stripe_index AND shard_index = l.shard_index OFFSET 0
) k
WHERE a.outcome = 'late' AND (a.again OR NOT EXISTS (
    SELECT FROM contained_audits e WHERE e.segment_id = a.segment_id AND e.stripe_index = a.stripe_index
        AND e.shard_index = a.shard_index AND e.node_id = a.node_id
))
ORDER BY l.node_id, l.segment_id, l.stripe_index, l.shard_index
ON CONFLICT (node_id, segment_id, stripe_index, shard_index) DO UPDATE SET
    attempts = c.attempts + 1, not_before = EXCLUDED.not_before
