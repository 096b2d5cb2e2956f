-- Tables and views that operators query keep the names and columns they know (users, buckets, files, chunks,
-- chunk_locations, nodes, repair_jobs; chunk_replication_status, node_storage_summary). Keys of objects are bytes.
-- All times are this server's.

CREATE TABLE constants (
    name  TEXT PRIMARY KEY,
    value BYTEA NOT NULL
);

CREATE TABLE users (
    id             UUID PRIMARY KEY,
    wallet_address TEXT UNIQUE,
    email          TEXT UNIQUE,
    username       TEXT UNIQUE,
    role           TEXT NOT NULL DEFAULT 'user' CHECK (role IN ('user', 'admin')),
    storage_quota  BIGINT,                        -- bytes; NULL is no limit
    storage_used   BIGINT NOT NULL DEFAULT 0,     -- bytes folded so far; usage_deltas holds the rest
    object_count   BIGINT NOT NULL DEFAULT 0,     -- folded so far
    status         TEXT NOT NULL DEFAULT 'active',
    sealing_secret BYTEA NOT NULL,                -- wrapped under the server's master key
    created_at     TIMESTAMPTZ NOT NULL DEFAULT now()
);

CREATE TABLE access_keys (
    id         TEXT PRIMARY KEY,
    owner_id   UUID NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    secret     BYTEA NOT NULL,                    -- wrapped under the server's master key
    expires_at TIMESTAMPTZ,
    revoked_at TIMESTAMPTZ,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE INDEX access_keys_owner ON access_keys (owner_id);

CREATE TABLE buckets (
    id           UUID PRIMARY KEY,
    name         TEXT COLLATE "C" NOT NULL UNIQUE,
    owner_id     UUID NOT NULL REFERENCES users (id),
    profile      TEXT NOT NULL DEFAULT 'standard',
    versioning   TEXT NOT NULL DEFAULT 'off' CHECK (versioning IN ('off', 'enabled', 'suspended')),
    storage_used BIGINT NOT NULL DEFAULT 0,       -- folded so far
    object_count BIGINT NOT NULL DEFAULT 0,       -- folded so far
    created_at   TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE INDEX buckets_owner ON buckets (owner_id, name);

-- Locked first by every mutation of the key, present or not.
CREATE TABLE keys (
    bucket_id UUID NOT NULL REFERENCES buckets (id) ON DELETE CASCADE,
    key       BYTEA NOT NULL,
    PRIMARY KEY (bucket_id, key)
);

-- One version of a key in a bucket. version_seq orders the versions of a key by commit.
CREATE TABLE files (
    id               UUID PRIMARY KEY,
    bucket_id        UUID NOT NULL REFERENCES buckets (id),
    bucket           TEXT NOT NULL,
    key              BYTEA NOT NULL,
    path             TEXT NOT NULL,               -- the key; U+0000 shown as U+FFFD
    name             TEXT NOT NULL,               -- its last component, likewise
    owner_id         UUID NOT NULL REFERENCES users (id),
    version_id       TEXT NOT NULL DEFAULT 'null',
    version_seq      BIGINT NOT NULL,
    is_latest        BOOLEAN NOT NULL,
    is_delete_marker BOOLEAN NOT NULL DEFAULT FALSE,
    upload_id        UUID NOT NULL UNIQUE,
    content_hash     BYTEA NOT NULL,              -- Blake3
    etag             TEXT NOT NULL,
    size_bytes       BIGINT NOT NULL,
    chunk_count      INTEGER NOT NULL,
    data_shards      SMALLINT NOT NULL,
    parity_shards    SMALLINT NOT NULL,
    chunk_size       BIGINT NOT NULL,             -- bytes of plain stripe
    status           TEXT NOT NULL DEFAULT 'complete',
    content_type     TEXT,
    headers          JSONB NOT NULL DEFAULT '{}',
    metadata         JSONB NOT NULL DEFAULT '{}',
    checksums        JSONB NOT NULL DEFAULT '[]',
    part_sizes       BIGINT[] NOT NULL DEFAULT '{}',
    created_at       TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX files_latest ON files (bucket_id, key) WHERE is_latest;
-- What listings walk: current and visible.
CREATE INDEX files_visible ON files (bucket_id, key) WHERE is_latest AND NOT is_delete_marker;
CREATE INDEX files_versions ON files (bucket_id, key, version_seq DESC);
CREATE INDEX files_owner ON files (owner_id);

CREATE TABLE segments (
    id               UUID PRIMARY KEY,
    owner_id         UUID NOT NULL,
    length           BIGINT NOT NULL,             -- plain bytes
    stripe_size      BIGINT NOT NULL,             -- plain bytes
    data_shards      SMALLINT NOT NULL,
    parity_shards    SMALLINT NOT NULL,
    copies           SMALLINT NOT NULL,
    format           SMALLINT NOT NULL,
    content_hash     BYTEA NOT NULL,
    acked_tolerance  SMALLINT NOT NULL,
    target_tolerance SMALLINT NOT NULL,
    chunk_count      INTEGER NOT NULL,
    inline_hash      BYTEA,                       -- Blake3 of the plain bytes, where they live here
    inline_data      BYTEA,                       -- sealed bytes, where they live here
    state            TEXT NOT NULL DEFAULT 'live' CHECK (state IN ('live', 'condemned')),
    created_at       TIMESTAMPTZ NOT NULL DEFAULT now()
);
ALTER TABLE segments ALTER COLUMN inline_data SET STORAGE EXTERNAL;

CREATE TABLE file_segments (
    file_id        UUID NOT NULL REFERENCES files (id) ON DELETE CASCADE,
    position       INTEGER NOT NULL,
    segment_id     UUID NOT NULL REFERENCES segments (id),
    object_offset  BIGINT NOT NULL,
    segment_offset BIGINT NOT NULL,
    length         BIGINT NOT NULL,
    PRIMARY KEY (file_id, position)
);
CREATE INDEX file_segments_segment ON file_segments (segment_id);

CREATE TABLE stripes (
    segment_id   UUID NOT NULL REFERENCES segments (id) ON DELETE CASCADE,
    stripe_index INTEGER NOT NULL,
    plain_hash   BYTEA NOT NULL,
    plain_len    BIGINT NOT NULL,
    PRIMARY KEY (segment_id, stripe_index)
);

-- One row per shard of a stripe. Two rows may name the same chunk.
CREATE TABLE chunks (
    id                 BIGINT GENERATED ALWAYS AS IDENTITY,
    segment_id         UUID NOT NULL,
    stripe_index       INTEGER NOT NULL,
    shard_index        SMALLINT NOT NULL,
    chunk_id           BYTEA NOT NULL,            -- Blake3 of the bytes
    is_parity          BOOLEAN NOT NULL,
    size_bytes         BIGINT NOT NULL,
    replication_factor SMALLINT NOT NULL,         -- wanted copies
    status             TEXT NOT NULL DEFAULT 'stored',
    PRIMARY KEY (segment_id, stripe_index, shard_index),
    FOREIGN KEY (segment_id, stripe_index) REFERENCES stripes (segment_id, stripe_index) ON DELETE CASCADE
);

CREATE TABLE nodes (
    id                 UUID PRIMARY KEY,
    public_key         BYTEA NOT NULL UNIQUE,
    peer_id            TEXT NOT NULL UNIQUE,
    label              TEXT NOT NULL,
    name               TEXT NOT NULL,
    grpc_address       TEXT NOT NULL,
    metrics_address    TEXT NOT NULL,
    incarnation        UUID NOT NULL,
    storage_total      BIGINT NOT NULL,
    storage_used       BIGINT NOT NULL DEFAULT 0,
    storage_reserved   BIGINT NOT NULL DEFAULT 0,
    storage_available  BIGINT NOT NULL DEFAULT 0, -- as the node reports it, its disk considered
    status             TEXT NOT NULL,
    status_changed_at  TIMESTAMPTZ NOT NULL DEFAULT now(),
    last_heartbeat     TIMESTAMPTZ NOT NULL DEFAULT now(),
    first_offline_at   TIMESTAMPTZ,
    failure_count      INTEGER NOT NULL DEFAULT 0,
    region             TEXT NOT NULL DEFAULT '',
    operator           TEXT NOT NULL DEFAULT '',
    subnet             TEXT NOT NULL DEFAULT '',
    version            TEXT NOT NULL DEFAULT '',
    wire_version       INTEGER NOT NULL DEFAULT 1,
    cpu_usage          DOUBLE PRECISION NOT NULL DEFAULT 0,
    memory_usage       DOUBLE PRECISION NOT NULL DEFAULT 0,
    active_connections BIGINT NOT NULL DEFAULT 0,
    maintenance        BOOLEAN NOT NULL DEFAULT FALSE,
    read_only          BOOLEAN NOT NULL DEFAULT FALSE,
    quarantined        BOOLEAN NOT NULL DEFAULT FALSE,
    created_at         TIMESTAMPTZ NOT NULL DEFAULT now()
);
COMMENT ON COLUMN nodes.storage_reserved IS
    'Gateway-reserved storage in bytes (2GB default for system use:
     metadata, parity buffer, rebalancing, health checks)';

-- The fact that a node holds the chunk of one row of chunks.
CREATE TABLE chunk_locations (
    id                    BIGINT GENERATED ALWAYS AS IDENTITY,
    segment_id            UUID NOT NULL,
    stripe_index          INTEGER NOT NULL,
    shard_index           SMALLINT NOT NULL,
    node_id               UUID NOT NULL REFERENCES nodes (id),
    chunk_id              BYTEA NOT NULL,
    incarnation           UUID NOT NULL,
    generation            BIGINT NOT NULL,
    receipt               BYTEA NOT NULL,         -- the node's Ed25519 signature
    receipt_at            TIMESTAMPTZ NOT NULL,   -- the node's clock; evidence only
    status                TEXT NOT NULL DEFAULT 'stored' CHECK (status IN ('stored', 'missing', 'corrupt', 'leaving')),
    last_verified         TIMESTAMPTZ,
    verification_failures INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (segment_id, stripe_index, shard_index, node_id),
    FOREIGN KEY (segment_id, stripe_index, shard_index)
        REFERENCES chunks (segment_id, stripe_index, shard_index) ON DELETE CASCADE
);
CREATE INDEX chunk_locations_node ON chunk_locations (node_id, chunk_id);

CREATE TABLE repair_jobs (
    id             UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    segment_id     UUID NOT NULL,
    stripe_index   INTEGER NOT NULL,
    chunk_id       BYTEA,
    source_node_id UUID,
    target_node_id UUID,
    status         TEXT NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'in_progress', 'completed', 'failed')),
    priority       INTEGER NOT NULL DEFAULT 0,    -- node losses still tolerated; smaller is more urgent
    retry_count    INTEGER NOT NULL DEFAULT 0,
    reason         TEXT NOT NULL DEFAULT '',
    fence          BIGINT NOT NULL DEFAULT 0,
    lease_until    TIMESTAMPTZ,
    not_before     TIMESTAMPTZ NOT NULL DEFAULT now(),
    created_at     TIMESTAMPTZ NOT NULL DEFAULT now()
);
-- A stripe waits at most once.
CREATE UNIQUE INDEX repair_jobs_open ON repair_jobs (segment_id, stripe_index) WHERE status IN ('pending', 'in_progress');
CREATE INDEX repair_jobs_queue ON repair_jobs (priority, not_before) WHERE status = 'pending';

