-- Remembers chunks ($2) that node $1 holds as generations ($3, $4), that no location names now and that the node is not told to
-- delete already. One seen before keeps its time while it is the same generation. Of those that were not, only as many as leave no
-- more than $5 chunks, beside as many as it had locations, waiting for the node to delete them.
WITH seen AS MATERIALIZED (
    SELECT DISTINCT ON (a.chunk_id) n.id, a.chunk_id, a.incarnation, a.generation,
           EXISTS (SELECT 1 FROM orphans k WHERE k.node_id = $1 AND k.chunk_id = a.chunk_id) AS known
    FROM unnest($2::bytea[], $3::uuid[], $4::bigint[]) a (chunk_id, incarnation, generation)
    CROSS JOIN (SELECT id FROM nodes WHERE id = $1 FOR KEY SHARE) n
    WHERE NOT EXISTS (SELECT 1 FROM chunk_locations l WHERE l.node_id = $1 AND l.chunk_id = a.chunk_id)
        AND NOT EXISTS (
            SELECT 1 FROM chunk_deletes d
            WHERE d.node_id = $1 AND d.chunk_id = a.chunk_id AND d.incarnation = a.incarnation
                AND d.generation >= a.generation)
    ORDER BY a.chunk_id, a.generation DESC
), most AS MATERIALIZED (
    SELECT least($5::bigint, 9223372036854775807 - location_count) + location_count AS chunks FROM nodes WHERE id = $1
), waiting AS MATERIALIZED (
    SELECT count(*) AS chunks FROM (
        SELECT 1 FROM orphans WHERE node_id = $1
        UNION ALL
        SELECT 1 FROM chunk_deletes WHERE node_id = $1
        LIMIT (SELECT chunks FROM most)
    ) w
), numbered AS (
    SELECT *, row_number() OVER (PARTITION BY known ORDER BY chunk_id) AS nth FROM seen
)
INSERT INTO orphans AS o (node_id, chunk_id, incarnation, generation)
SELECT s.id, s.chunk_id, s.incarnation, s.generation FROM numbered s CROSS JOIN waiting w CROSS JOIN most m
WHERE s.known OR s.nth <= m.chunks - w.chunks
ORDER BY s.chunk_id
ON CONFLICT (node_id, chunk_id) DO UPDATE SET
    incarnation = EXCLUDED.incarnation, generation = EXCLUDED.generation, first_seen = now()
WHERE (o.incarnation, o.generation) <> (EXCLUDED.incarnation, EXCLUDED.generation)
