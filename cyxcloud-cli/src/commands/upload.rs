//! `upload`: a file, a directory, or standard input.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use bytes::{Bytes, BytesMut};
use cyxcloud_core::ByteCount;
use futures::{StreamExt, TryStreamExt};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::Semaphore;

use super::Tally;
use crate::client::{Client, Error, Part, PutOptions};
use crate::plan::{Parts, SINGLE_MAX};
use crate::progress::Meter;
use crate::{Context, args, config, keys};

/// Bytes of parts held at once, whatever is uploaded; one part may be larger.
const MEMORY: u64 = 160 << 20;
const MIB: u64 = 1 << 20;
/// Files of a directory that are uploaded at once.
const FILES: usize = 8;

pub(crate) async fn run(context: &Context, args: args::Upload) -> anyhow::Result<()> {
    let bucket = context.config.bucket(args.bucket.clone())?;
    let source = &args.source;
    if source.as_os_str() == "-" {
        let key = args.key.clone().filter(|key| !key.is_empty());
        let key = key.ok_or_else(|| usage("standard input has no name; say --key KEY"))?;
        keys::check(&key)?;
        prepare(context, &bucket).await?;
        let (output, meter) = context.output.with_bar(&key, None);
        let upload = Upload::new(context, &output, &bucket, args.parallel, meter);
        let options = PutOptions { content_type: args.content_type };
        let bytes = upload.stream(&key, tokio::io::stdin(), None, &options).await;
        upload.meter.finish();
        context.output.done(&format!("uploaded {} to {bucket}/{key}", ByteCount::bytes(bytes?)));
        return Ok(());
    }
    let metadata = std::fs::metadata(source).with_context(|| format!("read {}", source.display()))?;
    match (metadata.is_dir(), args.recursive) {
        (true, false) => Err(usage(&format!("{} is a directory; add --recursive", source.display())).into()),
        (false, true) => {
            Err(usage(&format!("{} is no directory; leave out --recursive", source.display())).into())
        }
        (true, true) => directory(context, &bucket, args).await,
        (false, false) => file(context, &bucket, args).await,
    }
}

fn usage(text: &str) -> config::Error {
    config::Error::Usage(text.to_owned())
}

async fn prepare(context: &Context, bucket: &str) -> anyhow::Result<()> {
    let made = tokio::select! {
        biased;
        () = context.interrupt.cancelled() => return Err(Error::Interrupted.into()),
        made = context.client.ensure_bucket(bucket) => made.with_context(|| format!("bucket {bucket}"))?,
    };
    if made {
        context.output.note(&format!("created bucket {bucket}"));
    }
    Ok(())
}

async fn file(context: &Context, bucket: &str, args: args::Upload) -> anyhow::Result<()> {
    let name = match args.key.clone() {
        Some(key) if key.is_empty() || key.ends_with('/') => keys::key_of(&key, &name_of(&args.source)?)?,
        Some(key) => key,
        None => keys::key_of("", &name_of(&args.source)?)?,
    };
    keys::check(&name)?;
    // Before a bucket is made: can the file be read at all?
    drop(std::fs::File::open(&args.source).with_context(|| format!("open {}", args.source.display()))?);
    prepare(context, bucket).await?;
    let length = length_of(&args.source)?;
    let (output, meter) = context.output.with_bar(&name, length);
    let upload = Upload::new(context, &output, bucket, args.parallel, meter);
    let sent = upload.file(&args.source, &name, args.content_type.as_deref()).await;
    upload.meter.finish();
    let bytes = ByteCount::bytes(sent?);
    context.output.done(&format!("uploaded {} ({bytes}) to {bucket}/{name}", args.source.display()));
    Ok(())
}

fn name_of(path: &Path) -> anyhow::Result<PathBuf> {
    let name =
        path.file_name().ok_or_else(|| usage(&format!("{} has no name; say --key KEY", path.display())))?;
    Ok(PathBuf::from(name))
}

