-- The keys that servers sign tokens for nodes with, and when each is good for what. The one of before is the first.

CREATE TABLE token_keys (
    number         BIGINT PRIMARY KEY,
    seed           BYTEA NOT NULL,                                       -- wrapped under the server's master key
    signs_from     TIMESTAMPTZ NOT NULL,
    accepted_until TIMESTAMPTZ,                                          -- NULL: nothing replaces it yet
    created_at     TIMESTAMPTZ NOT NULL DEFAULT date_trunc('milliseconds', clock_timestamp())
);
INSERT INTO token_keys (number, seed, signs_from) SELECT 1, value, 'epoch' FROM constants WHERE name = 'token_key';

-- Since when a node drains because its operator may do nothing; NULL where that is not why.
ALTER TABLE nodes ADD COLUMN suspended_at TIMESTAMPTZ;
