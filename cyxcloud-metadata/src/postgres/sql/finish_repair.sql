-- Ends claim $2 of job $1: for good if $3 (its segment is gone) or if nothing is left to do; otherwise it is looked at
-- again, after $4 milliseconds or when somebody asked for it meanwhile. $5 is the stripe's tolerance now, $6 the priority of what is
-- left if nobody asked; $7: all that was to be added is.
UPDATE repair_jobs SET
    status = CASE WHEN $3 OR (NOT again AND $4::bigint IS NULL) THEN 'completed' ELSE 'pending' END,
    done_at = CASE WHEN $3 OR (NOT again AND $4::bigint IS NULL) THEN now() END,
    -- least() passes over NULL.
    not_before = CASE WHEN again THEN least(not_before, now() + $4::bigint * interval '1 millisecond')
                      ELSE coalesce(now() + $4::bigint * interval '1 millisecond', not_before) END,
    priority = CASE WHEN again THEN priority ELSE coalesce($6, priority) END,
    retry_count = CASE WHEN $7 THEN 0 ELSE retry_count END,
    again = FALSE, lease_until = NULL, claimed_at = NULL, tolerance = $5
WHERE id = $1 AND fence = $2 AND status = 'in_progress'
