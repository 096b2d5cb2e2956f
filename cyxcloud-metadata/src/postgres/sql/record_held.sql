-- Records that nodes ($5) hold chunks ($1) in places ($2, $3, $4), as generations ($6, $7), with receipts ($8, $9). A
-- location that says so already, or a newer one of the same life, stays as it is.
INSERT INTO chunk_locations AS l (segment_id, stripe_index, shard_index, node_id, chunk_id, incarnation, generation,
                                  receipt, receipt_at)
SELECT DISTINCT ON (c.segment_id, c.stripe_index, c.shard_index, n.id)
    c.segment_id, c.stripe_index, c.shard_index, n.id, c.chunk_id, a.incarnation, a.generation, a.receipt, a.receipt_at
FROM unnest($1::bytea[], $2::uuid[], $3::bigint[], $4::smallint[], $5::uuid[], $6::uuid[], $7::bigint[], $8::bytea[],
            $9::timestamptz[])
    a (chunk_id, segment_id, stripe_index, shard_index, node_id, incarnation, generation, receipt, receipt_at)
JOIN chunks c ON c.segment_id = a.segment_id AND c.stripe_index = a.stripe_index
    AND c.shard_index = a.shard_index AND c.chunk_id = a.chunk_id
JOIN (SELECT id FROM nodes WHERE id = ANY($5) ORDER BY id FOR KEY SHARE) n ON n.id = a.node_id
ORDER BY c.segment_id, c.stripe_index, c.shard_index, n.id, a.generation DESC
ON CONFLICT (segment_id, stripe_index, shard_index, node_id) DO UPDATE SET
    incarnation = EXCLUDED.incarnation, generation = EXCLUDED.generation, receipt = EXCLUDED.receipt,
    receipt_at = EXCLUDED.receipt_at, verification_failures = 0,
    status = CASE l.status WHEN 'leaving' THEN 'leaving' ELSE 'stored' END
WHERE l.status NOT IN ('stored', 'leaving') OR l.incarnation <> EXCLUDED.incarnation
    OR l.generation < EXCLUDED.generation
