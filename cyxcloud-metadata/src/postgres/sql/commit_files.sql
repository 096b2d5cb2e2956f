-- Makes versions current: $1 the files that they replace, $2 the uploads that end, $3 .. their new segments, $17 .. the
-- new files, $37 .. what these are made of, $43 .. how usage changes.
WITH gone AS (
    DELETE FROM files WHERE id = ANY((SELECT $1::uuid[])::uuid[]) RETURNING id
), dropped AS (
    INSERT INTO gc_candidates (segment_id, reason)
    SELECT DISTINCT segment_id, 'overwritten' FROM file_segments WHERE file_id = ANY((SELECT $1::uuid[])::uuid[])
    ORDER BY segment_id
    ON CONFLICT (segment_id) DO UPDATE SET reason = EXCLUDED.reason, created_at = now()
), segment AS (
    INSERT INTO segments (id, owner_id, length, stripe_size, data_shards, parity_shards, copies, format, content_hash,
                          acked_tolerance, target_tolerance, chunk_count, inline_hash, inline_data)
    SELECT s.* FROM unnest((SELECT $3::uuid[]), $4::uuid[], $5::bigint[], $6::bigint[], $7::smallint[], $8::smallint[],
                           $9::smallint[], $10::smallint[], $11::bytea[], $12::smallint[], $13::smallint[],
                           $14::integer[], $15::bytea[], $16::bytea[]) s
), file AS (
    INSERT INTO files (id, bucket_id, bucket, key, path, name, owner_id, version_seq, is_latest, upload_id,
                       content_hash, etag, size_bytes, chunk_count, data_shards, parity_shards, chunk_size,
                       content_type, headers, metadata, checksums, part_sizes)
    -- Counting what went makes it go first: there is one current version at a time.
    SELECT n.id, n.bucket_id, b.name, n.key, n.path, n.name, n.owner_id, n.version_seq, TRUE, n.upload_id,
           n.content_hash, n.etag, n.size_bytes, n.chunk_count, n.data_shards, n.parity_shards, n.chunk_size,
           n.content_type, n.headers, n.metadata, n.checksums, n.part_sizes::bigint[]
    FROM (SELECT count(*) FROM gone) cleared,
        unnest((SELECT $17::uuid[]), $18::uuid[], $19::bytea[], $20::text[], $21::text[], $22::uuid[], $23::bigint[],
               $24::uuid[], $25::bytea[], $26::text[], $27::bigint[], $28::integer[], $29::smallint[],
               $30::smallint[], $31::bigint[], $32::text[], $33::jsonb[], $34::jsonb[], $35::jsonb[], $36::text[])
            n (id, bucket_id, key, path, name, owner_id, version_seq, upload_id, content_hash, etag, size_bytes,
               chunk_count, data_shards, parity_shards, chunk_size, content_type, headers, metadata, checksums,
               part_sizes)
    CROSS JOIN LATERAL (SELECT name FROM buckets WHERE id = n.bucket_id OFFSET 0) b (name)
    RETURNING id, upload_id, created_at
), extents AS (
    INSERT INTO file_segments (file_id, position, segment_id, object_offset, segment_offset, length)
    SELECT e.* FROM unnest((SELECT $37::uuid[]), $38::integer[], $39::uuid[], $40::bigint[], $41::bigint[], $42::bigint[]) e
), usage AS (
    INSERT INTO usage_deltas (owner_id, bucket_id, bytes, objects)
    SELECT u.* FROM unnest((SELECT $43::uuid[]), $44::uuid[], $45::bigint[], $46::bigint[]) u
), intent AS (
    DELETE FROM upload_intents WHERE id = ANY((SELECT $2::uuid[])::uuid[]) RETURNING id
)
SELECT f.id, f.created_at, EXISTS (SELECT 1 FROM intent i WHERE i.id = f.upload_id) AS intent_ended FROM file f
