//! Waiting for conditions, never for time to pass.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};

const INTERVAL: Duration = Duration::from_millis(100);

/// Asks until it is answered; that not being so within `limit` is a broken promise. `what` completes "still not: ...".
pub async fn eventually<T, F>(what: &str, limit: Duration, mut look: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Option<T>>,
{
    let began = Instant::now();
    loop {
        if let Some(answer) = look().await {
            return Ok(answer);
        }
        if began.elapsed() >= limit {
            return Err(Error::Broken(format!("after {} s still not: {what}", limit.as_secs())));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
