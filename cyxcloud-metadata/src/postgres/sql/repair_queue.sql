-- What there is to repair, and what ended within the last $1 milliseconds: at most $2 of each kind. Each part walks the index of what
-- it counts, for most of the rows are those that ended before.
SELECT 'pending' AS status, priority, count(*) AS jobs, count(*) FILTER (WHERE not_before <= now()) AS due,
       (extract(epoch FROM now() - min(not_before)) * 1000)::bigint AS waited
FROM repair_jobs WHERE status = 'pending' GROUP BY priority
UNION ALL
SELECT 'in_progress', 0, count(*), 0, 0 FROM repair_jobs WHERE status = 'in_progress'
UNION ALL
SELECT 'completed', 0, count(*), 0, 0 FROM (
    SELECT FROM repair_jobs
    WHERE status = 'completed' AND done_at > now() - $1 * interval '1 millisecond' LIMIT $2
) e
UNION ALL
SELECT 'failed', 0, count(*), 0, 0 FROM (
    SELECT FROM repair_jobs
    WHERE status = 'failed' AND done_at > now() - $1 * interval '1 millisecond' LIMIT $2
) e
