-- A stripe that waits keeps the more urgent priority and the earlier time. One in hand is looked at once more when
-- whoever has it is done, at the time asked for now.
ON CONFLICT (segment_id, stripe_index) WHERE status IN ('pending', 'in_progress') DO UPDATE SET
    priority = least(j.priority, EXCLUDED.priority),
    reason = CASE WHEN EXCLUDED.priority < j.priority THEN EXCLUDED.reason ELSE j.reason END,
    not_before = CASE WHEN j.status = 'pending' OR j.again THEN least(j.not_before, EXCLUDED.not_before)
                      ELSE EXCLUDED.not_before END,
    again = (j.status = 'in_progress')
