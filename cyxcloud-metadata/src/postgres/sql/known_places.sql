-- What is known of chunks that node $1 holds: chunks ($2) in places ($3, $4, $5), of lengths ($6) and generations
-- ($7, $8). 0: they belong to nothing; 1: a location says so; 2: no location says so.
SELECT CASE
    WHEN c.segment_id IS NULL THEN 0
    WHEN l.status IN ('stored', 'leaving') AND l.incarnation = a.incarnation AND l.generation >= a.generation THEN 1
    ELSE 2
END AS known
FROM unnest($2::bytea[], $3::uuid[], $4::bigint[], $5::smallint[], $6::bigint[], $7::uuid[], $8::bigint[])
    WITH ORDINALITY a (chunk_id, segment_id, stripe_index, shard_index, size_bytes, incarnation, generation, n)
LEFT JOIN chunks c ON c.segment_id = a.segment_id AND c.stripe_index = a.stripe_index
    AND c.shard_index = a.shard_index AND c.chunk_id = a.chunk_id AND c.size_bytes = a.size_bytes
LEFT JOIN chunk_locations l ON l.segment_id = c.segment_id AND l.stripe_index = c.stripe_index
    AND l.shard_index = c.shard_index AND l.node_id = $1
ORDER BY a.n
