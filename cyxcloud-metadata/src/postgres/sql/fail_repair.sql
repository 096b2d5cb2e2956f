-- Ends claim $2 of job $1, which failed because of $4: after $3 milliseconds it is tried again; NULL gives it up,
-- unless it was asked for meanwhile: then it begins anew.
UPDATE repair_jobs SET
    status = CASE WHEN again OR $3::bigint IS NOT NULL THEN 'pending' ELSE 'failed' END,
    done_at = CASE WHEN again OR $3::bigint IS NOT NULL THEN NULL ELSE now() END,
    retry_count = CASE WHEN $3::bigint IS NOT NULL THEN retry_count + 1 WHEN again THEN 0 ELSE retry_count END,
    -- least() passes over NULL.
    not_before = CASE WHEN again THEN least(not_before, now() + $3::bigint * interval '1 millisecond')
                      ELSE coalesce(now() + $3::bigint * interval '1 millisecond', not_before) END,
    again = FALSE, lease_until = NULL, claimed_at = NULL, last_error = $4
WHERE id = $1 AND fence = $2 AND status = 'in_progress'
