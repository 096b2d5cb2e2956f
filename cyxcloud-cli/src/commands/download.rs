//! `download`: an object into a file, a folder into a directory, or to standard output.
//!
//! A file has its final name only once it is whole, verified and on disk.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, bail};
use cyxcloud_core::ByteCount;
use cyxcloud_core::sigv4::uri_encode;
use futures::{StreamExt, TryStreamExt};
use md5::{Digest, Md5};
use tempfile::NamedTempFile;

use super::Tally;
use crate::client::{Client, Error, Object, crc_join, crc_of};
use crate::progress::{Meter, Output};
use crate::{Context, args, config, keys, plan};

/// Files of a folder that are downloaded at once.
const FILES: usize = 8;
/// Up to here a body is hashed with MD5, above the gateway is asked for something faster.
const MD5_UP_TO: u64 = 32 << 20;

pub(crate) async fn run(context: &Context, args: args::Download) -> anyhow::Result<()> {
    let bucket = context.config.bucket(args.bucket.clone())?;
    let usage = |text: &str| config::Error::Usage(text.to_owned());
    let key = args.key.clone().or_else(|| args.recursive.then(String::new));
    let key = key.ok_or_else(|| usage("which object? say --key KEY"))?;
    let to_stdout = args.target.as_os_str() == "-";
    if args.recursive {
        if to_stdout {
            return Err(usage("a folder cannot go to standard output; name a directory").into());
        }
        return folder(context, &bucket, &key, args).await;
    }
    keys::check(&key)?;
    let object = tokio::select! {
        biased;
        () = context.interrupt.cancelled() => return Err(Error::Interrupted.into()),
        object = context.client.head(&bucket, &key) => object?,
    };
    let (output, meter) = context.output.with_bar(&key, Some(object.size));
    let download = Download::new(context, &output, &bucket, args.parallel, meter);
    let target = if args.target.is_dir() { args.target.join(name_for(&key)?) } else { args.target.clone() };
    let result = if to_stdout {
        download.to_stream(&key, &object, std::io::stdout()).await
    } else {
        download.to_path(&key, &object, &target).await
    };
    download.meter.finish();
    result?;
    if !to_stdout {
        let size = ByteCount::bytes(object.size);
        context.output.done(&format!("downloaded {bucket}/{key} ({size}) to {}", target.display()));
    }
    Ok(())
}

/// The file name of a key that is downloaded into a directory.
fn name_for(key: &str) -> anyhow::Result<PathBuf> {
    let name = key.rsplit('/').next().unwrap_or(key);
    keys::path_of("", name)?.with_context(|| format!("{key:?} has no file name; name the file to write"))
}

async fn folder(context: &Context, bucket: &str, prefix: &str, args: args::Download) -> anyhow::Result<()> {
    let folder = keys::folder(prefix);
    let (output, meter) = context.output.with_bar("downloading", None);
    let download = Download::new(context, &output, bucket, args.parallel, meter);
    let listed = pages(&download.client, bucket, &folder);
    let target = &args.target;
    std::fs::create_dir_all(target).with_context(|| format!("make {}", target.display()))?;
    let mut results = std::pin::pin!(
        listed
            .map_ok(|key| {
                let (download, folder) = (&download, &folder);
                async move { Ok(download.store_below(folder, &key, target).await) }
            })
            .try_buffer_unordered(FILES.min(usize::from(args.parallel)))
    );
    let mut tally = Tally::default();
    let mut found = false;
    let outcome = loop {
        let next = tokio::select! {
            biased;
            () = context.interrupt.cancelled() => break Err(Error::Interrupted.into()),
            next = results.next() => next,
        };
        let result = match next {
            None => break Ok(()),
            Some(Err(error)) => break Err(anyhow::Error::from(error)),
            Some(Ok(result)) => result,
        };
        found = true;
        if let Err(error) = tally.count(&download.output, result) {
            break Err(error);
        }
    };
    download.meter.finish();
    outcome?;
    if !found {
        let message = format!("nothing lies under {bucket}/{folder}");
        let error = Error::Refused { status: 404, code: "NoSuchKey".to_owned(), message, retry_after: None };
        return Err(error.into());
    }
    tally.conclude(&context.output, "downloaded")
}

