//! `delete`: an object, everything under a folder, or an empty bucket.

use anyhow::Context as _;

use crate::client::Error;
use crate::{Context, args, config, keys};

pub(crate) async fn run(context: &Context, args: args::Delete) -> anyhow::Result<()> {
    tokio::select! {
        biased;
        () = context.interrupt.cancelled() => Err(Error::Interrupted.into()),
        done = delete(context, args) => done,
    }
}

async fn delete(context: &Context, args: args::Delete) -> anyhow::Result<()> {
    let usage = |text: &str| config::Error::Usage(text.to_owned());
    let named = args.bucket.is_some();
    let bucket = context.config.bucket(args.bucket)?;
    match (args.key, args.recursive) {
        (Some(key), true) => folder(context, &bucket, &keys::folder(&key)).await,
        (None, true) => Err(usage("which folder? say --key FOLDER, or --key '' for the whole bucket").into()),
        (Some(key), false) => {
            keys::check(&key)?;
            // S3 deletes what is not there without a word; people want to hear of a mistyped key.
            context.client.head(&bucket, &key).await?;
            context.client.delete(&bucket, &key).await?;
            context.output.done(&format!("deleted {bucket}/{key}"));
            Ok(())
        }
        (None, false) if named => {
            context.client.delete_bucket(&bucket).await.with_context(|| format!("bucket {bucket}"))?;
            context.output.done(&format!("deleted bucket {bucket}"));
            Ok(())
        }
        (None, false) => Err(usage("which object? say --key KEY").into()),
    }
}

async fn folder(context: &Context, bucket: &str, folder: &str) -> anyhow::Result<()> {
    let (mut deleted, mut failed) = (0, 0);
    let mut after = None;
    loop {
        let page = context.client.list(bucket, folder, false, after.as_deref()).await?;
        let keys: Vec<String> = page.objects.into_iter().map(|object| object.key).collect();
        for batch in keys.chunks(1000) {
            let failures = context.client.delete_many(bucket, batch).await?;
            deleted += batch.len() - failures.len().min(batch.len());
            failed += failures.len();
            for (key, reason) in failures {
                context.output.error(&anyhow::anyhow!("{bucket}/{key}: {reason}"));
            }
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    if failed > 0 {
        anyhow::bail!("{failed} of {} objects were not deleted; the lines above say why", deleted + failed);
    }
    context.output.done(&format!("deleted {deleted} objects under {bucket}/{folder}"));
    Ok(())
}
