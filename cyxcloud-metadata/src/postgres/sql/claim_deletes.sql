-- Claims at most $1 deletes for $2 milliseconds, and drops those of them that a location names. One that an upload or a
-- repair from before it may still need waits, and so do those on nodes that are not there, or drain and were not heard for $3
-- milliseconds: asking them takes time that the others' would wait. One snapshot: what ends meanwhile shows its beginning or its
-- locations.
WITH due AS MATERIALIZED (
    SELECT d.id,
           EXISTS (SELECT 1 FROM chunk_locations l WHERE l.node_id = d.node_id AND l.chunk_id = d.chunk_id) AS named
    FROM chunk_deletes d
    WHERE d.not_before <= now()
        AND d.since < (
            SELECT coalesce(least((SELECT min(created_at) FROM upload_intents),
                                  (SELECT min(claimed_at) FROM repair_jobs WHERE status = 'in_progress')),
                            'infinity'))
        AND d.node_id NOT IN (
            SELECT id FROM nodes
            WHERE status = 'offline'
                OR (status = 'draining'
                    AND (first_offline_at IS NOT NULL OR last_heartbeat <= now() - $3 * interval '1 millisecond')))
        AND NOT EXISTS (SELECT 1 FROM constants WHERE name = 'gc_frozen')
    ORDER BY d.not_before LIMIT $1 FOR UPDATE OF d SKIP LOCKED
), dropped AS (
    DELETE FROM chunk_deletes d USING due WHERE d.id = due.id AND due.named RETURNING d.id
), claimed AS (
    UPDATE chunk_deletes d SET not_before = now() + $2 * interval '1 millisecond'
    FROM due WHERE d.id = due.id AND NOT due.named
    RETURNING d.*
)
SELECT n.dropped, c.id, c.node_id, c.chunk_id, c.incarnation, c.generation, c.attempts
FROM (SELECT count(*) AS dropped FROM dropped) n LEFT JOIN claimed c ON TRUE
ORDER BY c.node_id, c.id
