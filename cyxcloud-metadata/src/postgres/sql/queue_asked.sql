-- Queues stripes ($1 segments, $2 indices) with priorities $3, after $4 milliseconds, because of $5: those that exist
-- in live segments. What comes back is compared with the ids given here to count the new ones.
WITH asked AS MATERIALIZED (
    SELECT a.segment_id, a.stripe_index, gen_random_uuid() AS id, min(a.priority) AS priority, min(a.delay) AS delay,
           (array_agg(a.reason ORDER BY a.priority))[1] AS reason
    FROM unnest($1::uuid[], $2::bigint[], $3::integer[], $4::bigint[], $5::text[])
        a (segment_id, stripe_index, priority, delay, reason)
    GROUP BY a.segment_id, a.stripe_index
), queued AS (
    INSERT INTO repair_jobs AS j (id, segment_id, stripe_index, priority, reason, not_before)
    -- Fenced, so that each stripe is looked up by its whole key.
    SELECT a.id, st.segment_id, st.stripe_index, a.priority, a.reason, now() + a.delay * interval '1 millisecond'
    FROM asked a
    CROSS JOIN LATERAL (SELECT FROM segments WHERE id = a.segment_id AND state = 'live' OFFSET 0) s
    CROSS JOIN LATERAL (
        SELECT segment_id, stripe_index FROM stripes
        WHERE segment_id = a.segment_id AND stripe_index = a.stripe_index OFFSET 0
    ) st
    ORDER BY st.segment_id, st.stripe_index
