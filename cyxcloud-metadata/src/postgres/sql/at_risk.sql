-- Locations not proven for $3 ms, of at most $4 waiting stripes from segment $1 on that tolerate no more than $2 losses.
SELECT l.node_id, l.chunk_id, l.segment_id, l.stripe_index, l.shard_index, l.incarnation, l.generation, l.status,
    k.size_bytes
FROM (
    SELECT segment_id, stripe_index FROM repair_jobs
    WHERE segment_id >= $1 AND status IN ('pending', 'in_progress') AND status = 'pending' AND priority <= $2
    ORDER BY segment_id, stripe_index LIMIT $4
) j
CROSS JOIN LATERAL (SELECT FROM segments WHERE id = j.segment_id AND state = 'live' OFFSET 0) s
CROSS JOIN LATERAL (
    SELECT * FROM chunk_locations
    WHERE segment_id = j.segment_id AND stripe_index = j.stripe_index AND status = 'stored'
        AND (last_verified IS NULL OR last_verified <= now() - $3 * interval '1 millisecond') OFFSET 0
) l
CROSS JOIN LATERAL (
    SELECT size_bytes FROM chunks
    WHERE segment_id = l.segment_id AND stripe_index = l.stripe_index AND shard_index = l.shard_index OFFSET 0
) k
LIMIT $4
