-- Claims at most $1 scans for $2 milliseconds.
WITH due AS MATERIALIZED (
    SELECT node_id, reason FROM node_scans
    WHERE NOT done AND not_before <= now() AND (lease_until IS NULL OR lease_until <= now())
    ORDER BY not_before LIMIT $1 FOR UPDATE SKIP LOCKED
)
UPDATE node_scans s SET fence = s.fence + 1, lease_until = now() + $2 * interval '1 millisecond'
FROM due d WHERE s.node_id = d.node_id AND s.reason = d.reason
RETURNING s.*
