INSERT INTO nodes AS n (id, public_key, peer_id, label, name, grpc_address, metrics_address, incarnation,
                        storage_total, storage_used, storage_reserved, storage_available,
                        region, operator, subnet, version, wire_version, status)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, 'online')
ON CONFLICT (public_key) DO UPDATE SET
    peer_id = EXCLUDED.peer_id, label = EXCLUDED.label, name = EXCLUDED.name,
    grpc_address = EXCLUDED.grpc_address, metrics_address = EXCLUDED.metrics_address,
    incarnation = EXCLUDED.incarnation,
    storage_total = EXCLUDED.storage_total, storage_used = EXCLUDED.storage_used,
    storage_reserved = EXCLUDED.storage_reserved, storage_available = EXCLUDED.storage_available,
    region = EXCLUDED.region, operator = EXCLUDED.operator, subnet = EXCLUDED.subnet,
    version = EXCLUDED.version, wire_version = EXCLUDED.wire_version,
    last_heartbeat = now(),
    status = CASE WHEN n.status IN ('offline', 'draining') THEN 'recovering' ELSE n.status END,
    status_changed_at = CASE WHEN n.status IN ('offline', 'draining') THEN now() ELSE n.status_changed_at END
RETURNING *
