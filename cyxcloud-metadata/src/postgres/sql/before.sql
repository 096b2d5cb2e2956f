-- What a commit under $1 (bucket) and $2 (key) by $3 (owner) as $4 (upload) finds, and how the nodes $5 stand.
SELECT
    f.id, f.version_seq, f.owner_id, f.size_bytes, f.etag, f.is_delete_marker,
    u.storage_quota,
    CASE WHEN u.storage_quota IS NULL THEN 0
         ELSE u.storage_used + (SELECT coalesce(sum(d.bytes), 0)::bigint FROM usage_deltas d WHERE d.owner_id = u.id)
    END AS storage_used,
    EXISTS (SELECT 1 FROM files r WHERE r.upload_id = $4) AS recorded,
    ARRAY(SELECT n.id FROM nodes n WHERE n.id = ANY($5) AND n.status = 'online' ORDER BY n.id) AS online,
    ARRAY(SELECT n.incarnation FROM nodes n WHERE n.id = ANY($5) AND n.status = 'online' ORDER BY n.id) AS lives,
    ARRAY(SELECT n.id FROM nodes n WHERE n.id = ANY($5) AND n.status <> 'online') AS elsewhere
FROM buckets b
LEFT JOIN files f ON f.bucket_id = b.id AND f.key = $2 AND f.is_latest
LEFT JOIN users u ON u.id = $3
WHERE b.id = $1
