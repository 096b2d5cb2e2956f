-- The first of the parts $2 of multipart upload $1 of which a stripe is lost: too few shards are left, whoever returns that is not given
-- up. Whatever may be lost is queued, so nothing is read of others.
SELECT p.number FROM part_segments p
CROSS JOIN LATERAL (SELECT data_shards, nullif(stripe_size, 0) AS stripe FROM segments WHERE id = p.segment_id OFFSET 0) s
CROSS JOIN LATERAL (
    SELECT stripe_index FROM repair_jobs
    WHERE segment_id = p.segment_id AND status IN ('pending', 'in_progress') AND priority <= 0
        AND stripe_index BETWEEN p.segment_offset / s.stripe AND (p.segment_offset + p.length - 1) / s.stripe OFFSET 0
) j
CROSS JOIN LATERAL (
    SELECT count(DISTINCT l.shard_index) AS shards FROM chunk_locations l JOIN nodes n ON n.id = l.node_id
    WHERE l.segment_id = p.segment_id AND l.stripe_index = j.stripe_index AND l.status IN ('stored', 'leaving')
        AND NOT (n.status = 'draining' AND n.first_offline_at IS NOT NULL)
) held
WHERE p.multipart_id = $1 AND p.number = ANY($2) AND held.shards < s.data_shards
ORDER BY p.number LIMIT 1
