-- One entry per node, chunk and incarnation. It takes a new id: whoever has the older one in hand named an older
-- generation, and does not end this one.
ON CONFLICT (node_id, chunk_id, incarnation) DO UPDATE SET
    id = DEFAULT,
    generation = greatest(d.generation, EXCLUDED.generation),
    reason = EXCLUDED.reason,
    since = greatest(d.since, EXCLUDED.since),
    not_before = greatest(d.not_before, EXCLUDED.not_before)