CREATE TABLE upload_intents (
    id          UUID PRIMARY KEY,
    owner_id    UUID NOT NULL,
    bucket_id   UUID NOT NULL,
    key         BYTEA NOT NULL,
    lease_until TIMESTAMPTZ NOT NULL,
    created_at  TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE INDEX upload_intents_lease ON upload_intents (lease_until);

CREATE TABLE multipart_uploads (
    id                 UUID PRIMARY KEY,
    bucket_id          UUID NOT NULL REFERENCES buckets (id),
    key                BYTEA NOT NULL,
    owner_id           UUID NOT NULL REFERENCES users (id),
    content_type       TEXT,
    headers            JSONB NOT NULL DEFAULT '{}',
    metadata           JSONB NOT NULL DEFAULT '{}',
    checksum_algorithm TEXT,
    checksum_type      TEXT,
    status             TEXT NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'completed', 'aborted')),
    result             JSONB,                     -- what Complete answered, and to which parts
    initiated_at       TIMESTAMPTZ NOT NULL DEFAULT now(),
    ended_at           TIMESTAMPTZ
);
CREATE INDEX multipart_uploads_open ON multipart_uploads (bucket_id, key, initiated_at, id) WHERE status = 'open';
CREATE INDEX multipart_uploads_bucket ON multipart_uploads (bucket_id);

