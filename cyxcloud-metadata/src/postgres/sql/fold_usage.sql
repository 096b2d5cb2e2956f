-- Folds at most $1 deltas into the totals of owners and buckets, which are locked in order.
WITH taken AS (
    DELETE FROM usage_deltas
    WHERE id IN (SELECT id FROM usage_deltas ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED)
    RETURNING owner_id, bucket_id, bytes, objects
), of_owner AS (
    SELECT owner_id, sum(bytes) AS bytes, sum(objects) AS objects FROM taken GROUP BY owner_id
), of_bucket AS (
    SELECT bucket_id, sum(bytes) AS bytes, sum(objects) AS objects FROM taken GROUP BY bucket_id
), owner AS MATERIALIZED (
    SELECT id FROM users WHERE id IN (SELECT owner_id FROM of_owner) ORDER BY id FOR NO KEY UPDATE
), bucket AS MATERIALIZED (
    SELECT id FROM buckets WHERE id IN (SELECT bucket_id FROM of_bucket) ORDER BY id FOR NO KEY UPDATE
), owners AS (
    UPDATE users u SET storage_used = u.storage_used + d.bytes, object_count = u.object_count + d.objects
    FROM owner o JOIN of_owner d ON d.owner_id = o.id WHERE u.id = o.id
), buckets AS (
    UPDATE buckets b SET storage_used = b.storage_used + d.bytes, object_count = b.object_count + d.objects
    FROM bucket o JOIN of_bucket d ON d.bucket_id = o.id WHERE b.id = o.id
)
SELECT count(*) FROM taken