/// The length of a regular file; a pipe or device has none.
fn length_of(path: &Path) -> anyhow::Result<Option<u64>> {
    let metadata = std::fs::metadata(path).with_context(|| format!("read {}", path.display()))?;
    Ok(metadata.is_file().then_some(metadata.len()))
}

async fn directory(context: &Context, bucket: &str, args: args::Upload) -> anyhow::Result<()> {
    let folder = keys::folder(args.key.as_deref().unwrap_or_default());
    let root = args.source.clone();
    let output = context.output.clone();
    let mut tally = Tally::default();
    let found = tokio::task::spawn_blocking(move || walk(&root)).await.context("read the directory")??;
    for problem in found.problems {
        tally.count(&output, Err(problem))?;
    }
    for skipped in found.skipped {
        output.note(&format!("skipped {}: not a regular file", skipped.display()));
    }
    prepare(context, bucket).await?;
    let (output, meter) = context.output.with_bar(&format!("{} files", found.files.len()), Some(found.bytes));
    let upload = Upload::new(context, &output, bucket, args.parallel, meter);
    let mut results = futures::stream::iter(found.files)
        .map(|relative| {
            let (upload, folder, args) = (&upload, &folder, &args);
            async move {
                let key = keys::key_of(folder, &relative)?;
                let sent =
                    upload.file(&args.source.join(&relative), &key, args.content_type.as_deref()).await?;
                upload.output.detail(|| format!("uploaded {bucket}/{key}"));
                anyhow::Ok(sent)
            }
        })
        .buffer_unordered(FILES.min(usize::from(args.parallel)));
    let mut outcome = Ok(());
    while let Some(result) = results.next().await {
        outcome = tally.count(&upload.output, result);
        if outcome.is_err() {
            // The others notice, abort what they began, and are waited for.
            upload.stop.cancel();
            while results.next().await.is_some() {}
        }
    }
    drop(results);
    upload.meter.finish();
    outcome?;
    tally.conclude(&context.output, "uploaded")
}

/// What lies in a directory.
#[derive(Debug, Default)]
struct Found {
    /// Regular files, relative to the directory, in order.
    files: Vec<PathBuf>,
    bytes: u64,
    skipped: Vec<PathBuf>,
    problems: Vec<anyhow::Error>,
}

/// Finds all files. Links to files are files; links to directories are not followed, for they may lead round.
fn walk(root: &Path) -> anyhow::Result<Found> {
    let mut found = Found::default();
    let mut open = vec![PathBuf::new()];
    while let Some(directory) = open.pop() {
        let path = root.join(&directory);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) => {
                found.problems.push(anyhow::Error::new(error).context(format!("read {}", path.display())));
                continue;
            }
        };
        for entry in entries {
            let entry = entry.with_context(|| format!("read {}", path.display()))?;
            let relative = directory.join(entry.file_name());
            let kind = entry.file_type().with_context(|| format!("read {}", entry.path().display()))?;
            if kind.is_dir() {
                open.push(relative);
                continue;
            }
            match std::fs::metadata(entry.path()) {
                Ok(metadata) if metadata.is_file() => {
                    found.bytes += metadata.len();
                    found.files.push(relative);
                }
                Ok(_) => found.skipped.push(entry.path()),
                Err(error) => {
                    let context = format!("read {}", entry.path().display());
                    found.problems.push(anyhow::Error::new(error).context(context));
                }
            }
        }
    }
    found.files.sort();
    Ok(found)
}

/// Uploads into one bucket, any number at a time within one budget.
struct Upload<'a> {
    client: Client,
    output: crate::progress::Output,
    bucket: &'a str,
    parallel: usize,
    meter: Meter,
    memory: Arc<Semaphore>,
    stop: tokio_util::sync::CancellationToken,
}

impl<'a> Upload<'a> {
    fn new(
        context: &Context,
        output: &crate::progress::Output,
        bucket: &'a str,
        parallel: u16,
        meter: Meter,
    ) -> Self {
        Self {
            client: context.client.speaking(output),
            output: output.clone(),
            bucket,
            parallel: usize::from(parallel),
            meter,
            memory: Arc::new(Semaphore::new((MEMORY / MIB) as usize)),
            stop: context.interrupt.child_token(),
        }
    }