CREATE TABLE multipart_parts (
    multipart_id UUID NOT NULL REFERENCES multipart_uploads (id) ON DELETE CASCADE,
    number       INTEGER NOT NULL,
    size_bytes   BIGINT NOT NULL,
    etag         TEXT NOT NULL,
    content_hash BYTEA NOT NULL,
    checksums    JSONB NOT NULL DEFAULT '[]',
    created_at   TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (multipart_id, number)
);

CREATE TABLE part_segments (
    multipart_id   UUID NOT NULL,
    number         INTEGER NOT NULL,
    position       INTEGER NOT NULL,
    segment_id     UUID NOT NULL REFERENCES segments (id),
    segment_offset BIGINT NOT NULL,
    length         BIGINT NOT NULL,
    PRIMARY KEY (multipart_id, number, position),
    FOREIGN KEY (multipart_id, number) REFERENCES multipart_parts (multipart_id, number) ON DELETE CASCADE
);
CREATE INDEX part_segments_segment ON part_segments (segment_id);

-- Segments that lost a reference; whoever collects looks again under the segment's lock.
CREATE TABLE gc_candidates (
    segment_id UUID PRIMARY KEY,
    reason     TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE INDEX gc_candidates_age ON gc_candidates (created_at);

-- What commits changed, folded into users and buckets later so that commits do not meet on hot rows.
CREATE TABLE usage_deltas (
    id         UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    owner_id   UUID NOT NULL,
    bucket_id  UUID NOT NULL,
    bytes      BIGINT NOT NULL,
    objects    BIGINT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE INDEX usage_deltas_owner ON usage_deltas (owner_id);
CREATE INDEX usage_deltas_bucket ON usage_deltas (bucket_id);

CREATE VIEW chunk_replication_status AS
SELECT
    c.id,
    encode(c.chunk_id, 'hex') AS chunk_id,
    c.file_id,
    c.segment_id,
    c.stripe_index,
    c.shard_index,
    c.replication_factor,
    c.current_replicas,
    c.replication_factor - c.current_replicas AS replicas_needed,
    CASE
        WHEN c.current_replicas >= c.replication_factor THEN 'healthy'
        WHEN c.current_replicas > 0 THEN 'under_replicated'
        ELSE 'missing'
    END AS health_status
FROM (
    SELECT
        k.id, k.chunk_id, k.segment_id, k.stripe_index, k.shard_index, k.replication_factor,
        (SELECT fs.file_id FROM file_segments fs WHERE fs.segment_id = k.segment_id LIMIT 1) AS file_id,
        (SELECT count(*) FROM chunk_locations cl JOIN nodes n ON n.id = cl.node_id
         WHERE cl.segment_id = k.segment_id AND cl.stripe_index = k.stripe_index AND cl.shard_index = k.shard_index
           AND cl.status = 'stored' AND n.status IN ('online', 'recovering') AND NOT n.quarantined) AS current_replicas
    FROM chunks k
    WHERE k.status <> 'pending'
) c;

CREATE VIEW node_storage_summary AS
SELECT
    n.id,
    n.peer_id,
    n.grpc_address,
    n.storage_total,
    n.storage_reserved,
    n.storage_used,
    GREATEST(0, n.storage_total - n.storage_reserved - n.storage_used) AS storage_available,
    GREATEST(0, n.storage_total - n.storage_reserved) AS storage_allocatable,
    CASE
        WHEN n.storage_total - n.storage_reserved > 0
        THEN ROUND(n.storage_used::numeric / (n.storage_total - n.storage_reserved)::numeric * 100, 2)
        ELSE 0
    END AS utilization_percent,
    (SELECT count(*) FROM chunk_locations cl WHERE cl.node_id = n.id AND cl.status = 'stored') AS chunk_count,
    n.status,
    n.last_heartbeat
FROM nodes n;