/// All keys under a folder, page by page.
fn pages<'a>(
    client: &'a Client,
    bucket: &'a str,
    folder: &'a str,
) -> impl futures::TryStream<Ok = String, Error = Error, Item = Result<String, Error>> + 'a {
    let start: (bool, Option<String>) = (true, None);
    futures::stream::try_unfold(start, move |(first, token)| async move {
        if !first && token.is_none() {
            return Ok(None);
        }
        let page = client.list(bucket, folder, false, token.as_deref()).await?;
        let keys = page.objects.into_iter().map(|object| Ok(object.key));
        Ok::<_, Error>(Some((futures::stream::iter(keys), (false, page.next))))
    })
    .try_flatten()
}

/// Downloads from one bucket.
struct Download<'a> {
    client: Client,
    output: Output,
    bucket: &'a str,
    parallel: usize,
    meter: Meter,
    interrupt: tokio_util::sync::CancellationToken,
}

impl<'a> Download<'a> {
    fn new(context: &Context, output: &Output, bucket: &'a str, parallel: u16, meter: Meter) -> Self {
        Self {
            client: context.client.speaking(output),
            output: output.clone(),
            bucket,
            parallel: usize::from(parallel),
            meter,
            interrupt: context.interrupt.clone(),
        }
    }

    async fn store_below(&self, folder: &str, key: &str, target: &Path) -> anyhow::Result<u64> {
        let Some(relative) = keys::path_of(folder, key)? else { return Ok(0) };
        keys::check(key)?;
        let directory = if key.ends_with('/') { Some(relative.as_path()) } else { relative.parent() };
        make_directories(target, directory.unwrap_or(Path::new("")))
            .with_context(|| format!("make the directory of {}", target.join(&relative).display()))?;
        if key.ends_with('/') {
            return Ok(0);
        }
        let object = self.client.head(self.bucket, key).await?;
        let path = target.join(&relative);
        if path.symlink_metadata().is_ok_and(|metadata| !metadata.is_file()) {
            bail!("{} is in the way and is not a regular file", path.display());
        }
        self.store(key, &object, &path)
            .await
            .with_context(|| format!("download {}", self.bucket_key(key)))?;
        self.output.detail(|| format!("downloaded {}", self.bucket_key(key)));
        Ok(object.size)
    }

    fn bucket_key(&self, key: &str) -> String {
        format!("{}/{key}", self.bucket)
    }

    /// To wherever the path leads: a link's end, or a pipe or device, which cannot be replaced.
    async fn to_path(&self, key: &str, object: &Object, target: &Path) -> anyhow::Result<()> {
        let target = target.canonicalize().unwrap_or_else(|_| target.to_owned());
        if target.metadata().is_ok_and(|metadata| !metadata.is_file()) {
            let open = std::fs::OpenOptions::new().write(true).open(&target);
            let file = open.with_context(|| format!("open {}", target.display()))?;
            return self.to_stream(key, object, file).await;
        }
        tokio::select! {
            biased;
            () = self.interrupt.cancelled() => Err(Error::Interrupted.into()),
            done = self.store(key, object, &target) => done,
        }
    }

    /// Into a temporary file beside the target, which takes the target's name when all is well.
    async fn store(&self, key: &str, object: &Object, target: &Path) -> anyhow::Result<()> {
        let parent =
            target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let parent = parent.to_owned();
        let temporary =
            temporary(&parent, target).with_context(|| format!("write into {}", parent.display()))?;
        temporary
            .as_file()
            .set_len(object.size)
            .with_context(|| format!("make room in {}", parent.display()))?;
        let file = Arc::new(Mutex::new(temporary));
        let crcs: Vec<(u64, u64)> = futures::stream::iter(plan::ranges(object.size))
            .map(|range| {
                let file = Arc::clone(&file);
                async move {
                    let bytes =
                        self.client.get_range(self.bucket, key, object, range.clone(), &self.meter).await?;
                    let write = move || {
                        let crc = (crc_of(&bytes), bytes.len() as u64);
                        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                        file.seek(SeekFrom::Start(range.start))?;
                        file.write_all(&bytes)?;
                        std::io::Result::Ok(crc)
                    };
                    let written = tokio::task::spawn_blocking(write).await.context("write the file")?;
                    written.with_context(|| format!("write {}", target.display()))
                }
            })
            .buffered(self.parallel)
            .try_collect()
            .await?;
        self.check_crc(key, object, crcs.into_iter())?;
        let expected = self.expected(key, object).await;
        let target = target.to_owned();
        let key = self.bucket_key(key);
        tokio::task::spawn_blocking(move || {
            let file = Arc::into_inner(file).context("all writers are done")?;
            let mut file = file.into_inner().unwrap_or_else(PoisonError::into_inner);
            check_hash(&key, file.as_file_mut(), expected)?;
            file.as_file().sync_all().with_context(|| format!("write {}", target.display()))?;
            file.persist(&target).with_context(|| format!("rename to {}", target.display()))?;
            sync_directory(&parent);
            Ok(())
        })
        .await
        .context("write the file")?
    }

