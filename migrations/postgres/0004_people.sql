-- People: what logs them in and out, keys with limits, what uploads reserve of a quota, and who did what.

ALTER TABLE users ADD COLUMN token_version BIGINT NOT NULL DEFAULT 0;   -- tokens of another version are refused
ALTER TABLE users ADD CONSTRAINT users_status CHECK (status IN ('active', 'suspended'));

ALTER TABLE access_keys ADD COLUMN name TEXT NOT NULL DEFAULT '';
ALTER TABLE access_keys ADD COLUMN buckets TEXT[];                      -- NULL is all, like the next
ALTER TABLE access_keys ADD COLUMN prefixes TEXT[];
ALTER TABLE access_keys ADD COLUMN read_only BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE access_keys ADD COLUMN last_used_at TIMESTAMPTZ;

-- One log-in and all that follows from it. The refresh token that is good now, the one before it, and what was answered
-- to that one (wrapped under the server's master key).
CREATE TABLE sessions (
    id         UUID PRIMARY KEY,
    owner_id   UUID NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    current    TEXT NOT NULL,
    previous   TEXT,
    answer     BYTEA,
    rotated_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    expires_at TIMESTAMPTZ NOT NULL,
    revoked_at TIMESTAMPTZ,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE INDEX sessions_owner ON sessions (owner_id);
CREATE INDEX sessions_expiry ON sessions (expires_at);

CREATE TABLE revoked_tokens (
    jti        TEXT PRIMARY KEY,
    owner_id   UUID NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL,                                     -- of the token: after it the row may go
    revoked_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE INDEX revoked_tokens_expiry ON revoked_tokens (expires_at);

ALTER TABLE upload_intents ADD COLUMN reserved BIGINT NOT NULL DEFAULT 0; -- bytes that it may take of the owner's quota
CREATE INDEX upload_intents_owner ON upload_intents (owner_id) WHERE reserved > 0;
CREATE INDEX multipart_uploads_owner ON multipart_uploads (owner_id) WHERE status = 'open';

CREATE TABLE audit_log (
    id       UUID PRIMARY KEY,
    at       TIMESTAMPTZ NOT NULL DEFAULT date_trunc('milliseconds', clock_timestamp()),
    owner_id UUID,                                                       -- whose account it is about
    actor    TEXT NOT NULL,                                              -- who did it: a user's id, a wallet, or ''
    action   TEXT NOT NULL,
    target   TEXT NOT NULL,
    address  TEXT NOT NULL,
    outcome  TEXT NOT NULL
);
CREATE INDEX audit_log_at ON audit_log (at, id);
CREATE INDEX audit_log_owner ON audit_log (owner_id, at, id);

CREATE FUNCTION audit_log_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_setting('cyxcloud.audit_retention', TRUE) = 'on' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'audit_log is append-only';
END $$;
CREATE TRIGGER audit_log_rows BEFORE UPDATE OR DELETE ON audit_log
    FOR EACH ROW EXECUTE FUNCTION audit_log_is_append_only();
CREATE TRIGGER audit_log_whole BEFORE TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION audit_log_is_append_only();
