-- Keeps audits in the order in which they are given.
INSERT INTO audit_events (round, node_id, chunk_id, segment_id, stripe_index, shard_index, slice_start, slice_end,
                          outcome, again)
SELECT a.round, a.node_id, a.chunk_id, a.segment_id, a.stripe_index, a.shard_index, a.slice_start, a.slice_end,
       a.outcome, a.again
FROM unnest($1::uuid[], $2::uuid[], $3::bytea[], $4::uuid[], $5::bigint[], $6::smallint[], $7::bigint[], $8::bigint[],
            $9::text[], $10::boolean[])
    WITH ORDINALITY a (round, node_id, chunk_id, segment_id, stripe_index, shard_index, slice_start, slice_end,
                       outcome, again, n)
ORDER BY a.n
