-- What keeps stored data stored: segments in their grace, scans of nodes, chunks to be deleted from nodes, audits.

ALTER TABLE segments ADD COLUMN condemned_at TIMESTAMPTZ;
CREATE INDEX segments_condemned ON segments (condemned_at) WHERE state = 'condemned';

ALTER TABLE repair_jobs
    ADD COLUMN again      BOOLEAN NOT NULL DEFAULT FALSE, -- queued once more while it was in progress
    ADD COLUMN claimed_at TIMESTAMPTZ,                    -- when the present claim began
    ADD COLUMN last_error TEXT NOT NULL DEFAULT '',
    ADD COLUMN tolerance  SMALLINT,                       -- node losses tolerated when it ended
    ADD COLUMN done_at    TIMESTAMPTZ;
CREATE INDEX repair_jobs_leases ON repair_jobs (lease_until) WHERE status = 'in_progress';
CREATE INDEX repair_jobs_ended ON repair_jobs (done_at) WHERE status IN ('completed', 'failed');

-- A node's locations in the order in which its inventory is compared with them.
CREATE INDEX chunk_locations_inventory ON chunk_locations (node_id, chunk_id, segment_id, stripe_index, shard_index);
DROP INDEX chunk_locations_node;

ALTER TABLE nodes
    ADD COLUMN reconciled_at  TIMESTAMPTZ,                -- when its inventory was last compared in full
    ADD COLUMN location_count BIGINT NOT NULL DEFAULT 0,  -- as counted then
    ADD COLUMN audit_alpha    DOUBLE PRECISION,           -- weight of proofs; NULL before the first audit
    ADD COLUMN audit_beta     DOUBLE PRECISION,           -- weight of failures
    ADD COLUMN audits_proven  BIGINT NOT NULL DEFAULT 0,
    ADD COLUMN audits_failed  BIGINT NOT NULL DEFAULT 0,
    ADD COLUMN last_audit     TIMESTAMPTZ;

-- Nodes whose locations are to be looked through. A row stays when it is done, so that its fence only grows.
CREATE TABLE node_scans (
    node_id        UUID NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    reason         TEXT NOT NULL
        CHECK (reason IN ('offline', 'draining', 'maintenance', 'returned', 'new_incarnation', 'periodic')),
    since          TIMESTAMPTZ NOT NULL DEFAULT now(),
    not_before     TIMESTAMPTZ NOT NULL DEFAULT now(),
    done           BOOLEAN NOT NULL DEFAULT FALSE,
    fence          BIGINT NOT NULL DEFAULT 0,
    lease_until    TIMESTAMPTZ,
    cursor_chunk   BYTEA,
    cursor_segment UUID,
    cursor_stripe  INTEGER,
    cursor_shard   SMALLINT,
    PRIMARY KEY (node_id, reason)
);
CREATE INDEX node_scans_due ON node_scans (not_before) WHERE NOT done;

-- Chunks to be deleted from nodes. One may go when no location names (node, chunk), and no upload and no repair that began
-- at or before `since` is still under way: what begins later stores a newer generation, which the node keeps.
CREATE TABLE chunk_deletes (
    id          BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    node_id     UUID NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    chunk_id    BYTEA NOT NULL,
    incarnation UUID NOT NULL,
    generation  BIGINT NOT NULL,
    reason      TEXT NOT NULL DEFAULT '',
    since       TIMESTAMPTZ NOT NULL DEFAULT now(),
    not_before  TIMESTAMPTZ NOT NULL DEFAULT now(),
    attempts    INTEGER NOT NULL DEFAULT 0,
    UNIQUE (node_id, chunk_id, incarnation)
);
CREATE INDEX chunk_deletes_due ON chunk_deletes (not_before);

-- Chunks that nodes hold and no location names, since they were first seen with this generation.
CREATE TABLE orphans (
    node_id     UUID NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    chunk_id    BYTEA NOT NULL,
    incarnation UUID NOT NULL,
    generation  BIGINT NOT NULL,
    first_seen  TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (node_id, chunk_id)
);
CREATE INDEX orphans_age ON orphans (first_seen);

CREATE TABLE audit_events (
    id           BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    round        UUID NOT NULL,
    node_id      UUID NOT NULL,
    chunk_id     BYTEA NOT NULL,
    segment_id   UUID NOT NULL,
    stripe_index INTEGER NOT NULL,
    shard_index  SMALLINT NOT NULL,
    slice_start  BIGINT NOT NULL,                -- bytes of the chunk
    slice_end    BIGINT NOT NULL,
    outcome      TEXT NOT NULL CHECK (outcome IN ('proven', 'lost', 'wrong', 'late', 'unreachable')),
    again        BOOLEAN NOT NULL,               -- answers a contained audit of before
    created_at   TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE INDEX audit_events_node ON audit_events (node_id, id);
CREATE INDEX audit_events_age ON audit_events (created_at);

-- Audits that were answered too late, to be asked again.
CREATE TABLE contained_audits (
    node_id      UUID NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    segment_id   UUID NOT NULL,
    stripe_index INTEGER NOT NULL,
    shard_index  SMALLINT NOT NULL,
    chunk_id     BYTEA NOT NULL,
    size_bytes   BIGINT NOT NULL,
    slice_start  BIGINT NOT NULL,
    slice_end    BIGINT NOT NULL,
    attempts     INTEGER NOT NULL DEFAULT 1,     -- times it was late
    not_before   TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (node_id, segment_id, stripe_index, shard_index),
    FOREIGN KEY (segment_id, stripe_index, shard_index, node_id)
        REFERENCES chunk_locations (segment_id, stripe_index, shard_index, node_id) ON DELETE CASCADE
);
CREATE INDEX contained_audits_due ON contained_audits (not_before);
CREATE INDEX contained_audits_location ON contained_audits (segment_id, stripe_index, shard_index, node_id);

CREATE INDEX upload_intents_age ON upload_intents (created_at);
CREATE INDEX multipart_uploads_ended ON multipart_uploads (ended_at) WHERE status <> 'open';
CREATE INDEX multipart_uploads_age ON multipart_uploads (initiated_at) WHERE status = 'open';
