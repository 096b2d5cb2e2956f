-- Makes a version current. $1 the file that it replaces; $2 whether its segment is new; $3 the new file.
WITH gone AS (
    DELETE FROM files WHERE id = $1 RETURNING id
), dropped AS (
    INSERT INTO gc_candidates (segment_id, reason)
    SELECT DISTINCT segment_id, 'overwritten' FROM file_segments WHERE file_id = $1 ORDER BY segment_id
    ON CONFLICT (segment_id) DO UPDATE SET reason = EXCLUDED.reason, created_at = now()
), segment AS (
    INSERT INTO segments (id, owner_id, length, stripe_size, data_shards, parity_shards, copies, format, content_hash,
                          acked_tolerance, target_tolerance, chunk_count, inline_hash, inline_data)
    SELECT $23, $24, $25, $16, $40, $41, $26, $27, $28, $29, $30, $13, $31, $32
    WHERE $2
), file AS (
    INSERT INTO files (id, bucket_id, bucket, key, path, name, owner_id, version_seq, is_latest, upload_id,
                       content_hash, etag, size_bytes, chunk_count, data_shards, parity_shards, chunk_size,
                       content_type, headers, metadata, checksums, part_sizes)
    -- Counting what went makes it go first: there is one current version at a time.
    SELECT $3, b.id, b.name, $5, $6, $7, $8, $9, TRUE, $10, $11, $12, $17, $13, $14, $15, $16, $18, $19, $20, $21, $22
    FROM buckets b, (SELECT count(*) FROM gone) cleared
    WHERE b.id = $4
    RETURNING created_at
), extents AS (
    INSERT INTO file_segments (file_id, position, segment_id, object_offset, segment_offset, length)
    SELECT $3, e.position - 1, e.segment, e.object_offset, e.segment_offset, e.length
    FROM unnest($33::uuid[], $34::bigint[], $35::bigint[], $36::bigint[])
        WITH ORDINALITY e (segment, object_offset, segment_offset, length, position)
), usage AS (
    INSERT INTO usage_deltas (owner_id, bucket_id, bytes, objects)
    SELECT u.owner, $4, u.bytes, u.objects
    FROM unnest($37::uuid[], $38::bigint[], $39::bigint[]) u (owner, bytes, objects)
), intent AS (
    DELETE FROM upload_intents WHERE id = $10 RETURNING id
)
SELECT created_at, EXISTS (SELECT 1 FROM intent) AS intent_ended FROM file
