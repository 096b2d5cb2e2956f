//! Work that arrives while the database is busy with work of the same kind goes to it together.
//!
//! A statement costs the server little more for thirty rows than for one, and a commit waits for the disk once. Who
//! finds nobody under way goes at once and alone; nobody waits for company. What is under way runs in a task of its
//! own: a request that is given up takes nobody else's answer with it.
//!
//! The statements take arrays, the first of each `unnest` by way of a sub-select. It hides its length from the planner, which
//! otherwise makes a plan anew each time for arrays of fewer than the ten elements that it reckons with, and that
//! takes longer than the rest.
//! Not here: what to do when one of them stands in the way of all (whoever does the work).

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::oneshot;

use super::transact;
use crate::error::Result;

/// Batches under way at the same time: one waits for the disk while another is worked on.
const UNDER_WAY_MAX: usize = 2;
/// Pieces of work in a batch.
const BATCH_MAX: usize = 64;

/// Answers all of a batch, in order.
type Together<T, R> = Box<dyn Fn(Vec<T>) -> BoxFuture<'static, Vec<R>> + Send + Sync>;

/// Whether a piece of work may go with those before it.
type Fits<T> = fn(&[T], &T) -> bool;

/// Gathers work of one kind. A clone is the same.
pub(super) struct Gather<T, R>(Arc<Shared<T, R>>);

struct Shared<T, R> {
    queue: Mutex<Queue<T, R>>,
    together: Together<T, R>,
    fits: Fits<T>,
}

struct Queue<T, R> {
    waiting: VecDeque<(T, oneshot::Sender<R>)>,
    under_way: usize,
}

