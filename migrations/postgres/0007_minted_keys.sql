-- By which key a key was made: it ends with it. NULL where that was a session or root, or is not known.
ALTER TABLE access_keys ADD COLUMN made_by TEXT REFERENCES access_keys (id) ON DELETE CASCADE;
CREATE INDEX access_keys_made_by ON access_keys (made_by) WHERE made_by IS NOT NULL;
