-- The content of part ($1 multipart upload, $2 number), whose row is locked: frees what was there, makes the segment
-- if $3, refers to it, ends the intent $4. Answers what that had reserved, and whose the upload is.
WITH gone AS (
    DELETE FROM part_segments WHERE multipart_id = $1 AND number = $2 RETURNING segment_id
), dropped AS (
    INSERT INTO gc_candidates (segment_id, reason)
    SELECT DISTINCT segment_id, 'part replaced' FROM gone ORDER BY segment_id
    ON CONFLICT (segment_id) DO UPDATE SET reason = EXCLUDED.reason, created_at = now()
), segment AS (
    INSERT INTO segments (id, owner_id, length, stripe_size, data_shards, parity_shards, copies, format, content_hash,
                          acked_tolerance, target_tolerance, chunk_count, inline_hash, inline_data)
    SELECT $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18
    WHERE $3
), content AS (
    INSERT INTO part_segments (multipart_id, number, position, segment_id, segment_offset, length)
    -- Counting what went makes it go first.
    SELECT $1, $2, e.position - 1, e.segment, e.segment_offset, e.length
    FROM (SELECT count(*) FROM gone) cleared,
        unnest($19::uuid[], $20::bigint[], $21::bigint[])
            WITH ORDINALITY e (segment, segment_offset, length, position)
), intent AS (
    DELETE FROM upload_intents WHERE id = $4 RETURNING reserved
)
SELECT EXISTS (SELECT 1 FROM intent) AS intent_ended, coalesce((SELECT reserved FROM intent), 0) AS reserved,
       (SELECT owner_id FROM multipart_uploads WHERE id = $1) AS owner_id
