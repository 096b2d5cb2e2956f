-- Takes part $2 of the open multipart upload $1, which cannot end meanwhile; no row if it is not open. `again` if it
-- is there already as it is now brought, with segment $8 if it has one.
WITH upload AS MATERIALIZED (
    SELECT id FROM multipart_uploads WHERE id = $1 AND status = 'open' FOR SHARE
), known AS MATERIALIZED (
    SELECT EXISTS (
        SELECT 1 FROM multipart_parts p
        WHERE p.multipart_id = $1 AND p.number = $2 AND p.etag = $4 AND p.content_hash = $5
            AND ($8 IS NULL OR EXISTS (
                SELECT 1 FROM part_segments s
                WHERE s.multipart_id = $1 AND s.number = $2 AND s.segment_id = $8))
    ) AS again
), part AS (
    INSERT INTO multipart_parts AS p (multipart_id, number, size_bytes, etag, content_hash, checksums)
    SELECT id, $2, $3, $4, $5, $6 FROM upload
    ON CONFLICT (multipart_id, number) DO UPDATE
        SET size_bytes = EXCLUDED.size_bytes, etag = EXCLUDED.etag, content_hash = EXCLUDED.content_hash,
            checksums = EXCLUDED.checksums,
            created_at = CASE WHEN (SELECT again FROM known) THEN p.created_at ELSE now() END
    RETURNING created_at
)
SELECT created_at, (SELECT again FROM known) AS again,
       ARRAY(SELECT n.id FROM nodes n WHERE n.id = ANY($7) ORDER BY n.id) AS known,
       ARRAY(SELECT n.status = 'online' FROM nodes n WHERE n.id = ANY($7) ORDER BY n.id) AS online,
       ARRAY(SELECT n.incarnation FROM nodes n WHERE n.id = ANY($7) ORDER BY n.id) AS lives
FROM part
