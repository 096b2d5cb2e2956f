-- Tables and views that operators query keep the names and columns they know (users, buckets, files, chunks,
-- chunk_locations, nodes, repair_jobs; chunk_replication_status, node_storage_summary). Keys of objects are bytes.
-- Times are milliseconds since the Unix epoch; ids of type UUID are 16 bytes; JSON is text; BOOLEAN is 0 or 1.
-- One writer has it all to itself: no table of keys to lock, no usage_deltas; totals of usage are exact at every commit.

CREATE TABLE constants (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE users (
    id             BLOB PRIMARY KEY,
    wallet_address TEXT UNIQUE,
    email          TEXT UNIQUE,
    username       TEXT UNIQUE,
    role           TEXT NOT NULL DEFAULT 'user' CHECK (role IN ('user', 'admin')),
    storage_quota  INTEGER,                        -- bytes; NULL is no limit
    storage_used   INTEGER NOT NULL DEFAULT 0,     -- bytes
    object_count   INTEGER NOT NULL DEFAULT 0,
    status         TEXT NOT NULL DEFAULT 'active',
    sealing_secret BLOB NOT NULL,                -- wrapped under the server's master key
    created_at     INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER))
);

CREATE TABLE access_keys (
    id         TEXT PRIMARY KEY,
    owner_id   BLOB NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    secret     BLOB NOT NULL,                    -- wrapped under the server's master key
    expires_at INTEGER,
    revoked_at INTEGER,
    created_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER))
);
CREATE INDEX access_keys_owner ON access_keys (owner_id);

CREATE TABLE buckets (
    id           BLOB PRIMARY KEY,
    name         TEXT NOT NULL UNIQUE,
    owner_id     BLOB NOT NULL REFERENCES users (id),
    profile      TEXT NOT NULL DEFAULT 'standard',
    versioning   TEXT NOT NULL DEFAULT 'off' CHECK (versioning IN ('off', 'enabled', 'suspended')),
    storage_used INTEGER NOT NULL DEFAULT 0,       -- bytes
    object_count INTEGER NOT NULL DEFAULT 0,
    created_at   INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER))
);
CREATE INDEX buckets_owner ON buckets (owner_id, name);

-- One version of a key in a bucket. version_seq orders the versions of a key by commit.
CREATE TABLE files (
    id               BLOB PRIMARY KEY,
    bucket_id        BLOB NOT NULL REFERENCES buckets (id),
    bucket           TEXT NOT NULL,
    key              BLOB NOT NULL,
    path             TEXT NOT NULL,               -- the key; U+0000 shown as U+FFFD
    name             TEXT NOT NULL,               -- its last component, likewise
    owner_id         BLOB NOT NULL REFERENCES users (id),
    version_id       TEXT NOT NULL DEFAULT 'null',
    version_seq      INTEGER NOT NULL,
    is_latest        INTEGER NOT NULL,
    is_delete_marker INTEGER NOT NULL DEFAULT 0,
    upload_id        BLOB NOT NULL UNIQUE,
    content_hash     BLOB NOT NULL,              -- Blake3
    etag             TEXT NOT NULL,
    size_bytes       INTEGER NOT NULL,
    chunk_count      INTEGER NOT NULL,
    data_shards      INTEGER NOT NULL,
    parity_shards    INTEGER NOT NULL,
    chunk_size       INTEGER NOT NULL,             -- bytes of plain stripe
    status           TEXT NOT NULL DEFAULT 'complete',
    content_type     TEXT,
    headers          TEXT NOT NULL DEFAULT '{}',
    metadata         TEXT NOT NULL DEFAULT '{}',
    checksums        TEXT NOT NULL DEFAULT '[]',
    part_sizes       TEXT NOT NULL DEFAULT '[]',
    created_at       INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER))
);
CREATE UNIQUE INDEX files_latest ON files (bucket_id, key) WHERE is_latest;
-- What listings walk: current and visible.
CREATE INDEX files_visible ON files (bucket_id, key) WHERE is_latest AND NOT is_delete_marker;
CREATE INDEX files_versions ON files (bucket_id, key, version_seq DESC);

CREATE TABLE segments (
    id               BLOB PRIMARY KEY,
    owner_id         BLOB NOT NULL,
    length           INTEGER NOT NULL,             -- plain bytes
    stripe_size      INTEGER NOT NULL,             -- plain bytes
    data_shards      INTEGER NOT NULL,
    parity_shards    INTEGER NOT NULL,
    copies           INTEGER NOT NULL,
    format           INTEGER NOT NULL,
    content_hash     BLOB NOT NULL,
    acked_tolerance  INTEGER NOT NULL,
    target_tolerance INTEGER NOT NULL,
    chunk_count      INTEGER NOT NULL,
    inline_hash      BLOB,                       -- Blake3 of the plain bytes, where they live here
    inline_data      BLOB,                       -- sealed bytes, where they live here
    state            TEXT NOT NULL DEFAULT 'live' CHECK (state IN ('live', 'condemned')),
    created_at       INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER))
);