impl<T, R> Clone for Gather<T, R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Send + 'static, R: Send + 'static> Gather<T, R> {
    /// `together` answers a batch in order; work goes into a batch that it `fits`.
    pub(super) fn new<F>(fits: Fits<T>, together: impl Fn(Vec<T>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Vec<R>> + Send + 'static,
    {
        let queue = Mutex::new(Queue { waiting: VecDeque::new(), under_way: 0 });
        Self(Arc::new(Shared { queue, together: Box::new(move |batch| together(batch).boxed()), fits }))
    }

    /// Does a piece of work; `None` where whoever did it came to a sudden end.
    pub(super) async fn ask(&self, work: T) -> Option<R> {
        let (answer, answered) = oneshot::channel();
        let turn = {
            let mut queue = self.0.queue();
            queue.waiting.push_back((work, answer));
            (queue.under_way < UNDER_WAY_MAX).then(|| {
                queue.under_way += 1;
                Turn { shared: Arc::clone(&self.0), held: true }
            })
        };
        if let Some(turn) = turn {
            tokio::spawn(turn.work_off());
        }
        answered.await.ok()
    }
}

impl<T: Send + 'static, R: Send + 'static> Gather<T, Result<R>> {
    /// Does a piece of work that may fail, as whoever does it may come to a sudden end.
    pub(super) async fn answer(&self, doing: &'static str, work: T) -> Result<R> {
        let answer = self.ask(work).await;
        answer.unwrap_or_else(|| Err(transact::database(doing, sqlx::Error::WorkerCrashed)))
    }
}

impl<T, R> Shared<T, R> {
    fn queue(&self) -> MutexGuard<'_, Queue<T, R>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to have one batch under way.
struct Turn<T, R> {
    shared: Arc<Shared<T, R>>,
    held: bool,
}

impl<T, R> Turn<T, R> {
    /// Batch after batch, until nobody waits.
    async fn work_off(mut self) {
        while let Some((batch, answers)) = self.next() {
            let results = (self.shared.together)(batch).await;
            for (answer, result) in answers.into_iter().zip(results) {
                // Who no longer waits has no use for it.
                let _ = answer.send(result);
            }
        }
    }

    /// Takes what waits and goes together. Where nobody waits the turn ends under the same lock, so that nobody is left
    /// behind.
    fn next(&mut self) -> Option<(Vec<T>, Vec<oneshot::Sender<R>>)> {
        let mut queue = self.shared.queue();
        let (mut batch, mut answers, mut others) = (Vec::new(), Vec::new(), VecDeque::new());
        while batch.len() < BATCH_MAX
            && let Some((work, answer)) = queue.waiting.pop_front()
        {
            if (self.shared.fits)(&batch, &work) {
                batch.push(work);
                answers.push(answer);
            } else {
                others.push_back((work, answer));
            }
        }
        others.append(&mut queue.waiting);
        queue.waiting = others;
        if batch.is_empty() {
            queue.under_way -= 1;
            self.held = false;
            return None;
        }
        Some((batch, answers))
    }
}

/// A turn that comes to a sudden end lets go of those who wait: they are told, and may ask again.
impl<T, R> Drop for Turn<T, R> {
    fn drop(&mut self) {
        if self.held {
            let mut queue = self.shared.queue();
            queue.under_way -= 1;
            queue.waiting.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;

    /// Answers with the size of the batch, one batch for each permit.
    fn gather(gate: &Arc<Semaphore>) -> Gather<u32, usize> {
        let gate = Arc::clone(gate);
        Gather::new(
            |batch, work| !batch.contains(work),
            move |batch: Vec<u32>| {
                let gate = Arc::clone(&gate);
                async move {
                    gate.acquire().await.expect("open").forget();
                    assert!(!batch.contains(&13), "does not come back");
                    vec![batch.len(); batch.len()]
                }
            },
        )
    }

    type Asked = tokio::task::JoinHandle<(u32, Option<usize>)>;

    /// Asks for each and waits until so many batches are under way and so many wait in line.
    async fn ask(gather: &Gather<u32, usize>, work: &[u32], under_way: usize, waiting: usize) -> Vec<Asked> {
        let ask = |work: &u32| {
            let (gather, work) = (gather.clone(), *work);
            tokio::spawn(async move { (work, gather.ask(work).await) })
        };
        let asked = work.iter().map(ask).collect();
        loop {
            tokio::task::yield_now().await;
            let queue = gather.0.queue();
            if (queue.under_way, queue.waiting.len()) == (under_way, waiting) {
                return asked;
            }
        }
    }

    async fn answers(asked: Vec<Asked>) -> Vec<(u32, Option<usize>)> {
        futures::future::join_all(asked).await.into_iter().map(|answer| answer.expect("no panic")).collect()
    }

    #[tokio::test]
    async fn those_who_wait_go_together() {
        let gate = Arc::new(Semaphore::new(0));
        let gather = gather(&gate);
        let mut asked = ask(&gather, &[1], 1, 0).await;
        asked.extend(ask(&gather, &[2], 2, 0).await);
        asked.extend(ask(&gather, &[3, 4, 5, 6, 7], 2, 5).await);
        gate.add_permits(10);
        let sizes: Vec<_> = answers(asked).await.into_iter().map(|(_, size)| size).collect();
        assert_eq!(sizes, [1, 1, 5, 5, 5, 5, 5].map(Some));
        assert_eq!(gather.0.queue().under_way, 0);
    }

    #[tokio::test]
    async fn what_does_not_fit_goes_later() {
        let gate = Arc::new(Semaphore::new(0));
        let gather = gather(&gate);
        let mut asked = ask(&gather, &[1], 1, 0).await;
        asked.extend(ask(&gather, &[1], 2, 0).await);
        asked.extend(ask(&gather, &[5, 5, 6, 5], 2, 4).await);
        gate.add_permits(10);
        let mut answers = answers(asked).await;
        answers.sort_unstable();
        assert_eq!(
            answers,
            [(1, 1), (1, 1), (5, 1), (5, 1), (5, 2), (6, 2)].map(|(work, size)| (work, Some(size)))
        );
    }

    #[tokio::test]
    async fn a_sudden_end_is_told_and_the_next_is_served() {
        let gate = Arc::new(Semaphore::new(10));
        let gather = gather(&gate);
        assert_eq!(gather.ask(13).await, None);
        assert_eq!(gather.ask(1).await, Some(1));
        assert_eq!(gather.0.queue().under_way, 0);
    }
}
