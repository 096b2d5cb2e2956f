//! The database itself writes down what must never happen: claims that end twice, and garbage that goes before its time.

use crate::cluster::GC_GRACE_SECS;
use crate::databases::Database;
use crate::error::{Error, Result};

/// When claims of repairs begin and end, and how long segments were condemned when they went.
const WITNESS: &str = "
    CREATE TABLE torture_claims (at BIGINT GENERATED ALWAYS AS IDENTITY, job UUID NOT NULL, ended BOOLEAN NOT NULL);
    CREATE FUNCTION torture_claim() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.fence > OLD.fence THEN
            INSERT INTO torture_claims (job, ended) VALUES (NEW.id, FALSE);
        ELSIF OLD.status = 'in_progress' AND NEW.status <> 'in_progress' THEN
            INSERT INTO torture_claims (job, ended) VALUES (NEW.id, TRUE);
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER torture_claim AFTER UPDATE ON repair_jobs FOR EACH ROW EXECUTE FUNCTION torture_claim();
    CREATE TABLE torture_collected (condemned_for INTERVAL);
    CREATE FUNCTION torture_collect() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO torture_collected VALUES (now() - OLD.condemned_at);
        RETURN NULL;
    END $$;
    CREATE TRIGGER torture_collect AFTER DELETE ON segments FOR EACH ROW EXECUTE FUNCTION torture_collect();";
/// Ends of a claim that had ended before.
const STALE: &str = "SELECT count(*) FROM (
    SELECT ended AND lag(ended, 1, FALSE) OVER (PARTITION BY job ORDER BY at) AS again FROM torture_claims) c
    WHERE again";
const COLLECTED: &str = "SELECT count(*) FROM torture_collected";

/// Begins to write it down.
pub(super) async fn watch(database: &Database) -> Result<()> {
    database.execute_all(WITNESS).await
}

/// No claim ended twice, and nothing was collected before its grace was over, all by the database's clock.
pub(super) async fn check(database: &Database) -> Result<()> {
    let stale = database.number(STALE).await?;
    if stale > 0 {
        return Err(Error::broken(format!(
            "{stale} repairs were recorded by somebody whose claim had ended"
        )));
    }
    let young = format!(
        "{COLLECTED} WHERE condemned_for IS NULL OR condemned_for < interval '{GC_GRACE_SECS} seconds'"
    );
    let young = database.number(&young).await?;
    if young > 0 {
        return Err(Error::broken(format!("{young} segments were collected before their grace was over")));
    }
    Ok(())
}

/// Segments that were collected.
pub(super) async fn collected(database: &Database) -> Result<u64> {
    Ok(database.number(COLLECTED).await?.unsigned_abs())
}
