-- Deletes the current versions under the locked keys $2 of bucket $1, and the rows of keys that have no version left.
WITH f AS (
    DELETE FROM files WHERE bucket_id = $1 AND key = ANY($2) AND is_latest
    RETURNING *
), dropped AS (
    INSERT INTO gc_candidates (segment_id, reason)
    SELECT DISTINCT e.segment_id, 'deleted' FROM f JOIN file_segments e ON e.file_id = f.id ORDER BY e.segment_id
    ON CONFLICT (segment_id) DO UPDATE SET reason = EXCLUDED.reason, created_at = now()
), usage AS (
    INSERT INTO usage_deltas (owner_id, bucket_id, bytes, objects)
    SELECT owner_id, $1, -sum(size_bytes), -count(*) FROM f WHERE NOT is_delete_marker GROUP BY owner_id
), unused AS (
    DELETE FROM keys k
    WHERE k.bucket_id = $1 AND k.key = ANY($2)
        AND NOT EXISTS (SELECT 1 FROM files o WHERE o.bucket_id = $1 AND o.key = k.key AND NOT o.is_latest)
)
SELECT * FROM f
