-- Remembers chunks ($2) that node $1 holds as generations ($3, $4) and that no location names now. One seen before
-- keeps its time while it is the same generation.
INSERT INTO orphans AS o (node_id, chunk_id, incarnation, generation)
SELECT DISTINCT ON (a.chunk_id) n.id, a.chunk_id, a.incarnation, a.generation
FROM unnest($2::bytea[], $3::uuid[], $4::bigint[]) a (chunk_id, incarnation, generation)
CROSS JOIN (SELECT id FROM nodes WHERE id = $1 FOR KEY SHARE) n
WHERE NOT EXISTS (SELECT 1 FROM chunk_locations l WHERE l.node_id = $1 AND l.chunk_id = a.chunk_id)
ORDER BY a.chunk_id, a.generation DESC
ON CONFLICT (node_id, chunk_id) DO UPDATE SET
    incarnation = EXCLUDED.incarnation, generation = EXCLUDED.generation, first_seen = now()
WHERE (o.incarnation, o.generation) <> (EXCLUDED.incarnation, EXCLUDED.generation)
