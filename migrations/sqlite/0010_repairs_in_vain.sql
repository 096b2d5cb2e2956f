-- Repairs that were tried and wait, in the order in which they come back: when a node has room, some are tried at once.

CREATE INDEX repair_jobs_tried ON repair_jobs (not_before) WHERE status = 'pending' AND retry_count > 0;
