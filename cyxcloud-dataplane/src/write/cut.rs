//! Cuts a body into buffers, and holds it to its declared length.

use std::collections::VecDeque;
use std::pin::Pin;

use bytes::Bytes;
use futures::{Stream, StreamExt};

use super::pace::Pace;
use crate::error::WriteError;

/// A body that is read from the front.
pub(super) struct Cutter<'a, S> {
    body: Pin<&'a mut S>,
    /// Bytes that came and were not yet taken.
    rest: VecDeque<Bytes>,
    declared: Option<u64>,
    /// Bytes that came.
    got: u64,
    ended: bool,
}

impl<'a, S, E> Cutter<'a, S>
where
    S: Stream<Item = Result<Bytes, E>>,
{
    pub(super) fn new(body: Pin<&'a mut S>, declared: Option<u64>) -> Self {
        Self { body, rest: VecDeque::new(), declared, got: 0, ended: false }
    }

    /// Whether there are bytes to be taken; waits for some.
    pub(super) async fn more(&mut self) -> Result<bool, WriteError<E>> {
        while self.rest.is_empty() && !self.ended {
            match self.body.next().await {
                Some(Ok(bytes)) => {
                    self.got += bytes.len() as u64;
                    self.check(self.declared.is_some_and(|declared| self.got > declared))?;
                    if !bytes.is_empty() {
                        self.rest.push_back(bytes);
                    }
                }
                Some(Err(error)) => return Err(WriteError::Body(error)),
                None => {
                    self.ended = true;
                    self.check(self.declared.is_some_and(|declared| self.got < declared))?;
                }
            }
        }
        Ok(!self.rest.is_empty())
    }

    fn check(&self, differs: bool) -> Result<(), WriteError<E>> {
        match self.declared {
            Some(declared) if differs => Err(WriteError::Length { declared, got: self.got }),
            _ => Ok(()),
        }
    }

    /// Takes bytes until `out` is full or the body has ended; answers how many.
    pub(super) async fn fill(&mut self, out: &mut [u8], pace: &mut Pace<'_>) -> Result<usize, WriteError<E>> {
        let mut filled = 0;
        while filled < out.len() && pace.keep(filled, self.more()).await? {
            let Some(front) = self.rest.front_mut() else { break };
            let here = front.split_to(front.len().min(out.len() - filled));
            out[filled..filled + here.len()].copy_from_slice(&here);
            filled += here.len();
            if front.is_empty() {
                self.rest.pop_front();
            }
        }
        Ok(filled)
    }

    /// Puts bytes back that were taken last.
    pub(super) fn unread(&mut self, bytes: Bytes) {
        self.rest.push_front(bytes);
    }

    /// Bytes that are still to come, where the length was declared. None of those put back or not yet taken are counted as
    /// having come.
    pub(super) fn left(&self) -> Option<u64> {
        let untaken: u64 = self.rest.iter().map(|bytes| bytes.len() as u64).sum();
        Some(self.declared?.saturating_sub(self.got) + untaken)
    }
}
