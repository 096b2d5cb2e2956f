//! `list`: buckets, or the keys of one.

use std::io::Write;

use crate::client::Error;
use crate::progress::printable;
use crate::{Context, args};

pub(crate) async fn run(context: &Context, args: args::List) -> anyhow::Result<()> {
    tokio::select! {
        biased;
        () = context.interrupt.cancelled() => Err(Error::Interrupted.into()),
        done = list(context, args) => done,
    }
}

async fn list(context: &Context, args: args::List) -> anyhow::Result<()> {
    let mut out = std::io::BufWriter::new(std::io::stdout());
    if args.bucket.is_none() && args.prefix.is_none() {
        for bucket in context.client.list_buckets().await? {
            writeln!(out, "{:<24}  {}", moment(&bucket.creation_date), printable(&bucket.name))?;
        }
        return Ok(out.flush()?);
    }
    let bucket = context.config.bucket(args.bucket)?;
    let prefix = args.prefix.unwrap_or_default();
    let mut after = None;
    loop {
        let page = context.client.list(&bucket, &prefix, args.folders, after.as_deref()).await?;
        let mut lines: Vec<(String, String)> = page
            .objects
            .into_iter()
            .map(|object| {
                let line = line(&object.modified, &object.size.to_string(), &object.key);
                (object.key, line)
            })
            .chain(page.folders.into_iter().map(|folder| {
                let line = line("", "", &folder);
                (folder, line)
            }))
            .collect();
        lines.sort();
        for (_, line) in lines {
            writeln!(out, "{line}")?;
        }
        out.flush()?;
        after = page.next;
        if after.is_none() {
            return Ok(());
        }
    }
}

/// Time, bytes, key. The key comes last, for it may hold anything but a line's end.
fn line(modified: &str, size: &str, key: &str) -> String {
    format!("{:<20}  {size:>14}  {}", moment(modified), printable(key))
}

/// Seconds are enough for people.
fn moment(text: &str) -> String {
    match chrono::DateTime::parse_from_rfc3339(text) {
        Ok(time) => time.to_utc().format("%Y-%m-%dT%H:%M:%SZ").to_string(),
        Err(_) => printable(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_aligned_and_harmless() {
        assert_eq!(line("2024-12-28T10:00:00.123Z", "7", "a b"), "2024-12-28T10:00:00Z               7  a b");
        assert_eq!(line("", "", "x\n/").trim(), "x\\n/");
        assert_eq!(moment("whenever"), "whenever");
    }
}
