//! `info`: what the account uses, what a bucket holds, how safe an object is.

use std::io::Write;

use cyxcloud_core::ByteCount;
use cyxcloud_core::sigv4::uri_encode;
use serde_json::Value;

use crate::client::Error;
use crate::progress::printable;
use crate::{Context, args, keys};

pub(crate) async fn run(context: &Context, args: args::Info) -> anyhow::Result<()> {
    let (path, show): (String, fn(&Value) -> Vec<String>) = match (&args.bucket, &args.key) {
        (None, _) => ("/api/v1/account".to_owned(), account),
        (Some(bucket), None) => {
            let bucket = context.config.bucket(Some(bucket.clone()))?;
            (format!("/api/v1/buckets/{}", uri_encode(bucket, true)), self::bucket)
        }
        (Some(bucket), Some(key)) => {
            keys::check(key)?;
            let bucket = context.config.bucket(Some(bucket.clone()))?;
            let path =
                format!("/api/v1/buckets/{}/objects/{}", uri_encode(bucket, true), uri_encode(key, false));
            (path, object)
        }
    };
    let info = tokio::select! {
        biased;
        () = context.interrupt.cancelled() => return Err(Error::Interrupted.into()),
        info = context.client.get_json(&path) => info?,
    };
    let lines = if args.json { vec![serde_json::to_string_pretty(&info)?] } else { show(&info) };
    let mut out = std::io::stdout().lock();
    for line in lines {
        writeln!(out, "{line}")?;
    }
    Ok(out.flush()?)
}

/// A field as people read it; what is absent shows as a dash.
pub(super) fn text(value: &Value, name: &str) -> String {
    match value.get(name) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => printable(text),
        Some(other) => printable(&other.to_string()),
    }
}

pub(super) fn bytes(value: &Value, name: &str) -> String {
    match value.get(name).and_then(Value::as_u64) {
        Some(n) if n < 1024 => ByteCount::bytes(n).to_string(),
        Some(n) => format!("{} ({n} B)", ByteCount::bytes(n)),
        None => "-".to_owned(),
    }
}

pub(super) fn row(name: &str, value: &str) -> String {
    format!("{name:<14}{value}")
}

fn account(info: &Value) -> Vec<String> {
    let quota = match info.get("storage_quota_bytes") {
        None | Some(Value::Null) => "none".to_owned(),
        Some(_) => bytes(info, "storage_quota_bytes"),
    };
    let mut lines = vec![
        row("Account", &text(info, "username")),
        row("Id", &text(info, "owner_id")),
        row("Stored", &bytes(info, "storage_used_bytes")),
        row("Objects", &text(info, "object_count")),
        row("Quota", &quota),
    ];
    let buckets = info.get("buckets").and_then(Value::as_array).cloned().unwrap_or_default();
    if buckets.is_empty() {
        lines.push(row("Buckets", "none"));
        return lines;
    }
    let width = buckets.iter().map(|bucket| text(bucket, "name").chars().count()).max().unwrap_or(0).max(6);
    lines.push(String::new());
    lines.push(format!(
        "{:<width$}  {:>10}  {:>12}  {:<10}  CREATED",
        "BUCKET", "OBJECTS", "STORED", "PROFILE"
    ));
    for bucket in &buckets {
        let stored = bucket.get("storage_used_bytes").and_then(Value::as_u64);
        lines.push(format!(
            "{:<width$}  {:>10}  {:>12}  {:<10}  {}",
            text(bucket, "name"),
            text(bucket, "object_count"),
            stored.map_or_else(|| "-".to_owned(), |n| ByteCount::bytes(n).to_string()),
            text(bucket, "profile"),
            text(bucket, "created_at"),
        ));
    }
    lines
}

fn bucket(info: &Value) -> Vec<String> {
    vec![
        row("Bucket", &text(info, "name")),
        row("Stored", &bytes(info, "storage_used_bytes")),
        row("Objects", &text(info, "object_count")),
        row("Profile", &text(info, "profile")),
        row("Created", &text(info, "created_at")),
    ]
}

/// `13/14 shards, tolerates 3 more losses, last proven 2 h ago`, of the worst stripe.
fn health(health: &Value) -> String {
    let number = |name: &str| health.get(name).and_then(Value::as_u64);
    let Some(condition) = health.get("condition").and_then(Value::as_str) else {
        return "not known now; ask again".to_owned();
    };
    let (Some(present), Some(wanted)) = (number("shards_present"), number("shards_wanted")) else {
        return format!("{}, kept in the database", printable(condition));
    };
    let tolerates = match number("tolerates") {
        None => "cannot be read now".to_owned(),
        Some(0) => "tolerates no more losses".to_owned(),
        Some(1) => "tolerates 1 more loss".to_owned(),
        Some(n) => format!("tolerates {n} more losses"),
    };
    let proven = match health.get("last_proven_at").and_then(Value::as_str).and_then(age) {
        Some(age) => format!("last proven {age} ago"),
        None => "not yet proven".to_owned(),
    };
    let mut line = format!("{present}/{wanted} shards, {tolerates}, {proven}");
    let (stripes, short) = (number("stripes").unwrap_or(1), number("stripes_short").unwrap_or(0));
    if short > 0 && stripes > 1 {
        line = format!("{line} (worst of {short} short stripes of {stripes})");
    }
    match number("stripes_checked") {
        Some(checked) if checked < stripes => format!("{line}; {checked} of {stripes} stripes looked at"),
        _ => line,
    }
}