CREATE TABLE file_segments (
    file_id        BLOB NOT NULL REFERENCES files (id) ON DELETE CASCADE,
    position       INTEGER NOT NULL,
    segment_id     BLOB NOT NULL REFERENCES segments (id),
    object_offset  INTEGER NOT NULL,
    segment_offset INTEGER NOT NULL,
    length         INTEGER NOT NULL,
    PRIMARY KEY (file_id, position)
) WITHOUT ROWID;
CREATE INDEX file_segments_segment ON file_segments (segment_id);

CREATE TABLE stripes (
    segment_id   BLOB NOT NULL REFERENCES segments (id) ON DELETE CASCADE,
    stripe_index INTEGER NOT NULL,
    plain_hash   BLOB NOT NULL,
    plain_len    INTEGER NOT NULL,
    PRIMARY KEY (segment_id, stripe_index)
) WITHOUT ROWID;

-- One row per shard of a stripe. Two rows may name the same chunk.
CREATE TABLE chunks (
    segment_id         BLOB NOT NULL,
    stripe_index       INTEGER NOT NULL,
    shard_index        INTEGER NOT NULL,
    chunk_id           BLOB NOT NULL,            -- Blake3 of the bytes
    is_parity          INTEGER NOT NULL,
    size_bytes         INTEGER NOT NULL,
    replication_factor INTEGER NOT NULL,         -- wanted copies
    status             TEXT NOT NULL DEFAULT 'stored',
    PRIMARY KEY (segment_id, stripe_index, shard_index),
    FOREIGN KEY (segment_id, stripe_index) REFERENCES stripes (segment_id, stripe_index) ON DELETE CASCADE
) WITHOUT ROWID;

CREATE TABLE nodes (
    id                 BLOB PRIMARY KEY,
    public_key         BLOB NOT NULL UNIQUE,
    peer_id            TEXT NOT NULL UNIQUE,
    label              TEXT NOT NULL,
    name               TEXT NOT NULL,
    grpc_address       TEXT NOT NULL,
    metrics_address    TEXT NOT NULL,
    incarnation        BLOB NOT NULL,
    storage_total      INTEGER NOT NULL,
    storage_used       INTEGER NOT NULL DEFAULT 0,
    storage_reserved   INTEGER NOT NULL DEFAULT 0,
    storage_available  INTEGER NOT NULL DEFAULT 0, -- as the node reports it, its disk considered
    status             TEXT NOT NULL,
    status_changed_at  INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER)),
    last_heartbeat     INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER)),
    first_offline_at   INTEGER,
    failure_count      INTEGER NOT NULL DEFAULT 0,
    region             TEXT NOT NULL DEFAULT '',
    operator           TEXT NOT NULL DEFAULT '',
    subnet             TEXT NOT NULL DEFAULT '',
    version            TEXT NOT NULL DEFAULT '',
    wire_version       INTEGER NOT NULL DEFAULT 1,
    cpu_usage          REAL NOT NULL DEFAULT 0,
    memory_usage       REAL NOT NULL DEFAULT 0,
    active_connections INTEGER NOT NULL DEFAULT 0,
    maintenance        INTEGER NOT NULL DEFAULT 0,
    read_only          INTEGER NOT NULL DEFAULT 0,
    quarantined        INTEGER NOT NULL DEFAULT 0,
    created_at         INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER))
);

-- The fact that a node holds the chunk of one row of chunks.
CREATE TABLE chunk_locations (
    segment_id            BLOB NOT NULL,
    stripe_index          INTEGER NOT NULL,
    shard_index           INTEGER NOT NULL,
    node_id               BLOB NOT NULL REFERENCES nodes (id),
    chunk_id              BLOB NOT NULL,
    incarnation           BLOB NOT NULL,
    generation            INTEGER NOT NULL,
    receipt               BLOB NOT NULL,         -- the node's Ed25519 signature
    receipt_at            INTEGER NOT NULL,   -- the node's clock; evidence only
    status                TEXT NOT NULL DEFAULT 'stored' CHECK (status IN ('stored', 'missing', 'corrupt', 'leaving')),
    last_verified         INTEGER,
    verification_failures INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (segment_id, stripe_index, shard_index, node_id),
    FOREIGN KEY (segment_id, stripe_index, shard_index)
        REFERENCES chunks (segment_id, stripe_index, shard_index) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX chunk_locations_node ON chunk_locations (node_id, chunk_id);

CREATE TABLE repair_jobs (
    id             BLOB PRIMARY KEY,
    segment_id     BLOB NOT NULL,
    stripe_index   INTEGER NOT NULL,
    chunk_id       BLOB,
    source_node_id BLOB,
    target_node_id BLOB,
    status         TEXT NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'in_progress', 'completed', 'failed')),
    priority       INTEGER NOT NULL DEFAULT 0,    -- node losses still tolerated; smaller is more urgent
    retry_count    INTEGER NOT NULL DEFAULT 0,
    reason         TEXT NOT NULL DEFAULT '',
    fence          INTEGER NOT NULL DEFAULT 0,
    lease_until    INTEGER,
    not_before     INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER)),
    created_at     INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER))
);
-- A stripe waits at most once.
CREATE UNIQUE INDEX repair_jobs_open ON repair_jobs (segment_id, stripe_index) WHERE status IN ('pending', 'in_progress');
CREATE INDEX repair_jobs_queue ON repair_jobs (priority, not_before) WHERE status = 'pending';

