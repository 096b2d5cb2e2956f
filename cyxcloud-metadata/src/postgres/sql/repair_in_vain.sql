-- Hands to deletion what was stored for stripe ($1, $2), which nobody needs any more: shards $3 on nodes $4 as
-- generations ($5, $6).
INSERT INTO chunk_deletes AS d (node_id, chunk_id, incarnation, generation, reason)
SELECT n.id, c.chunk_id, a.incarnation, max(a.generation), 'repaired in vain'
FROM unnest($3::smallint[], $4::uuid[], $5::uuid[], $6::bigint[]) a (shard_index, node_id, incarnation, generation)
JOIN chunks c ON c.segment_id = $1 AND c.stripe_index = $2 AND c.shard_index = a.shard_index
JOIN (SELECT id FROM nodes WHERE id = ANY($4) ORDER BY id FOR KEY SHARE) n ON n.id = a.node_id
GROUP BY n.id, c.chunk_id, a.incarnation
ORDER BY n.id, c.chunk_id, a.incarnation