    async fn file(&self, path: &Path, key: &str, content_type: Option<&str>) -> anyhow::Result<u64> {
        let content_type = content_type.or_else(|| content_type_of(path)).map(str::to_owned);
        let length = length_of(path)?;
        let file = tokio::fs::File::open(path).await.with_context(|| format!("open {}", path.display()))?;
        self.stream(key, file, length, &PutOptions { content_type })
            .await
            .with_context(|| format!("upload {}", path.display()))
    }

    /// Uploads what `source` gives: one PUT, or parts in parallel. Returns the number of bytes.
    async fn stream(
        &self,
        key: &str,
        source: impl AsyncRead + Unpin + Send,
        length: Option<u64>,
        options: &PutOptions,
    ) -> anyhow::Result<u64> {
        let sent = tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Error::Interrupted.into()),
            first = self.first(source, length) => first,
        };
        let (first, source, plan) = match sent? {
            First::All(body) => {
                let bytes = body.len() as u64;
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => return Err(Error::Interrupted.into()),
                    done = self.client.put(self.bucket, key, body, options, &self.meter) => done?,
                }
                return Ok(bytes);
            }
            First::Part(part, source, plan) => (part, source, plan),
        };
        let upload = self.client.create_multipart(self.bucket, key, options).await?;
        let result = tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Error::Interrupted.into()),
            done = self.parts(key, &upload, first, source, plan, length) => done,
        };
        if result.is_err() {
            self.abort(key, &upload).await;
        }
        result
    }

    /// Reads the first part, which may be all there is.
    async fn first<R: AsyncRead + Unpin>(
        &self,
        mut source: R,
        length: Option<u64>,
    ) -> anyhow::Result<First<R>> {
        let plan = Parts::of(length);
        let expected = length.unwrap_or(u64::MAX).min(plan.size(1));
        let first = self.read(&mut source, plan.size(1), expected).await?;
        let read = first.bytes.len() as u64;
        if read < plan.size(1) || length == Some(read) {
            check_length(length, read)?;
            if length == Some(read) && read > 0 {
                let mut more = [0; 1];
                if source.read(&mut more).await.context("read the source")? > 0 {
                    bail!("the file grew while it was uploaded; try again");
                }
            }
            if read <= SINGLE_MAX {
                return Ok(First::All(first.bytes));
            }
        }
        Ok(First::Part(first, source, plan))
    }

    async fn parts<R: AsyncRead + Unpin + Send>(
        &self,
        key: &str,
        upload: &str,
        first: Held,
        source: R,
        plan: Parts,
        length: Option<u64>,
    ) -> anyhow::Result<u64> {
        let bodies =
            futures::stream::try_unfold((1, Some(first), source), |(number, ready, mut source)| async move {
                let part = match ready {
                    Some(part) => part,
                    None => self.read(&mut source, plan.size(number), plan.size(number)).await?,
                };
                if part.bytes.is_empty() {
                    return Ok(None);
                }
                if !Parts::allows(number) {
                    bail!("the source is longer than the largest object");
                }
                anyhow::Ok(Some(((number, part), (number + 1, None, source))))
            });
        let mut parts: Vec<Part> = bodies
            .map_ok(|(number, part)| async move {
                let done = self
                    .client
                    .put_part(self.bucket, key, upload, number, part.bytes.clone(), &self.meter)
                    .await?;
                drop(part);
                Ok(done)
            })
            .try_buffer_unordered(self.parallel)
            .try_collect()
            .await?;
        parts.sort_by_key(|part| part.number);
        let bytes = parts.iter().map(|part| part.len).sum();
        check_length(length, bytes)?;
        self.client.complete_multipart(self.bucket, key, upload, &parts).await?;
        Ok(bytes)
    }

    /// Reads up to `size` bytes; fewer only at the end. Waits for its share of the memory first.
    /// `expected` is how many there probably are.
    async fn read(
        &self,
        source: &mut (impl AsyncRead + Unpin),
        size: u64,
        expected: u64,
    ) -> anyhow::Result<Held> {
        let share = expected.div_ceil(MIB).clamp(1, MEMORY / MIB) as u32;
        let permit = Arc::clone(&self.memory).acquire_many_owned(share).await.context("take memory")?;
        let mut bytes = BytesMut::with_capacity(expected.min(size) as usize + 1);
        let mut limited = source.take(size);
        while limited.limit() > 0 {
            if bytes.capacity() == bytes.len() {
                bytes.reserve(bytes.len().max(64 << 10));
            }
            if limited.read_buf(&mut bytes).await.context("read the source")? == 0 {
                break;
            }
        }
        Ok(Held { bytes: bytes.freeze(), _memory: permit })
    }

    /// Leaves nothing behind, as far as the gateway lets us.
    async fn abort(&self, key: &str, upload: &str) {
        let abort = self.client.abort_multipart(self.bucket, key, upload);
        let result = tokio::time::timeout(std::time::Duration::from_secs(10), abort).await;
        if !matches!(result, Ok(Ok(()))) {
            self.output
                .note("the parts that were sent could not be discarded; the gateway will do it in time");
        }
    }
}

