-- People: what logs them in and out, keys with limits, what uploads reserve of a quota, and who did what.

ALTER TABLE users ADD COLUMN token_version INTEGER NOT NULL DEFAULT 0;   -- tokens of another version are refused

ALTER TABLE access_keys ADD COLUMN name TEXT NOT NULL DEFAULT '';
ALTER TABLE access_keys ADD COLUMN buckets TEXT;                         -- JSON; NULL is all, like the next
ALTER TABLE access_keys ADD COLUMN prefixes TEXT;
ALTER TABLE access_keys ADD COLUMN read_only INTEGER NOT NULL DEFAULT 0;
ALTER TABLE access_keys ADD COLUMN last_used_at INTEGER;

-- One log-in and all that follows from it. The refresh token that is good now, the one before it, and what was answered
-- to that one (wrapped under the server's master key).
CREATE TABLE sessions (
    id         BLOB PRIMARY KEY,
    owner_id   BLOB NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    current    TEXT NOT NULL,
    previous   TEXT,
    answer     BLOB,
    rotated_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    revoked_at INTEGER,
    created_at INTEGER NOT NULL
);
CREATE INDEX sessions_owner ON sessions (owner_id);
CREATE INDEX sessions_expiry ON sessions (expires_at);

CREATE TABLE revoked_tokens (
    jti        TEXT PRIMARY KEY,
    owner_id   BLOB NOT NULL,
    expires_at INTEGER NOT NULL,                                          -- of the token: after it the row may go
    revoked_at INTEGER NOT NULL
);
CREATE INDEX revoked_tokens_expiry ON revoked_tokens (expires_at);

ALTER TABLE upload_intents ADD COLUMN reserved INTEGER NOT NULL DEFAULT 0; -- bytes that it may take of the owner's quota
CREATE INDEX upload_intents_owner ON upload_intents (owner_id) WHERE reserved > 0;
CREATE INDEX multipart_uploads_owner ON multipart_uploads (owner_id) WHERE status = 'open';

CREATE TABLE audit_log (
    id       BLOB PRIMARY KEY,
    at       INTEGER NOT NULL,
    owner_id BLOB,                                                        -- whose account it is about
    actor    TEXT NOT NULL,                                               -- who did it: a user's id, a wallet, or ''
    action   TEXT NOT NULL,
    target   TEXT NOT NULL,
    address  TEXT NOT NULL,
    outcome  TEXT NOT NULL
);
CREATE INDEX audit_log_at ON audit_log (at, id);
CREATE INDEX audit_log_owner ON audit_log (owner_id, at, id);

CREATE TRIGGER audit_log_no_update BEFORE UPDATE ON audit_log
BEGIN SELECT RAISE(ABORT, 'audit_log is append-only'); END;
-- Retention says that it is at work by a row that it takes away in the same transaction.
CREATE TRIGGER audit_log_no_delete BEFORE DELETE ON audit_log
WHEN NOT EXISTS (SELECT 1 FROM constants WHERE name = 'audit-retention')
BEGIN SELECT RAISE(ABORT, 'audit_log is append-only'); END;
