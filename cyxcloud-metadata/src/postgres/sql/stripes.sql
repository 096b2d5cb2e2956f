-- Stripes $2 to (excluding) $3 of segment $1: a row per shard and node that is believed to hold it. All four tables
-- are walked by their primary keys.
SELECT st.stripe_index, st.plain_hash, st.plain_len,
       c.shard_index, c.chunk_id, c.size_bytes,
       l.node_id,
       s.data_shards, s.parity_shards, s.copies
FROM segments s
JOIN stripes st ON st.segment_id = s.id AND st.stripe_index >= $2 AND st.stripe_index < $3
JOIN chunks c ON c.segment_id = st.segment_id AND c.stripe_index = st.stripe_index
LEFT JOIN chunk_locations l ON l.segment_id = c.segment_id AND l.stripe_index = c.stripe_index
    AND l.shard_index = c.shard_index AND l.status = 'stored'
WHERE s.id = $1
ORDER BY st.stripe_index, c.shard_index, l.node_id
