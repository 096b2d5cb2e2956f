-- The keys that servers sign tokens for nodes with, and when each is good for what. The one of before is the first.

CREATE TABLE token_keys (
    number         INTEGER PRIMARY KEY,
    seed           BLOB NOT NULL,                                        -- wrapped under the server's master key
    signs_from     INTEGER NOT NULL,
    accepted_until INTEGER,                                              -- NULL: nothing replaces it yet
    created_at     INTEGER NOT NULL
);
INSERT INTO token_keys (number, seed, signs_from, created_at)
    SELECT 1, value, 0, unixepoch() * 1000 FROM constants WHERE name = 'token_key';

-- Since when a node drains because its operator may do nothing; NULL where that is not why.
ALTER TABLE nodes ADD COLUMN suspended_at INTEGER;
