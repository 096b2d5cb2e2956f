-- Locations not proven for $3 ms, of at most $4 waiting stripes from segment $1 on that tolerate no more than $2 losses. What an
-- answer is owed for is asked for when its time comes.
SELECT l.node_id, l.chunk_id, l.segment_id, l.stripe_index, l.shard_index, l.incarnation, l.generation, l.status,
    k.size_bytes
FROM (
    SELECT segment_id, stripe_index FROM repair_jobs
    WHERE segment_id >= $1 AND status IN ('pending', 'in_progress') AND status = 'pending' AND priority <= $2
    ORDER BY segment_id, stripe_index LIMIT $4
) j
CROSS JOIN LATERAL (SELECT FROM segments WHERE id = j.segment_id AND state = 'live' OFFSET 0) s
CROSS JOIN LATERAL (
    SELECT * FROM chunk_locations p
    WHERE p.segment_id = j.segment_id AND p.stripe_index = j.stripe_index AND p.status = 'stored'
        AND (p.last_verified IS NULL OR p.last_verified <= now() - $3 * interval '1 millisecond')
        AND NOT EXISTS (
            SELECT FROM contained_audits c WHERE c.segment_id = p.segment_id AND c.stripe_index = p.stripe_index
                AND c.shard_index = p.shard_index AND c.node_id = p.node_id
        ) OFFSET 0
) l
CROSS JOIN LATERAL (
    SELECT size_bytes FROM chunks
    WHERE segment_id = l.segment_id AND stripe_index = l.stripe_index AND shard_index = l.shard_index OFFSET 0
) k
LIMIT $4
