-- Nodes that have been known and have proven themselves for long enough to be given their share of what is written. Those of
-- before were given it.

ALTER TABLE nodes ADD COLUMN vetted_at TIMESTAMPTZ;
UPDATE nodes SET vetted_at = now();

-- Which stripes wait with how few losses to spare, for audits of what is at risk.
CREATE INDEX repair_jobs_at_risk ON repair_jobs (priority) WHERE status IN ('pending', 'in_progress');
