-- What commits find under keys that they hold: one row for each whose bucket is there, under $1 (bucket) and $2 (key), by
-- $3 (owner) as $4 (upload); and how the nodes $5 stand. One look-up after the other (OFFSET 0): planned while tables
-- were small, a join would read them whole.
SELECT
    q.at, f.id, f.version_seq, f.owner_id, f.size_bytes, f.etag, f.is_delete_marker,
    u.storage_quota,
    CASE WHEN u.storage_quota IS NULL THEN 0
         ELSE u.storage_used + (SELECT coalesce(sum(d.bytes), 0)::bigint FROM usage_deltas d WHERE d.owner_id = q.owner_id)
    END AS storage_used,
    EXISTS (SELECT 1 FROM files r WHERE r.upload_id = q.upload_id OFFSET 0) AS recorded,
    ARRAY(SELECT n.id FROM nodes n WHERE n.id = ANY((SELECT $5::uuid[])::uuid[]) ORDER BY n.id) AS known,
    ARRAY(SELECT n.status = 'online' FROM nodes n WHERE n.id = ANY((SELECT $5::uuid[])::uuid[]) ORDER BY n.id) AS online,
    ARRAY(SELECT n.incarnation FROM nodes n WHERE n.id = ANY((SELECT $5::uuid[])::uuid[]) ORDER BY n.id) AS lives
FROM unnest((SELECT $1::uuid[]), $2::bytea[], $3::uuid[], $4::uuid[]) WITH ORDINALITY q (bucket_id, key, owner_id, upload_id, at)
CROSS JOIN LATERAL (SELECT FROM buckets WHERE id = q.bucket_id OFFSET 0) b
LEFT JOIN LATERAL (
    SELECT * FROM files WHERE bucket_id = q.bucket_id AND key = q.key AND is_latest OFFSET 0
) f ON TRUE
LEFT JOIN LATERAL (SELECT storage_quota, storage_used FROM users WHERE id = q.owner_id OFFSET 0) u ON TRUE
