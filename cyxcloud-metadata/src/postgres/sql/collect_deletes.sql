-- Hands the chunks of segments $1 to deletion on all their nodes.
INSERT INTO chunk_deletes AS d (node_id, chunk_id, incarnation, generation, reason)
SELECT node_id, chunk_id, incarnation, max(generation), 'segment collected'
FROM chunk_locations WHERE segment_id = ANY($1)
GROUP BY node_id, chunk_id, incarnation
ORDER BY node_id, chunk_id, incarnation
