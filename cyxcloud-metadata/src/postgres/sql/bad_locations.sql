-- Marks locations ($1 segments, $2 stripes, $3 shards, $4 nodes) bad as $5 says; answers with the stripes of those
-- that were not bad before. Whoever sent other bytes is to be audited now, for the whole chunk: which part is wrong
-- nobody said. So is who denied chunks, for one of them: unless it is held back, where it is asked often, or is to answer soon
-- anyway. Not for what a former life of it stored, nor while collection is frozen: what a restored database names may rightly be gone.
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
), marked AS (
    UPDATE chunk_locations l SET
        status = CASE h.fault WHEN 'missing' THEN 'missing' ELSE 'corrupt' END,
        verification_failures = l.verification_failures + 1
    FROM held h
    WHERE l.segment_id = h.segment_id AND l.stripe_index = h.stripe_index AND l.shard_index = h.shard_index
        AND l.node_id = h.node_id
    RETURNING l.segment_id, l.stripe_index, l.shard_index, l.node_id, l.chunk_id, l.incarnation, h.fault
), asked AS (
    INSERT INTO contained_audits (node_id, segment_id, stripe_index, shard_index, chunk_id, size_bytes, slice_start,
                                  slice_end, not_before)
    SELECT m.node_id, m.segment_id, m.stripe_index, m.shard_index, m.chunk_id, k.size_bytes, 0, k.size_bytes, now()
    FROM (
        SELECT * FROM marked WHERE fault = 'corrupt'
        UNION ALL
        (SELECT DISTINCT ON (node_id) d.* FROM marked d
         WHERE fault = 'missing' AND EXISTS (SELECT FROM nodes WHERE id = d.node_id AND incarnation = d.incarnation AND NOT quarantined)
            AND NOT EXISTS (SELECT FROM marked WHERE node_id = d.node_id AND fault = 'corrupt')
            AND NOT EXISTS (
                SELECT FROM contained_audits c WHERE c.node_id = d.node_id AND c.not_before <= now() + interval '5 minutes'
            )
            AND NOT EXISTS (SELECT FROM constants WHERE name = 'gc_frozen')
         ORDER BY node_id, segment_id, stripe_index, shard_index)
    ) m
    -- Fenced, so that each chunk is looked up by its whole key.
    CROSS JOIN LATERAL (
        SELECT size_bytes FROM chunks
        WHERE segment_id = m.segment_id AND stripe_index = m.stripe_index AND shard_index = m.shard_index OFFSET 0
    ) k
    ON CONFLICT (node_id, segment_id, stripe_index, shard_index) DO UPDATE SET
        slice_start = EXCLUDED.slice_start, slice_end = EXCLUDED.slice_end, not_before = EXCLUDED.not_before
)
SELECT segment_id, stripe_index FROM marked
