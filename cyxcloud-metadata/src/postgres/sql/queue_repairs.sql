-- Queues the repair of stripes ($1 segments, $2 indices) because of $3. Their urgency is at most what distinct nodes
-- would tolerate; whoever repairs computes it exactly. What is condemned needs none.
WITH stripe AS (
    SELECT DISTINCT s.segment_id, s.stripe_index
    FROM unnest($1::uuid[], $2::integer[]) s (segment_id, stripe_index)
)
INSERT INTO repair_jobs AS j (segment_id, stripe_index, priority, reason)
SELECT st.segment_id, st.stripe_index,
       greatest(0, CASE WHEN g.copies > 1 THEN held.locations - 1 ELSE held.shards - g.data_shards END),
       $3
FROM stripe st
CROSS JOIN LATERAL (
    SELECT data_shards, copies FROM segments WHERE id = st.segment_id AND state = 'live' OFFSET 0
) g
CROSS JOIN LATERAL (
    SELECT count(*) AS locations, count(DISTINCT l.shard_index) AS shards
    FROM chunk_locations l
    WHERE l.segment_id = st.segment_id AND l.stripe_index = st.stripe_index AND l.status = 'stored'
) held
ORDER BY st.segment_id, st.stripe_index
