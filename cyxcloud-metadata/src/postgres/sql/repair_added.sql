-- Records where shards ($3) of stripe ($1, $2) were stored: on nodes $4, as generations ($5, $6), with receipts
-- ($7, $8). A node that was removed meanwhile, or whose data directory began another life, is left out; the others stay
-- until we are done.
INSERT INTO chunk_locations (segment_id, stripe_index, shard_index, node_id, chunk_id, incarnation, generation,
                             receipt, receipt_at, last_verified)
SELECT DISTINCT ON (c.shard_index, n.id)
    c.segment_id, c.stripe_index, c.shard_index, n.id, c.chunk_id, a.incarnation, a.generation,
    a.receipt, a.receipt_at, now()
FROM unnest($3::smallint[], $4::uuid[], $5::uuid[], $6::bigint[], $7::bytea[], $8::timestamptz[])
    a (shard_index, node_id, incarnation, generation, receipt, receipt_at)
JOIN chunks c ON c.segment_id = $1 AND c.stripe_index = $2 AND c.shard_index = a.shard_index
JOIN (SELECT id, incarnation FROM nodes WHERE id = ANY($4) ORDER BY id FOR KEY SHARE) n
    ON n.id = a.node_id AND n.incarnation = a.incarnation
ORDER BY c.shard_index, n.id, a.generation DESC
ON CONFLICT (segment_id, stripe_index, shard_index, node_id) DO UPDATE SET
    chunk_id = EXCLUDED.chunk_id, incarnation = EXCLUDED.incarnation, generation = EXCLUDED.generation,
    receipt = EXCLUDED.receipt, receipt_at = EXCLUDED.receipt_at, status = 'stored', last_verified = now(),
    verification_failures = 0
