-- Nodes that have been known and have proven themselves for long enough to be given their share of what is written. Those of
-- before were given it.

ALTER TABLE nodes ADD COLUMN vetted_at INTEGER;
UPDATE nodes SET vetted_at = created_at;
