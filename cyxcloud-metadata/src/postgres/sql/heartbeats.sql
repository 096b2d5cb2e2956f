-- Records heartbeats, and asks for a scan of every node ($1) whose maintenance ($7) begins or ends with this one.
WITH known AS MATERIALIZED (
    SELECT id, maintenance FROM nodes WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE
), heard AS (
    UPDATE nodes n SET
        last_heartbeat = now(), storage_used = b.used, storage_available = b.available,
        active_connections = b.connections, cpu_usage = b.cpu, memory_usage = b.memory,
        maintenance = b.maintenance, read_only = b.read_only
    FROM known k
    JOIN unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::double precision[], $6::double precision[],
                $7::boolean[], $8::boolean[])
        b (id, used, available, connections, cpu, memory, maintenance, read_only) ON b.id = k.id
    WHERE n.id = k.id
    RETURNING n.id, n.status, n.incarnation, n.maintenance, k.maintenance AS was
), asked AS (
    INSERT INTO node_scans AS s (node_id, reason)
    SELECT id, CASE WHEN maintenance THEN 'maintenance' ELSE 'returned' END
    FROM heard WHERE maintenance <> was ORDER BY id
