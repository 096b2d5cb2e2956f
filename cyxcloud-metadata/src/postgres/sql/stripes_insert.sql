-- The rows of new segments: their stripes ($1 ..), chunks ($5 ..), where these are ($12 ..), and the repairs that are owed
-- ($21 ..).
WITH stripe AS (
    INSERT INTO stripes (segment_id, stripe_index, plain_hash, plain_len)
    SELECT s.* FROM unnest((SELECT $1::uuid[]), $2::integer[], $3::bytea[], $4::bigint[]) s
), chunk AS (
    INSERT INTO chunks (segment_id, stripe_index, shard_index, chunk_id, is_parity, size_bytes, replication_factor)
    SELECT c.* FROM unnest((SELECT $5::uuid[]), $6::integer[], $7::smallint[], $8::bytea[], $9::boolean[], $10::bigint[],
                           $11::smallint[]) c
), location AS (
    INSERT INTO chunk_locations (segment_id, stripe_index, shard_index, node_id, chunk_id, incarnation, generation,
                                 receipt, receipt_at)
    SELECT l.* FROM unnest((SELECT $12::uuid[]), $13::integer[], $14::smallint[], $15::uuid[], $16::bytea[], $17::uuid[],
                           $18::bigint[], $19::bytea[], $20::timestamptz[]) l
)
INSERT INTO repair_jobs AS j (segment_id, stripe_index, priority, reason)
SELECT o.* FROM unnest((SELECT $21::uuid[]), $22::integer[], $23::integer[], $24::text[]) o
