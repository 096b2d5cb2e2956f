//! Lists current objects and open multipart uploads: the walk decides which range to read, an index gives the rows
//! in order.

use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{PgConnection, Row};

use super::PostgresStore;
use super::multipart::{multipart, multipart_columns};
use super::read;
use super::transact::{self, Failure};
use crate::error::Result;
use crate::listing::{Ask, Walk};
use crate::model::{
    ListMultiparts, ListObjects, ListPage, ListedObject, Multipart, MultipartPage, StoredChecksum,
};

fn listed(row: &PgRow) -> Result<ListedObject, Failure> {
    let Json(checksums) = row.try_get::<Json<Vec<StoredChecksum>>, _>("checksums")?;
    Ok(ListedObject {
        key: read::key(row, "key")?.as_str().to_owned(),
        size: read::bytes(row, "size_bytes")?,
        etag: row.try_get("etag")?,
        modified_at: read::time(row, "created_at")?,
        checksum_algorithms: checksums.into_iter().map(|checksum| checksum.algorithm).collect(),
    })
}

fn limit(ask: &Ask) -> i64 {
    i64::try_from(ask.limit).unwrap_or(i64::MAX)
}

impl PostgresStore {
    /// One connection for the whole walk, but no transaction: a page may show what changed while it was made.
    pub(super) async fn page_of_objects(&self, query: &ListObjects) -> Result<ListPage> {
        transact::single(&self.pool, "list objects", |conn, _| {
            Box::pin(async move {
                let mut walk = Walk::of_objects(query);
                while let Some(ask) = walk.ask() {
                    let rows = sqlx::query(include_str!("sql/list_objects.sql"))
                        .bind(query.bucket.as_uuid())
                        .bind(&ask.from)
                        .bind(&ask.until)
                        .bind(limit(&ask))
                        .fetch_all(&mut *conn)
                        .await?;
                    walk.eat(rows.iter().map(listed).collect::<Result<_, _>>()?);
                }
                let page = walk.into_page();
                if page.entries.is_empty() {
                    Self::require_bucket(conn, query.bucket).await?;
                }
                Ok(page)
            })
        })
        .await
    }

    /// As [`Self::page_of_objects`].
    pub(super) async fn page_of_multiparts(&self, query: &ListMultiparts) -> Result<MultipartPage> {
        transact::single(&self.pool, "list multipart uploads", |conn, _| {
            Box::pin(async move {
                let mut walk = Walk::of_multiparts(query);
                while let Some(ask) = walk.ask() {
                    walk.eat(multiparts(&mut *conn, query, &ask).await?);
                }
                let page = walk.into_page();
                if page.uploads.is_empty() && page.prefixes.is_empty() {
                    Self::require_bucket(conn, query.bucket).await?;
                }
                Ok(page)
            })
        })
        .await
    }
}

/// The upload to go on after may have ended; its row tells when it began all the same.
async fn multiparts(
    conn: &mut PgConnection,
    query: &ListMultiparts,
    ask: &Ask,
) -> Result<Vec<Multipart>, Failure> {
    const UPLOADS: &str = concat!(
        "SELECT ",
        multipart_columns!(),
        " FROM multipart_uploads m
        WHERE m.bucket_id = $1 AND m.status = 'open' AND m.key >= $2 AND m.key < $3
            AND NOT (m.key = $2 AND (m.initiated_at, m.id)
                     <= (SELECT s.initiated_at, s.id FROM multipart_uploads s WHERE s.id = $4))
                IS TRUE
        ORDER BY m.key, m.initiated_at, m.id LIMIT $5"
    );
    let rows = sqlx::query(UPLOADS)
        .bind(query.bucket.as_uuid())
        .bind(&ask.from)
        .bind(&ask.until)
        .bind(ask.skip.map(|id| id.as_uuid()))
        .bind(limit(ask))
        .fetch_all(conn)
        .await?;
    rows.iter().map(multipart).collect()
}
