-- Counts the keys in use that come of the same key as key $1 does, however many lie between; that one is not counted. None
-- outlives the one that made it, so those in use lead to all of them.
WITH RECURSIVE up (id, made_by) AS (
    SELECT id, made_by FROM access_keys WHERE id = $1
    UNION SELECT k.id, k.made_by FROM access_keys k JOIN up ON k.id = up.made_by
), down (id) AS (
    SELECT id FROM up WHERE made_by IS NULL
    UNION SELECT k.id FROM access_keys k JOIN down ON k.made_by = down.id
    WHERE k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
)
SELECT count(*) - 1 FROM down
