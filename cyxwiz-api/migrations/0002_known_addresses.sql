-- Addresses, as limits count them, from which somebody logged in to an account: strangers' guesses do not keep them out.
CREATE TABLE known_addresses (
    user_id UUID NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    address TEXT NOT NULL,
    seen_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, address)
);
CREATE INDEX known_addresses_age ON known_addresses (seen_at);