/// Bytes, with their share of the memory.
struct Held {
    bytes: Bytes,
    _memory: tokio::sync::OwnedSemaphorePermit,
}

enum First<R> {
    All(Bytes),
    Part(Held, R, Parts),
}

fn check_length(expected: Option<u64>, read: u64) -> anyhow::Result<()> {
    match expected {
        Some(expected) if expected != read => {
            bail!(
                "the file had {expected} bytes and then {read}: it changed while it was uploaded; try again"
            )
        }
        _ => Ok(()),
    }
}

/// What browsers should take a file for. Unknown ones are left to the gateway's default.
fn content_type_of(path: &Path) -> Option<&'static str> {
    Some(match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "txt" | "log" => "text/plain",
        "html" | "htm" => "text/html",
        "css" => "text/css",
        "csv" => "text/csv",
        "md" => "text/markdown",
        "js" | "mjs" => "text/javascript",
        "json" => "application/json",
        "xml" => "application/xml",
        "pdf" => "application/pdf",
        "zip" => "application/zip",
        "gz" => "application/gzip",
        "tar" => "application/x-tar",
        "wasm" => "application/wasm",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "svg" => "image/svg+xml",
        "mp3" => "audio/mpeg",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_walked_in_order() {
        let root = tempfile::tempdir().expect("a directory");
        for path in ["b", "a/x", "a/deep/er/y", ".hidden"] {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            std::fs::write(path, "12345").expect("written");
        }
        std::fs::create_dir(root.path().join("empty")).expect("made");
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(root.path(), root.path().join("a/round")).expect("linked");
            std::os::unix::fs::symlink(root.path().join("b"), root.path().join("link")).expect("linked");
            std::os::unix::fs::symlink("nowhere", root.path().join("dangling")).expect("linked");
        }
        let found = walk(root.path()).expect("readable");
        let mut want = vec![".hidden", "a/deep/er/y", "a/x", "b"];
        if cfg!(unix) {
            want.push("link");
            assert_eq!((found.skipped.len(), found.problems.len()), (1, 1));
        }
        assert_eq!(found.files, want.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(found.bytes, 5 * want.len() as u64);
    }

    #[test]
    fn a_file_that_changes_is_noticed() {
        assert!(check_length(Some(5), 5).is_ok());
        assert!(check_length(None, 5).is_ok());
        assert!(check_length(Some(6), 5).is_err());
    }

    #[test]
    fn types_follow_extensions() {
        assert_eq!(content_type_of(Path::new("a/B.HTML")), Some("text/html"));
        assert_eq!(content_type_of(Path::new("a.unknown")), None);
        assert_eq!(content_type_of(Path::new("noext")), None);
    }
}
