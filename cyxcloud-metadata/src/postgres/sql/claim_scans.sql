-- Claims at most $1 scans of the classes up to $3 (see ScanClass) for $2 milliseconds. One whose holder died waits from when its
-- lease ran out: one that kills whoever takes it is behind the others then.
WITH due AS MATERIALIZED (
    SELECT n.node_id, n.reason
    FROM node_scans n
    CROSS JOIN LATERAL (
        SELECT CASE WHEN n.reason IN ('offline', 'draining', 'maintenance') THEN 0
                    WHEN n.reason <> 'periodic' AND n.not_before <= n.since THEN 1
                    ELSE 2 END AS class
    ) c
    WHERE NOT n.done AND n.not_before <= now() AND (n.lease_until IS NULL OR n.lease_until <= now()) AND c.class <= $3
    -- greatest() passes over NULL.
    ORDER BY c.class, greatest(n.not_before, n.lease_until) LIMIT $1 FOR UPDATE OF n SKIP LOCKED
)
UPDATE node_scans s SET fence = s.fence + 1, lease_until = now() + $2 * interval '1 millisecond'
FROM due d WHERE s.node_id = d.node_id AND s.reason = d.reason
RETURNING s.*
