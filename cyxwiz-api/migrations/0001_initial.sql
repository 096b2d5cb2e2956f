-- Everything lives in a schema of its own, `cyxwiz`, which the connection's search_path names.

CREATE TABLE users (
    id                 UUID PRIMARY KEY,
    email              TEXT NOT NULL UNIQUE,          -- in lower case
    username           TEXT UNIQUE,
    password_hash      TEXT NOT NULL,                 -- Argon2id, as a PHC string
    wallet_address     TEXT UNIQUE,                   -- proven; Base58
    wallet_verified_at TIMESTAMPTZ,
    storage_quota      BIGINT CHECK (storage_quota >= 0), -- bytes; NULL is no limit
    status             TEXT NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'suspended')),
    created_at         TIMESTAMPTZ NOT NULL DEFAULT now(),
    updated_at         TIMESTAMPTZ NOT NULL DEFAULT now()
);

-- One log-in and all refresh tokens that follow from it.
CREATE TABLE sessions (
    id         UUID PRIMARY KEY,
    user_id    UUID NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    revoked_at TIMESTAMPTZ
);
CREATE INDEX sessions_user ON sessions (user_id);

-- No token is kept: the ids of its successors are enough to make the same answer again.
CREATE TABLE refresh_tokens (
    id           UUID PRIMARY KEY,
    session_id   UUID NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    expires_at   TIMESTAMPTZ NOT NULL,
    used_at      TIMESTAMPTZ,
    next_access  UUID,
    next_refresh UUID
);
CREATE INDEX refresh_tokens_session ON refresh_tokens (session_id);
CREATE INDEX refresh_tokens_expiry ON refresh_tokens (expires_at);

CREATE TABLE machines (
    id            UUID PRIMARY KEY,
    user_id       UUID NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name          TEXT NOT NULL,
    peer_id       TEXT NOT NULL,
    storage_bytes BIGINT CHECK (storage_bytes >= 0),
    region        TEXT,
    version       TEXT,
    registered_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    last_seen_at  TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- Not over all users: who only names somebody's machine must not keep its owner from registering it.
    UNIQUE (user_id, peer_id)
);

-- One at a time for each user; taken away by the answer, whatever it is.
CREATE TABLE wallet_challenges (
    user_id        UUID PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
    nonce          TEXT NOT NULL,
    wallet_address TEXT NOT NULL,
    text           TEXT NOT NULL,
    expires_at     TIMESTAMPTZ NOT NULL
);

-- When each allowance is full again. Lost in a crash of the server, which forgives everybody once.
CREATE UNLOGGED TABLE limits (
    key     TEXT PRIMARY KEY,
    full_at TIMESTAMPTZ NOT NULL
);
