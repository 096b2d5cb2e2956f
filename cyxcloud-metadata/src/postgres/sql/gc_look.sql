-- How the segments $1 stand; a new statement, so that it sees whatever was committed before their locks were had.
SELECT s.id, s.state = 'live' AS live,
       EXISTS (SELECT 1 FROM file_segments f WHERE f.segment_id = s.id)
       OR EXISTS (SELECT 1 FROM part_segments p WHERE p.segment_id = s.id) AS referred
FROM segments s WHERE s.id = ANY($1)
