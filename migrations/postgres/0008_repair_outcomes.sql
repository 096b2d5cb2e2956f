-- What became of repairs, by when: to count the latest, and to drop the oldest.

CREATE INDEX repair_jobs_outcomes ON repair_jobs (status, done_at) WHERE done_at IS NOT NULL;
DROP INDEX repair_jobs_ended;
