-- Access tokens issued before are refused: another password was set then. NULL refuses none.
ALTER TABLE users ADD COLUMN tokens_after TIMESTAMPTZ; -- a whole second, as tokens have them
