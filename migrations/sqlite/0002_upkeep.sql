-- What keeps stored data stored: segments in their grace, scans of nodes, chunks to be deleted from nodes, audits.

ALTER TABLE segments ADD COLUMN condemned_at INTEGER;
CREATE INDEX segments_condemned ON segments (condemned_at) WHERE state = 'condemned';

ALTER TABLE repair_jobs ADD COLUMN again INTEGER NOT NULL DEFAULT 0; -- queued once more while it was in progress
ALTER TABLE repair_jobs ADD COLUMN claimed_at INTEGER; -- when the present claim began
ALTER TABLE repair_jobs ADD COLUMN last_error TEXT NOT NULL DEFAULT '';
ALTER TABLE repair_jobs ADD COLUMN tolerance INTEGER; -- node losses tolerated when it ended
ALTER TABLE repair_jobs ADD COLUMN done_at INTEGER;
CREATE INDEX repair_jobs_leases ON repair_jobs (lease_until) WHERE status = 'in_progress';
CREATE INDEX repair_jobs_ended ON repair_jobs (done_at) WHERE status IN ('completed', 'failed');

-- A node's locations in the order in which its inventory is compared with them.
CREATE INDEX chunk_locations_inventory ON chunk_locations (node_id, chunk_id, segment_id, stripe_index, shard_index);
DROP INDEX chunk_locations_node;

ALTER TABLE nodes ADD COLUMN reconciled_at INTEGER; -- when its inventory was last compared in full
ALTER TABLE nodes ADD COLUMN location_count INTEGER NOT NULL DEFAULT 0; -- as counted then
ALTER TABLE nodes ADD COLUMN audit_alpha REAL; -- weight of proofs; NULL before the first audit
ALTER TABLE nodes ADD COLUMN audit_beta REAL; -- weight of failures
ALTER TABLE nodes ADD COLUMN audits_proven INTEGER NOT NULL DEFAULT 0;
ALTER TABLE nodes ADD COLUMN audits_failed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE nodes ADD COLUMN last_audit INTEGER;

-- Nodes whose locations are to be looked through. A row stays when it is done, so that its fence only grows.
CREATE TABLE node_scans (
    node_id        BLOB NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    reason         TEXT NOT NULL
        CHECK (reason IN ('offline', 'draining', 'maintenance', 'returned', 'new_incarnation', 'periodic')),
    since          INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER)),
    not_before     INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER)),
    done           INTEGER NOT NULL DEFAULT 0,
    fence          INTEGER NOT NULL DEFAULT 0,
    lease_until    INTEGER,
    cursor_chunk   BLOB,
    cursor_segment BLOB,
    cursor_stripe  INTEGER,
    cursor_shard   INTEGER,
    PRIMARY KEY (node_id, reason)
);
CREATE INDEX node_scans_due ON node_scans (not_before) WHERE NOT done;

-- Chunks to be deleted from nodes. One may go when no location names (node, chunk), and no upload and no repair that began
-- at or before `since` is still under way: what begins later stores a newer generation, which the node keeps.
CREATE TABLE chunk_deletes (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    node_id     BLOB NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    chunk_id    BLOB NOT NULL,
    incarnation BLOB NOT NULL,
    generation  INTEGER NOT NULL,
    reason      TEXT NOT NULL DEFAULT '',
    since       INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER)),
    not_before  INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER)),
    attempts    INTEGER NOT NULL DEFAULT 0,
    UNIQUE (node_id, chunk_id, incarnation)
);
CREATE INDEX chunk_deletes_due ON chunk_deletes (not_before);

-- Chunks that nodes hold and no location names, since they were first seen with this generation.
CREATE TABLE orphans (
    node_id     BLOB NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    chunk_id    BLOB NOT NULL,
    incarnation BLOB NOT NULL,
    generation  INTEGER NOT NULL,
    first_seen  INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER)),
    PRIMARY KEY (node_id, chunk_id)
);
CREATE INDEX orphans_age ON orphans (first_seen);

CREATE TABLE audit_events (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    round        BLOB NOT NULL,
    node_id      BLOB NOT NULL,
    chunk_id     BLOB NOT NULL,
    segment_id   BLOB NOT NULL,
    stripe_index INTEGER NOT NULL,
    shard_index  INTEGER NOT NULL,
    slice_start  INTEGER NOT NULL,  -- bytes of the chunk
    slice_end    INTEGER NOT NULL,
    outcome      TEXT NOT NULL CHECK (outcome IN ('proven', 'lost', 'wrong', 'late', 'unreachable')),
    again        INTEGER NOT NULL,  -- answers a contained audit of before
    created_at   INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER))
);
CREATE INDEX audit_events_node ON audit_events (node_id, id);
CREATE INDEX audit_events_age ON audit_events (created_at);

-- Audits that were answered too late, to be asked again.
CREATE TABLE contained_audits (
    node_id      BLOB NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    segment_id   BLOB NOT NULL,
    stripe_index INTEGER NOT NULL,
    shard_index  INTEGER NOT NULL,
    chunk_id     BLOB NOT NULL,
    size_bytes   INTEGER NOT NULL,
    slice_start  INTEGER NOT NULL,
    slice_end    INTEGER NOT NULL,
    attempts     INTEGER NOT NULL DEFAULT 1,  -- times it was late
    not_before   INTEGER NOT NULL,
    PRIMARY KEY (node_id, segment_id, stripe_index, shard_index),
    FOREIGN KEY (segment_id, stripe_index, shard_index, node_id)
        REFERENCES chunk_locations (segment_id, stripe_index, shard_index, node_id) ON DELETE CASCADE
);
CREATE INDEX contained_audits_due ON contained_audits (not_before);
CREATE INDEX contained_audits_location ON contained_audits (segment_id, stripe_index, shard_index, node_id);

CREATE INDEX upload_intents_age ON upload_intents (created_at);
CREATE INDEX multipart_uploads_ended ON multipart_uploads (ended_at) WHERE status <> 'open';
CREATE INDEX multipart_uploads_age ON multipart_uploads (initiated_at) WHERE status = 'open';