    /// In order, as it comes. Bytes that have been written cannot be taken back: an error is all that can follow.
    async fn to_stream(
        &self,
        key: &str,
        object: &Object,
        out: impl Write + Send + 'static,
    ) -> anyhow::Result<()> {
        let out = Arc::new(Mutex::new((out, Md5::new())));
        let with_md5 = object.crc.is_none() && object.md5().is_some();
        let ranges = futures::stream::iter(plan::ranges(object.size))
            .map(|range| self.client.get_range(self.bucket, key, object, range, &self.meter))
            .buffered(self.parallel);
        let mut ranges = std::pin::pin!(ranges);
        let mut crcs = Vec::new();
        loop {
            let next = tokio::select! {
                biased;
                () = self.interrupt.cancelled() => return Err(Error::Interrupted.into()),
                next = ranges.next() => next,
            };
            let Some(bytes) = next else { break };
            let (bytes, out) = (bytes?, Arc::clone(&out));
            crcs.push((crc_of(&bytes), bytes.len() as u64));
            let write = move || {
                let (out, md5) = &mut *out.lock().unwrap_or_else(PoisonError::into_inner);
                if with_md5 {
                    md5.update(&bytes);
                }
                out.write_all(&bytes)
            };
            let written = tokio::task::spawn_blocking(write).await.context("write the output")?;
            // Also when the reader has gone: what was asked for has not been done.
            written.map_err(|error| anyhow::anyhow!("write the output: {error}"))?;
        }
        let (out, md5) = &mut *out.lock().unwrap_or_else(PoisonError::into_inner);
        out.flush()?;
        self.check_crc(key, object, crcs.into_iter())?;
        let right = object.md5().filter(|_| with_md5).is_none_or(|want| md5.clone().finalize()[..] == want);
        if right { Ok(()) } else { Err(damaged(&self.bucket_key(key))) }
    }

    fn check_crc(
        &self,
        key: &str,
        object: &Object,
        parts: impl Iterator<Item = (u64, u64)>,
    ) -> anyhow::Result<()> {
        let crc = parts.fold(crc_of(b""), |crc, (part, len)| crc_join(crc, part, len));
        match object.crc {
            Some(want) if want != crc => Err(damaged(&self.bucket_key(key))),
            _ => Ok(()),
        }
    }

    /// A hash of the whole body that can be known here, the cheapest one to check.
    async fn expected(&self, key: &str, object: &Object) -> Expected {
        let md5 = object.md5().map_or(Expected::Nothing, Expected::Md5);
        if object.size <= MD5_UP_TO || matches!(md5, Expected::Nothing) {
            return md5;
        }
        let path =
            format!("/api/v1/buckets/{}/objects/{}", uri_encode(self.bucket, true), uri_encode(key, false));
        // Not every gateway tells, and not to everyone: then MD5 it is.
        let Ok(info) = self.client.get_json(&path).await else { return md5 };
        let text = |name: &str| info.get(name).and_then(|value| value.as_str()).unwrap_or_default();
        let same = text("etag").trim_matches('"') == object.etag.trim_matches('"');
        let single = info.get("segments").and_then(serde_json::Value::as_u64) == Some(1);
        let mut hash = [0; 32];
        match hex::decode_to_slice(text("content_hash"), &mut hash) {
            Ok(()) if same && single => Expected::Blake3(hash),
            _ => md5,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Expected {
    Md5([u8; 16]),
    Blake3([u8; 32]),
    /// A multipart object: its ETag says nothing of the whole. Its length and CRC do.
    Nothing,
}

fn damaged(key: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "{key} was damaged on its way here: the hash is not the object's; nothing was kept, try again"
    )
}

fn check_hash(key: &str, file: &mut std::fs::File, expected: Expected) -> anyhow::Result<()> {
    file.seek(SeekFrom::Start(0))?;
    let right = match expected {
        Expected::Nothing => true,
        Expected::Blake3(want) => {
            let mut hasher = blake3::Hasher::new();
            each_block(file, |block| {
                hasher.update(block);
            })?;
            *hasher.finalize().as_bytes() == want
        }
        Expected::Md5(want) => {
            let mut hasher = Md5::new();
            each_block(file, |block| hasher.update(block))?;
            hasher.finalize()[..] == want
        }
    };
    if right { Ok(()) } else { Err(damaged(key)) }
}

fn each_block(file: &mut std::fs::File, mut with: impl FnMut(&[u8])) -> std::io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            len => with(&buffer[..len]),
        }
    }
}

