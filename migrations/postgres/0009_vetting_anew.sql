-- A node that failed is let back as one that is new: since when it has been vetted or is being, where that is not since it
-- registered, and what audits_proven was then.

ALTER TABLE nodes ADD COLUMN vetting_since TIMESTAMPTZ;
ALTER TABLE nodes ADD COLUMN vetting_proofs BIGINT NOT NULL DEFAULT 0;
