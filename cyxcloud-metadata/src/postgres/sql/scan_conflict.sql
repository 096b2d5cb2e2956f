-- Asked for once more it begins anew; whoever had it can neither go on nor end it.
ON CONFLICT (node_id, reason) DO UPDATE SET
    since = now(), not_before = now(), done = FALSE, fence = s.fence + 1, lease_until = NULL,
    cursor_chunk = NULL, cursor_segment = NULL, cursor_stripe = NULL, cursor_shard = NULL
