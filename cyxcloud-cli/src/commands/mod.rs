//! One module per command.

pub(crate) mod api_keys;
pub(crate) mod auth;
pub(crate) mod delete;
pub(crate) mod download;
pub(crate) mod info;
pub(crate) mod list;
pub(crate) mod upload;

use crate::client::Error;

/// What became of many files, of which some may fail without stopping the others.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    done: u64,
    bytes: u64,
    failed: u64,
}

impl Tally {
    /// Counts one; an error that every other file would meet as well ends everything.
    pub(crate) fn count(
        &mut self,
        output: &crate::progress::Output,
        result: anyhow::Result<u64>,
    ) -> anyhow::Result<()> {
        match result {
            Ok(bytes) => {
                self.done += 1;
                self.bytes += bytes;
            }
            Err(error)
                if error.chain().any(|e| e.downcast_ref::<Error>().is_some_and(Error::concerns_all)) =>
            {
                return Err(error);
            }
            Err(error) => {
                output.error(&error);
                self.failed += 1;
            }
        }
        Ok(())
    }

    /// A line that says how it went; an error if anything failed.
    pub(crate) fn conclude(self, output: &crate::progress::Output, verb: &str) -> anyhow::Result<()> {
        let Self { done, bytes, failed } = self;
        if failed > 0 {
            anyhow::bail!("{failed} of {} files failed; the lines above say why", done + failed);
        }
        output.done(&format!("{verb} {done} files, {}", cyxcloud_core::ByteCount::bytes(bytes)));
        Ok(())
    }
}
