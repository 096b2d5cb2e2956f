-- Current, visible objects of bucket $1 from $2 to (excluding) $3 in byte order, at most $4; an index has them so.
SELECT key, size_bytes, etag, created_at, checksums FROM files
WHERE bucket_id = $1 AND is_latest AND NOT is_delete_marker AND key >= $2 AND key < $3
ORDER BY key LIMIT $4
