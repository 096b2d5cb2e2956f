-- The rows of a new segment $1: its stripes ($2 ..), their chunks ($5 ..), where these are ($11 ..), and the repairs
-- that are owed ($19 ..).
WITH stripe AS (
    INSERT INTO stripes (segment_id, stripe_index, plain_hash, plain_len)
    SELECT $1, s.* FROM unnest($2::integer[], $3::bytea[], $4::bigint[]) s
), chunk AS (
    INSERT INTO chunks (segment_id, stripe_index, shard_index, chunk_id, is_parity, size_bytes, replication_factor)
    SELECT $1, c.stripe_index, c.shard_index, c.chunk_id, c.shard_index >= $9, c.size_bytes, $10
    FROM unnest($5::integer[], $6::smallint[], $7::bytea[], $8::bigint[])
        c (stripe_index, shard_index, chunk_id, size_bytes)
), location AS (
    INSERT INTO chunk_locations (segment_id, stripe_index, shard_index, node_id, chunk_id, incarnation, generation,
                                 receipt, receipt_at)
    SELECT $1, l.*
    FROM unnest($11::integer[], $12::smallint[], $13::uuid[], $14::bytea[], $15::uuid[], $16::bigint[],
                $17::bytea[], $18::timestamptz[]) l
)
INSERT INTO repair_jobs AS j (segment_id, stripe_index, priority, reason)
SELECT $1, o.* FROM unnest($19::integer[], $20::integer[], $21::text[]) o