/// How long ago an RFC 3339 time was, in its largest unit.
fn age(at: &str) -> Option<String> {
    let at = chrono::DateTime::parse_from_rfc3339(at).ok()?;
    let seconds = (chrono::Utc::now() - at.to_utc()).num_seconds().max(0);
    Some(match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    })
}

fn object(info: &Value) -> Vec<String> {
    let losses = |name: &str| match info.get("tolerance").and_then(|tolerance| tolerance.get(name)?.as_u64())
    {
        Some(1) => "1 node".to_owned(),
        Some(n) => format!("{n} nodes"),
        None => "-".to_owned(),
    };
    vec![
        row("Object", &format!("{}/{}", text(info, "bucket"), text(info, "key"))),
        row("Size", &bytes(info, "size_bytes")),
        row("ETag", text(info, "etag").trim_matches('"')),
        row("Blake3 hash", &text(info, "content_hash")),
        row("Type", &text(info, "content_type")),
        row("Modified", &text(info, "modified_at")),
        row("Geometry", &text(info, "geometry")),
        row("Tolerance", &format!("{} may be lost (aim: {})", losses("acknowledged"), losses("target"))),
        row("Health", &health(info.get("health").unwrap_or(&Value::Null))),
        row("Stripes of", &bytes(info, "stripe_size_bytes")),
        row("Segments", &text(info, "segments")),
        row("Chunks", &text(info, "chunk_count")),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_shows_how_safe_it_is() {
        let info = json!({
            "bucket": "b", "key": "k\u{1b}", "size_bytes": 5_242_880, "etag": "e", "content_hash": "h",
            "content_type": null, "modified_at": "t", "geometry": "10+4",
            "tolerance": {"acknowledged": 1, "target": 4}, "stripe_size_bytes": 4_194_304, "segments": 1, "chunk_count": 28,
        });
        let lines = object(&info);
        assert_eq!(lines[0], "Object        b/k\\u{1b}");
        assert_eq!(lines[1], "Size          5.0 MiB (5242880 B)");
        assert!(lines.contains(&"Tolerance     1 node may be lost (aim: 4 nodes)".to_owned()));
        assert!(lines.contains(&"Type          -".to_owned()));
    }

    #[test]
    fn health_is_one_line() {
        let at = (chrono::Utc::now() - chrono::TimeDelta::hours(2)).to_rfc3339();
        let worst = json!({
            "condition": "degraded", "shards_present": 13, "shards_wanted": 14, "tolerates": 3,
            "last_proven_at": at, "stripes_short": 1, "stripes_checked": 1, "stripes": 1,
        });
        assert_eq!(health(&worst), "13/14 shards, tolerates 3 more losses, last proven 2 h ago");
        let gone = json!({"condition": "unreadable", "shards_present": 9, "shards_wanted": 14, "stripes_short": 2,
            "stripes_checked": 4096, "stripes": 5000});
        let said = "9/14 shards, cannot be read now, not yet proven (worst of 2 short stripes of 5000); 4096 of 5000 stripes \
                    looked at";
        assert_eq!(health(&gone), said);
        assert_eq!(health(&json!({"condition": "healthy"})), "healthy, kept in the database");
        assert_eq!(health(&Value::Null), "not known now; ask again");
    }

    #[test]
    fn an_account_shows_its_buckets() {
        let info = json!({
            "owner_id": "o", "username": "root", "storage_used_bytes": 10, "object_count": 1, "storage_quota_bytes": null,
            "buckets": [{"name": "photos", "created_at": "t", "storage_used_bytes": 10, "object_count": 1, "profile": "standard"}],
        });
        let lines = account(&info);
        assert!(lines.contains(&"Quota         none".to_owned()));
        assert_eq!(lines.last().map(String::as_str), Some("photos           1          10 B  standard    t"));
        assert!(account(&json!({})).contains(&"Buckets       none".to_owned()));
        // A key that is limited to prefixes is not told of the rest.
        let info = json!({"buckets": [{"name": "photos", "created_at": "t", "storage_used_bytes": null, "object_count": null,
            "profile": "standard"}]});
        let lines = account(&info);
        assert!(lines.contains(&"Stored        -".to_owned()));
        assert_eq!(lines.last().map(String::as_str), Some("photos           -             -  standard    t"));
    }

    #[test]
    fn a_bucket_shows_its_totals() {
        let info = json!({"name": "b", "storage_used_bytes": 2048, "object_count": 3, "profile": "open"});
        assert_eq!(bucket(&info)[1], "Stored        2.0 KiB (2048 B)");
    }
}
