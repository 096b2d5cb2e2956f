-- Claims at most $1 jobs of no later priority than $3 for $2 milliseconds: those whose time has come, and those that somebody had
-- and did not end.
-- Each kind has its index; of both, what is not taken is let go when the statement ends.
WITH due AS MATERIALIZED (
    SELECT id, priority, not_before FROM repair_jobs
    WHERE status = 'pending' AND priority <= $3 AND not_before <= now()
    ORDER BY priority, not_before LIMIT $1 FOR UPDATE SKIP LOCKED
), lapsed AS MATERIALIZED (
    SELECT id, priority, not_before FROM repair_jobs
    WHERE status = 'in_progress' AND priority <= $3 AND lease_until <= now()
    ORDER BY lease_until LIMIT $1 FOR UPDATE SKIP LOCKED
), taken AS (
    SELECT * FROM (SELECT * FROM due UNION ALL SELECT * FROM lapsed) o ORDER BY priority, not_before, id LIMIT $1
), claimed AS (
    UPDATE repair_jobs j SET
        status = 'in_progress', fence = j.fence + 1, claimed_at = now(),
        lease_until = now() + $2 * interval '1 millisecond'
    FROM taken t WHERE j.id = t.id
    RETURNING j.*
)
SELECT c.* FROM claimed c ORDER BY c.priority, c.not_before, c.id
