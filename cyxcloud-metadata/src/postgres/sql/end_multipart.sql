-- Ends multipart upload $1 as $2 with result $3; frees the segments of all parts but those numbered in $4.
WITH ended AS (
    UPDATE multipart_uploads SET status = $2, result = $3, ended_at = now() WHERE id = $1
), dropped AS (
    INSERT INTO gc_candidates (segment_id, reason)
    SELECT DISTINCT p.segment_id, CASE WHEN $2 = 'aborted' THEN 'multipart aborted' ELSE 'part not named' END FROM part_segments p
    WHERE p.multipart_id = $1 AND NOT EXISTS (SELECT 1 FROM unnest($4::integer[]) kept WHERE kept = p.number)
    ORDER BY p.segment_id
    ON CONFLICT (segment_id) DO UPDATE SET reason = EXCLUDED.reason, created_at = now()
)
DELETE FROM multipart_parts WHERE multipart_id = $1
