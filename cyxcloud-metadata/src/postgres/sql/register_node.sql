-- Makes node $1 known by its public key $2, or updates it; asks for a scan where it came back or took another
-- incarnation ($8). In other hands ($18) it is new again.
WITH before AS MATERIALIZED (
    SELECT status, incarnation FROM nodes WHERE public_key = $2 FOR NO KEY UPDATE
), node AS (
    INSERT INTO nodes AS n (id, public_key, peer_id, label, name, grpc_address, metrics_address, incarnation,
                            storage_total, storage_used, storage_reserved, storage_available,
                            region, operator, subnet, version, wire_version, status)
    -- Counting what was there makes it be looked at first.
    SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, 'online'
    FROM (SELECT count(*) FROM before) looked
    ON CONFLICT (public_key) DO UPDATE SET
        peer_id = EXCLUDED.peer_id, label = EXCLUDED.label, name = EXCLUDED.name,
        grpc_address = EXCLUDED.grpc_address, metrics_address = EXCLUDED.metrics_address,
        incarnation = EXCLUDED.incarnation,
        storage_total = EXCLUDED.storage_total, storage_used = EXCLUDED.storage_used,
        storage_reserved = EXCLUDED.storage_reserved, storage_available = EXCLUDED.storage_available,
        region = EXCLUDED.region, operator = EXCLUDED.operator, subnet = EXCLUDED.subnet,
        version = EXCLUDED.version, wire_version = EXCLUDED.wire_version,
        last_heartbeat = now(),
        -- Who drains by request, without having been away, goes on.
        status = CASE WHEN n.status = 'offline' OR n.status = 'draining' AND n.first_offline_at IS NOT NULL
                      THEN 'recovering' ELSE n.status END,
        status_changed_at = CASE WHEN n.status = 'offline' OR n.status = 'draining' AND n.first_offline_at IS NOT NULL
                                 THEN now() ELSE n.status_changed_at END,
        vetted_at = CASE WHEN $18 THEN NULL ELSE n.vetted_at END,
        vetting_since = CASE WHEN $18 THEN now() ELSE n.vetting_since END,
        vetting_proofs = CASE WHEN $18 THEN n.audits_proven ELSE n.vetting_proofs END
    RETURNING *
), asked AS (
    INSERT INTO node_scans AS s (node_id, reason)
    SELECT node.id, CASE WHEN b.incarnation <> $8 THEN 'new_incarnation' ELSE 'returned' END
    FROM node, before b WHERE b.incarnation <> $8 OR b.status IN ('offline', 'draining')
