-- Nodes with more than $2 orphans that were first seen $1 milliseconds ago and after $3, with what they are recorded to hold.
WITH due AS (
    SELECT node_id, count(*) AS orphans FROM orphans
    WHERE first_seen <= now() - $1 * interval '1 millisecond' AND first_seen > $3::timestamptz
    GROUP BY node_id HAVING count(*) > $2
)
SELECT d.node_id, d.orphans, (SELECT count(*) FROM chunk_locations l WHERE l.node_id = d.node_id) AS locations
FROM due d ORDER BY d.node_id