/// A file that vanishes unless it is kept, named after the target, with the permissions that a new file has.
fn temporary(parent: &Path, target: &Path) -> std::io::Result<NamedTempFile> {
    // Short enough for any file system, whatever the target's name.
    let name: String = target.file_name().unwrap_or_default().to_string_lossy().chars().take(40).collect();
    let prefix = format!(".{name}.");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(".part");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(parent)
}

/// So that the new name survives a power cut. The bytes are safe already; not every system can do this.
fn sync_directory(path: &Path) {
    if cfg!(unix)
        && let Ok(directory) = std::fs::File::open(path)
    {
        let _ = directory.sync_all();
    }
}

/// Makes directories below `root`, and refuses links on the way: they may lead out of it.
fn make_directories(root: &Path, relative: &Path) -> anyhow::Result<()> {
    let mut path = root.to_owned();
    for component in relative.components() {
        path.push(component);
        match std::fs::create_dir(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                if !path.symlink_metadata()?.is_dir() {
                    bail!("{} is in the way and is not a directory", path.display());
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_keys() {
        assert_eq!(name_for("a/b.txt").expect("a name"), PathBuf::from("b.txt"));
        assert!(name_for("a/").is_err());
        assert!(name_for("a/..").is_err());
    }

    #[test]
    fn hashes_are_checked() {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"body").expect("written");
        let (md5, blake3) = (Md5::digest(b"body").into(), *blake3::hash(b"body").as_bytes());
        for expected in [Expected::Md5(md5), Expected::Blake3(blake3), Expected::Nothing] {
            assert!(check_hash("k", &mut file, expected).is_ok());
        }
        assert!(check_hash("k", &mut file, Expected::Md5([0; 16])).is_err());
        assert!(check_hash("k", &mut file, Expected::Blake3([0; 32])).is_err());
    }

    #[test]
    fn sums_of_ranges_are_the_sum_of_the_whole() {
        let body: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
        let crc =
            body.chunks(7_001).fold(crc_of(b""), |crc, part| crc_join(crc, crc_of(part), part.len() as u64));
        assert_eq!(crc, crc_of(&body));
    }

    #[cfg(unix)]
    #[test]
    fn directories_are_made_and_links_refused() {
        let root = tempfile::tempdir().expect("a directory");
        make_directories(root.path(), Path::new("a/b")).expect("made");
        make_directories(root.path(), Path::new("a/b/c")).expect("made");
        assert!(root.path().join("a/b/c").is_dir());
        std::os::unix::fs::symlink("/", root.path().join("out")).expect("linked");
        assert!(make_directories(root.path(), Path::new("out/etc")).is_err());
        std::fs::write(root.path().join("file"), "").expect("written");
        assert!(make_directories(root.path(), Path::new("file/x")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn new_files_have_usual_permissions_and_vanish_unless_kept() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().expect("a directory");
        let file = temporary(root.path(), Path::new(&"ü".repeat(120))).expect("a file");
        let plain = std::fs::File::create(root.path().join("plain")).expect("a file");
        let mode = |file: &std::fs::File| file.metadata().expect("metadata").permissions().mode();
        assert_eq!(mode(file.as_file()), mode(&plain));
        drop(file);
        assert_eq!(std::fs::read_dir(root.path()).expect("readable").count(), 1);
    }
}