CREATE TABLE upload_intents (
    id          BLOB PRIMARY KEY,
    owner_id    BLOB NOT NULL,
    bucket_id   BLOB NOT NULL,
    key         BLOB NOT NULL,
    lease_until INTEGER NOT NULL,
    created_at  INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER))
);
CREATE INDEX upload_intents_lease ON upload_intents (lease_until);

CREATE TABLE multipart_uploads (
    id                 BLOB PRIMARY KEY,
    bucket_id          BLOB NOT NULL REFERENCES buckets (id),
    key                BLOB NOT NULL,
    owner_id           BLOB NOT NULL REFERENCES users (id),
    content_type       TEXT,
    headers            TEXT NOT NULL DEFAULT '{}',
    metadata           TEXT NOT NULL DEFAULT '{}',
    checksum_algorithm TEXT,
    checksum_type      TEXT,
    status             TEXT NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'completed', 'aborted')),
    result             TEXT,                     -- what Complete answered, and to which parts
    initiated_at       INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER)),
    ended_at           INTEGER
);
CREATE INDEX multipart_uploads_open ON multipart_uploads (bucket_id, key, initiated_at, id) WHERE status = 'open';

CREATE TABLE multipart_parts (
    multipart_id BLOB NOT NULL REFERENCES multipart_uploads (id) ON DELETE CASCADE,
    number       INTEGER NOT NULL,
    size_bytes   INTEGER NOT NULL,
    etag         TEXT NOT NULL,
    content_hash BLOB NOT NULL,
    checksums    TEXT NOT NULL DEFAULT '[]',
    created_at   INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER)),
    PRIMARY KEY (multipart_id, number)
) WITHOUT ROWID;

CREATE TABLE part_segments (
    multipart_id   BLOB NOT NULL,
    number         INTEGER NOT NULL,
    position       INTEGER NOT NULL,
    segment_id     BLOB NOT NULL REFERENCES segments (id),
    segment_offset INTEGER NOT NULL,
    length         INTEGER NOT NULL,
    PRIMARY KEY (multipart_id, number, position),
    FOREIGN KEY (multipart_id, number) REFERENCES multipart_parts (multipart_id, number) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX part_segments_segment ON part_segments (segment_id);

-- Segments that lost a reference; whoever collects looks again under the segment's lock.
CREATE TABLE gc_candidates (
    segment_id BLOB PRIMARY KEY,
    reason     TEXT NOT NULL,
    created_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER))
) WITHOUT ROWID;
CREATE INDEX gc_candidates_age ON gc_candidates (created_at);

CREATE VIEW chunk_replication_status AS
SELECT
    c.chunk_id,
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
        lower(hex(k.chunk_id)) AS chunk_id, hex(k.segment_id) AS segment_id, k.stripe_index, k.shard_index,
        k.replication_factor,
        (SELECT hex(fs.file_id) FROM file_segments fs WHERE fs.segment_id = k.segment_id LIMIT 1) AS file_id,
        (SELECT count(*) FROM chunk_locations cl JOIN nodes n ON n.id = cl.node_id
         WHERE cl.segment_id = k.segment_id AND cl.stripe_index = k.stripe_index AND cl.shard_index = k.shard_index
           AND cl.status = 'stored' AND n.status IN ('online', 'recovering') AND n.quarantined = 0) AS current_replicas
    FROM chunks k
    WHERE k.status <> 'pending'
) c;

CREATE VIEW node_storage_summary AS
SELECT
    hex(n.id) AS id,
    n.peer_id,
    n.grpc_address,
    n.storage_total,
    n.storage_reserved,
    n.storage_used,
    max(0, n.storage_total - n.storage_reserved - n.storage_used) AS storage_available,
    max(0, n.storage_total - n.storage_reserved) AS storage_allocatable,
    CASE
        WHEN n.storage_total - n.storage_reserved > 0
        THEN round(n.storage_used * 100.0 / (n.storage_total - n.storage_reserved), 2)
        ELSE 0
    END AS utilization_percent,
    (SELECT count(*) FROM chunk_locations cl WHERE cl.node_id = n.id AND cl.status = 'stored') AS chunk_count,
    n.status,
    n.last_heartbeat
FROM nodes n;
