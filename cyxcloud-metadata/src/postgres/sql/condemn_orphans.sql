-- Hands at most $2 orphans that were first seen $1 milliseconds ago to deletion, those that no location names; the
-- others are no orphans. From nodes $3 only what was seen until $4. One statement, one snapshot: an upload that ends
-- meanwhile shows its intent or its locations.
WITH due AS MATERIALIZED (
    SELECT o.node_id, o.chunk_id FROM orphans o
    WHERE o.first_seen <= now() - $1 * interval '1 millisecond'
        AND o.first_seen < (
            SELECT coalesce(least((SELECT min(created_at) FROM upload_intents),
                                  (SELECT min(claimed_at) FROM repair_jobs WHERE status = 'in_progress')),
                            'infinity'))
        AND (o.node_id <> ALL($3) OR o.first_seen <= $4::timestamptz)
        AND NOT EXISTS (SELECT 1 FROM constants WHERE name = 'gc_frozen')
    ORDER BY o.first_seen LIMIT $2 FOR UPDATE OF o SKIP LOCKED
), gone AS (
    DELETE FROM orphans o USING due d WHERE o.node_id = d.node_id AND o.chunk_id = d.chunk_id
    RETURNING o.*
)
INSERT INTO chunk_deletes AS d (node_id, chunk_id, incarnation, generation, reason, since)
SELECT g.node_id, g.chunk_id, g.incarnation, g.generation, 'orphan', g.first_seen FROM gone g
WHERE NOT EXISTS (SELECT 1 FROM chunk_locations l WHERE l.node_id = g.node_id AND l.chunk_id = g.chunk_id)
ORDER BY g.node_id, g.chunk_id
